#include "lora/gradient.h"

enum status gradient_reduce(struct param_list *params, const struct mesh *mesh) {
  const struct param_bucket *stage = &params->buckets[PARAM_STAGE], *sharded = &params->buckets[PARAM_DP];
  TRY(comm_group_begin());
  /* partial over tp and dp -> replicated */
  TRY(comm_all_reduce_f32(mesh->stage, stage->g, stage->n, REDUCE_SUM));
  /* shard, partial over dp -> shard, replicated over dp */
  TRY(comm_all_reduce_f32(mesh->dp, sharded->g, sharded->n, REDUCE_SUM));
  return comm_group_end();
}

enum status gradient_square_share(struct device *device, const struct param_list *params, const struct mesh *mesh,
                                  double *share) {
  double stage = 0, sharded = 0;
  if (mesh->dp_rank == 0 && mesh->tp_rank == 0)
    TRY(device->ops->sum_squares(device, params->buckets[PARAM_STAGE].g, params->buckets[PARAM_STAGE].n, &stage));
  if (mesh->dp_rank == 0)
    TRY(device->ops->sum_squares(device, params->buckets[PARAM_DP].g, params->buckets[PARAM_DP].n, &sharded));
  *share = stage + sharded;
  return STATUS_OK;
}

double gradient_clip_factor(double norm, double clip_norm) {
  if (clip_norm <= 0) return 1;
  double factor = clip_norm / (norm + 1e-6); /* torch's own epsilon */
  return factor < 1 ? factor : 1;
}
