#include "lora/schedule.h"

#include <math.h>

double schedule_lr(enum schedule kind, double peak, int64_t step, int64_t warmup, int64_t steps) {
  if (step < warmup) return peak * (double)step / (double)(warmup > 1 ? warmup : 1);
  if (kind == LR_CONSTANT) return peak;
  int64_t span = steps - warmup;
  double progress = span > 0 ? (double)(step - warmup) / (double)span : 0;
  if (progress > 1) progress = 1;
  return kind == LR_LINEAR ? peak * (1 - progress) : peak * 0.5 * (1 + cos(M_PI * progress));
}
