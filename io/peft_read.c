/*
 * peft_read.c: a PEFT folder into an adapter_set. Every tensor must be one that
 * is understood, and the modules with weights must be those that the
 * configuration selects.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/durable.h"
#include "io/log.h"
#include "io/peft_internal.h"
#include "io/quant.h"
#include "io/safetensors.h"

#define MAX_LAYERS 100000
#define KEY_PREFIX "base_model.model."

/* A linear of the base that may carry an adapter, and its tensors if it does. */
struct target {
  char path[PEFT_PATH];
  int layer;
  enum module module; /* MODULE_Q for a fused linear */
  bool fused;
  int64_t in, out;
  const struct safetensors_tensor *a, *b;
};

struct target_list {
  struct target *items;
  int n;
};

static enum status list_targets(const struct arch *arch, const struct model_facts *facts, struct target_list *list) {
  if (facts->n_layers < 1 || facts->n_layers > MAX_LAYERS)
    return status_set(STATUS_USAGE, "a base of %lld layers", (long long)facts->n_layers);
  list->n = 0;
  list->items = calloc((size_t)facts->n_layers * MODULE_COUNT, sizeof *list->items);
  if (!list->items) return status_set(STATUS_SYSTEM, "out of memory for %lld layers", (long long)facts->n_layers);
  for (int layer = 0; layer < facts->n_layers; layer++)
    for (int m = 0; m < MODULE_COUNT; m++) {
      bool fused = arch->qkv_layout != QKV_SEPARATE && m == MODULE_Q;
      if (!arch->linear[m] && !fused) continue;
      struct target *target = &list->items[list->n++];
      target->layer = layer;
      target->module = (enum module)m;
      target->fused = fused;
      module_shape(facts, target->module, &target->in, &target->out);
      if (fused) target->out = (facts->n_heads + 2 * facts->n_kv_heads) * facts->head_dim;
      arch_module_path(arch, layer, target->module, target->path);
    }
  return STATUS_OK;
}

/* Split "base_model.model.PATH.lora_A[.default].weight"; factor 'A' or 'B'. */
static bool split_key(const char *key, char path[PEFT_PATH], char *factor_p) {
  size_t prefix = strlen(KEY_PREFIX), suffix = strlen(".weight"), length = strlen(key);
  if (strncmp(key, KEY_PREFIX, prefix) != 0) return false;
  const char *lora = strstr(key, ".lora_A.");
  if (!lora) lora = strstr(key, ".lora_B.");
  if (!lora || length < suffix || strcmp(key + length - suffix, ".weight") != 0) return false;
  const char *name = lora + strlen(".lora_A"), *end = key + length - suffix;
  /* Between them: nothing, or the adapter's name. */
  if (name > end || (name < end && memchr(name + 1, '.', (size_t)(end - name - 1)))) return false;
  size_t n = (size_t)(lora - key) - prefix;
  if (lora < key + prefix || n == 0 || n >= PEFT_PATH) return false;
  memcpy(path, key + prefix, n);
  path[n] = 0;
  *factor_p = lora[6];
  return true;
}

static const char *explain_key(const char *key) {
  if (strncmp(key, KEY_PREFIX, strlen(KEY_PREFIX)) != 0) return "does not begin with " KEY_PREFIX;
  if (strstr(key, "lora_magnitude_vector")) return "DoRA is not supported";
  if (strstr(key, "lora_embedding_")) return "adapters on embeddings are not supported";
  if (strstr(key, ".bias")) return "trained biases are not supported";
  if (!strstr(key, ".lora_")) return "modules_to_save are not supported";
  return "is not understood; only lora_A.weight and lora_B.weight are";
}

static enum status claim_key(const char *path, const struct safetensors_tensor *tensor, struct target_list *list) {
  char module[PEFT_PATH], factor;
  if (!split_key(tensor->name, module, &factor))
    return status_set(STATUS_DATA, "%s: %.200s: %s", path, tensor->name, explain_key(tensor->name));
  for (int i = 0; i < list->n; i++) {
    struct target *target = &list->items[i];
    if (strcmp(target->path, module) != 0) continue;
    const struct safetensors_tensor **slot = factor == 'A' ? &target->a : &target->b;
    if (*slot)
      return status_set(STATUS_DATA, "%s: %.200s and %.200s are the same factor", path, (*slot)->name, tensor->name);
    *slot = tensor;
    return STATUS_OK;
  }
  return status_set(STATUS_DATA, "%s: %.200s: the base has no module %s", path, tensor->name, module);
}

static enum status check_tensor(const char *path, const struct safetensors_tensor *tensor, int64_t rows, int64_t cols) {
  if (!tensor->readable)
    return status_set(STATUS_DATA, "%s: %.200s: type %s is not supported", path, tensor->name, tensor->file_type);
  if (tensor->n_dims != 2 || tensor->shape[0] != rows || tensor->shape[1] != cols)
    return status_set(
        STATUS_DATA, "%s: %.200s: [%lld, %lld] with %d axes where the configuration and base give [%lld, %lld]", path,
        tensor->name, (long long)(tensor->n_dims > 0 ? tensor->shape[0] : 0),
        (long long)(tensor->n_dims > 1 ? tensor->shape[1] : 0), tensor->n_dims, (long long)rows, (long long)cols);
  return STATUS_OK;
}

/* The tensor as f32, malloc'ed. Its size is that of bytes in the file. */
static enum status load_tensor(const struct safetensors *file, const struct safetensors_tensor *tensor,
                               float **values_p) {
  int64_t n = tensor->shape[0] * tensor->shape[1];
  void *raw = malloc(tensor->bytes ? (size_t)tensor->bytes : 1);
  float *values = malloc((size_t)(n > 0 ? n : 1) * sizeof *values);
  enum status status = raw && values
                           ? safetensors_read(file, tensor, 0, (size_t)tensor->bytes, raw)
                           : status_set(STATUS_SYSTEM, "%s: out of memory for %.200s", file->path, tensor->name);
  if (status == STATUS_OK) {
    quant_expand_f32(tensor->dtype, raw, n, values);
    *values_p = values;
    values = NULL;
  }
  free(values);
  free(raw);
  return status;
}

