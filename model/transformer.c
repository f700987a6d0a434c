#include "model/transformer.h"

#include <math.h>
#include <stdlib.h>

#include "model/block.h"
#include "model/head.h"
#include "model/pipeline.h"

/* Token and position embeddings -> x [T, D] f32: the stream, whole or own rows. */
static enum status embed(struct model *m, const struct batch *b, struct tensor_view x) {
  const struct model_facts *f = &m->facts;
  const struct weights *w = &m->weights;
  struct activations *a = &m->acts;
  const int64_t D = f->d_model, De = f->d_embed;
  struct tensor_view rows = w->project_in.data ? a->embed : x;
  struct tensor_view partial = m->sequence ? (struct tensor_view){a->partial.data, De, DTYPE_F32} : rows;
  TRY(m->ops->embedding(m->device, b->M, b->ids, m->shard.vocab.first, &w->embed,
                        partial)); /* partial: other ranks' rows are 0 */
  if (m->sequence)
    TRY(comm_reduce_scatter_f32(m->tp, partial.data, b->own * De, rows.data)); /* partial -> own rows */
  else
    TRY(comm_all_reduce_f32(m->tp, rows.data, b->M * De, REDUCE_SUM)); /* partial -> whole */
  if (w->project_in.data) {
    struct tensor_view narrow = {a->hidden.data, De, m->act};
    TRY(m->ops->cast(m->device, b->own, De, rows, narrow));
    TRY(m->ops->linear_forward(m->device, b->own, narrow, &w->project_in, NULL, x, false));
  }
  if (w->position)
    TRY(m->ops->add_rows(m->device, b->own, D, b->positions + b->own_first, f->position_offset, w->position, x));
  if (!w->embed_norm.w) return STATUS_OK;
  /* x_end is free until the last block: the norm's input moves there */
  TRY(m->ops->cast(m->device, b->own, D, x, a->x_end));
  return m->ops->norm_forward(m->device, f->norm, b->own, D, a->x_end, w->embed_norm.w, w->embed_norm.b,
                              (float)f->norm_eps, x, a->embed_stats);
}

/* --- one stage --- */

struct tensor_view stage_input(struct model *m, struct layer_saved *layers) {
  return layers[shard_first_layer(&m->shard)].x1;
}

static enum status show(const struct onlooker *onlooker, struct model *m, const struct batch *b, int layer,
                        struct tensor_view x) {
  return onlooker ? onlooker->look(onlooker->context, m, b, layer, x) : STATUS_OK;
}

enum status stage_forward(struct model *m, const struct batch *b, struct layer_saved *layers,
                          const struct onlooker *onlooker) {
  const int end = shard_end_layer(&m->shard);
  if (shard_is_first_stage(&m->shard)) {
    TRY(embed(m, b, stage_input(m, layers)));
    TRY(show(onlooker, m, b, -1, stage_input(m, layers)));
  }
  for (int layer = shard_first_layer(&m->shard); layer < end; layer++) {
    struct tensor_view out = layer + 1 < end ? layers[layer + 1].x1 : m->acts.x_end;
    TRY(block_forward(m, b, layer, &layers[layer], out));
    TRY(show(onlooker, m, b, layer, out));
  }
  return STATUS_OK;
}

enum status stage_backward(struct model *m, const struct batch *b, struct layer_saved *layers) {
  for (int layer = shard_end_layer(&m->shard) - 1; layer >= m->backward_from; layer--)
    TRY(block_backward(m, b, layer, &layers[layer]));
  return STATUS_OK;
}

enum status stage_place(struct model *m, const struct batch *batch, struct activation_set *set) {
  const int parts = m->sequence ? m->shard.n_tp : 1, part = m->sequence ? m->shard.tp_rank : 0;
  if (batch->M % parts != 0)
    return status_set(STATUS_USAGE, "sequence parallelism: %lld tokens are no multiple of %d ranks",
                      (long long)batch->M, parts);
  TRY(batch_place(m->device, &set->buffers, batch, &set->batch));
  set->batch.own = batch->M / parts;
  set->batch.own_first = part * set->batch.own;
  return STATUS_OK;
}

