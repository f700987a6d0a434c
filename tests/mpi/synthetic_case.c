#include "synthetic_case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dist/rng.h"

enum { MAX_TENSORS = 128, RANK = 3, ROWS = 6, SEQ_LEN = 24 };

/* Tensors of one file, all f32, with the scale of their random values (0: all ones). */
struct file_plan {
  struct safetensors_entry entries[MAX_TENSORS];
  char names[MAX_TENSORS][96];
  double scale[MAX_TENSORS];
  int64_t n;
};

static void add(struct file_plan *plan, const char *name, int64_t rows, int64_t cols, double scale) {
  golden_check(plan->n < MAX_TENSORS, "too many tensors");
  snprintf(plan->names[plan->n], sizeof plan->names[0], "%s", name);
  plan->entries[plan->n] = (struct safetensors_entry){plan->names[plan->n], DTYPE_F32, cols ? 2 : 1, {rows, cols}};
  plan->scale[plan->n++] = scale;
}

static void write_file(const char *path, const struct file_plan *plan, uint64_t seed) {
  struct safetensors_writer *writer;
  golden_must(safetensors_writer_create(path, plan->entries, plan->n, &writer));
  for (int64_t i = 0; i < plan->n; i++) {
    int64_t n = plan->entries[i].shape[0] * (plan->entries[i].n_dims == 2 ? plan->entries[i].shape[1] : 1);
    for (int64_t k = 0; k < n; k++) {
      double random = plan->scale[i] * rng_gaussian(seed, RNG_SYNTHETIC, (uint32_t)i, 0, 0, (uint64_t)k);
      float value = (float)(plan->scale[i] == 0 ? 1 : random);
      golden_must(safetensors_writer_append(writer, &value, sizeof value));
    }
  }
  golden_must(safetensors_writer_finish(&writer));
}

/* out, in of a linear. */
static void linear_size(const struct synthetic_dims *d, int module, int64_t *out, int64_t *in) {
  int64_t q = d->n_heads * d->head_dim, kv = d->n_kv_heads * d->head_dim;
  const int64_t outs[MODULE_COUNT] = {q, kv, kv, d->d_model, d->d_ffn, d->d_ffn, d->d_model};
  const int64_t ins[MODULE_COUNT] = {d->d_model, d->d_model, d->d_model, q, d->d_model, d->d_model, d->d_ffn};
  *out = outs[module];
  *in = ins[module];
}

static void write_config(const struct synthetic_dims *d, const char *folder) {
  char path[600];
  snprintf(path, sizeof path, "%s/config.json", folder);
  FILE *file = fopen(path, "w");
  golden_check(file != NULL, "%s: cannot write", path);
  fprintf(file,
          "{\"model_type\": \"llama\", \"vocab_size\": %d, \"hidden_size\": %d, \"intermediate_size\": %d, "
          "\"num_hidden_layers\": %d, \"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"head_dim\": %d, "
          "\"hidden_act\": \"silu\", \"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, "
          "\"tie_word_embeddings\": false}\n",
          (int)d->n_vocab, (int)d->d_model, (int)d->d_ffn, (int)d->n_layers, (int)d->n_heads, (int)d->n_kv_heads,
          (int)d->head_dim);
  golden_check(fclose(file) == 0, "%s: cannot write", path);
}

static void write_model(const struct synthetic_dims *d, const char *folder) {
  static struct file_plan model, factors;
  char name[128], path[600];
  const struct arch *arch = arch_find("llama");
  model.n = factors.n = 0;
  add(&model, "model.embed_tokens.weight", d->n_vocab, d->d_model, 1);
  for (int layer = 0; layer < d->n_layers; layer++) {
    for (int module = 0; module < MODULE_COUNT; module++) {
      int64_t out, in;
      char module_path[128];
      linear_size(d, module, &out, &in);
      arch_module_path(arch, layer, (enum module)module, module_path);
      snprintf(name, sizeof name, "%s.weight", module_path);
      add(&model, name, out, in, 1 / sqrt((double)in));
      snprintf(name, sizeof name, "layers.%d.%s.A", layer, module_names[module]);
      add(&factors, name, RANK, in, 1 / sqrt((double)in));
      snprintf(name, sizeof name, "layers.%d.%s.B", layer, module_names[module]);
      add(&factors, name, out, RANK, 0.3);
    }
    snprintf(name, sizeof name, "model.layers.%d.input_layernorm.weight", layer);
    add(&model, name, d->d_model, 0, 0);
    snprintf(name, sizeof name, "model.layers.%d.post_attention_layernorm.weight", layer);
    add(&model, name, d->d_model, 0, 0);
  }
  add(&model, "model.norm.weight", d->d_model, 0, 0);
  add(&model, "lm_head.weight", d->n_vocab, d->d_model, 1 / sqrt((double)d->d_model));
  write_config(d, folder);
  snprintf(path, sizeof path, "%s/model.safetensors", folder);
  write_file(path, &model, 1);
  snprintf(path, sizeof path, "%s/golden.safetensors", folder);
  write_file(path, &factors, 2);
}

static void fill_batch(const struct synthetic_dims *d, struct golden_case *golden) {
  golden->rows = ROWS;
  golden->seq_len = SEQ_LEN;
  golden->n_vocab = d->n_vocab;
  for (int64_t i = 0; i < ROWS * SEQ_LEN; i++) {
    golden->ids[i] = (int32_t)(rng_u32(3, RNG_SYNTHETIC, 0, 0, 0, (uint64_t)i) % (uint32_t)d->n_vocab);
    golden->labels[i] = (int32_t)(rng_u32(3, RNG_SYNTHETIC, 1, 0, 0, (uint64_t)i) % (uint32_t)d->n_vocab);
    if (i % 5 == 0) golden->labels[i] = -1;
    golden->n_targets += golden->labels[i] >= 0;
    golden->positions[i] = (int32_t)(i % SEQ_LEN);
    golden->row_ids[i] = i;
  }
}

void synthetic_open(const struct synthetic_dims *dims, const struct mesh *mesh, struct golden_case *golden) {
  char path[600];
  memset(golden, 0, sizeof *golden);
  if (mesh->rank == 0) {
    const char *parent = getenv("TMPDIR");
    snprintf(golden->folder, sizeof golden->folder, "%s/lorashard-synthetic-XXXXXX", parent ? parent : "/tmp");
    golden_check(mkdtemp(golden->folder) != NULL, "%s: cannot make a folder", golden->folder);
    write_model(dims, golden->folder);
  }
  golden_must(comm_broadcast(mesh->control, golden->folder, sizeof golden->folder, 0));
  snprintf(path, sizeof path, "%s/golden.safetensors", golden->folder);
  golden_must(safetensors_open(path, &golden->tensors));
  for (int layer = 0; layer < dims->n_layers; layer++)
    for (int module = 0; module < MODULE_COUNT; module++) {
      struct golden_module *to = &golden->modules[golden->n_modules++];
      *to = (struct golden_module){.layer = layer, .r = RANK, .alpha = 2 * RANK, .scale = 2};
      snprintf(to->name, sizeof to->name, "%s", module_names[module]);
    }
  fill_batch(dims, golden);
}

void synthetic_close(const struct mesh *mesh, struct golden_case *golden) {
  static const char *const files[] = {"config.json", "model.safetensors", "golden.safetensors"};
  char path[600];
  golden_close(golden);
  golden_must(comm_barrier(mesh->control));
  if (mesh->rank != 0) return;
  for (int i = 0; i < 3; i++) {
    snprintf(path, sizeof path, "%s/%s", golden->folder, files[i]);
    unlink(path);
  }
  rmdir(golden->folder);
}
