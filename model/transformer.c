#include "model/transformer.h"

#include <math.h>
#include <stdlib.h>

#include "model/block.h"
#include "model/head.h"

/* Token and position embeddings -> x [M, D] f32, whole. */
static enum status embed(struct model *m, const struct batch *b, struct tensor_view x) {
  const struct model_facts *f = &m->facts;
  const struct weights *w = &m->weights;
  struct activations *a = &m->acts;
  const int64_t D = f->d_model;
  struct tensor_view rows = w->project_in.data ? a->embed : x;
  TRY(m->ops->embedding(m->device, b->M, b->ids, m->shard.vocab.first, &w->embed,
                        rows));                                              /* partial: other ranks' rows are 0 */
  TRY(comm_all_reduce_f32(m->tp, rows.data, b->M * f->d_embed, REDUCE_SUM)); /* partial -> whole */
  if (w->project_in.data) {
    TRY(m->ops->cast(m->device, b->M, f->d_embed, rows, (struct tensor_view){a->hidden.data, f->d_embed, m->act}));
    TRY(m->ops->linear_forward(m->device, b->M, (struct tensor_view){a->hidden.data, f->d_embed, m->act},
                               &w->project_in, NULL, x, false));
  }
  if (w->position) TRY(m->ops->add_rows(m->device, b->M, D, b->positions, f->position_offset, w->position, x));
  if (!w->embed_norm.w) return STATUS_OK;
  /* x_end is free until the last block: the norm's input moves there */
  TRY(m->ops->cast(m->device, b->M, D, x, a->x_end));
  return m->ops->norm_forward(m->device, f->norm, b->M, D, a->x_end, w->embed_norm.w, w->embed_norm.b,
                              (float)f->norm_eps, x, a->head_stats);
}

static enum status forward(struct model *m, const struct batch *b, struct layer_saved *layers) {
  const int64_t L = m->facts.n_layers;
  TRY(embed(m, b, layers[0].x1));
  for (int layer = 0; layer < L; layer++) {
    struct tensor_view out = layer + 1 < L ? layers[layer + 1].x1 : m->acts.x_end;
    TRY(block_forward(m, b, layer, &layers[layer], out));
  }
  return STATUS_OK;
}

static enum status forward_backward(struct model *m, const struct batch *b, float g) {
  TRY(forward(m, b, m->acts.layers));
  TRY(head_loss(m, b, m->first_adapted < m->facts.n_layers, g));
  for (int layer = (int)m->facts.n_layers - 1; layer >= m->first_adapted; layer--)
    TRY(block_backward(m, b, layer, &m->acts.layers[layer]));
  return STATUS_OK;
}

/* All that the queued work depends on besides the content of device memory. */
struct graph_key {
  int64_t M, n_used, n_targets, n_segments, dropout_step;
  float g;
  int32_t training;
};

static bool has_dropout(const struct model *m) {
  for (int layer = 0; layer < m->facts.n_layers; layer++)
    for (int module = 0; module < MODULE_COUNT; module++)
      if (m->pairs[layer][module] && m->pairs[layer][module]->dropout.p > 0) return true;
  return false;
}

/* forward_backward, or the record of one like it. Its messages count either way. */
static enum status queue_micro_batch(struct model *m, const struct batch *b, float g) {
  struct graph_key key = {b->M, b->n_used, b->n_targets, b->n_segments, has_dropout(m) ? b->step : 0, g, b->training};
  int slot;
  bool repeated;
  TRY(device_graph_begin(m->device, &key, sizeof key, &slot, &repeated));
  if (repeated) {
    comm_add_counts(m->tp, m->graph_traffic[slot]);
    return STATUS_OK;
  }
  struct comm_counts before = comm_counts(m->tp);
  enum status status = forward_backward(m, b, g);
  struct comm_counts after = comm_counts(m->tp);
  if (slot >= 0) m->graph_traffic[slot] = (struct comm_counts){after.calls - before.calls, after.bytes - before.bytes};
  TRY(status);
  return device_graph_end(m->device);
}

enum status transformer_train(struct model *m, const struct batch *b, float g, double *loss_sum) {
  struct batch placed;
  TRY(batch_place(m->device, &m->acts.batch, b, &placed));
  TRY(queue_micro_batch(m, &placed, g));
  return head_collect(m, &placed, loss_sum, NULL);
}

