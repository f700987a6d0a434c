#include "io/row_pack.h"

#include <stdlib.h>
#include <string.h>

#define OPEN_ROWS 64

struct window {
  int n;
  int64_t row[OPEN_ROWS], room[OPEN_ROWS]; /* in order of opening */
};

static void window_close(struct window *window, int i) {
  window->n--;
  memmove(window->row + i, window->row + i + 1, (size_t)(window->n - i) * sizeof *window->row);
  memmove(window->room + i, window->room + i + 1, (size_t)(window->n - i) * sizeof *window->room);
}

static int64_t window_place(struct window *window, int64_t need, int64_t seq_len, int64_t *n_rows) {
  for (int i = 0; i < window->n; i++) {
    if (window->room[i] < need) continue;
    int64_t row = window->row[i];
    window->room[i] -= need;
    return row;
  }
  int64_t row = (*n_rows)++;
  if (need == seq_len) return row;
  if (window->n == OPEN_ROWS) { /* a row without room is the fullest */
    int fullest = 0;
    for (int i = 1; i < window->n; i++)
      if (window->room[i] < window->room[fullest]) fullest = i;
    window_close(window, fullest);
  }
  window->row[window->n] = row;
  window->room[window->n++] = seq_len - need;
  return row;
}

enum status row_pack(const int32_t *need, int64_t n, int64_t seq_len, bool packing, struct row_table *table) {
  struct row_table made = {0};
  struct window window = {0};
  int64_t *row_of = malloc((size_t)(n + 1) * sizeof *row_of);
  made.documents = malloc((size_t)(n + 1) * sizeof *made.documents);
  if (!row_of || !made.documents) goto no_memory;
  for (int64_t i = 0; i < n; i++)
    row_of[i] = packing ? window_place(&window, need[i], seq_len, &made.n_rows) : made.n_rows++;

  /* Counting sort by row; it keeps the order of documents. */
  made.first = calloc((size_t)made.n_rows + 2, sizeof *made.first);
  if (!made.first) goto no_memory;
  int64_t *next = made.first + 1; /* becomes `first` itself when all are placed */
  for (int64_t i = 0; i < n; i++)
    if (row_of[i] + 1 < made.n_rows) next[row_of[i] + 1]++;
  for (int64_t row = 1; row < made.n_rows; row++) next[row] += next[row - 1];
  for (int64_t i = 0; i < n; i++) made.documents[next[row_of[i]]++] = i;
  free(row_of);
  *table = made;
  return STATUS_OK;
no_memory:
  free(row_of);
  row_table_free(&made);
  return status_set(STATUS_SYSTEM, "no memory for rows of %lld documents", (long long)n);
}

void row_table_free(struct row_table *table) {
  free(table->first);
  free(table->documents);
  *table = (struct row_table){0};
}
