#include "model/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/log.h"
#include "io/quant.h"
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
  int n_linears, n_unfit, n_cut; /* of the layers; those that the storage does not fit; those cut inside a tile */
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
  if (plan->storage != STORE_F8 || dtype_quantised(file)) return kept_dtype(plan, file, columns);
  int64_t block = dtype_block(DTYPE_F8);
  bool heads_fit = module != MODULE_O || plan->facts->head_dim % block == 0;
  if (heads_fit && columns.first % block == 0 && columns.n % block == 0 && whole % block == 0) return DTYPE_F8;
  plan->n_unfit++;
  return file;
}

/* Is the tensor [rows, cols], or for conv1d its transpose? */
static enum status check_matrix(const struct read_item *item, int64_t rows, int64_t cols) {
  const struct tensor_info *info = item->info;
  TRY(read_check_shape(info, item->transposed ? cols : rows, item->transposed ? rows : cols));
  if (!item->transposed || !dtype_quantised(info->dtype)) return STATUS_OK;
  return status_set(STATUS_DATA, "%s: tensor '%s': quantised transposed weights are not supported", info->file,
                    info->name);
}

/* Plan a matrix of [rows, cols]: what `item` says, but for its slot. */
static enum status want_matrix(struct plan *plan, int64_t rows, int64_t cols, struct read_item item, const char *name,
                               struct weight *weight) {
  TRY(check_matrix(&item, rows, cols));
  *weight = (struct weight){.dtype = item.dtype, .n_out = row_pick_count(&item.rows), .n_in = item.columns.n};
  size_t bytes = dtype_bytes(item.dtype, item.columns.n) * (size_t)weight->n_out;
  TRY(memory_add(&plan->weights->memory, name, bytes, (void **)&weight->data));
  item.slot = (void **)&weight->data;
  return read_list_add(&plan->reads, item);
}

/* Plan a matrix outside the layers: picked rows of a whole [rows, cols]. */
static enum status want_table(struct plan *plan, const struct tensor_info *info, int64_t rows, int64_t cols,
                              struct row_pick pick, const char *name, struct weight *weight) {
  struct span all = {0, cols};
  struct read_item item = {.info = info, .rows = pick, .columns = all, .dtype = kept_dtype(plan, info->dtype, all)};
  return want_matrix(plan, rows, cols, item, name, weight);
}

/* This rank's rows of a matrix over the vocabulary, [V, De]. */
static enum status want_vocabulary(struct plan *plan, const char *path, const char *name, struct weight *weight) {
  const struct tensor_info *info;
  struct row_pick rows = row_pick_span(plan->shard->vocab.first, plan->shard->vocab.n);
  TRY(find(plan, -1, path, ".weight", &info));
  return want_table(plan, info, plan->facts->n_vocab, plan->facts->d_embed, rows, name, weight);
}

