#include "golden_case.h"

#include "golden_device.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void golden_check(bool ok, const char *format, ...) {
  if (ok) return;
  va_list args;
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  mesh_abort(1);
}

void golden_must(enum status status) { golden_check(status == STATUS_OK, "failed: %s", status_message()); }

static void read_modules(const json_t *root, struct golden_case *golden) {
  const json_t *modules = json_object_get(root, "modules");
  golden->n_modules = (int)json_array_size(modules);
  golden_check(golden->n_modules <= GOLDEN_MAX_MODULES, "%s: too many modules", golden->folder);
  for (int i = 0; i < golden->n_modules; i++) {
    const json_t *row = json_array_get(modules, (size_t)i);
    struct golden_module *module = &golden->modules[i];
    module->layer = (int)json_integer_value(json_object_get(row, "layer"));
    snprintf(module->name, sizeof module->name, "%s", json_string_value(json_object_get(row, "module")));
    module->r = json_integer_value(json_object_get(row, "r"));
    module->alpha = json_number_value(json_object_get(row, "alpha"));
    module->scale = json_number_value(json_object_get(row, "scale"));
  }
}

/* A case without a list has PEFT's own adapter on the fused linear of each layer. */
static void add_fused_modules(const json_t *root, struct golden_case *golden) {
  double r = json_number_value(json_object_get(root, "r")), alpha = json_number_value(json_object_get(root, "alpha"));
  char name[64];
  for (int layer = 0;; layer++) {
    snprintf(name, sizeof name, "layers.%d.fused.A", layer);
    if (!safetensors_find(golden->tensors, name)) break;
    golden->modules[golden->n_modules++] = (struct golden_module){layer, "fused", (int64_t)r, alpha, alpha / r};
  }
}

static void read_batch(const json_t *root, struct golden_case *golden) {
  golden_check(golden->rows * golden->seq_len <= 256 && golden->rows <= 8, "%s: batch too large", golden->folder);
  for (int64_t row = 0; row < golden->rows; row++) {
    for (int64_t t = 0; t < golden->seq_len; t++) {
      int64_t at = row * golden->seq_len + t;
      const json_t *ids = json_array_get(json_object_get(root, "ids"), (size_t)row);
      const json_t *labels = json_array_get(json_object_get(root, "labels"), (size_t)row);
      golden->ids[at] = (int32_t)json_integer_value(json_array_get(ids, (size_t)t));
      golden->labels[at] = (int32_t)json_integer_value(json_array_get(labels, (size_t)t));
      golden->positions[at] = (int32_t)t;
      golden->row_ids[at] = at;
    }
  }
}

void golden_open(const char *name, struct golden_case *golden) {
  char path[600];
  json_error_t error;
  memset(golden, 0, sizeof *golden);
  snprintf(golden->folder, sizeof golden->folder, "%s/tests/golden/%s", SOURCE_DIR, name);
  snprintf(path, sizeof path, "%s/golden.json", golden->folder);
  json_t *root = json_load_file(path, 0, &error);
  golden_check(root != NULL, "%s: %s", path, error.text);
  golden->rows = json_integer_value(json_object_get(root, "rows"));
  golden->seq_len = json_integer_value(json_object_get(root, "seq_len"));
  golden->n_vocab = json_integer_value(json_object_get(root, "n_vocab"));
  golden->n_targets = json_integer_value(json_object_get(root, "n_targets"));
  golden->rslora = json_is_true(json_object_get(root, "rslora"));
  golden->loss = json_number_value(json_object_get(root, "loss"));
  for (size_t i = 0; i < GOLDEN_STEPS; i++) {
    golden->losses[i] = json_number_value(json_array_get(json_object_get(root, "losses"), i));
    golden->grad_norms[i] = json_number_value(json_array_get(json_object_get(root, "grad_norms"), i));
  }
  read_modules(root, golden);
  read_batch(root, golden);
  snprintf(path, sizeof path, "%s/golden.safetensors", golden->folder);
  golden_must(safetensors_open(path, &golden->tensors));
  if (golden->n_modules == 0) add_fused_modules(root, golden);
  json_decref(root);
}

void golden_close(struct golden_case *golden) { safetensors_close(&golden->tensors); }

float *golden_tensor(const struct golden_case *golden, const char *name, int64_t *n) {
  const struct safetensors_tensor *tensor = safetensors_find(golden->tensors, name);
  golden_check(tensor != NULL, "%s: no tensor %s", golden->folder, name);
  float *values = malloc(tensor->bytes);
  golden_must(safetensors_read(golden->tensors, tensor, 0, tensor->bytes, values));
  *n = (int64_t)(tensor->bytes / sizeof *values);
  return values;
}

static struct adapter_spec spec_for(const struct golden_model *m, const struct golden_case *golden,
                                    const struct golden_module *module, enum module which) {
  struct linear_dims dims = shard_linear(&m->model->shard, &m->source->facts, which);
  return (struct adapter_spec){.layer = module->layer,
                               .module = which,
                               .r = module->r,
                               .alpha = module->alpha,
                               .rslora = golden->rslora,
                               .in = dims.in,
                               .out = dims.out,
                               .in_first = dims.in_t.first,
                               .in_t = dims.in_t.n,
                               .out_first = dims.out_t.first,
                               .out_t = dims.out_t.n,
                               .out_shared = m->model->shard.kv_replicated && (which == MODULE_K || which == MODULE_V)};
}

