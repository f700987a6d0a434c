/*
 * adapter_set.c: a whole adapter in memory, from whatever holds one.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/durable.h"
#include "io/peft_internal.h"

void adapter_set_free(struct adapter_set *set) {
  for (int i = 0; i < set->n_modules; i++) {
    free(set->modules[i].A);
    free(set->modules[i].B);
  }
  free(set->modules);
  *set = (struct adapter_set){0};
}

/* "layers/12/q" */
static enum status parse_group(const char *path, const char *group, int *layer_p, enum module *module_p) {
  const char *digits = strncmp(group, "layers/", 7) == 0 ? group + 7 : "";
  size_t n = strspn(digits, "0123456789");
  int module = n > 0 && n < 7 && digits[n] == '/' ? module_from_name(digits + n + 1) : -1;
  if (module < 0 || (n > 1 && digits[0] == '0') || strcmp(digits + n + 1, module_names[module]) != 0)
    return status_set(STATUS_DATA, "%s: %s is not a module that is known", path, group);
  *layer_p = atoi(digits);
  *module_p = (enum module)module;
  return STATUS_OK;
}

static enum status read_factor(const struct checkpoint *checkpoint, const char *group, const char *name, int64_t rows,
                               int64_t cols, float **data_p) {
  struct checkpoint_array array = {.rows = rows, .cols = cols, .part_rows = rows, .part_cols = cols};
  snprintf(array.group, sizeof array.group, "%s", group);
  snprintf(array.name, sizeof array.name, "%s", name);
  /* Compare with what is stored before believing the sizes. */
  struct checkpoint_array probe = array;
  probe.part_rows = 0;
  TRY(checkpoint_read(checkpoint, &probe));
  array.data = malloc((size_t)rows * (size_t)cols * sizeof(float));
  if (!array.data) return status_set(STATUS_SYSTEM, "out of memory for %s/%s", group, name);
  enum status status = checkpoint_read(checkpoint, &array);
  if (status != STATUS_OK) {
    free(array.data);
    return status;
  }
  *data_p = array.data;
  return STATUS_OK;
}

static enum status check_against_base(const char *path, const struct model_facts *facts,
                                      const struct adapter_module *module, const char *group) {
  int64_t in, out;
  if (!facts) return STATUS_OK;
  module_shape(facts, module->module, &in, &out);
  if (module->layer >= facts->n_layers || module->in != in || module->out != out)
    return status_set(STATUS_USAGE, "%s: %s [%lld -> %lld] does not fit the base (%lld layers, [%lld -> %lld])", path,
                      group, (long long)module->in, (long long)module->out, (long long)facts->n_layers, (long long)in,
                      (long long)out);
  return STATUS_OK;
}

static enum status read_module(const struct checkpoint *checkpoint, const char *path, const struct model_facts *facts,
                               const struct checkpoint_module *stored, struct adapter_module *module) {
  *module = (struct adapter_module){
      .r = stored->r, .in = stored->in, .out = stored->out, .alpha = stored->alpha, .rslora = stored->rslora};
  TRY(parse_group(path, stored->group, &module->layer, &module->module));
  TRY(check_against_base(path, facts, module, stored->group));
  module->scale = module->alpha / (module->rslora ? sqrt((double)module->r) : (double)module->r);
  enum status status = read_factor(checkpoint, stored->group, "A", module->r, module->in, &module->A);
  if (status == STATUS_OK) status = read_factor(checkpoint, stored->group, "B", module->out, module->r, &module->B);
  if (status != STATUS_OK) {
    free(module->A);
    free(module->B);
  }
  return status;
}

static int by_place(const void *a, const void *b) {
  const struct adapter_module *x = a, *y = b;
  return x->layer != y->layer ? x->layer - y->layer : (int)x->module - (int)y->module;
}

static enum status read_own(const char *path, const struct model_facts *facts, struct adapter_set *set,
                            struct checkpoint_header *header_p) {
  enum status status = STATUS_OK;
  struct checkpoint *checkpoint = NULL;
  const struct checkpoint_module *modules;
  TRY(checkpoint_open(path, &checkpoint));
  int n = checkpoint_modules(checkpoint, &modules);
  if (n == 0) {
    status = status_set(STATUS_DATA, "%s: no adapter in it", path);
    goto out;
  }
  set->modules = calloc((size_t)n, sizeof *set->modules);
  if (!set->modules) {
    status = status_set(STATUS_SYSTEM, "%s: out of memory for %d modules", path, n);
    goto out;
  }
  for (int i = 0; i < n; i++) {
    TRY_OUT(read_module(checkpoint, path, facts, &modules[i], &set->modules[i]));
    set->n_modules++;
  }
  qsort(set->modules, (size_t)n, sizeof *set->modules, by_place);
  if (header_p) *header_p = *checkpoint_header(checkpoint);
out:
  checkpoint_close(&checkpoint);
  if (status != STATUS_OK) adapter_set_free(set);
  return status;
}

enum status adapter_resolve(const char *path, char *resolved, size_t size, bool *peft_p) {
  bool peft = peft_is_folder(path);
  if (peft && checkpoint_is_directory(path))
    return status_set(STATUS_USAGE,
                      "%s holds checkpoints and a PEFT adapter: name the step directory that is meant, or move the "
                      "files adapter_* elsewhere",
                      path);
  TRY(peft ? durable_path(resolved, size, "%s", path) : checkpoint_resolve(path, resolved, size));
  *peft_p = peft;
  return STATUS_OK;
}

enum status adapter_set_read(const char *path, const struct model_facts *facts, struct adapter_set *set,
                             struct checkpoint_header *header_p) {
  char resolved[DURABLE_PATH];
  memset(set, 0, sizeof *set);
  if (header_p) memset(header_p, 0, sizeof *header_p);
  bool peft = false;
  TRY(adapter_resolve(path, resolved, sizeof resolved, &peft));
  if (peft) return peft_read(path, facts, set);
  return read_own(resolved, facts, set, header_p);
}
