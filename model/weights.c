#include "model/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/log.h"
#include "model/weights_read.h"

/* What is being built: the names' prefix and the list of reads to do. */
struct plan {
  struct tensor_source *source;
  const struct model_facts *facts;
  const struct arch *arch;
  const struct shard *shard;
  const char *prefix;
  enum weight_storage storage;
  enum dtype compute;
  struct weights *weights;
  struct read_list reads;
  int n_linears, n_not_f8; /* of the layers, and those that f8 does not fit */
};

static enum status find_prefix(struct plan *plan) {
  char name[160];
  for (int i = 0; i < 3 && plan->arch->prefixes[i]; i++) {
    plan->prefix = plan->arch->prefixes[i];
    snprintf(name, sizeof name, "%s%s.weight", plan->prefix, plan->arch->embed);
    if (plan->source->find(plan->source, name)) return STATUS_OK;
  }
  return status_set(STATUS_DATA, "%s: tensor '%s%s.weight' is missing: the base is incomplete or not a %s model",
                    plan->source->path, plan->arch->prefixes[0], plan->arch->embed, plan->facts->family);
}

/* The tensor PREFIX + [layer prefix] + path + suffix, or STATUS_DATA. layer < 0: outside the layers. */
static enum status find(const struct plan *plan, int layer, const char *path, const char *suffix,
                        const struct tensor_info **info) {
  char name[256], in_layer[32] = "";
  if (layer >= 0) snprintf(in_layer, sizeof in_layer, plan->arch->layer, layer);
  snprintf(name, sizeof name, "%s%s%s%s", path == plan->arch->head ? "" : plan->prefix, in_layer, path, suffix);
  *info = plan->source->find(plan->source, name);
  if (*info) return STATUS_OK;
  return status_set(STATUS_DATA,
                    "%s: tensor '%s' is missing: the download is incomplete or config.json is another model's",
                    plan->source->path, name);
}

static enum dtype kept_dtype(const struct plan *plan, enum dtype file, struct span columns) {
  if (plan->storage == STORE_F32) return DTYPE_F32;
  if (plan->storage == STORE_BF16) return DTYPE_BF16;
  int64_t block = dtype_block(file);
  return columns.first % block || columns.n % block ? plan->compute : file;
}

/* The same for a layer's linear. What f8 does not fit in some layout is kept as in the file in every layout: rows
 * whose length is no multiple of the block, and o where a head's width is none, since o is cut between heads. Down is
 * cut in multiples of the block, but for models too narrow for their ranks. */
static enum dtype kept_linear(struct plan *plan, enum dtype file, enum module module, struct span columns,
                              int64_t whole) {
  plan->n_linears++;
  if (plan->storage != STORE_F8 || dtype_quantised(file)) return kept_dtype(plan, file, columns);
  int64_t block = dtype_block(DTYPE_F8);
  bool heads_fit = module != MODULE_O || plan->facts->head_dim % block == 0;
  if (heads_fit && columns.first % block == 0 && columns.n % block == 0 && whole % block == 0) return DTYPE_F8;
  plan->n_not_f8++;
  return file;
}

/* Plan a matrix of [rows, cols] (or, for conv1d, stored transposed): what `item` says, but for its slot. */
static enum status want_matrix(struct plan *plan, int64_t rows, int64_t cols, struct read_item item, const char *name,
                               struct weight *weight) {
  const struct tensor_info *info = item.info;
  TRY(read_check_shape(info, item.transposed ? cols : rows, item.transposed ? rows : cols));
  if (item.transposed && dtype_quantised(info->dtype))
    return status_set(STATUS_DATA, "%s: tensor '%s': quantised transposed weights are not supported", info->file,
                      info->name);
  *weight = (struct weight){NULL, item.dtype, row_pick_count(&item.rows), item.columns.n};
  size_t bytes = dtype_bytes(item.dtype, item.columns.n) * (size_t)weight->n_out;
  TRY(memory_add(&plan->weights->memory, name, bytes, (void **)&weight->data));
  item.slot = (void **)&weight->data;
  return read_list_add(&plan->reads, item);
}

