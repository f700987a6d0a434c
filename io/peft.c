/*
 * peft.c: an adapter_set as a PEFT folder in the uniform form: one rank and one
 * scale for all modules, so that every loader, also one that reads only r and
 * lora_alpha, applies the trained scale.
 */
#include "io/peft.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/durable.h"
#include "io/peft_internal.h"
#include "io/safetensors.h"

/* One linear of the base and the modules that make up its adapter. */
struct target {
  char path[PEFT_PATH];
  const struct adapter_module *parts; /* one, or some of q, k, v of a fused linear */
  int n_parts;
  bool fused;
  int64_t r, in, out; /* r: the sum over the parts, before padding */
};

struct layout {
  const struct arch *arch;
  const struct model_facts *facts;
  struct target *targets;
  int n_targets;
  int64_t r;    /* of every module in the file */
  double scale; /* of every module in the file */
};

static enum status check_module(const struct layout *layout, const struct adapter_module *module) {
  const char *name = module->module < MODULE_COUNT ? module_names[module->module] : "?";
  int64_t in, out;
  bool fused = module->module <= MODULE_V && layout->arch->qkv_layout != QKV_SEPARATE;
  if (!module->A || !module->B || module->r < 1)
    return status_set(STATUS_USAGE, "layers/%d/%s: has no factors", module->layer, name);
  if (module->module >= MODULE_COUNT || (!fused && !layout->arch->linear[module->module]))
    return status_set(STATUS_USAGE, "layers/%d/%s: family %s has no such module", module->layer, name,
                      layout->arch->family);
  module_shape(layout->facts, module->module, &in, &out);
  if (module->layer < 0 || module->layer >= layout->facts->n_layers || module->in != in || module->out != out)
    return status_set(STATUS_USAGE, "layers/%d/%s [%lld -> %lld]: the base has %lld layers and [%lld -> %lld]",
                      module->layer, name, (long long)module->in, (long long)module->out,
                      (long long)layout->facts->n_layers, (long long)in, (long long)out);
  return STATUS_OK;
}

/* Modules in (layer, module) order into targets; q, k and v of a fused linear
 * are neighbours. */
static enum status group_modules(const struct adapter_set *set, struct layout *layout) {
  bool fuse = layout->arch->qkv_layout != QKV_SEPARATE;
  layout->targets = calloc((size_t)set->n_modules + 1, sizeof *layout->targets);
  if (!layout->targets) return status_set(STATUS_SYSTEM, "out of memory for %d modules", set->n_modules);
  for (int i = 0; i < set->n_modules; i++) {
    const struct adapter_module *module = &set->modules[i];
    TRY(check_module(layout, module));
    if (i > 0 && (module[-1].layer > module->layer ||
                  (module[-1].layer == module->layer && module[-1].module >= module->module)))
      return status_set(STATUS_USAGE, "layers/%d/%s: twice or out of order", module->layer,
                        module_names[module->module]);
    struct target *target = layout->n_targets ? &layout->targets[layout->n_targets - 1] : NULL;
    bool fused = fuse && module->module <= MODULE_V;
    if (!fused || !target || !target->fused || target->parts[0].layer != module->layer) {
      target = &layout->targets[layout->n_targets++];
      *target = (struct target){.parts = module, .fused = fused, .in = module->in, .out = module->out};
      if (fused) target->out = (layout->facts->n_heads + 2 * layout->facts->n_kv_heads) * layout->facts->head_dim;
      arch_module_path(layout->arch, module->layer, module->module, target->path);
    }
    target->n_parts++;
    target->r += module->r;
  }
  if (layout->n_targets == 0) return status_set(STATUS_USAGE, "the adapter has no module");
  return STATUS_OK;
}

/* The largest rank, and the first scale that is not zero: where all are equal,
 * as they are unless r or alpha differ by module, no B is touched. */