/* --- one stage alone: no pipeline --- */

static enum status forward_backward(struct model *m, const struct batch *b, float g) {
  struct layer_saved *layers = m->acts.sets[0].layers;
  TRY(stage_forward(m, b, layers, NULL));
  TRY(head_loss(m, b, model_has_backward(m), g));
  return stage_backward(m, b, layers);
}

/* All that the queued work depends on besides the content of device memory. */
struct graph_key {
  int64_t M, n_used, n_targets, n_segments, dropout_step;
  float g;
  int32_t training;
};

static bool has_dropout(const struct model *m) {
  for (int layer = shard_first_layer(&m->shard); layer < shard_end_layer(&m->shard); layer++)
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

static enum status train_alone(struct model *m, const struct micro_batches *source, float g, double *loss_sum) {
  struct activation_set *set = &m->acts.sets[0];
  for (int64_t i = 0; i < source->n; i++) {
    struct batch batch;
    TRY(source->next(source->context, i, &batch));
    TRY(stage_place(m, &batch, set));
    TRY(queue_micro_batch(m, &set->batch, g));
    TRY(head_collect(m, &set->batch, loss_sum, NULL));
  }
  return STATUS_OK;
}

enum status transformer_train(struct model *m, const struct micro_batches *source, float g, double *loss_sum) {
  return m->shard.stage.n_pp > 1 ? pipeline_train(m, source, g, loss_sum) : train_alone(m, source, g, loss_sum);
}

/* --- forward alone, through all stages --- */

/* Place the batch in the first set and run it to x_end: on return of the last stage that of the whole model. */
static enum status forward_only(struct model *m, const struct batch *batch, const struct onlooker *onlooker) {
  struct activation_set *set = &m->acts.sets[0];
  TRY(stage_place(m, batch, set));
  TRY(pipeline_receive_input(m, &set->batch, m->acts.flowing));
  TRY(stage_forward(m, &set->batch, m->acts.flowing, onlooker));
  return pipeline_send_output(m, &set->batch);
}

enum status transformer_loss(struct model *m, const struct batch *batch, double *loss_sum, float *nll) {
  const struct batch *b = &m->acts.sets[0].batch;
  TRY(forward_only(m, batch, NULL));
  if (shard_is_last_stage(&m->shard)) {
    TRY(head_loss(m, b, false, 0));
    TRY(head_collect(m, b, loss_sum, nll));
  }
  return nll ? pipeline_spread(m, nll, (size_t)batch->M * sizeof *nll) : STATUS_OK;
}

enum status transformer_logits(struct model *m, const struct batch *b, const int32_t *rows, int64_t n, float *logits) {
  struct batch asked = *b;
  asked.wanted = rows;
  asked.n_wanted = n;
  TRY(forward_only(m, &asked, NULL));
  if (shard_is_last_stage(&m->shard)) TRY(head_logits(m, &m->acts.sets[0].batch, logits));
  for (int64_t i = 0; i < n; i++)
    TRY(pipeline_spread(m, logits + i * m->facts.n_vocab, (size_t)m->facts.n_vocab * sizeof *logits));
  return STATUS_OK;
}

/* *context: the first place so far. All ranks go on together, so nothing stops here. */
static enum status look_for_not_finite(void *context, struct model *m, const struct batch *b, int layer,
                                       struct tensor_view x) {
  int *first = context;
  double sum;
  TRY(m->ops->sum_squares(m->device, x.data, b->own * m->facts.d_model, &sum));
  if (!isfinite(sum) && layer < *first) *first = layer;
  return STATUS_OK;
}

enum status transformer_find_not_finite(struct model *m, const struct batch *batch, int *place) {
  int first = (int)m->facts.n_layers;
  TRY(forward_only(m, batch, &(struct onlooker){look_for_not_finite, &first}));
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
  for (int layer = shard_first_layer(&m->shard); layer < shard_end_layer(&m->shard) && status == STATUS_OK; layer++) {
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
