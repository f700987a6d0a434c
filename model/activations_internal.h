/* activations_internal.h: make and free a model's activation buffers, for model/model.c. */
#ifndef LORASHARD_MODEL_ACTIVATIONS_INTERNAL_H
#define LORASHARD_MODEL_ACTIVATIONS_INTERNAL_H

#include "model/model.h"

enum status activations_create(struct model *model, const struct prepare_options *options);
void activations_destroy(struct model *model);

#endif
