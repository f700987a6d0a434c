/* ranks: 1 2 3 4 */
/*
 * A rank reads its own slices of the base and nothing else: the counter of the
 * whole load is the bytes that the rank then holds, within 1.02 of them where a cut
 * may fall inside a quantised block, and the shards of all ranks add up to the file.
 * With two pipeline stages a rank reads its layers only, the first stage the
 * embedding, the last the head.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "golden_case.h"
#include "golden_device.h"

static const char *const bases[] = {
    "tests/golden/gpt2",       "tests/golden/gpt2-seven-heads", "tests/golden/gpt2-peft",
    "tests/golden/opt",        "tests/golden/opt-post-norm",    "tests/golden/bloom",
    "tests/golden/neox",       "tests/golden/neox-sequential",  "tests/golden/gptj",
    "tests/golden/llama",      "tests/golden/llama-uneven",     "tests/golden/llama-tied-bias",
    "tests/golden/llama-yarn", "tests/golden/mistral",          "tests/golden/qwen2",
    "tests/golden/qwen3",      "tests/fixtures/stories260K",    "tests/fixtures/stories260K-q.gguf"};

/* Bytes, as the file's types count them, that a rank holds. */
struct held {
  uint64_t shard; /* of what is cut over tp, but for k and v */
  uint64_t kv;    /* k and v, whose heads several ranks may hold */
  uint64_t copy;  /* of what every rank of a stage holds whole */
  uint64_t again; /* the embedding as a tied head, which the first stage holds too */
};

static uint64_t matrix_bytes(const struct weight *w) {
  return w->data ? (uint64_t)w->n_out * dtype_bytes(w->dtype, w->n_in) : 0;
}

/* The type of norms and biases in the file: the only type there is, or f32 in a GGUF file. */
static enum dtype vector_dtype(const struct tensor_source *source) {
  size_t length = strlen(source->path);
  if (length > 5 && strcmp(source->path + length - 5, ".gguf") == 0) return DTYPE_F32;
  for (int64_t i = 1; i < source->n_tensors; i++)
    golden_check(source->at(source, i)->dtype == source->at(source, 0)->dtype, "%s: several dtypes", source->path);
  return source->at(source, 0)->dtype;
}

static void hold_layer(const struct model *m, const struct layer_weights *w, enum dtype vectors, struct held *held) {
  const int64_t D = m->facts.d_model;
  for (int module = 0; module < MODULE_COUNT; module++) {
    bool row = module_is_row_parallel((enum module)module), kv = module == MODULE_K || module == MODULE_V;
    uint64_t *cut = kv ? &held->kv : &held->shard;
    *cut += matrix_bytes(&w->linear[module]);
    if (w->bias[module]) *(row ? &held->copy : cut) += dtype_bytes(vectors, row ? D : w->linear[module].n_out);
  }
  const float *const whole[] = {w->norm1.w, w->norm1.b, m->facts.shared_norm ? NULL : w->norm2.w,
                                m->facts.shared_norm ? NULL : w->norm2.b};
  for (int i = 0; i < 4; i++) held->copy += whole[i] ? dtype_bytes(vectors, D) : 0;
  held->copy += (w->q_norm ? 2 : 0) * dtype_bytes(vectors, m->facts.head_dim);
}

static struct held hold(const struct model *m, enum dtype vectors) {
  const struct model_facts *f = &m->facts;
  const struct weights *w = &m->weights;
  struct held held = {0, 0, 0, 0};
  held.shard += matrix_bytes(&w->embed);
  if (!f->tied_head)
    held.shard += matrix_bytes(&w->head);
  else if (!w->embed.data)
    held.again += matrix_bytes(&w->head);
  if (w->head_bias) held.shard += dtype_bytes(vectors, m->shard.vocab.n);
  held.copy += matrix_bytes(&w->project_in) + matrix_bytes(&w->project_out);
  if (w->position) held.copy += dtype_bytes(vectors, (f->max_positions + f->position_offset) * f->d_model);
  const float *const norms[] = {w->embed_norm.w, w->embed_norm.b, w->final_norm.w, w->final_norm.b};
  for (int i = 0; i < 4; i++) held.copy += norms[i] ? dtype_bytes(vectors, f->d_model) : 0;
  for (int64_t layer = 0; layer < f->n_layers; layer++) hold_layer(m, &w->layers[layer], vectors, &held);
  return held;
}

