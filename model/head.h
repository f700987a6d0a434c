/*
 * head.h: final norm, vocabulary-parallel head and cross-entropy, in chunks of
 * tokens that have a target, so that logits never exist for a whole batch.
 */
#ifndef LORASHARD_MODEL_HEAD_H
#define LORASHARD_MODEL_HEAD_H

#include "model/model.h"

/* Loss of the batch's labels from acts.x_end. With `backward`, acts.dx = the
 * gradient of g x loss with respect to x_end (whole). nll as in transformer.h. */
enum status head_loss(struct model *model, const struct batch *batch, bool backward, float g, double *loss_sum,
                      float *nll);

/* Logits of the rows given, [n, V] whole on every rank. */
enum status head_logits(struct model *model, const int32_t *rows, int64_t n, float *logits);

#endif
