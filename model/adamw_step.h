/*
 * adamw_step.h: the constants of one AdamW step, the same on every device. C and CUDA C.
 */
#ifndef LORASHARD_MODEL_ADAMW_STEP_H
#define LORASHARD_MODEL_ADAMW_STEP_H

#include <math.h>

#include "model/ops.h"

struct adamw_step {
  float keep_m, take_m, keep_v, take_v; /* beta1, 1 - beta1, beta2, 1 - beta2 */
  float rate;                           /* lr / (1 - beta1^t) */
  float spread;                         /* 1 / sqrt(1 - beta2^t) */
  float decay;                          /* lr weight_decay */
};

/* Betas are written as short decimals. 1 - beta of the nearest f32 would be off by 1.3e-5 for 0.999; the decimal of
 * seven places is taken back instead. */
static inline double adamw_decimal(float beta) { return round((double)beta * 1e7) / 1e7; }

static inline struct adamw_step adamw_step_of(const struct adamw_args *args) {
  double beta1 = adamw_decimal(args->beta1), beta2 = adamw_decimal(args->beta2);
  struct adamw_step step;
  step.keep_m = (float)beta1;
  step.take_m = (float)(1 - beta1);
  step.keep_v = (float)beta2;
  step.take_v = (float)(1 - beta2);
  step.rate = (float)((double)args->lr / (1 - pow(beta1, (double)args->t)));
  step.spread = (float)(1 / sqrt(1 - pow(beta2, (double)args->t)));
  step.decay = (float)((double)args->lr * (double)args->weight_decay);
  return step;
}

#endif
