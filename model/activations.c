#include <stdlib.h>
#include <string.h>

#include "model/activations_internal.h"
#include "model/exchange.h"

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

/* The parts of what a layer keeps that a recomputation mode may do without. */
static enum status add_pre_activations(struct model *model, struct memory_table *table, int64_t M,
                                       struct layer_saved *s) {
  int64_t F = model->shard.ffn.n;
  if (model->facts.gated) TRY(add_view(table, "ffn pre-activations", M, F, model->act, &s->gate));
  return add_view(table, "ffn pre-activations", M, F, model->act, &s->up);
}

/* All else that a layer keeps, but x1 and h. */
static enum status add_layer(struct model *model, struct memory_table *table, struct layer_saved *s) {
  const struct model_facts *facts = &model->facts;
  int64_t D = facts->d_model, E = facts->head_dim, H = model->shard.heads.n, G = model->shard.kv_heads.n;
  int64_t M = model->acts.max_tokens, T = model->acts.own_tokens;
  enum dtype act = model->act;
  if (!facts->parallel_residual) TRY(add_view(table, "residual", T, D, DTYPE_F32, &s->x2));
  TRY(add_floats(table, "norm statistics", T * 2, &s->stats1));
  TRY(add_floats(table, "norm statistics", T * 2, &s->stats2));
  TRY(add_view(table, "q k v", M, (H + 2 * G) * E, act, &s->qkv));
  if (facts->qk_norm) {
    TRY(add_view(table, "q k before their norm", M, (H + G) * E, act, &s->qk_raw));
    TRY(add_floats(table, "norm statistics", M * H, &s->q_stats));
    TRY(add_floats(table, "norm statistics", M * G, &s->k_stats));
  }
  TRY(add_view(table, "attention output", M, H * E, act, &s->attn));
  return add_floats(table, "log-sum-exp", M * H, &s->lse);
}

static enum status add_adapter_products(struct model *model, struct memory_table *table, int layer,
                                        struct layer_saved *s) {
  for (int module = 0; module < MODULE_COUNT; module++) {
    const struct lowrank *pair = model->pairs[layer][module];
    if (pair) TRY(add_floats(table, "adapter x A'", model->acts.max_tokens * pair->r, &s->h[module]));
  }
  return STATUS_OK;
}

/* Largest rank of the stage's adapters on a module. */
static int64_t largest_rank(const struct model *model, int module) {
  int64_t r = 0;
  for (int layer = 0; layer < model->facts.n_layers; layer++)
    if (model->pairs[layer][module]) r = max64(r, model->pairs[layer][module]->r);
  return r;
}

/* Two sets of buffers that layers flow through. They share everything but x1, so
 * that a block's output never overwrites its input. */
static enum status add_flowing(struct model *model, struct memory_table *table, struct layer_saved flow[2]) {
  const int64_t M = model->acts.max_tokens, T = model->acts.own_tokens;
  TRY(add_layer(model, table, &flow[0]));
  TRY(add_pre_activations(model, table, M, &flow[0]));
  for (int i = 0; i < 2; i++) TRY(add_view(table, "residual", T, model->facts.d_model, DTYPE_F32, &flow[i].x1));
  for (int module = 0; module < MODULE_COUNT; module++)
    TRY(add_floats(table, "adapter x A'", M * largest_rank(model, module), &flow[0].h[module]));
  return STATUS_OK;
}

/* What a micro-batch keeps of the stage's layers from the lowest adapter on. */
static enum status add_set(struct model *model, struct memory_table *table, struct activation_set *set) {
  const int64_t M = model->acts.max_tokens, T = model->acts.own_tokens, D = model->facts.d_model;
  for (int layer = model->backward_from; layer < shard_end_layer(&model->shard); layer++) {
    struct layer_saved *s = &set->layers[layer];
    TRY(add_view(table, "residual", T, D, DTYPE_F32, &s->x1));
    if (model->recompute == RECOMPUTE_FULL) continue;
    TRY(add_layer(model, table, s));
    TRY(add_adapter_products(model, table, layer, s));
    if (model->recompute == RECOMPUTE_NONE) TRY(add_pre_activations(model, table, M, s));
  }
  return STATUS_OK;
}

