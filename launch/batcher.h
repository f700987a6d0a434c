/*
 * batcher.h: global batches from a dataset, dealt over data-parallel ranks and
 * cut into micro-batches, independent of the layout.
 *
 * Samples are numbered g = 0, 1, 2, ... over the whole run: sample g is row
 * order(seed, g / N)[g mod N] of the N rows, so every row is seen once an epoch
 * whatever the batch sizes, ranks and restarts.
 */
#ifndef LORASHARD_LAUNCH_BATCHER_H
#define LORASHARD_LAUNCH_BATCHER_H

#include "io/dataset.h"
#include "model/batch.h"

struct batcher {
  const struct dataset *data; /* borrowed */
  int64_t seq_len, micro_batch;
  bool shuffle;
  uint64_t seed;
  int64_t unit;       /* tokens of a micro-batch are rounded up to a multiple of it */
  int64_t max_tokens; /* of a micro-batch */
  /* buffers of one micro-batch */
  int32_t *ids, *labels, *positions; /* [max_tokens] */
  int64_t *row_ids;                  /* [max_tokens] */
  struct segment *segments;          /* [max_tokens] */
  int32_t *doc_starts;               /* [seq_len] */
};

/* Tokens are rounded up to a multiple of this, so that products meet few shapes, */
#define BATCH_TOKEN_UNIT 64
/* and with sequence parallelism of tp, too. */
int64_t batcher_unit(int n_tp, bool sequence);

/* Most tokens of a micro-batch of so many rows. */
int64_t batcher_max_tokens(int64_t seq_len, int64_t micro_batch, int64_t unit);

/* Micro-batches that a rank makes of its part of a global batch of n rows, at most. */
int64_t batcher_most_micro_batches(int64_t n, int n_dp, int64_t micro_batch);

/* Rows that go through the model at once: micro_batch, but on the CPU without
 * tensor parallelism no more than about 1024 tokens. Products run at full rate
 * from there on, and with no messages to make fewer of, more rows would only take
 * memory: micro-batches of any size cost that of 1024 tokens. A GPU wants more. */
int64_t batcher_rows_at_once(int64_t micro_batch, int64_t seq_len, int n_tp, bool host_memory);

enum status batcher_create(const struct dataset *data, int64_t seq_len, int64_t micro_batch, int64_t unit, bool shuffle,
                           uint64_t seed, struct batcher *batcher);
void batcher_destroy(struct batcher *batcher);

/* Samples [first, first + n) of the run: how many targets and tokens they have. */
void batcher_count(const struct batcher *batcher, int64_t first, int64_t n, int64_t *targets, int64_t *tokens);

/* The part of a global batch of n samples that data-parallel rank d of n_dp takes. */
void batcher_deal(int64_t n, int n_dp, int d, int64_t *first, int64_t *count);

/* Fill the buffers with samples [sample, sample + n), n <= micro_batch, which are
 * number `slot` and following of their global batch; *batch points into them. */
void batcher_fill(struct batcher *batcher, int64_t sample, int64_t n, int64_t slot, struct batch *batch);

#endif