enum status transformer_loss(struct model *m, const struct batch *b, double *loss_sum, float *nll) {
  struct batch placed;
  TRY(batch_place(m->device, &m->acts.batch, b, &placed));
  TRY(forward(m, &placed, m->acts.flowing));
  TRY(head_loss(m, &placed, false, 0));
  return head_collect(m, &placed, loss_sum, nll);
}

enum status transformer_logits(struct model *m, const struct batch *b, const int32_t *rows, int64_t n, float *logits) {
  struct batch asked = *b, placed;
  asked.wanted = rows;
  asked.n_wanted = n;
  TRY(batch_place(m->device, &m->acts.batch, &asked, &placed));
  TRY(forward(m, &placed, m->acts.flowing));
  return head_logits(m, &placed, logits);
}

enum status transformer_find_not_finite(struct model *m, const struct batch *batch, int *place) {
  const int L = (int)m->facts.n_layers;
  struct layer_saved *layers = m->acts.flowing;
  struct batch placed, *b = &placed;
  TRY(batch_place(m->device, &m->acts.batch, batch, b));
  TRY(embed(m, b, layers[0].x1));
  int first = L;
  for (int layer = -1; layer < L; layer++) {
    struct tensor_view x = layer + 1 < L ? layers[layer + 1].x1 : m->acts.x_end;
    double sum;
    if (layer >= 0) TRY(block_forward(m, b, layer, &layers[layer], x));
    TRY(m->ops->sum_squares(m->device, x.data, b->M * m->facts.d_model, &sum));
    if (!isfinite(sum) && layer < first) first = layer; /* all ranks go on together */
  }
  *place = first;
  return STATUS_OK;
}

enum status kv_cache_create(struct model *m, int64_t capacity, struct kv_cache **cache_p) {
  const int64_t L = m->facts.n_layers, width = m->shard.kv_heads.n * m->facts.head_dim;
  struct kv_cache *cache = calloc(1, sizeof *cache);
  if (!cache) return status_set(STATUS_SYSTEM, "out of memory for the cache of keys and values");
  cache->capacity = capacity;
  cache->memory.kind = "keys and values";
  cache->k = calloc((size_t)L, sizeof *cache->k);
  cache->v = calloc((size_t)L, sizeof *cache->v);
  enum status status = cache->k && cache->v ? STATUS_OK : status_set(STATUS_SYSTEM, "out of memory for the cache");
  size_t bytes = dtype_bytes(m->act, capacity * width);
  for (int64_t layer = 0; layer < L && status == STATUS_OK; layer++) {
    cache->k[layer] = cache->v[layer] = (struct tensor_view){NULL, width, m->act};
    status = memory_add(&cache->memory, "k", bytes, &cache->k[layer].data);
    if (status == STATUS_OK) status = memory_add(&cache->memory, "v", bytes, &cache->v[layer].data);
  }
  if (status == STATUS_OK) status = memory_commit(&cache->memory, m->device);
  if (status != STATUS_OK)
    kv_cache_destroy(m, &cache);
  else
    *cache_p = cache;
  return status;
}

void kv_cache_destroy(struct model *m, struct kv_cache **cache_p) {
  struct kv_cache *cache = *cache_p;
  if (!cache) return;
  memory_release(&cache->memory, m->device);
  free(cache->k);
  free(cache->v);
  free(cache);
  *cache_p = NULL;
}

enum status transformer_decode(struct model *m, struct kv_cache *cache, const int32_t *ids, int64_t n, float *logits) {
  if (cache->length + n > cache->capacity)
    return status_set(STATUS_USAGE, "the sequence is longer than the %lld tokens prepared for",
                      (long long)cache->capacity);
  int32_t *positions = malloc((size_t)n * sizeof *positions), last = (int32_t)n - 1;
  if (!positions) return status_set(STATUS_SYSTEM, "out of memory for %lld positions", (long long)n);
  for (int64_t i = 0; i < n; i++) positions[i] = (int32_t)(cache->length + i);
  struct segment segment = {0, (int32_t)n, 0, (int32_t)(cache->length + n)};
  struct batch batch = {.M = n, .ids = ids, .positions = positions, .segments = &segment, .n_segments = 1};
  m->cache = cache;
  enum status status = transformer_logits(m, &batch, &last, 1, logits);
  m->cache = NULL;
  if (status == STATUS_OK) cache->length += n;
  free(positions);
  return status;
}
