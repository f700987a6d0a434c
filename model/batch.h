/*
 * batch.h: the tokens of one micro-batch, as the model sees them.
 */
#ifndef LORASHARD_MODEL_BATCH_H
#define LORASHARD_MODEL_BATCH_H

#include <stdbool.h>

#include "model/ops.h"

struct batch {
  int64_t M;                      /* tokens, padding included */
  const int32_t *ids;             /* [M] */
  const int32_t *positions;       /* [M] within the document */
  const int32_t *labels;          /* [M] id to predict, or -1; NULL: none */
  const int64_t *row_ids;         /* [M] place in the global batch, for dropout; may be NULL without it */
  const struct segment *segments; /* documents, in order; rows behind the last are padding */
  int n_segments;
  int64_t step;  /* of the dropout masks */
  bool training; /* dropout acts */
};

#endif