/* Plan a matrix outside the layers: picked rows of a whole [rows, cols]. */
static enum status want_table(struct plan *plan, const struct tensor_info *info, int64_t rows, int64_t cols,
                              struct row_pick pick, const char *name, struct weight *weight) {
  struct span all = {0, cols};
  struct read_item item = {info, pick, all, false, kept_dtype(plan, info->dtype, all), NULL};
  return want_matrix(plan, rows, cols, item, name, weight);
}

/* Plan a vector kept as f32: entries picked from a whole [n]. */
static enum status want_vector(struct plan *plan, const struct tensor_info *info, int64_t n, struct row_pick pick,
                               const char *name, float **vector) {
  TRY(read_check_vector(info, n));
  TRY(memory_add(&plan->weights->memory, name, (size_t)row_pick_count(&pick) * sizeof(float), (void **)vector));
  return read_list_add(&plan->reads, (struct read_item){info, pick, {0, 1}, false, DTYPE_F32, (void **)vector});
}

static enum status want_norm(struct plan *plan, int layer, const char *path, int64_t n, bool bias,
                             struct norm_weights *norm) {
  const struct tensor_info *info;
  struct row_pick all = row_pick_span(0, n);
  TRY(find(plan, layer, path, ".weight", &info));
  TRY(want_vector(plan, info, n, all, "norms", &norm->w));
  if (!bias) return STATUS_OK;
  TRY(find(plan, layer, path, ".bias", &info));
  return want_vector(plan, info, n, all, "norms", &norm->b);
}

static bool has_bias(const struct model_facts *facts, enum module module) {
  return module == MODULE_O ? facts->bias_o : module <= MODULE_V ? facts->bias_qkv : facts->bias_ffn;
}

/* Where a module's output rows lie in its tensor, and how many rows that has. */
static struct row_pick module_rows(const struct plan *plan, enum module module, const struct linear_dims *dims,
                                   int64_t *whole) {
  bool fused = module <= MODULE_V && plan->arch->qkv_layout != QKV_SEPARATE;
  if (!fused) {
    *whole = dims->out;
    return row_pick_span(dims->out_t.first, dims->out_t.n);
  }
  int64_t E = plan->facts->head_dim;
  *whole = 3 * dims->out;
  if (plan->arch->qkv_layout == QKV_CONCAT) return row_pick_span(module * dims->out + dims->out_t.first, dims->out_t.n);
  return (struct row_pick){dims->out_t.first / E * 3 * E + module * E, E, 3 * E, dims->out_t.n / E};
}

static enum status want_linear(struct plan *plan, int layer, enum module module) {
  const struct arch *arch = plan->arch;
  const char *path = arch->linear[module] ? arch->linear[module] : module <= MODULE_V ? arch->qkv : NULL;
  if (!path || (module == MODULE_GATE && !plan->facts->gated)) return STATUS_OK;
  struct layer_weights *to = &plan->weights->layers[layer];
  struct linear_dims dims = shard_linear(plan->shard, plan->facts, module);
  int64_t whole;
  struct row_pick rows = module_rows(plan, module, &dims, &whole);
  const struct tensor_info *info;
  TRY(find(plan, layer, path, ".weight", &info));
  enum dtype dtype = kept_linear(plan, info->dtype, module, dims.in_t, dims.in);
  TRY(want_matrix(plan, whole, dims.in, (struct read_item){info, rows, dims.in_t, arch->conv1d, dtype, NULL},
                  module_names[module], &to->linear[module]));
  if (!has_bias(plan->facts, module)) return STATUS_OK;
  TRY(find(plan, layer, path, ".bias", &info));
  return want_vector(plan, info, whole, rows, "biases", &to->bias[module]);
}

/* Norms of a layer. In a post-norm model the norm that follows a sublayer is the
 * next sublayer's input norm, so each is planned one place later (block.h). */