/* Plan a vector kept as f32: entries picked from a whole [n]. */
static enum status want_vector(struct plan *plan, const struct tensor_info *info, int64_t n, struct row_pick pick,
                               const char *name, float **vector) {
  TRY(read_check_vector(info, n));
  TRY(memory_add(&plan->weights->memory, name, (size_t)row_pick_count(&pick) * sizeof(float), (void **)vector));
  struct read_item item = {.info = info, .rows = pick, .columns = {0, 1}, .slot = (void **)vector};
  return read_list_add(&plan->reads, item);
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

/* All rows of a module's whole matrix. */
static struct row_pick whole_rows(const struct plan *plan, enum module module, const struct linear_dims *dims) {
  struct linear_dims all = *dims;
  int64_t rows;
  all.out_t = (struct span){0, dims->out};
  return module_rows(plan, module, &all, &rows);
}

static bool quantised_here(struct plan *plan, enum dtype file, const struct linear_dims *dims) {
  if ((plan->storage != STORE_INT8 && plan->storage != STORE_NF4) || dtype_quantised(file)) return false;
  bool fits = plan->storage == STORE_INT8 || dims->in % QUANT_NF4_BLOCK == 0;
  plan->n_unfit += !fits;
  return fits;
}

static bool nf4_whole_tiles(const struct linear_dims *dims) {
  int64_t end = dims->out_t.first + dims->out_t.n;
  return dims->in_t.first % QUANT_NF4_BLOCK == 0 && dims->in_t.n % QUANT_NF4_BLOCK == 0 &&
         dims->out_t.first % QUANT_NF4_TILE == 0 && (end % QUANT_NF4_TILE == 0 || end == dims->out);
}

/* Plan a linear that is quantised as it is read, with the planes of its type. */
static enum status want_quantised(struct plan *plan, enum module module, const struct linear_dims *dims,
                                  struct read_item item, struct weight *weight) {
  struct memory_table *memory = &plan->weights->memory;
  const char *name = module_names[module];
  int64_t rows = dims->out_t.n, columns = dims->in_t.n, blocks = columns / QUANT_NF4_BLOCK;
  enum dtype as = plan->storage == STORE_INT8 ? DTYPE_INT8 : DTYPE_NF4;
  bool cut = as == DTYPE_NF4 && !nf4_whole_tiles(dims);
  item.dtype = cut ? plan->compute : as;
  item.slot = (void **)&weight->data;
  item.quantise = (struct read_quantise){.as = as,
                                         .whole = whole_rows(plan, module, dims),
                                         .rows = dims->out_t,
                                         .n_rows = dims->out,
                                         .n_columns = dims->in,
                                         .columns_cut = module_is_row_parallel(module),
                                         .weight = weight};
  plan->n_cut += cut;
  *weight = (struct weight){.dtype = item.dtype, .n_out = rows, .n_in = columns};
  TRY(memory_add(memory, name, dtype_bytes(item.dtype, rows * columns), (void **)&weight->data));
  if (item.dtype == DTYPE_INT8) TRY(memory_add(memory, name, (size_t)rows * sizeof(float), (void **)&weight->scales));
  if (item.dtype == DTYPE_NF4) {
    int64_t tiles = (rows + QUANT_NF4_TILE - 1) / QUANT_NF4_TILE;
    TRY(memory_add(memory, name, (size_t)(rows * blocks), (void **)&weight->codes));
    TRY(memory_add(memory, name, (size_t)(2 * tiles * blocks) * sizeof(float), (void **)&weight->scales));
  }
  return read_list_add(&plan->reads, item);
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
  plan->n_linears++;
  struct read_item item = {.info = info, .rows = rows, .columns = dims.in_t, .transposed = arch->conv1d};
  if (quantised_here(plan, info->dtype, &dims)) {
    TRY(check_matrix(&item, whole, dims.in));
    TRY(want_quantised(plan, module, &dims, item, &to->linear[module]));
  } else {
    item.dtype = kept_linear(plan, info->dtype, module, dims.in_t, dims.in);
    TRY(want_matrix(plan, whole, dims.in, item, module_names[module], &to->linear[module]));
  }
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

/* The first stage: what turns ids into the residual stream. */
static enum status want_embedding(struct plan *plan) {
  const struct model_facts *facts = plan->facts;
  const struct arch *arch = plan->arch;
  struct weights *to = plan->weights;
  const struct tensor_info *info;
  int64_t D = facts->d_model, De = facts->d_embed;
  TRY(want_vocabulary(plan, arch->embed, "embedding", &to->embed));
  if (facts->position == POSITION_LEARNED) {
    int64_t rows = facts->max_positions + facts->position_offset;
    TRY(find(plan, -1, arch->position, ".weight", &info));
    TRY(read_check_shape(info, rows, D));
    TRY(memory_add(&to->memory, "positions", (size_t)(rows * D) * sizeof(float), (void **)&to->position));
    TRY(read_list_add(
        &plan->reads,
        (struct read_item){info, row_pick_span(0, rows), {0, D}, false, DTYPE_F32, (void **)&to->position}));
  }
  if (facts->embed_norm) TRY(want_norm(plan, -1, arch->embed_norm, D, true, &to->embed_norm));
  if (De == D) return STATUS_OK;
  TRY(find(plan, -1, arch->project_in, ".weight", &info));
  return want_table(plan, info, D, De, row_pick_span(0, D), "projections", &to->project_in);
}

/* The last stage: what turns the residual stream into logits. */
static enum status want_head(struct plan *plan) {
  const struct model_facts *facts = plan->facts;
  const struct arch *arch = plan->arch;
  struct weights *to = plan->weights;
  const struct tensor_info *info;
  int64_t D = facts->d_model, De = facts->d_embed;
  if (facts->post_norm)
    TRY(want_norm(plan, (int)facts->n_layers - 1, arch->norm2, D, facts->bias_norm, &to->final_norm));
  else if (facts->final_norm)
    TRY(want_norm(plan, -1, arch->final_norm, D, facts->bias_norm, &to->final_norm));
  if (De != D) {
    TRY(find(plan, -1, arch->project_out, ".weight", &info));
    TRY(want_table(plan, info, De, D, row_pick_span(0, De), "projections", &to->project_out));
  }
  if (facts->bias_head) {
    struct row_pick vocab = row_pick_span(plan->shard->vocab.first, plan->shard->vocab.n);
    TRY(find(plan, -1, arch->head, ".bias", &info));
    TRY(want_vector(plan, info, facts->n_vocab, vocab, "head", &to->head_bias));
  }
  if (!facts->tied_head) return want_vocabulary(plan, arch->head, "head", &to->head);
  if (shard_is_first_stage(plan->shard)) return STATUS_OK; /* the embedding, once it has its place */
  return want_vocabulary(plan, arch->embed, "head", &to->head);
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
  const struct shard *shard = plan->shard;
  if (shard_is_first_stage(shard)) TRY(want_embedding(plan));
  for (int layer = shard_first_layer(shard); layer < shard_end_layer(shard); layer++) TRY(want_layer(plan, layer));
  return shard_is_last_stage(shard) ? want_head(plan) : STATUS_OK;
}

/* Weights that have another's place. */
static void share(struct weights *weights, const struct model_facts *facts, const struct shard *shard) {
  if (facts->tied_head && shard_is_first_stage(shard)) weights->head = weights->embed;
}

static void plan_free(struct plan *plan) {
  read_list_free(&plan->reads);
  free(plan->weights->layers);
  free(plan->weights->memory.entries);
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

/* Weights that the model has no place for, in any stage, are a sign of another model's config.json. */
static enum status warn_of_unread(struct tensor_source *source, const struct shard *shard) {
  struct shard whole = *shard;
  struct weights weights = {0};
  struct plan plan = {.source = source, .facts = &source->facts, .shard = &whole, .weights = &weights};
  whole.stage = (struct stage){.n_pp = 1, .layers = {0, source->facts.n_layers}};
  enum status status = plan_all(&plan);
  const char *first = NULL;
  int64_t n = 0;
  for (int64_t i = 0; status == STATUS_OK && i < source->n_tensors; i++) {
    const char *name = source->at(source, i)->name;
    if (is_no_weight(&plan, name) || is_read(&plan, name)) continue;
    if (n++ == 0) first = name;
  }
  if (n > 0)
    log_warn(
        "%s: %lld tensors are not part of a %s model as config.json describes it and are left out, the first "
        "'%.200s': is that config.json this model's?",
        source->path, (long long)n, source->facts.family, first);
  plan_free(&plan);
  return status;
}

/* What does not become what the configuration says, said once. */
static void warn_of_storage(const struct plan *plan) {
  long long block = plan->storage == STORE_F8 ? dtype_block(DTYPE_F8) : QUANT_NF4_BLOCK;
  if (plan->n_unfit > 0)
    log_warn("%d of %d matrices stay as they are in the file: %s multiples of %lld weights", plan->n_unfit,
             plan->n_linears,
             plan->storage == STORE_F8 ? "fp8 needs rows, their parts on a rank and heads that are"
                                       : "nf4 needs rows that are",
             block);
  if (plan->n_cut > 0)
    log_warn(
        "%d of %d matrices are cut inside tiles of %d rows or blocks of %lld weights of nf4: this rank keeps their "
        "values as %s",
        plan->n_cut, plan->n_linears, QUANT_NF4_TILE, block, dtype_name(plan->compute));
}

/* Before messages of tp: STATUS_PEER here if a rank cannot take part in them. */
static enum status agree(struct comm *tp, enum status own) {
  double failed = own != STATUS_OK;
  if (!tp || comm_size(tp) == 1) return own;
  enum status sent = comm_all_reduce_f64(tp, &failed, 1, REDUCE_MAX);
  if (own != STATUS_OK) return own;
  if (sent == STATUS_OK && failed > 0) return status_set(STATUS_PEER, "another rank cannot load its weights");
  return sent;
}

enum status weights_load(struct device *device, struct tensor_source *source, const struct shard *shard,
                         const struct weights_options *options, struct weights *weights) {
  enum status status = STATUS_OK;
  memset(weights, 0, sizeof *weights);
  struct plan plan = {.source = source,
                      .facts = &source->facts,
                      .shard = shard,
                      .storage = options->storage,
                      .compute = options->compute,
                      .weights = weights};
  struct reader reader = {0};
  status = plan_all(&plan);
  if (options->dry) goto out;
  if (status == STATUS_OK) status = warn_of_unread(source, shard);
  if (status == STATUS_OK) status = memory_commit(&weights->memory, device);
  if (status == STATUS_OK) status = reader_open(&plan.reads, source, device, options->tp, &reader);
  if (options->storage == STORE_INT8) status = agree(options->tp, status); /* the scales of cut rows */
  if (status != STATUS_OK) goto out;
  warn_of_storage(&plan);
  TRY_OUT(read_list_run(&plan.reads, &reader));
out:
  reader_close(&reader);
  read_list_free(&plan.reads);
  if (status == STATUS_OK) share(weights, &source->facts, shard);
  return status;
}

void weights_release(struct weights *weights, struct device *device) {
  free(weights->layers);
  memory_release(&weights->memory, device);
  memset(weights, 0, sizeof *weights);
}