static void choose_uniform(const struct adapter_set *set, struct layout *layout) {
  for (int i = 0; i < layout->n_targets; i++)
    if (layout->targets[i].r > layout->r) layout->r = layout->targets[i].r;
  for (int i = 0; i < set->n_modules && layout->scale == 0; i++) layout->scale = set->modules[i].scale;
}

/* A [R, in]: the parts' A stacked, zeros below. */
static void fill_a(const struct layout *layout, const struct target *target, float *a) {
  int64_t row = 0;
  memset(a, 0, (size_t)layout->r * (size_t)target->in * sizeof *a);
  for (int p = 0; p < target->n_parts; p++) {
    const struct adapter_module *part = &target->parts[p];
    memcpy(a + row * target->in, part->A, (size_t)part->r * (size_t)part->in * sizeof *a);
    row += part->r;
  }
}

/* B [out, R]: each part's B in its own rows and its own ranks' columns. */
static void fill_b(const struct layout *layout, const struct target *target, float *b) {
  int64_t column = 0;
  memset(b, 0, (size_t)target->out * (size_t)layout->r * sizeof *b);
  for (int p = 0; p < target->n_parts; p++) {
    const struct adapter_module *part = &target->parts[p];
    double factor = part->scale == layout->scale ? 1 : part->scale / layout->scale;
    for (int64_t j = 0; j < part->out; j++) {
      int64_t row = target->fused ? fused_row(layout->arch, layout->facts, part->module, j) : j;
      for (int64_t c = 0; c < part->r; c++)
        b[row * layout->r + column + c] = (float)(factor * (double)part->B[j * part->r + c]);
    }
    column += part->r;
  }
}

/* Two entries a target, A then B; names[i] backs entries[i].name. */
static void describe(const struct layout *layout, struct safetensors_entry *entries, char (*names)[2 * PEFT_PATH]) {
  for (int i = 0; i < 2 * layout->n_targets; i++) {
    const struct target *target = &layout->targets[i / 2];
    bool is_a = i % 2 == 0;
    snprintf(names[i], sizeof names[i], "base_model.model.%s.lora_%c.weight", target->path, is_a ? 'A' : 'B');
    entries[i] = (struct safetensors_entry){.name = names[i],
                                            .dtype = DTYPE_F32,
                                            .n_dims = 2,
                                            .shape = {is_a ? layout->r : target->out, is_a ? target->in : layout->r}};
  }
}

static enum status append_targets(const struct layout *layout, struct safetensors_writer *writer) {
  for (int i = 0; i < layout->n_targets; i++) {
    const struct target *target = &layout->targets[i];
    size_t n_a = (size_t)layout->r * (size_t)target->in, n_b = (size_t)target->out * (size_t)layout->r;
    float *values = malloc((n_a > n_b ? n_a : n_b) * sizeof *values);
    if (!values) return status_set(STATUS_SYSTEM, "%s: out of memory", target->path);
    fill_a(layout, target, values);
    enum status status = safetensors_writer_append(writer, values, n_a * sizeof *values);
    if (status == STATUS_OK) {
      fill_b(layout, target, values);
      status = safetensors_writer_append(writer, values, n_b * sizeof *values);
    }
    free(values);
    TRY(status);
  }
  return STATUS_OK;
}

static enum status write_tensors(const char *folder, const struct layout *layout) {
  char path[DURABLE_PATH];
  size_t n = 2 * (size_t)layout->n_targets;
  struct safetensors_writer *writer = NULL;
  enum status status = STATUS_OK;
  TRY(durable_path(path, sizeof path, "%s/adapter_model.safetensors", folder));
  struct safetensors_entry *entries = calloc(n, sizeof *entries);
  char(*names)[2 * PEFT_PATH] = calloc(n, sizeof *names);
  if (!entries || !names) {
    status = status_set(STATUS_SYSTEM, "%s: out of memory", path);
    goto out;
  }
  describe(layout, entries, names);
  TRY_OUT(safetensors_writer_create(path, entries, (int64_t)n, &writer));
  TRY_OUT(append_targets(layout, writer));
  status = safetensors_writer_finish(&writer);
out:
  safetensors_writer_destroy(&writer);
  free(entries);
  free(names);
  return status;
}

