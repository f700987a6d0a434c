/*
 * block.h: one transformer layer, forward and backward, for every family.
 *
 * sequential:  x2 = x1 + attention(norm1 x1);  out = x2 + ffn(norm2 x2)
 * parallel:    out = x1 + attention(norm1 x1) + ffn(norm2 x1)
 * post-norm (opt-350m): norms follow the additions. Taken one place later that is
 * the sequential block with the residual read from the norm's output, which is
 * how weights.c deals the norms and this file adds: out = n + sublayer(n).
 */
#ifndef LORASHARD_MODEL_BLOCK_H
#define LORASHARD_MODEL_BLOCK_H

#include "model/model.h"

/* From s->x1 to out [own, D] f32 (the whole stream, or own rows of it with sequence
 * parallelism), keeping in *s what backward needs. One sum over tp for parallel
 * blocks, two for sequential ones. out.data NULL: only what backward needs. */
enum status block_forward(struct model *model, const struct batch *batch, int layer, struct layer_saved *s,
                          struct tensor_view out);

/* acts.dx [own, D]: on entry the gradient of out, on return that of x1 (if
 * needed). What the recomputation mode did not keep is computed again first. The
 * pairs' dA and dB +=, partial over tp as docs/architecture.md says. Overwrites
 * s->gate and s->up. */
enum status block_backward(struct model *model, const struct batch *batch, int layer, struct layer_saved *s);

#endif
