#include "model/linear.h"

/* The attached pair with this batch's dropout filled in. */
static struct lowrank pair_for(const struct lowrank *attached, const struct batch *batch) {
  struct lowrank pair = *attached;
  pair.dropout.row_ids = batch->row_ids;
  pair.dropout.step = batch->step;
  if (!batch->training) pair.dropout.p = 0;
  return pair;
}

enum status linear_column_forward(struct model *model, const struct batch *batch, int layer, enum module module,
                                  struct tensor_view x, struct tensor_view y, float *h) {
  const struct layer_weights *w = &model->weights.layers[layer];
  TRY(model->ops->linear_forward(model->device, batch->M, x, &w->linear[module], w->bias[module], y, false));
  const struct lowrank *attached = model->pairs[layer][module];
  if (!attached) return STATUS_OK;
  struct lowrank pair = pair_for(attached, batch);
  /* shard + shard: B holds this rank's rows */
  return model->ops->lowrank_forward(model->device, batch->M, x, &pair, h, y);
}

enum status linear_column_backward(struct model *model, const struct batch *batch, int layer, enum module module,
                                   struct tensor_view x, const float *h, struct tensor_view dy, struct tensor_view dn,
                                   bool accumulate) {
  const struct layer_weights *w = &model->weights.layers[layer];
  if (dn.data) TRY(model->ops->linear_backward(model->device, batch->M, dy, &w->linear[module], dn, accumulate));
  const struct lowrank *attached = model->pairs[layer][module];
  if (!attached) return STATUS_OK;
  struct lowrank pair = pair_for(attached, batch);
  /* partial + partial: u = s dy_t B_t sums to the whole u over tp, and so does u A */
  return model->ops->lowrank_backward(model->device, batch->M, x, h, dy, &pair, dn);
}

enum status linear_row_forward(struct model *model, const struct batch *batch, int layer, enum module module,
                               struct tensor_view x, struct tensor_view y, bool accumulate, float *h) {
  const struct layer_weights *w = &model->weights.layers[layer];
  TRY(model->ops->linear_forward(model->device, batch->M, x, &w->linear[module], NULL, y, accumulate));
  const struct lowrank *attached = model->pairs[layer][module];
  if (!attached) return STATUS_OK;
  struct lowrank pair = pair_for(attached, batch);
  /* partial + partial: x_t A_t' sums to the whole x A' over tp */
  return model->ops->lowrank_forward(model->device, batch->M, x, &pair, h, y);
}

enum status linear_row_backward(struct model *model, const struct batch *batch, int layer, enum module module,
                                struct tensor_view x, const float *h, struct tensor_view dy, struct tensor_view dx) {
  const struct layer_weights *w = &model->weights.layers[layer];
  if (dx.data) TRY(model->ops->linear_backward(model->device, batch->M, dy, &w->linear[module], dx, false));
  const struct lowrank *attached = model->pairs[layer][module];
  if (!attached) return STATUS_OK;
  struct lowrank pair = pair_for(attached, batch);
  /* shard + shard: dy is whole, A holds this rank's columns */
  return model->ops->lowrank_backward(model->device, batch->M, x, h, dy, &pair, dx);
}