static enum status want_layer_norms(struct plan *plan, int layer) {
  const struct model_facts *facts = plan->facts;
  struct layer_weights *to = &plan->weights->layers[layer];
  int64_t D = facts->d_model;
  if (facts->post_norm) {
    if (layer > 0) TRY(want_norm(plan, layer - 1, plan->arch->norm2, D, facts->bias_norm, &to->norm1));
    return want_norm(plan, layer, plan->arch->norm1, D, facts->bias_norm, &to->norm2);
  }
  TRY(want_norm(plan, layer, plan->arch->norm1, D, facts->bias_norm, &to->norm1));
  if (!facts->shared_norm) TRY(want_norm(plan, layer, plan->arch->norm2, D, facts->bias_norm, &to->norm2));
  return STATUS_OK;
}

static enum status want_layer(struct plan *plan, int layer) {
  TRY(want_layer_norms(plan, layer));
  if (plan->facts->qk_norm) {
    struct layer_weights *to = &plan->weights->layers[layer];
    const struct tensor_info *info;
    struct row_pick all = row_pick_span(0, plan->facts->head_dim);
    TRY(find(plan, layer, plan->arch->q_norm, ".weight", &info));
    TRY(want_vector(plan, info, plan->facts->head_dim, all, "norms", &to->q_norm));
    TRY(find(plan, layer, plan->arch->k_norm, ".weight", &info));
    TRY(want_vector(plan, info, plan->facts->head_dim, all, "norms", &to->k_norm));
  }
  for (int module = 0; module < MODULE_COUNT; module++) TRY(want_linear(plan, layer, (enum module)module));
  return STATUS_OK;
}

static enum status want_embedding(struct plan *plan) {
  const struct model_facts *facts = plan->facts;
  const struct arch *arch = plan->arch;
  struct weights *to = plan->weights;
  const struct tensor_info *info;
  int64_t V = facts->n_vocab, D = facts->d_model, De = facts->d_embed;
  struct row_pick vocab = row_pick_span(plan->shard->vocab.first, plan->shard->vocab.n);
  struct span all_model = {0, D};
  TRY(find(plan, -1, arch->embed, ".weight", &info));
  TRY(want_table(plan, info, V, De, vocab, "embedding", &to->embed));
  if (facts->position == POSITION_LEARNED) {
    int64_t rows = facts->max_positions + facts->position_offset;
    TRY(find(plan, -1, arch->position, ".weight", &info));
    TRY(read_check_shape(info, rows, D));
    TRY(memory_add(&to->memory, "positions", (size_t)(rows * D) * sizeof(float), (void **)&to->position));
    TRY(read_list_add(&plan->reads, (struct read_item){info, row_pick_span(0, rows), all_model, false, DTYPE_F32,
                                                       (void **)&to->position}));
  }
  if (facts->embed_norm) TRY(want_norm(plan, -1, arch->embed_norm, D, true, &to->embed_norm));
  if (De != D) {
    TRY(find(plan, -1, arch->project_in, ".weight", &info));
    TRY(want_table(plan, info, D, De, row_pick_span(0, D), "projections", &to->project_in));
    TRY(find(plan, -1, arch->project_out, ".weight", &info));
    TRY(want_table(plan, info, De, D, row_pick_span(0, De), "projections", &to->project_out));
  }
  return STATUS_OK;
}

static enum status want_head(struct plan *plan) {
  const struct model_facts *facts = plan->facts;
  struct weights *to = plan->weights;
  const struct tensor_info *info;
  if (facts->post_norm)
    TRY(want_norm(plan, (int)facts->n_layers - 1, plan->arch->norm2, facts->d_model, facts->bias_norm,
                  &to->final_norm));
  else if (facts->final_norm)
    TRY(want_norm(plan, -1, plan->arch->final_norm, facts->d_model, facts->bias_norm, &to->final_norm));
  struct row_pick vocab = row_pick_span(plan->shard->vocab.first, plan->shard->vocab.n);
  if (facts->bias_head) {
    TRY(find(plan, -1, plan->arch->head, ".bias", &info));
    TRY(want_vector(plan, info, facts->n_vocab, vocab, "head", &to->head_bias));
  }
  if (facts->tied_head) return STATUS_OK;
  TRY(find(plan, -1, plan->arch->head, ".weight", &info));
  return want_table(plan, info, facts->n_vocab, facts->d_embed, vocab, "head", &to->head);
}

