#include "lora/adamw.h"

enum status adamw_update(struct device *device, struct param_list *params, const struct adamw_settings *settings,
                         double g_scale, int64_t step) {
  for (int group = 0; group < PARAM_GROUPS; group++) {
    struct param_bucket *bucket = &params->buckets[group];
    if (bucket->n == 0) continue;
    struct adamw_args args = {
        .w = bucket->w,
        .m = bucket->m,
        .v = bucket->v,
        .g = bucket->g,
        .n = bucket->n,
        .lr = (float)settings->lr,
        .beta1 = (float)settings->beta1,
        .beta2 = (float)settings->beta2,
        .eps = (float)settings->eps,
        .weight_decay = (float)settings->weight_decay,
        .g_scale = (float)g_scale,
        .t = step,
    };
    TRY(device->ops->adamw(device, &args));
  }
  return STATUS_OK;
}
