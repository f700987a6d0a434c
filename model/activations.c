#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "model/prepare.h"

/* One chunk of logits: bytes of the f32 logits, rows. */
#define CHUNK_BYTES_HOST   ((int64_t)48 << 20)
#define CHUNK_BYTES_DEVICE ((int64_t)1 << 30)
#define CHUNK_MAX_HOST     512
#define CHUNK_MAX_DEVICE   2048
#define CHUNK_MIN          16

static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* Add a [rows, cols] buffer and make the view describe it. */
static enum status add_view(struct memory_table *table, const char *name, int64_t rows, int64_t cols, enum dtype dtype,
                            struct tensor_view *view) {
  *view = (struct tensor_view){NULL, cols, dtype};
  return memory_add(table, name, dtype_bytes(dtype, rows * cols), &view->data);
}

static enum status add_floats(struct memory_table *table, const char *name, int64_t n, float **slot) {
  return memory_add(table, name, (size_t)n * sizeof(float), (void **)slot);
}

/* Everything a layer keeps but x1. */
static enum status add_layer(struct model *model, struct memory_table *table, int64_t M, struct layer_saved *s) {
  const struct model_facts *facts = &model->facts;
  int64_t D = facts->d_model, E = facts->head_dim, H = model->shard.heads.n, G = model->shard.kv_heads.n;
  int64_t F = model->shard.ffn.n;
  enum dtype act = model->act;
  if (!facts->parallel_residual) TRY(add_view(table, "residual", M, D, DTYPE_F32, &s->x2));
  TRY(add_floats(table, "norm statistics", M * 2, &s->stats1));
  TRY(add_floats(table, "norm statistics", M * 2, &s->stats2));
  TRY(add_view(table, "q k v", M, (H + 2 * G) * E, act, &s->qkv));
  if (facts->qk_norm) {
    TRY(add_view(table, "q k before their norm", M, (H + G) * E, act, &s->qk_raw));
    TRY(add_floats(table, "norm statistics", M * H, &s->q_stats));
    TRY(add_floats(table, "norm statistics", M * G, &s->k_stats));
  }
  TRY(add_view(table, "attention output", M, H * E, act, &s->attn));
  TRY(add_floats(table, "log-sum-exp", M * H, &s->lse));
  if (facts->gated) TRY(add_view(table, "ffn pre-activations", M, F, act, &s->gate));
  return add_view(table, "ffn pre-activations", M, F, act, &s->up);
}

static enum status add_adapter_products(struct model *model, struct memory_table *table, int64_t M, int layer,
                                        struct layer_saved *s) {
  for (int module = 0; module < MODULE_COUNT; module++) {
    const struct lowrank *pair = model->pairs[layer][module];
    if (pair) TRY(add_floats(table, "adapter x A'", M * pair->r, &s->h[module]));
  }
  return STATUS_OK;
}

/* Two sets of buffers that all layers flow through. They share everything but
 * x1, so that a block's output never overwrites its input. */
static enum status add_flowing(struct model *model, struct memory_table *table, int64_t M, struct layer_saved flow[2]) {
  TRY(add_layer(model, table, M, &flow[0]));
  for (int i = 0; i < 2; i++) TRY(add_view(table, "residual", M, model->facts.d_model, DTYPE_F32, &flow[i].x1));
  for (int module = 0; module < MODULE_COUNT; module++) {
    int64_t r = 0;
    for (int layer = 0; layer < model->facts.n_layers; layer++)
      if (model->pairs[layer][module]) r = max64(r, model->pairs[layer][module]->r);
    TRY(add_floats(table, "adapter x A'", M * r, &flow[0].h[module]));
  }
  return STATUS_OK;
}

static enum status add_backward(struct model *model, struct memory_table *table, int64_t M, int64_t widest) {
  struct activations *a = &model->acts;
  int64_t D = model->facts.d_model;
  int64_t qkv = (model->shard.heads.n + 2 * model->shard.kv_heads.n) * model->facts.head_dim;
  TRY(add_view(table, "gradients", M, D, DTYPE_F32, &a->dx));
  if (model->act != DTYPE_F32) TRY(add_view(table, "gradients", M, D, model->act, &a->dx_act));
  bool two_norms = model->facts.parallel_residual && !model->facts.shared_norm;
  TRY(add_view(table, "gradients", M, D, DTYPE_F32, &a->dn));
  if (two_norms) TRY(add_view(table, "gradients", M, D, DTYPE_F32, &a->dn_sum));
  TRY(add_view(table, "gradients", M, widest, DTYPE_F32, &a->wide));
  return add_view(table, "gradients", M, qkv, model->act, &a->dqkv);
}

int64_t activations_chunk(int64_t n_vocab, int n_tp, bool host_memory) {
  int64_t widest = (n_vocab + n_tp - 1) / n_tp; /* of any rank: all ranks cut alike */
  int64_t bytes = host_memory ? CHUNK_BYTES_HOST : CHUNK_BYTES_DEVICE;
  int64_t most = host_memory ? CHUNK_MAX_HOST : CHUNK_MAX_DEVICE;
  int64_t chunk = bytes / (int64_t)sizeof(float) / widest / CHUNK_MIN * CHUNK_MIN;
  return chunk < CHUNK_MIN ? CHUNK_MIN : chunk > most ? most : chunk;
}

