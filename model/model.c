#include "model/model.h"

#include <stdlib.h>
#include <string.h>

#include "model/activations_internal.h"
#include "model/position.h"

/* Bytes of the tables, 0 for those that the model does without. */
static size_t rotary_bytes(const struct model *model) {
  if (model->facts.position != POSITION_ROTARY) return 0;
  return (size_t)(model->n_positions * model->facts.rotary_dim) * sizeof(float);
}
static size_t alibi_bytes(const struct model *model) {
  return model->facts.position == POSITION_ALIBI ? (size_t)model->shard.heads.n * sizeof(float) : 0;
}
static size_t kv_of_head_bytes(const struct model *model) { return (size_t)model->shard.heads.n * sizeof(int32_t); }

/* The tables are made in host memory and copied to the device. */
static enum status fill_tables(struct model *model) {
  const struct model_facts *facts = &model->facts;
  struct device *device = model->device;
  size_t rotary = rotary_bytes(model), alibi = alibi_bytes(model);
  float *host = malloc(rotary + alibi + 1);
  enum status status = host ? STATUS_OK : status_set(STATUS_SYSTEM, "out of memory for position tables");
  if (status != STATUS_OK) goto out;
  if (rotary) {
    position_rotary_table(facts, model->n_positions, model->n_positions, host);
    TRY_OUT(device_copy_in(device, model->cos_sin, host, rotary));
  }
  if (alibi) {
    position_alibi_slopes(facts->n_heads, model->shard.heads.first, model->shard.heads.n, host);
    TRY_OUT(device_copy_in(device, model->alibi, host, alibi));
  }
  TRY_OUT(device_copy_in(device, model->kv_of_head, model->shard.kv_of_head, kv_of_head_bytes(model)));
out:
  free(host);
  return status;
}

static enum status make_tables(struct model *model) {
  struct memory_table *table = &model->tables;
  table->kind = "position tables";
  TRY(memory_add(table, "rotary table", rotary_bytes(model), (void **)&model->cos_sin));
  TRY(memory_add(table, "ALiBi slopes", alibi_bytes(model), (void **)&model->alibi));
  TRY(memory_add(table, "table of heads", kv_of_head_bytes(model), (void **)&model->kv_of_head));
  if (model->dry) return STATUS_OK;
  TRY(memory_commit(table, model->device));
  return fill_tables(model);
}

static enum status make_lists(struct model *model) {
  size_t L = (size_t)model->facts.n_layers;
  model->pairs = calloc(L, sizeof *model->pairs);
  model->needs = calloc(L, sizeof *model->needs);
  return model->pairs && model->needs ? STATUS_OK : status_set(STATUS_SYSTEM, "out of memory for the model");
}

enum status model_create(struct device *device, struct tensor_source *source, struct comm *tp, struct comm *pp,
                         const struct model_options *options, struct model **model_p) {
  enum status status = STATUS_OK;
  struct model *model = calloc(1, sizeof *model);
  if (!model) return status_set(STATUS_SYSTEM, "out of memory for the model");
  model->device = device;
  model->ops = device->ops;
  model->tp = tp;
  model->pp = pp;
  model->facts = source->facts;
  model->shard = *options->shard;
  model->act = options->act;
  model->n_positions = options->n_positions;
  model->dry = options->dry;
  const struct model_facts *facts = &model->facts;
  const struct weights_options weights = {options->storage, options->act, tp, options->dry};
  if (facts->position == POSITION_LEARNED && options->n_positions > facts->max_positions) {
    status = status_set(STATUS_USAGE, "a sequence of %lld positions is longer than the %lld learned positions of %s",
                        (long long)options->n_positions, (long long)facts->max_positions, source->path);
    goto out;
  }
  model->arch = arch_find(facts->family);
  TRY_OUT(make_lists(model));
  TRY_OUT(weights_load(device, source, &model->shard, &weights, &model->weights));
  TRY_OUT(make_tables(model));
  *model_p = model;
  return STATUS_OK;
out:
  model_destroy(&model);
  return status;
}

void model_destroy(struct model **model_p) {
  struct model *model = *model_p;
  if (!model) return;
  activations_destroy(model);
  weights_release(&model->weights, model->device);
  memory_release(&model->tables, model->device);
  free(model->pairs);
  free(model->needs);
  free(model);
  *model_p = NULL;
}

void model_attach(struct model *model, int layer, enum module module, const struct lowrank *pair) {
  model->pairs[layer][module] = pair;
}

static void plan_needs(struct model *model) {
  const int first = shard_first_layer(&model->shard), end = shard_end_layer(&model->shard);
  bool below = model->shard.stage.adapted_below;
  model->backward_from = below ? first : end;
  for (int layer = first; layer < end; layer++) {
    const struct lowrank **pair = model->pairs[layer];
    struct layer_needs *needs = &model->needs[layer];
    bool qkv = pair[MODULE_Q] || pair[MODULE_K] || pair[MODULE_V];
    bool o = pair[MODULE_O], up = pair[MODULE_GATE] || pair[MODULE_UP], down = pair[MODULE_DOWN];
    needs->x1 = below;
    needs->attn_out = qkv || below;
    needs->x2 = model->facts.parallel_residual ? below : o || needs->attn_out;
    needs->hidden = up || needs->x2;
    bool any = below || qkv || o || up || down;
    if (any && !below) model->backward_from = layer;
    below = any;
  }
}

enum status model_prepare(struct model *model, const struct prepare_options *options) {
  activations_destroy(model);
  model->sequence = options->sequence && model->shard.n_tp > 1;
  model->recompute = options->recompute;
  plan_needs(model);
  return activations_create(model, options);
}

int64_t model_base_parameters(const struct model_facts *f) {
  int64_t D = f->d_model, Q = f->n_heads * f->head_dim, KV = f->n_kv_heads * f->head_dim, F = f->d_ffn;
  int64_t norm = D * (f->bias_norm ? 2 : 1);
  int64_t layer = D * Q + 2 * D * KV + Q * D + (f->gated ? 3 : 2) * D * F + (f->shared_norm ? 1 : 2) * norm;
  if (f->bias_qkv) layer += Q + 2 * KV;
  if (f->bias_o) layer += D;
  if (f->bias_ffn) layer += (f->gated ? 2 : 1) * F + D;
  if (f->qk_norm) layer += 2 * f->head_dim;
  int64_t total = f->n_layers * layer + f->n_vocab * f->d_embed * (f->tied_head ? 1 : 2);
  if (f->position == POSITION_LEARNED) total += (f->max_positions + f->position_offset) * D;
  if (f->final_norm) total += norm;
  if (f->embed_norm) total += 2 * D;
  if (f->d_embed != D) total += 2 * D * f->d_embed;
  if (f->bias_head) total += f->n_vocab;
  return total;
}
