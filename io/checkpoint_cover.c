/*
 * checkpoint_cover.c: do rectangles tile a matrix exactly?
 */
#include <stdlib.h>

#include "io/checkpoint_internal.h"

static int by_position(const void *a, const void *b) {
  const struct piece *x = a, *y = b;
  if (x->row != y->row) return x->row < y->row ? -1 : 1;
  if (x->col != y->col) return x->col < y->col ? -1 : 1;
  return (x->source > y->source) - (x->source < y->source);
}

static bool overlap(const struct piece *a, const struct piece *b) {
  return a->row < b->row + b->rows && b->row < a->row + a->rows && a->col < b->col + b->cols &&
         b->col < a->col + a->cols;
}

void cover_check(struct piece *pieces, int n, int64_t rows, int64_t cols, struct cover_fault *fault) {
  *fault = (struct cover_fault){.kind = COVER_WHOLE, .missing = rows * cols};
  qsort(pieces, (size_t)n, sizeof *pieces, by_position);
  for (int i = 0; i < n; i++) {
    fault->missing -= pieces[i].rows * pieces[i].cols;
    for (int j = i + 1; j < n && pieces[j].row < pieces[i].row + pieces[i].rows; j++) {
      if (!overlap(&pieces[i], &pieces[j])) continue;
      fault->kind = COVER_OVERLAP;
      fault->first = pieces[i].source;
      fault->second = pieces[j].source;
      return;
    }
  }
  /* Without overlaps, equal area is equal to full cover. */
  if (fault->missing > 0) fault->kind = COVER_GAP;
}