/* The batch, and what comes back of it. */
static enum status add_batch(struct model *model, struct memory_table *table, int64_t M) {
  struct activations *a = &model->acts;
  bool host_memory = model->device->host_memory;
  a->batch.max_tokens = M;
  return memory_add(table, "batch", batch_bytes(M), (void **)(host_memory ? &a->batch.host : &a->batch.device));
}

/* Their other side on a device with its own memory. */
static enum status make_host_side(struct model *model, int64_t M) {
  struct activations *a = &model->acts;
  if (model->device->host_memory) {
    a->xent_host = a->xent;
    return STATUS_OK;
  }
  size_t batch = batch_bytes(M), xent = (size_t)(3 * M) * sizeof(float);
  TRY(device_host_alloc(model->device, batch + xent, "batch", &a->host));
  memset(a->host, 0, batch + xent);
  a->batch.host = a->host;
  a->xent_host = (float *)((char *)a->host + batch);
  return STATUS_OK;
}

static enum status add_head(struct model *model, struct memory_table *table, int64_t M) {
  struct activations *a = &model->acts;
  int64_t D = model->facts.d_model, De = model->facts.d_embed, V = max64(model->shard.vocab.n, 1);
  int64_t part = (model->facts.n_vocab + model->shard.n_tp - 1) / model->shard.n_tp;
  a->chunk = activations_chunk(model->facts.n_vocab, model->shard.n_tp, model->device->host_memory);
  if (a->chunk > M) a->chunk = M;
  TRY(add_view(table, "head", M, D, DTYPE_F32, &a->head_x));
  TRY(add_floats(table, "head", M * 2, &a->head_stats));
  TRY(add_view(table, "head", M, D, model->act, &a->head_n));
  TRY(add_view(table, "logits", a->chunk, V, DTYPE_F32, &a->logits));
  TRY(add_floats(table, "logits", 3 * M, &a->xent));
  TRY(add_floats(table, "logits", (1 + model->shard.n_tp) * GATHER_ROWS * part, &a->shares));
  if (De != D) TRY(add_view(table, "head", M, De, model->act, &a->head_e));
  if (!a->training) return STATUS_OK;
  TRY(add_view(table, "head", M, D, DTYPE_F32, &a->head_dn));
  if (De != D) TRY(add_view(table, "head", M, De, model->act, &a->head_de));
  return model->act == DTYPE_F32 ? STATUS_OK : add_view(table, "logits", a->chunk, V, model->act, &a->dlogits);
}

/* The second flowing set is the first but for x1. */
static void share_flow(struct model *model, struct layer_saved flow[2]) {
  struct activations *a = &model->acts;
  struct tensor_view x1 = flow[1].x1;
  flow[1] = flow[0];
  flow[1].x1 = x1;
  for (int layer = 0; layer < model->facts.n_layers; layer++) {
    a->flowing[layer] = flow[layer % 2];
    if (!a->training || layer < model->first_adapted) a->layers[layer] = flow[layer % 2];
  }
}

enum status activations_create(struct model *model, int64_t max_tokens, bool training) {
  struct activations *a = &model->acts;
  struct memory_table *table = &a->memory;
  int64_t L = model->facts.n_layers, D = model->facts.d_model, M = max_tokens;
  int64_t widest = max64(model->shard.ffn.n, model->shard.heads.n * model->facts.head_dim);
  if (model->facts.d_embed != D) widest = max64(widest, model->facts.d_embed); /* embedding rows on their way in */
  struct layer_saved flow[2];
  memset(flow, 0, sizeof flow);
  memset(a, 0, sizeof *a);
  a->max_tokens = M;
  a->training = training;
  table->kind = "activations";
  a->layers = calloc((size_t)L, sizeof *a->layers);
  a->flowing = calloc((size_t)L, sizeof *a->flowing);
  if (!a->layers || !a->flowing) return status_set(STATUS_SYSTEM, "out of memory for the activations' table");
  TRY(add_flowing(model, table, M, flow));
  for (int layer = model->first_adapted; training && layer < L; layer++) {
    TRY(add_layer(model, table, M, &a->layers[layer]));
    TRY(add_view(table, "residual", M, D, DTYPE_F32, &a->layers[layer].x1));
    TRY(add_adapter_products(model, table, M, layer, &a->layers[layer]));
  }
  TRY(add_view(table, "residual", M, D, DTYPE_F32, &a->x_end));
  TRY(add_view(table, "norm output", M, D, model->act, &a->n));
  TRY(add_view(table, "ffn activations", M, widest, model->act, &a->hidden));
  if (model->facts.d_embed != D) TRY(add_view(table, "embedding", M, model->facts.d_embed, DTYPE_F32, &a->embed));
  if (training) TRY(add_backward(model, table, M, widest));
  TRY(add_head(model, table, M));
  TRY(add_batch(model, table, M));
  TRY(memory_commit(table, model->device));
  TRY(make_host_side(model, M));
  share_flow(model, flow);
  if (model->act == DTYPE_F32) a->dlogits = a->logits;
  return STATUS_OK;
}

void activations_destroy(struct model *model) {
  memory_release(&model->acts.memory, model->device);
  device_host_free(model->device, model->acts.host);
  free(model->acts.layers);
  free(model->acts.flowing);
  memset(&model->acts, 0, sizeof model->acts);
}