static enum status add_backward(struct model *model, struct memory_table *table, int64_t widest) {
  struct activations *a = &model->acts;
  const int64_t D = model->facts.d_model, M = a->max_tokens, T = a->own_tokens;
  int64_t qkv = (model->shard.heads.n + 2 * model->shard.kv_heads.n) * model->facts.head_dim;
  TRY(add_view(table, "gradients", T, D, DTYPE_F32, &a->dx));
  if (model->sequence) {
    TRY(add_view(table, "norm output", T, D, model->act, &a->own_n));
  } else {
    bool two_norms = model->facts.parallel_residual && !model->facts.shared_norm;
    if (model->act != DTYPE_F32) TRY(add_view(table, "gradients", M, D, model->act, &a->dx_act));
    TRY(add_view(table, "gradients", M, D, DTYPE_F32, &a->dn));
    if (two_norms) TRY(add_view(table, "gradients", M, D, DTYPE_F32, &a->dn_sum));
  }
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

/* A norm's output, whole, and where sums over tp are put together. */
static enum status add_exchange(struct model *model, struct memory_table *table) {
  struct activations *a = &model->acts;
  const int64_t D = model->facts.d_model, M = a->max_tokens;
  if (!model->sequence) return add_view(table, "norm output", M, D, model->act, &a->n);
  int64_t columns = entry_most_columns(model), r = 0;
  for (int module = 0; module < MODULE_COUNT; module++) r = max64(r, largest_rank(model, module));
  TRY(memory_add(table, "norm output", (size_t)M * entry_row_bytes(model, columns), &a->n.data));
  TRY(add_view(table, "sums over tp", M, max64(D + columns, model->facts.d_embed), DTYPE_F32, &a->partial));
  return add_floats(table, "adapter columns", M * r, &a->u);
}

static enum status add_head(struct model *model, struct memory_table *table) {
  struct activations *a = &model->acts;
  const int64_t D = model->facts.d_model, De = model->facts.d_embed;
  /* Rows of logits begin at multiples of 16 bytes in either type, as a GPU's products and vector loads want them: 8
   * elements. */
  const int64_t V = (max64(model->shard.vocab.n, 1) + 7) / 8 * 8;
  const int64_t part = (model->facts.n_vocab + model->shard.n_tp - 1) / model->shard.n_tp, M = a->max_tokens;
  a->chunk = activations_chunk(model->facts.n_vocab, model->shard.n_tp, model->device->host_memory);
  if (a->chunk > M) a->chunk = M;
  const int64_t C = model->sequence ? a->chunk : M;
  if (!model->sequence) TRY(add_view(table, "head", M, D, DTYPE_F32, &a->head_x));
  TRY(add_floats(table, "head", M * 2, &a->head_stats));
  TRY(add_view(table, "head", C, D, model->act, &a->head_n));
  TRY(add_view(table, "logits", a->chunk, V, DTYPE_F32, &a->logits));
  TRY(add_floats(table, "logits", 3 * M, &a->xent));
  TRY(add_floats(table, "logits", (1 + model->shard.n_tp) * GATHER_ROWS * part, &a->shares));
  if (De != D) TRY(add_view(table, "head", a->chunk, De, model->act, &a->head_e));
  if (!a->training) return STATUS_OK;
  TRY(add_view(table, "head", C, D, DTYPE_F32, &a->head_dn));
  if (De != D) TRY(add_view(table, "head", a->chunk, De, model->act, &a->head_de));
  return model->act == DTYPE_F32 ? STATUS_OK : add_view(table, "logits", a->chunk, V, model->act, &a->dlogits);
}

/* The batches, and what comes back of them. */
static enum status add_batches(struct model *model, struct memory_table *table) {
  struct activations *a = &model->acts;
  for (int i = 0; i < a->n_sets; i++) {
    struct batch_buffers *buffers = &a->sets[i].buffers;
    buffers->max_tokens = a->max_tokens;
    char **side = model->device->host_memory ? &buffers->host : &buffers->device;
    TRY(memory_add(table, "batch", batch_bytes(a->max_tokens), (void **)side));
  }
  return STATUS_OK;
}

/* Their other side on a device with its own memory. */
static enum status make_host_side(struct model *model) {
  struct activations *a = &model->acts;
  if (model->device->host_memory) {
    a->xent_host = a->xent;
    return STATUS_OK;
  }
  size_t batch = batch_bytes(a->max_tokens), batches = (size_t)a->n_sets * batch;
  size_t xent = (size_t)(3 * a->max_tokens) * sizeof(float);
  TRY(device_host_alloc(model->device, batches + xent, "batch", &a->host));
  memset(a->host, 0, batches + xent);
  for (int i = 0; i < a->n_sets; i++) a->sets[i].buffers.host = (char *)a->host + (size_t)i * batch;
  a->xent_host = (float *)((char *)a->host + batches);
  return STATUS_OK;
}

/* `s` keeps what it has of its own; the rest is `flow`'s. */
static void flow_through(struct layer_saved *s, const struct layer_saved *flow) {
  struct layer_saved own = *s;
  *s = *flow;
  if (own.x1.data) s->x1 = own.x1;
  if (!own.qkv.data) return;
  struct tensor_view gate = own.up.data ? own.gate : flow->gate, up = own.up.data ? own.up : flow->up;
  own.x1 = s->x1;
  *s = own;
  s->gate = gate;
  s->up = up;
}

/* The second flowing set is the first but for x1. */
static void share_flow(struct model *model, struct layer_saved flow[2]) {
  struct activations *a = &model->acts;
  struct tensor_view x1 = flow[1].x1;
  flow[1] = flow[0];
  flow[1].x1 = x1;
  for (int layer = 0; layer < model->facts.n_layers; layer++) {
    a->flowing[layer] = flow[layer % 2];
    for (int i = 0; i < a->n_sets; i++) flow_through(&a->sets[i].layers[layer], &flow[layer % 2]);
  }
}

static enum status make_sets(struct model *model) {
  struct activations *a = &model->acts;
  size_t L = (size_t)model->facts.n_layers;
  a->flowing = calloc(L, sizeof *a->flowing);
  a->sets = calloc((size_t)a->n_sets, sizeof *a->sets);
  bool made = a->flowing && a->sets;
  for (int i = 0; made && i < a->n_sets; i++) made = (a->sets[i].layers = calloc(L, sizeof *a->sets[i].layers)) != NULL;
  return made ? STATUS_OK : status_set(STATUS_SYSTEM, "out of memory for the activations' table");
}

/* Micro-batches that a stage has under way at most: as many as stages from it on (1F1B). */
static int sets_of(const struct model *model, const struct prepare_options *options) {
  const struct stage *stage = &model->shard.stage;
  int64_t n = stage->n_pp - stage->pp_rank, n_micro = options->n_micro > 0 ? options->n_micro : 1;
  return !options->training || !model_has_backward(model) ? 1 : n < n_micro ? (int)n : (int)n_micro;
}

enum status activations_create(struct model *model, const struct prepare_options *options) {
  struct activations *a = &model->acts;
  struct memory_table *table = &a->memory;
  const struct model_facts *facts = &model->facts;
  const int64_t D = facts->d_model, M = options->max_tokens, T = model->sequence ? M / model->shard.n_tp : M;
  int64_t widest = max64(model->shard.ffn.n, model->shard.heads.n * facts->head_dim);
  if (facts->d_embed != D) widest = max64(widest, facts->d_embed); /* embedding rows on their way in */
  struct layer_saved flow[2];
  memset(flow, 0, sizeof flow);
  memset(a, 0, sizeof *a);
  a->max_tokens = M;
  a->own_tokens = T;
  a->training = options->training;
  a->n_sets = sets_of(model, options);
  table->kind = "activations";
  TRY(make_sets(model));
  TRY(add_flowing(model, table, flow));
  size_t before = table->total;
  for (int i = 0; a->training && i < a->n_sets; i++) TRY(add_set(model, table, &a->sets[i]));
  a->kept = table->total - before;
  TRY(add_view(table, "residual", T, D, DTYPE_F32, &a->x_end));
  TRY(add_exchange(model, table));
  TRY(add_view(table, "ffn activations", M, widest, model->act, &a->hidden));
  if (shard_is_first_stage(&model->shard)) {
    if (facts->d_embed != D) TRY(add_view(table, "embedding", T, facts->d_embed, DTYPE_F32, &a->embed));
    if (facts->embed_norm) TRY(add_floats(table, "embedding", T * 2, &a->embed_stats));
  }
  if (a->training) TRY(add_backward(model, table, widest));
  if (shard_is_last_stage(&model->shard)) TRY(add_head(model, table));
  TRY(add_batches(model, table));
  if (model->dry) return STATUS_OK;
  TRY(memory_commit(table, model->device));
  TRY(make_host_side(model));
  share_flow(model, flow);
  if (model->act == DTYPE_F32) a->dlogits = a->logits;
  return STATUS_OK;
}

void activations_destroy(struct model *model) {
  struct activations *a = &model->acts;
  memory_release(&a->memory, model->device);
  device_host_free(model->device, a->host);
  for (int i = 0; a->sets && i < a->n_sets; i++) free(a->sets[i].layers);
  free(a->sets);
  free(a->flowing);
  memset(a, 0, sizeof *a);
}