static enum status load_module(const struct safetensors *file, const struct peft_config *config,
                               const struct target *target, struct adapter_module *module) {
  *module = (struct adapter_module){
      .layer = target->layer, .module = target->module, .in = target->in, .out = target->out, .rslora = config->rslora};
  TRY(peft_config_sizes(config, target->path, &module->r, &module->alpha));
  module->scale = module->alpha / (module->rslora ? sqrt((double)module->r) : (double)module->r);
  TRY(check_tensor(file->path, target->a, module->r, module->in));
  TRY(check_tensor(file->path, target->b, module->out, module->r));
  enum status status = load_tensor(file, target->a, &module->A);
  if (status == STATUS_OK) status = load_tensor(file, target->b, &module->B);
  if (status != STATUS_OK) {
    free(module->A);
    free(module->B);
  }
  return status;
}

/* Weights and selection must name the same modules. */
static enum status check_selection(const struct safetensors *file, const struct peft_config *config,
                                   const struct target_list *list, int *n_p) {
  *n_p = 0;
  for (int i = 0; i < list->n; i++) {
    const struct target *target = &list->items[i];
    bool selected;
    TRY(peft_config_selects(config, target->path, &selected));
    if (!target->a && !target->b && !selected) continue;
    if (!selected)
      return status_set(STATUS_DATA, "%s: %.200s: target_modules in %s does not select it", file->path,
                        (target->a ? target->a : target->b)->name, config->path);
    if (!target->a || !target->b)
      return status_set(STATUS_DATA, "%s: lora_%c of %s is missing, which target_modules selects", file->path,
                        target->a ? 'B' : 'A', target->path);
    *n_p += 1;
  }
  if (*n_p == 0) return status_set(STATUS_DATA, "%s: no adapter in it", file->path);
  return STATUS_OK;
}

static enum status add_target(const struct safetensors *file, const struct peft_config *config, const struct arch *arch,
                              const struct model_facts *facts, const struct target *target, struct adapter_set *set,
                              bool *copied_p) {
  struct adapter_module module;
  TRY(load_module(file, config, target, &module));
  if (!target->fused) {
    set->modules[set->n_modules++] = module;
    return STATUS_OK;
  }
  int n = 0;
  bool copied = false;
  enum status status = fused_split(arch, facts, &module, set->modules + set->n_modules, &n, &copied);
  free(module.A);
  free(module.B);
  set->n_modules += n;
  *copied_p |= copied;
  return status;
}

static enum status read_modules(const struct safetensors *file, const struct peft_config *config,
                                const struct arch *arch, const struct model_facts *facts, struct target_list *list,
                                struct adapter_set *set) {
  int n;
  bool copied = false;
  for (int64_t i = 0; i < file->n_tensors; i++) TRY(claim_key(file->path, &file->tensors[i], list));
  TRY(check_selection(file, config, list, &n));
  set->modules = calloc((size_t)n * 3, sizeof *set->modules);
  if (!set->modules) return status_set(STATUS_SYSTEM, "%s: out of memory for %d modules", file->path, n);
  for (int i = 0; i < list->n; i++)
    if (list->items[i].a) TRY(add_target(file, config, arch, facts, &list->items[i], set, &copied));
  if (copied)
    log_info("%s: q, k and v each get a copy of the A that PEFT gives them in common; trained on, the copies part",
             file->path);
  return STATUS_OK;
}

static bool exists(const char *folder, const char *name) {
  char path[DURABLE_PATH];
  struct stat info;
  return durable_path(path, sizeof path, "%s/%s", folder, name) == STATUS_OK && stat(path, &info) == 0;
}

bool peft_is_folder(const char *path) {
  struct stat info;
  return stat(path, &info) == 0 && S_ISDIR(info.st_mode) &&
         (exists(path, "adapter_config.json") || exists(path, "adapter_model.safetensors") ||
          exists(path, "adapter_model.bin"));
}

enum status peft_read(const char *folder, const struct model_facts *facts, struct adapter_set *set) {
  char path[DURABLE_PATH];
  struct safetensors *file = NULL;
  struct peft_config config = {0};
  struct target_list list = {0};
  enum status status = STATUS_OK;
  memset(set, 0, sizeof *set);
  if (!facts) return status_set(STATUS_USAGE, "%s: a PEFT adapter can be read only with its base", folder);
  const struct arch *arch = arch_find(facts->family);
  if (!arch)
    return status_set(STATUS_USAGE, "%s: unknown family \"%s\"; known: %s", folder, facts->family, arch_list());
  if (!exists(folder, "adapter_model.safetensors") && exists(folder, "adapter_model.bin"))
    return status_set(STATUS_DATA,
                      "%s/adapter_model.bin: a pickle, which can run code, is not read; load it with PEFT and call "
                      "save_pretrained, which writes adapter_model.safetensors",
                      folder);
  TRY(durable_path(path, sizeof path, "%s/adapter_model.safetensors", folder));
  TRY(peft_config_read(folder, arch, &config));
  TRY_OUT(list_targets(arch, facts, &list));
  TRY_OUT(safetensors_open(path, &file));
  TRY_OUT(read_modules(file, &config, arch, facts, &list, set));
out:
  safetensors_close(&file);
  free(list.items);
  peft_config_free(&config);
  if (status != STATUS_OK) adapter_set_free(set);
  return status;
}
