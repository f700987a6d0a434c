/*
 * schedule.h: the learning rate by step.
 */
#ifndef LORASHARD_LORA_SCHEDULE_H
#define LORASHARD_LORA_SCHEDULE_H

#include <stdint.h>

enum schedule { LR_LINEAR, LR_COSINE, LR_CONSTANT };

/* Rate of step `step` (0-based) of `steps`: rises linearly over the warm-up, then
 * falls to 0 linearly or by a half cosine, or stays. As transformers'
 * get_*_schedule_with_warmup. */
double schedule_lr(enum schedule kind, double peak, int64_t step, int64_t warmup, int64_t steps);

#endif
