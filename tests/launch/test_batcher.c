/*
 * The sequence of samples is a function of (seed, epoch, index): each row once
 * an epoch, whatever the micro-batches, replicas and restarts. Packed rows are
 * cut into their documents.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dist/order.h"
#include "launch/batcher.h"

enum { SEQ_LEN = 256, GLOBAL_BATCH = 5, STEPS = 26, SEED = 11 };

struct rows {
  struct tokenizer *tokenizer;
  struct dataset *data;
  int64_t n;
  int32_t ids[64][SEQ_LEN], labels[64][SEQ_LEN];
};
static struct rows all;

static void open_rows(bool packing, struct dataset **data) {
  const char *const files[] = {SOURCE_DIR "/launch/data/e2e-eval.txt"};
  struct dataset_options options = {.files = files,
                                    .n_files = 1,
                                    .format = "e2e",
                                    .chat_template = "auto",
                                    .seq_len = SEQ_LEN,
                                    .packing = packing,
                                    .tokenizer = all.tokenizer,
                                    .n_vocab = 512,
                                    .n_workers = 1};
  assert_int_equal(dataset_open(&options, data), STATUS_OK);
}

static int open_data(void **state) {
  (void)state;
  assert_int_equal(tokenizer_open(FIXTURES "/stories260K", &all.tokenizer), STATUS_OK);
  open_rows(false, &all.data);
  all.n = dataset_rows(all.data);
  assert_true(all.n <= 64 && all.n > 2 * GLOBAL_BATCH);
  for (int64_t row = 0; row < all.n; row++) {
    int32_t positions[SEQ_LEN], starts[SEQ_LEN];
    int n_docs;
    int64_t used;
    dataset_row(all.data, row, all.ids[row], all.labels[row], positions, starts, &n_docs, &used);
  }
  return 0;
}

static int close_data(void **state) {
  (void)state;
  dataset_close(&all.data);
  tokenizer_close(&all.tokenizer);
  return 0;
}

/* Which row a piece of a batch is. Equal rows are told apart by nothing, so the first with these ids stands for all. */
static int64_t find_row(const int32_t *ids, int64_t n) {
  for (int64_t row = 0; row < all.n; row++)
    if (dataset_row_tokens(all.data, row) == n && memcmp(ids, all.ids[row], (size_t)n * sizeof *ids) == 0) return row;
  return -1;
}

/* The rows of one step's global batch as n_dp ranks see them, in the order of their slots. */
static void collect(int64_t samples, int n_dp, int64_t micro_batch, int64_t *rows) {
  struct batcher batcher;
  assert_int_equal(batcher_create(all.data, SEQ_LEN, micro_batch, BATCH_TOKEN_UNIT, true, SEED, &batcher), STATUS_OK);
  for (int64_t slot = 0; slot < GLOBAL_BATCH; slot++) rows[slot] = -1;
  for (int d = 0; d < n_dp; d++) {
    int64_t first, count;
    batcher_deal(GLOBAL_BATCH, n_dp, d, &first, &count);
    for (int64_t i = 0; i < count; i += micro_batch) {
      int64_t n = count - i < micro_batch ? count - i : micro_batch;
      struct batch batch;
      batcher_fill(&batcher, samples + first + i, n, first + i, &batch);
      assert_true(batch.M % BATCH_TOKEN_UNIT == 0 && batch.n_segments == n);
      for (int s = 0; s < batch.n_segments; s++) {
        const struct segment *segment = &batch.segments[s];
        int64_t slot = batch.row_ids[segment->q] / SEQ_LEN;
        assert_in_range(slot, 0, GLOBAL_BATCH - 1);
        assert_int_equal(rows[slot], -1);
        rows[slot] = find_row(batch.ids + segment->q, segment->n_q);
        for (int64_t t = 0; t < segment->n_q; t++) assert_int_equal(batch.row_ids[segment->q + t], slot * SEQ_LEN + t);
      }
    }
  }
  batcher_destroy(&batcher);
}

/* The row that sample `sample` of the run should be. */
static int64_t wanted_row(int64_t sample) {
  int64_t row = order_index(SEED, sample / all.n, all.n, sample % all.n);
  return find_row(all.ids[row], dataset_row_tokens(all.data, row));
}

static void test_same_sequence(void **state) {
  (void)state;
  static const struct {
    int n_dp;
    int64_t micro_batch;
  } layouts[] = {{1, 1}, {1, 2}, {1, 5}, {2, 1}, {2, 2}, {3, 1}, {4, 4}, {5, 1}, {7, 1}};
  for (int64_t step = 0; step < STEPS; step++)
    for (size_t k = 0; k < sizeof layouts / sizeof layouts[0]; k++) {
      int64_t rows[GLOBAL_BATCH];
      collect(step * GLOBAL_BATCH, layouts[k].n_dp, layouts[k].micro_batch, rows);
      for (int64_t slot = 0; slot < GLOBAL_BATCH; slot++)
        assert_int_equal(rows[slot], wanted_row(step * GLOBAL_BATCH + slot));
    }
}

