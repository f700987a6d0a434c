#include "model/model.h"

#include <stdlib.h>
#include <string.h>

#include "model/position.h"
#include "model/prepare.h"

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
static enum status make_tables(struct model *model) {
  const struct model_facts *facts = &model->facts;
  struct device *device = model->device;
  size_t rotary = rotary_bytes(model), alibi = alibi_bytes(model);
  float *host = malloc(rotary + alibi + 1);
  enum status status = host ? STATUS_OK : status_set(STATUS_SYSTEM, "out of memory for position tables");
  if (status != STATUS_OK) goto out;
  if (rotary) {
    TRY_OUT(device_alloc(device, rotary, "rotary table", (void **)&model->cos_sin));
    position_rotary_table(facts, model->n_positions, model->n_positions, host);
    TRY_OUT(device_copy_in(device, model->cos_sin, host, rotary));
  }
  if (alibi) {
    TRY_OUT(device_alloc(device, alibi, "ALiBi slopes", (void **)&model->alibi));
    position_alibi_slopes(facts->n_heads, model->shard.heads.first, model->shard.heads.n, host);
    TRY_OUT(device_copy_in(device, model->alibi, host, alibi));
  }
  TRY_OUT(device_alloc(device, kv_of_head_bytes(model), "table of heads", (void **)&model->kv_of_head));
  TRY_OUT(device_copy_in(device, model->kv_of_head, model->shard.kv_of_head, kv_of_head_bytes(model)));
out:
  free(host);
  return status;
}

enum status model_create(struct device *device, struct tensor_source *source, struct comm *tp,
                         const struct model_options *options, struct model **model_p) {
  enum status status = STATUS_OK;
  struct model *model = calloc(1, sizeof *model);
  if (!model) return status_set(STATUS_SYSTEM, "out of memory for the model");
  model->device = device;
  model->ops = device->ops;
  model->tp = tp;
  model->facts = source->facts;
  model->act = options->act;
  model->n_positions = options->n_positions;
  const struct model_facts *facts = &model->facts;
  if (facts->position == POSITION_LEARNED && options->n_positions > facts->max_positions) {
    status = status_set(STATUS_USAGE, "a sequence of %lld positions is longer than the %lld learned positions of %s",
                        (long long)options->n_positions, (long long)facts->max_positions, source->path);
    goto out;
  }
  TRY_OUT(shard_plan(facts, comm_size(tp), comm_rank(tp), &model->shard));
  model->arch = arch_find(facts->family);
  model->pairs = calloc((size_t)facts->n_layers, sizeof *model->pairs);
  model->needs = calloc((size_t)facts->n_layers, sizeof *model->needs);
  if (!model->pairs || !model->needs) {
    status = status_set(STATUS_SYSTEM, "out of memory for the model");
    goto out;
  }
  TRY_OUT(weights_load(device, source, &model->shard, options->storage, options->act, &model->weights));
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
  device_free(model->device, model->cos_sin, rotary_bytes(model));
  device_free(model->device, model->alibi, alibi_bytes(model));
  device_free(model->device, model->kv_of_head, kv_of_head_bytes(model));
  free(model->pairs);
  free(model->needs);
  free(model);
  *model_p = NULL;
}

void model_attach(struct model *model, int layer, enum module module, const struct lowrank *pair) {
  model->pairs[layer][module] = pair;
}

static void plan_needs(struct model *model) {
  bool below = false;
  model->first_adapted = (int)model->facts.n_layers;
  for (int layer = 0; layer < model->facts.n_layers; layer++) {
    const struct lowrank **pair = model->pairs[layer];
    struct layer_needs *needs = &model->needs[layer];
    bool qkv = pair[MODULE_Q] || pair[MODULE_K] || pair[MODULE_V];
    bool o = pair[MODULE_O], up = pair[MODULE_GATE] || pair[MODULE_UP], down = pair[MODULE_DOWN];
    needs->x1 = below;
    needs->attn_out = qkv || below;
    needs->x2 = model->facts.parallel_residual ? below : o || needs->attn_out;
    needs->hidden = up || needs->x2;
    bool any = below || qkv || o || up || down;
    if (any && !below) model->first_adapted = layer;
    below = any;
  }
}

enum status model_prepare(struct model *model, int64_t max_tokens, bool training) {
  activations_destroy(model);
  plan_needs(model);
  return activations_create(model, max_tokens, training);
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
