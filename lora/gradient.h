/*
 * gradient.h: the one reduction per group and step, and the global norm of what
 * it gives.
 */
#ifndef LORASHARD_LORA_GRADIENT_H
#define LORASHARD_LORA_GRADIENT_H

#include "lora/param.h"

/* Sum the gradient buckets over their groups: one all-reduce of 4 bytes a
 * parameter each. Afterwards every rank holds the gradient of the whole global
 * batch for its parts. */
enum status gradient_reduce(struct param_list *params, const struct mesh *mesh);

/* This rank's share of the squared norm of the reduced gradients: the sum of the
 * shares over all ranks counts every parameter once. */
enum status gradient_square_share(struct device *device, const struct param_list *params, const struct mesh *mesh,
                                  double *share);

/* The factor that brings a gradient of this norm to clip_norm at most (1 when it
 * is below, or clip_norm is 0), as torch.nn.utils.clip_grad_norm_ has it. */
double gradient_clip_factor(double norm, double clip_norm);

#endif