/* A run that stops twice inside the second epoch and goes on with other replicas: dp 1, 2, 1. */
static void test_each_row_once_an_epoch(void **state) {
  (void)state;
  int seen[64] = {0}, want[64] = {0};
  int64_t epochs = 3, samples = 0, stops = 0;
  while (samples + GLOBAL_BATCH <= epochs * all.n) {
    int64_t rows[GLOBAL_BATCH];
    stops = (samples > all.n + all.n / 3) + (samples > all.n + 2 * all.n / 3);
    collect(samples, stops == 1 ? 2 : 1, 2, rows);
    for (int64_t slot = 0; slot < GLOBAL_BATCH; slot++) seen[rows[slot]]++;
    samples += GLOBAL_BATCH;
  }
  assert_int_equal(stops, 2);
  for (int64_t sample = samples; sample < epochs * all.n; sample++) /* what a last, smaller batch would take */
    seen[wanted_row(sample)]++;
  for (int64_t row = 0; row < all.n; row++)
    want[find_row(all.ids[row], dataset_row_tokens(all.data, row))] += (int)epochs;
  assert_memory_equal(seen, want, sizeof seen);
}

/* Targets and tokens of a global batch do not depend on who takes them: sums over rows. */
static void test_counts(void **state) {
  (void)state;
  struct batcher batcher;
  assert_int_equal(batcher_create(all.data, SEQ_LEN, 2, BATCH_TOKEN_UNIT, true, SEED, &batcher), STATUS_OK);
  int64_t whole[2], part[2], sums[2] = {0, 0};
  batcher_count(&batcher, 0, all.n, &whole[0], &whole[1]);
  assert_int_equal(whole[0], dataset_counts(all.data)->targets);
  assert_int_equal(whole[1], dataset_counts(all.data)->tokens);
  for (int64_t i = 0; i < all.n; i += 3) {
    batcher_count(&batcher, i, all.n - i < 3 ? all.n - i : 3, &part[0], &part[1]);
    sums[0] += part[0];
    sums[1] += part[1];
  }
  assert_memory_equal(sums, whole, sizeof sums);
  batcher_destroy(&batcher);
}

/* One segment of a packed batch: a document of its own, as it stands alone in a row. Returns which. */
static int64_t check_document(const struct batch *batch, const struct segment *segment) {
  int64_t q = segment->q, n = segment->n_q, document = find_row(batch->ids + q, n);
  assert_true(segment->k == segment->q && segment->n_k == segment->n_q);
  assert_in_range(document, 0, all.n - 1);
  /* The last target ends the document: it is no token of the next one. */
  assert_memory_equal(batch->labels + q, all.labels[document], (size_t)n * sizeof *batch->labels);
  for (int64_t t = 0; t < n; t++) {
    assert_int_equal(batch->positions[q + t], t);
    assert_int_equal(batch->row_ids[q + t], batch->row_ids[q] + t);
  }
  return document;
}

/* Packed rows: every document once, whole, as a segment that sees nothing of its neighbours. */
static void test_packed_rows(void **state) {
  (void)state;
  enum { MICRO_BATCH = 3 };
  int seen[64] = {0}, want[64] = {0}, n_segments = 0;
  struct dataset *data = NULL;
  struct batcher batcher;
  open_rows(true, &data);
  assert_int_equal(batcher_create(data, SEQ_LEN, MICRO_BATCH, BATCH_TOKEN_UNIT, true, SEED, &batcher), STATUS_OK);
  int64_t rows = dataset_rows(data);
  for (int64_t sample = 0; sample < rows; sample += MICRO_BATCH) {
    int64_t n = rows - sample < MICRO_BATCH ? rows - sample : MICRO_BATCH, end = 0;
    struct batch batch;
    batcher_fill(&batcher, sample, n, sample, &batch);
    for (int s = 0; s < batch.n_segments; s++) {
      assert_int_equal(batch.segments[s].q, end); /* one behind the other */
      seen[check_document(&batch, &batch.segments[s])]++;
      end += batch.segments[s].n_q;
    }
    n_segments += batch.n_segments;
    assert_int_equal(batch.M, (end + BATCH_TOKEN_UNIT - 1) / BATCH_TOKEN_UNIT * BATCH_TOKEN_UNIT);
    for (int64_t t = end; t < batch.M; t++) assert_true(batch.labels[t] == -1 && batch.row_ids[t] == -1);
  }
  assert_true(rows < all.n); /* some row holds several documents */
  assert_int_equal(n_segments, all.n);
  for (int64_t row = 0; row < all.n; row++) want[find_row(all.ids[row], dataset_row_tokens(all.data, row))]++;
  assert_memory_equal(seen, want, sizeof seen);
  batcher_destroy(&batcher);
  dataset_close(&data);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_same_sequence),
      cmocka_unit_test(test_each_row_once_an_epoch),
      cmocka_unit_test(test_counts),
      cmocka_unit_test(test_packed_rows),
  };
  return cmocka_run_group_tests(tests, open_data, close_data);
}
