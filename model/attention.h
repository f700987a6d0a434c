/*
 * attention.h: the attention sublayer between the input norm and the o linear:
 * q k v linears, head norms, rotary, causal attention. Everything here is this
 * rank's heads: no communication.
 */
#ifndef LORASHARD_MODEL_ATTENTION_H
#define LORASHARD_MODEL_ATTENTION_H

#include "model/model.h"

/* acts.n (whole) -> s->qkv, s->attn, s->lse (shard). With model->cache, k and v
 * are appended there and attention reads all of it. */
enum status attention_sublayer_forward(struct model *model, const struct batch *batch, int layer,
                                       struct layer_saved *s);

/* d_attn [M, H_t E] act (shard) -> dn (partial; skipped when NULL) and the pairs' gradients. */
enum status attention_sublayer_backward(struct model *model, const struct batch *batch, int layer,
                                        struct layer_saved *s, struct tensor_view d_attn, struct tensor_view dn,
                                        bool accumulate);

#endif
