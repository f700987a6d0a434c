/*
 * attention.h: the attention sublayer between the input norm and the o linear:
 * q k v linears, head norms, rotary, causal attention. Everything here is this
 * rank's heads: no communication.
 */
#ifndef LORASHARD_MODEL_ATTENTION_H
#define LORASHARD_MODEL_ATTENTION_H

#include "model/exchange.h"

/* The entry's n (whole) -> s->qkv, s->attn, s->lse (shard). With model->cache, k and
 * v are appended there and attention reads all of it. */
enum status attention_sublayer_forward(struct model *model, const struct batch *batch, const struct entry *entry,
                                       struct layer_saved *s);

/* d_attn [M, H_t E] act (shard) -> the entry's gradient =, partial (D columns where `below`); the pairs' dB +=, and
 * dA +=, except with sequence parallelism (entry_backward). */
enum status attention_sublayer_backward(struct model *model, const struct batch *batch, const struct entry *entry,
                                        struct layer_saved *s, struct tensor_view d_attn, bool below);

#endif
