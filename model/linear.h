/*
 * linear.h: the two kinds of tensor-parallel linear, each with an optional
 * low-rank pair that joins the base's own communication (docs/architecture.md).
 *
 * Column-parallel (q k v gate up): input whole on every rank, output this rank's
 * columns. Row-parallel (o down): input this rank's columns, output PARTIAL: the
 * caller sums it over tp. The pair's output is always in the same parallel
 * state as the base's output that it is added to.
 */
#ifndef LORASHARD_MODEL_LINEAR_H
#define LORASHARD_MODEL_LINEAR_H

#include "model/model.h"

/* y = x W' + bias + s (x A') B'. x whole [M, D], y shard [M, out_t]; h [M, r] kept. */
enum status linear_column_forward(struct model *model, const struct batch *batch, int layer, enum module module,
                                  struct tensor_view x, struct tensor_view y, float *h);

/* dn += dy W + u A, PARTIAL (skipped when dn.data is NULL); dA, dB +=. x as in
 * forward, needed only with a pair. dy shard. */
enum status linear_column_backward(struct model *model, const struct batch *batch, int layer, enum module module,
                                   struct tensor_view x, const float *h, struct tensor_view dy, struct tensor_view dn,
                                   bool accumulate);

/* y = (or +=) x W' + s (x A') B', PARTIAL, f32, without the bias. x shard. */
enum status linear_row_forward(struct model *model, const struct batch *batch, int layer, enum module module,
                               struct tensor_view x, struct tensor_view y, bool accumulate, float *h);

/* dx = dy W + v A, shard, f32 (skipped when dx.data is NULL); dA, dB +=. dy whole. */
enum status linear_row_backward(struct model *model, const struct batch *batch, int layer, enum module module,
                                struct tensor_view x, const float *h, struct tensor_view dy, struct tensor_view dx);

#endif