static enum status plan_all(struct plan *plan) {
  const struct model_facts *facts = plan->facts;
  plan->arch = arch_find(facts->family);
  if (!plan->arch)
    return status_set(STATUS_USAGE, "%s: model family '%s' is not supported: %s are", plan->source->path, facts->family,
                      arch_list());
  plan->weights->memory.kind = "weights";
  plan->weights->layers = calloc((size_t)facts->n_layers, sizeof *plan->weights->layers);
  if (!plan->weights->layers)
    return status_set(STATUS_SYSTEM, "out of memory for %lld layers", (long long)facts->n_layers);
  TRY(find_prefix(plan));
  TRY(want_embedding(plan));
  for (int layer = 0; layer < facts->n_layers; layer++) TRY(want_layer(plan, layer));
  return want_head(plan);
}

/* Masks and rotary tables that old files hold beside the weights, and the stored copy of a tied head. */
static bool is_no_weight(const struct plan *plan, const char *name) {
  static const char *const ends[] = {".attn.bias", ".attention.bias", ".masked_bias", ".inv_freq"};
  size_t n = strlen(name);
  for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
    if (n >= strlen(ends[i]) && strcmp(name + n - strlen(ends[i]), ends[i]) == 0) return true;
  size_t head = plan->facts->tied_head && plan->arch->head ? strlen(plan->arch->head) : 0;
  return head > 0 && strncmp(name, plan->arch->head, head) == 0;
}

static bool is_read(const struct plan *plan, const char *name) {
  for (int i = 0; i < plan->reads.n; i++)
    if (strcmp(plan->reads.items[i].info->name, name) == 0) return true;
  return false;
}

/* Weights that the model has no place for are a sign of another model's config.json. */
static void warn_of_unread(const struct plan *plan) {
  const char *first = NULL;
  int64_t n = 0;
  for (int64_t i = 0; i < plan->source->n_tensors; i++) {
    const char *name = plan->source->at(plan->source, i)->name;
    if (is_no_weight(plan, name) || is_read(plan, name)) continue;
    if (n++ == 0) first = name;
  }
  if (n > 0)
    log_warn(
        "%s: %lld tensors are not part of a %s model as config.json describes it and are left out, the first "
        "'%.200s': is that config.json this model's?",
        plan->source->path, (long long)n, plan->facts->family, first);
}

enum status weights_load(struct device *device, struct tensor_source *source, const struct shard *shard,
                         enum weight_storage storage, enum dtype compute, struct weights *weights) {
  enum status status = STATUS_OK;
  memset(weights, 0, sizeof *weights);
  struct plan plan = {.source = source,
                      .facts = &source->facts,
                      .shard = shard,
                      .storage = storage,
                      .compute = compute,
                      .weights = weights};
  TRY_OUT(plan_all(&plan));
  warn_of_unread(&plan);
  if (plan.n_not_f8 > 0)
    log_warn(
        "%d of %d matrices stay as they are in the file: fp8 needs rows, their parts on a rank and heads that are "
        "multiples of %lld weights",
        plan.n_not_f8, plan.n_linears, (long long)dtype_block(DTYPE_F8));
  TRY_OUT(memory_commit(&weights->memory, device));
  TRY_OUT(read_list_run(&plan.reads, source, device));
  if (source->facts.tied_head) weights->head = weights->embed;
  if (source->facts.shared_norm)
    for (int layer = 0; layer < source->facts.n_layers; layer++)
      weights->layers[layer].norm2 = weights->layers[layer].norm1;
out:
  read_list_free(&plan.reads);
  return status;
}

void weights_release(struct weights *weights, struct device *device) {
  free(weights->layers);
  memory_release(&weights->memory, device);
  memset(weights, 0, sizeof *weights);
}

uint64_t weights_file_bytes(struct tensor_source *source, const struct shard *shard) {
  struct weights weights = {0};
  struct plan plan = {.source = source,
                      .facts = &source->facts,
                      .shard = shard,
                      .storage = STORE_AS_FILE,
                      .compute = DTYPE_F32,
                      .weights = &weights};
  uint64_t bytes = plan_all(&plan) == STATUS_OK ? read_list_bytes(&plan.reads) : 0;
  read_list_free(&plan.reads);
  free(weights.layers);
  free(weights.memory.entries);
  return bytes;
}