/* Bytes of all tensors of the base. */
static uint64_t file_bytes(const struct tensor_source *source) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < source->n_tensors; i++) {
    const struct tensor_info *info = source->at(source, i);
    int64_t n = 1;
    for (int k = 0; k < info->n_dims; k++) n *= info->shape[k];
    sum += dtype_bytes(info->dtype, n);
  }
  return sum;
}

static bool has_blocks(const struct tensor_source *source) {
  for (int64_t i = 0; i < source->n_tensors; i++)
    if (dtype_quantised(source->at(source, i)->dtype)) return true;
  return false;
}

static double sum_over(struct comm *comm, uint64_t value) {
  double sum = (double)value; /* exact: these files are small */
  golden_must(comm_all_reduce_f64(comm, &sum, 1, REDUCE_SUM));
  return sum;
}

/* Returns the share of bytes read that the rank holds, or 0 when the base has too few heads. */
static double check_base(const char *base, struct mesh *mesh) {
  char path[600];
  struct device *device;
  struct tensor_source *source;
  struct model *model;
  snprintf(path, sizeof path, "%s/%s", SOURCE_DIR, base);
  device = golden_device();
  golden_must(base_model_open(path, &source));
  if (mesh->n_tp > source->facts.n_heads) {
    base_model_close(&source);
    return 0;
  }
  struct shard shard;
  golden_must(shard_plan(&source->facts, mesh->n_tp, mesh->tp_rank, &shard));
  golden_must(shard_plan_stage(&source->facts, 0, mesh->n_pp, mesh->pp_rank, &shard));
  struct model_options options = {.act = DTYPE_F32, .n_positions = 24, .shard = &shard};
  uint64_t before = source->bytes_read;
  golden_must(model_create(device, source, mesh->tp, mesh->pp, &options, &model));
  uint64_t read = source->bytes_read - before;
  struct held held = hold(model, vector_dtype(source));
  uint64_t own = held.shard + held.kv + held.copy + held.again;
  double share = (double)read / (double)own;
  golden_check(own > 0 && read >= own && share <= (has_blocks(source) ? 1.02 : 1),
               "%s: %" PRIu64 " bytes read for a shard of %" PRIu64, base, read, own);

  /* All shards are the file: copies, and rows of k and v on several ranks, counted once. */
  uint64_t kv_row = held.kv / (uint64_t)model->shard.kv_heads.n, kv = kv_row * (uint64_t)source->facts.n_kv_heads;
  double all = sum_over(mesh->control, held.shard) + sum_over(mesh->pp, kv + held.copy);
  golden_check(all == (double)file_bytes(source), "%s: the shards of %d ranks hold %.0f bytes of the file's %" PRIu64,
               base, mesh->world, all, file_bytes(source));
  golden_check(model->shard.kv_replicated || sum_over(mesh->tp, held.kv) == (double)kv,
               "%s: rows of k and v are missing", base);
  model_destroy(&model);
  base_model_close(&source);
  return share;
}

static void check_layout(int n_tp, int n_pp) {
  struct mesh *mesh = golden_mesh_stages(n_tp, n_pp);
  double worst = 0;
  int n = 0;
  for (size_t i = 0; i < sizeof bases / sizeof bases[0]; i++) {
    double share = check_base(bases[i], mesh);
    n += share > 0;
    if (share > worst) worst = share;
  }
  golden_check(n > 10, "only %d bases were checked", n);
  if (mesh->rank == 0)
    printf("tp %d pp %d: %d bases; bytes read at most %.4f of what rank 0 holds\n", n_tp, n_pp, n, worst);
  golden_mesh_close(&mesh);
}

int main(void) {
  int world, rank;
  golden_start(&world, &rank);
  check_layout(world, 1);
  if (world % 2 == 0) check_layout(world / 2, 2);
  golden_stop();
  return 0;
}
