#include "model/linear.h"

struct lowrank linear_pair(const struct model *model, const struct batch *batch, int layer, enum module module,
                           int64_t first_row) {
  struct lowrank pair = *model->pairs[layer][module];
  pair.dropout.row_ids = batch->row_ids ? batch->row_ids + first_row : NULL;
  pair.dropout.step = batch->step;
  if (!batch->training) pair.dropout.p = 0;
  return pair;
}

enum status linear_column_forward(struct model *model, const struct batch *batch, const struct entry *e,
                                  enum module module, struct tensor_view y, float *h) {
  const struct layer_weights *w = &model->weights.layers[e->layer];
  TRY(model->ops->linear_forward(model->device, batch->M, e->n, &w->linear[module], w->bias[module], y, false));
  if (!model->pairs[e->layer][module]) return STATUS_OK;
  struct lowrank pair = linear_pair(model, batch, e->layer, module, 0);
  /* shard + shard: B holds this rank's rows. With sequence parallelism h came with n. */
  return model->sequence ? model->ops->lowrank_expand_forward(model->device, batch->M, h, &pair, y)
                         : model->ops->lowrank_forward(model->device, batch->M, e->n, &pair, h, y);
}

enum status linear_column_backward(struct model *model, const struct batch *batch, const struct entry *e,
                                   enum module module, const float *h, struct tensor_view dy, bool below,
                                   bool accumulate) {
  const struct layer_weights *w = &model->weights.layers[e->layer];
  struct tensor_view dn = entry_gradient(model, e, below);
  if (below) TRY(model->ops->linear_backward(model->device, batch->M, dy, &w->linear[module], dn, accumulate));
  if (!model->pairs[e->layer][module]) return STATUS_OK;
  struct lowrank pair = linear_pair(model, batch, e->layer, module, 0);
  /* partial + partial: u = s dy_t B_t sums to the whole u over tp, and so does u A */
  if (!model->sequence) return model->ops->lowrank_backward(model->device, batch->M, e->n, h, dy, &pair, dn);
  TRY(model->ops->lowrank_expand_backward(model->device, batch->M, h, dy, &pair, model->acts.u));
  return entry_put_u(model, batch, e, module, model->acts.u, below);
}

enum status linear_row_forward(struct model *model, const struct batch *batch, int layer, enum module module,
                               struct tensor_view x, struct tensor_view y, bool accumulate, float *h) {
  const struct layer_weights *w = &model->weights.layers[layer];
  if (y.data) TRY(model->ops->linear_forward(model->device, batch->M, x, &w->linear[module], NULL, y, accumulate));
  if (!model->pairs[layer][module]) return STATUS_OK;
  struct lowrank pair = linear_pair(model, batch, layer, module, 0);
  if (!y.data) return model->ops->lowrank_project_forward(model->device, batch->M, x, &pair, h);
  /* partial + partial: x_t A_t' sums to the whole x A' over tp */
  return model->ops->lowrank_forward(model->device, batch->M, x, &pair, h, y);
}

enum status linear_row_backward(struct model *model, const struct batch *batch, int layer, enum module module,
                                struct tensor_view x, const float *h, struct tensor_view dy, struct tensor_view dx) {
  const struct layer_weights *w = &model->weights.layers[layer];
  if (dx.data) TRY(model->ops->linear_backward(model->device, batch->M, dy, &w->linear[module], dx, false));
  if (!model->pairs[layer][module]) return STATUS_OK;
  struct lowrank pair = linear_pair(model, batch, layer, module, 0);
  /* shard + shard: dy is whole, A holds this rank's columns */
  return model->ops->lowrank_backward(model->device, batch->M, x, h, dy, &pair, dx);
}