/* The shortest ending of a path within its layer that no other linear of the
 * family shares: "q_proj", but "attn.c_proj" beside "mlp.c_proj". */
static const char *short_name(const struct arch *arch, const char *inner) {
  const char *last = strrchr(inner, '.');
  last = last ? last + 1 : inner;
  size_t n = strlen(last);
  for (int m = 0; m < MODULE_COUNT; m++) {
    const char *other = arch->linear[m];
    if (!other || strcmp(other, inner) == 0) continue;
    size_t length = strlen(other);
    if (length > n && other[length - n - 1] == '.' && strcmp(other + length - n, last) == 0) return inner;
  }
  return last;
}

static const char *inner_path(const struct arch *arch, const struct target *target) {
  return target->fused ? arch->qkv : arch->linear[target->parts[0].module];
}

/* target_modules: short names where every layer has the same modules, else the
 * full path of each. */
static int choose_names(const struct layout *layout, const char **names) {
  int n = 0, total = layout->n_targets;
  int64_t n_layers = layout->facts->n_layers;
  for (int i = 0; i < total && layout->targets[i].parts[0].layer == layout->targets[0].parts[0].layer; i++)
    names[n++] = short_name(layout->arch, inner_path(layout->arch, &layout->targets[i]));
  bool regular = (int64_t)n * n_layers == total && layout->targets[0].parts[0].layer == 0;
  for (int i = 0; regular && i < total; i++) {
    const struct target *target = &layout->targets[i];
    regular = target->parts[0].layer == i / n && target->fused == layout->targets[i % n].fused &&
              (target->fused || target->parts[0].module == layout->targets[i % n].parts[0].module);
  }
  if (regular) return n;
  for (int i = 0; i < total; i++) names[i] = layout->targets[i].path;
  return total;
}

static enum status write_config(const char *folder, const struct layout *layout, const char *base_name) {
  const char **names = calloc((size_t)layout->n_targets, sizeof *names);
  if (!names) return status_set(STATUS_SYSTEM, "%s: out of memory", folder);
  struct peft_summary summary = {.r = layout->r,
                                 .alpha = layout->scale * (double)layout->r,
                                 .fan_in_fan_out = layout->arch->conv1d,
                                 .base_name = base_name,
                                 .targets = names,
                                 .n_targets = choose_names(layout, names)};
  enum status status = peft_config_write(folder, &summary);
  free(names);
  return status;
}

/* Take away a folder that did not become whole; the failure's message stays. */
static void remove_files(const char *folder) {
  static const char *const names[] = {"adapter_model.safetensors", "adapter_config.json"};
  char path[PATH_MAX];
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (snprintf(path, sizeof path, "%s/%s", folder, names[i]) < (int)sizeof path) unlink(path);
  rmdir(folder);
}

enum status peft_write(const char *folder, const struct adapter_set *set, const struct model_facts *facts,
                       const char *base_name) {
  struct layout layout = {.arch = arch_find(facts->family), .facts = facts};
  enum status status = STATUS_OK;
  if (!layout.arch)
    return status_set(STATUS_USAGE, "%s: unknown family \"%s\"; known: %s", folder, facts->family, arch_list());
  TRY_OUT(group_modules(set, &layout));
  choose_uniform(set, &layout);
  bool made = mkdir(folder, 0777) == 0;
  if (!made && errno != EEXIST) {
    status = status_set(STATUS_SYSTEM, "%s: cannot create: %s", folder, strerror(errno));
    goto out;
  }
  status = write_tensors(folder, &layout);
  if (status == STATUS_OK) status = write_config(folder, &layout, base_name);
  if (status != STATUS_OK && made) remove_files(folder);
out:
  free(layout.targets);
  return status;
}
