/* prepare.h: activation buffers, for model/model.c. */
#ifndef LORASHARD_MODEL_PREPARE_H
#define LORASHARD_MODEL_PREPARE_H

#include "model/model.h"

/* Tokens of one chunk of the head's logits: the same on every tp rank, for they
 * reduce each chunk together. Larger on a device with its own memory, which needs
 * more rows for a product at full rate. */
int64_t activations_chunk(int64_t n_vocab, int n_tp, bool host_memory);

enum status activations_create(struct model *model, const struct prepare_options *options);
void activations_destroy(struct model *model);

#endif
