/*
 * linear.h: the two kinds of tensor-parallel linear, each with an optional
 * low-rank pair that joins the base's own communication (docs/architecture.md).
 *
 * Column-parallel (q k v gate up): input whole on every rank (an entry of
 * model/exchange.h), output this rank's columns. Row-parallel (o down): input this
 * rank's columns, output PARTIAL: the caller sums it over tp. The pair's output is
 * always in the same parallel state as the base's output that it is added to.
 */
#ifndef LORASHARD_MODEL_LINEAR_H
#define LORASHARD_MODEL_LINEAR_H

#include "model/exchange.h"

/* The pair on a linear, which must be there, with this batch's dropout for rows from first_row on. */
struct lowrank linear_pair(const struct model *model, const struct batch *batch, int layer, enum module module,
                           int64_t first_row);

/* y = n W' + bias + s (n A') B'. n whole [M, D], y shard [M, out_t]; h [M, r] kept. */
enum status linear_column_forward(struct model *model, const struct batch *batch, const struct entry *entry,
                                  enum module module, struct tensor_view y, float *h);

/* The entry's gradient dn = (or +=) dy W + u A, PARTIAL, where `below` asks for it; dB +=; dA +=, or with sequence
 * parallelism u, PARTIAL, into the entry's columns. n as entry_again left it. dy shard. */
enum status linear_column_backward(struct model *model, const struct batch *batch, const struct entry *entry,
                                   enum module module, const float *h, struct tensor_view dy, bool below,
                                   bool accumulate);

/* y = (or +=) x W' + s (x A') B', PARTIAL, f32, without the bias. x shard. y.data NULL: h alone. */
enum status linear_row_forward(struct model *model, const struct batch *batch, int layer, enum module module,
                               struct tensor_view x, struct tensor_view y, bool accumulate, float *h);

/* dx = dy W + v A, shard, f32 (skipped when dx.data is NULL); dA, dB +=. dy whole. */
enum status linear_row_backward(struct model *model, const struct batch *batch, int layer, enum module module,
                                struct tensor_view x, const float *h, struct tensor_view dy, struct tensor_view dx);

#endif
