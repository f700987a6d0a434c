/*
 * adamw.h: AdamW over the parameter buckets (Loshchilov and Hutter 2019, as
 * torch.optim.AdamW computes it).
 */
#ifndef LORASHARD_LORA_ADAMW_H
#define LORASHARD_LORA_ADAMW_H

#include "lora/param.h"

struct adamw_settings {
  double lr, beta1, beta2, eps, weight_decay;
};

/* One update of every parameter; gradients are multiplied by g_scale first. step
 * is 1-based. */
enum status adamw_update(struct device *device, struct param_list *params, const struct adamw_settings *settings,
                         double g_scale, int64_t step);

#endif