/* This rank's part of a golden factor; row_offset: where the part's tensor begins in a fused one. */
static void fill(const struct golden_case *golden, const struct param_list *list, const struct param *p,
                 const char *module, int layer, int64_t row_offset) {
  char name[80];
  int64_t n;
  snprintf(name, sizeof name, "layers.%d.%s.%s", layer, module, p->name);
  float *whole = golden_tensor(golden, name, &n);
  golden_check(row_offset || n == p->rows * p->cols || strcmp(module, "fused") == 0, "%s: size of %s", golden->folder,
               name);
  for (int64_t row = 0; row < p->part_rows; row++)
    memcpy(param_host(list, p->w) + row * p->part_cols, whole + (row_offset + p->row + row) * p->cols + p->col,
           (size_t)p->part_cols * sizeof(float));
  free(whole);
}

/* This rank's part, its stage by the lowest layer of the case's adapters. */
static struct shard plan_shard(const struct golden_case *golden, const struct mesh *mesh,
                               const struct model_facts *facts) {
  struct shard shard;
  int first = (int)facts->n_layers;
  for (int i = 0; i < golden->n_modules; i++)
    if (golden->modules[i].layer < first) first = golden->modules[i].layer;
  golden_must(shard_plan(facts, mesh->n_tp, mesh->tp_rank, &shard));
  golden_must(shard_plan_stage(facts, first, mesh->n_pp, mesh->pp_rank, &shard));
  return shard;
}

void golden_model_open(const struct golden_case *golden, struct mesh *mesh, enum dtype act, struct golden_model *m) {
  golden_model_open_as(golden, mesh, act, &(struct prepare_options){.n_micro = golden->rows}, m);
}

void golden_model_open_as(const struct golden_case *golden, struct mesh *mesh, enum dtype act,
                          const struct prepare_options *how, struct golden_model *m) {
  struct prepare_options prepare = *how;
  struct adapter_spec specs[GOLDEN_MAX_MODULES * 3];
  const char *names[GOLDEN_MAX_MODULES * 3];
  int n = 0;
  memset(m, 0, sizeof *m);
  m->mesh = mesh;
  m->device = golden_device();
  golden_must(base_model_open(golden->folder, &m->source));
  struct shard shard = plan_shard(golden, mesh, &m->source->facts);
  struct model_options options = {.act = act, .n_positions = golden->seq_len, .shard = &shard};
  golden_must(model_create(m->device, m->source, mesh->tp, mesh->pp, &options, &m->model));
  for (int i = 0; i < golden->n_modules; i++) {
    const struct golden_module *module = &golden->modules[i];
    if (!shard_has_layer(&shard, module->layer)) continue;
    int which = module_from_name(module->name);
    for (int part = 0; part < (which < 0 ? 3 : 1); part++) {
      names[n] = module->name;
      specs[n++] = spec_for(m, golden, module, (enum module)(which < 0 ? part : which));
    }
  }
  golden_must(adapters_create(m->device, mesh->n_tp, specs, n, 0, 1, &m->adapters));
  golden_must(param_list_fetch(&m->adapters.params, m->device));
  for (int i = 0; i < n; i++) {
    int64_t offset = strcmp(names[i], "fused") == 0 ? (int64_t)specs[i].module * specs[i].out : 0;
    fill(golden, &m->adapters.params, &m->adapters.params.items[2 * i], names[i], specs[i].layer, 0);
    fill(golden, &m->adapters.params, &m->adapters.params.items[2 * i + 1], names[i], specs[i].layer, offset);
    model_attach(m->model, specs[i].layer, specs[i].module, &m->adapters.pairs[i]);
  }
  golden_must(param_list_send(&m->adapters.params, m->device));
  prepare.training = true;
  if (prepare.max_tokens == 0) prepare.max_tokens = golden->rows * golden->seq_len;
  golden_must(model_prepare(m->model, &prepare));
}

void golden_model_close(struct golden_model *m) {
  model_destroy(&m->model);
  adapters_destroy(&m->adapters, m->device);
  base_model_close(&m->source);
}

void golden_fetch(struct golden_model *m) { golden_must(param_list_fetch(&m->adapters.params, m->device)); }

struct batch golden_batch(struct golden_case *golden, int64_t first, int64_t n) {
  int64_t at = first * golden->seq_len;
  for (int64_t i = 0; i < n; i++) {
    int32_t q = (int32_t)(i * golden->seq_len), length = (int32_t)golden->seq_len;
    golden->segments[i] = (struct segment){q, length, q, length};
  }
  return (struct batch){.M = n * golden->seq_len,
                        .ids = golden->ids + at,
                        .positions = golden->positions + at,
                        .labels = golden->labels + at,
                        .row_ids = golden->row_ids + at,
                        .segments = golden->segments,
                        .n_segments = (int)n,
                        .training = true};
}

static enum status the_only(void *context, int64_t i, struct batch *batch) {
  (void)i;
  *batch = *(const struct batch *)context;
  return STATUS_OK;
}

void golden_train_one(struct golden_model *m, const struct batch *batch, float g, double *loss_sum) {
  struct batch copy = *batch;
  const struct micro_batches source = {1, the_only, &copy};
  golden_must(transformer_train(m->model, &source, g, loss_sum));
}
