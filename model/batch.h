/*
 * batch.h: the tokens of one micro-batch, as the model sees them.
 *
 * A caller fills the first part, in host memory. batch_place makes of it the batch
 * that the layers work with: the same, in device memory, and what follows from it.
 */
#ifndef LORASHARD_MODEL_BATCH_H
#define LORASHARD_MODEL_BATCH_H

#include <stdbool.h>

#include "model/device.h"

struct batch {
  int64_t M;                /* tokens, padding included */
  const int32_t *ids;       /* [M] */
  const int32_t *positions; /* [M] within the document */
  const int32_t *labels;    /* [M] id to predict, or -1; NULL: none */
  const int32_t *wanted;    /* [n_wanted] rows whose logits are asked for, instead of labels; NULL: none */
  int64_t n_wanted;
  const int64_t *row_ids;         /* [M] place in the global batch, for dropout; may be NULL without it */
  const struct segment *segments; /* documents, in order; rows behind the last are padding */
  int n_segments;
  int64_t step;  /* of the dropout masks */
  bool training; /* dropout acts */
  /* by batch_place */
  int64_t n_used;             /* rows that documents cover: those behind are padding */
  int64_t n_targets;          /* rows that have a label, or are wanted */
  const int32_t *target_rows; /* [n_targets] these rows */
  const int32_t *rows_host;   /* [n_targets] the same in host memory */
  const int32_t *targets;     /* [n_targets] their labels */
  /* by stage_place (model/pipeline.h) */
  int64_t own_first, own; /* rows of the residual stream that this rank holds: all but in sequence parallelism */
};

/* Where a placed batch lies: made by activations_create for up to max_tokens. */
struct batch_buffers {
  int64_t max_tokens;
  char *host;   /* staging; on a device with host memory the batch itself */
  char *device; /* the same layout; NULL on a device with host memory */
};

/* Bytes of one side of the buffers. */
size_t batch_bytes(int64_t max_tokens);

/* *placed = batch with its arrays where the device reads them; the caller's may be
 * written again. The batch before in these buffers must be done with.
 * STATUS_USAGE: more tokens than the buffers hold. */
enum status batch_place(struct device *device, struct batch_buffers *buffers, const struct batch *batch,
                        struct batch *placed);

#endif
