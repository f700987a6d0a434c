/*
 * head.h: final norm, vocabulary-parallel head and cross-entropy, in chunks of
 * tokens that have a target, so that logits never exist for a whole batch.
 */
#ifndef LORASHARD_MODEL_HEAD_H
#define LORASHARD_MODEL_HEAD_H

#include "model/model.h"

/* Loss of the batch's labels from acts.x_end; its parts stay in acts.xent. With
 * `backward`, acts.dx = the gradient of g x loss with respect to x_end (whole, or own rows with sequence parallelism).
 * Queues its work and waits for nothing. */
enum status head_loss(struct model *model, const struct batch *batch, bool backward, float g);

/* Wait for head_loss and take the loss: *loss_sum and nll as in transformer.h. */
enum status head_collect(struct model *model, const struct batch *batch, double *loss_sum, float *nll);

/* Logits of the batch's wanted rows, [n_wanted, V] in host memory, whole on every rank. */
enum status head_logits(struct model *model, const struct batch *batch, float *logits);

#endif
