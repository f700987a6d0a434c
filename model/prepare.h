/* prepare.h: activation buffers, for model/model.c. */
#ifndef LORASHARD_MODEL_PREPARE_H
#define LORASHARD_MODEL_PREPARE_H

#include "model/model.h"

enum status activations_create(struct model *model, int64_t max_tokens, bool training);
void activations_destroy(struct model *model);

#endif
