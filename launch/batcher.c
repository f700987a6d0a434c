#include "launch/batcher.h"

#include <stdlib.h>
#include <string.h>

#include "dist/order.h"

#define TOKENS_AT_ONCE 1024

int64_t batcher_rows_at_once(int64_t micro_batch, int64_t seq_len, int n_tp, bool host_memory) {
  int64_t rows = (TOKENS_AT_ONCE + seq_len - 1) / seq_len;
  return host_memory && n_tp == 1 && rows < micro_batch ? rows : micro_batch;
}

int64_t batcher_unit(int n_tp, bool sequence) {
  int64_t unit = BATCH_TOKEN_UNIT;
  while (sequence && unit % n_tp != 0) unit += BATCH_TOKEN_UNIT; /* least common multiple */
  return unit;
}

static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

int64_t batcher_max_tokens(int64_t seq_len, int64_t micro_batch, int64_t unit) {
  return round_up(seq_len * micro_batch, unit);
}

int64_t batcher_most_micro_batches(int64_t n, int n_dp, int64_t micro_batch) {
  int64_t rows = (n + n_dp - 1) / n_dp;
  return (rows + micro_batch - 1) / micro_batch;
}

enum status batcher_create(const struct dataset *data, int64_t seq_len, int64_t micro_batch, int64_t unit, bool shuffle,
                           uint64_t seed, struct batcher *batcher) {
  int64_t rows = dataset_rows(data);
  if (micro_batch > rows && !shuffle) micro_batch = rows;
  int64_t M = batcher_max_tokens(seq_len, micro_batch, unit);
  *batcher = (struct batcher){.data = data,
                              .seq_len = seq_len,
                              .micro_batch = micro_batch,
                              .shuffle = shuffle,
                              .seed = seed,
                              .unit = unit,
                              .max_tokens = M};
  size_t n = (size_t)M;
  batcher->ids = calloc(n, sizeof(int32_t));
  batcher->labels = calloc(n, sizeof(int32_t));
  batcher->positions = calloc(n, sizeof(int32_t));
  batcher->row_ids = calloc(n, sizeof(int64_t));
  batcher->segments = calloc(n, sizeof(struct segment));
  batcher->doc_starts = calloc((size_t)seq_len, sizeof(int32_t));
  if (batcher->ids && batcher->labels && batcher->positions && batcher->row_ids && batcher->segments &&
      batcher->doc_starts)
    return STATUS_OK;
  batcher_destroy(batcher);
  return status_set(STATUS_SYSTEM, "out of memory for a micro-batch of %lld tokens", (long long)M);
}

void batcher_destroy(struct batcher *batcher) {
  free(batcher->ids);
  free(batcher->labels);
  free(batcher->positions);
  free(batcher->row_ids);
  free(batcher->segments);
  free(batcher->doc_starts);
  memset(batcher, 0, sizeof *batcher);
}

static int64_t row_of(const struct batcher *batcher, int64_t sample) {
  int64_t rows = dataset_rows(batcher->data);
  return batcher->shuffle ? order_index(batcher->seed, sample / rows, rows, sample % rows) : sample % rows;
}

void batcher_count(const struct batcher *batcher, int64_t first, int64_t n, int64_t *targets, int64_t *tokens) {
  *targets = *tokens = 0;
  for (int64_t i = 0; i < n; i++) {
    int64_t row = row_of(batcher, first + i);
    *targets += dataset_row_targets(batcher->data, row);
    *tokens += dataset_row_tokens(batcher->data, row);
  }
}

void batcher_deal(int64_t n, int n_dp, int d, int64_t *first, int64_t *count) {
  int64_t base = n / n_dp, extra = n % n_dp;
  *first = d * base + (d < extra ? d : extra);
  *count = base + (d < extra);
}

/* Append one row's used positions at token `at`; returns the tokens added. */
static int64_t append_row(struct batcher *b, int64_t row, int64_t slot, int64_t at, int *n_segments) {
  int n_docs = 0;
  int64_t used = 0;
  dataset_row(b->data, row, b->ids + at, b->labels + at, b->positions + at, b->doc_starts, &n_docs, &used);
  for (int d = 0; d < n_docs; d++) {
    int32_t begin = b->doc_starts[d], end = d + 1 < n_docs ? b->doc_starts[d + 1] : (int32_t)used;
    int32_t q = (int32_t)at + begin, n = end - begin;
    b->segments[(*n_segments)++] = (struct segment){q, n, q, n};
  }
  for (int64_t t = 0; t < used; t++) b->row_ids[at + t] = slot * b->seq_len + t;
  return used;
}

void batcher_fill(struct batcher *b, int64_t sample, int64_t n, int64_t slot, struct batch *batch) {
  int64_t M = 0;
  int n_segments = 0;
  for (int64_t i = 0; i < n; i++) M += append_row(b, row_of(b, sample + i), slot + i, M, &n_segments);
  int64_t padded = round_up(M, b->unit);
  for (int64_t t = M; t < padded; t++) {
    b->ids[t] = b->positions[t] = 0;
    b->labels[t] = -1;
    b->row_ids[t] = -1;
  }
  *batch = (struct batch){.M = padded,
                          .ids = b->ids,
                          .positions = b->positions,
                          .labels = b->labels,
                          .row_ids = b->row_ids,
                          .segments = b->segments,
                          .n_segments = n_segments};
}
