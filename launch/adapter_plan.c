#include "launch/adapter_plan.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/peft.h"

static bool has_module(const struct job *job, enum module module) {
  const struct arch *arch = arch_find(job->source->facts.family);
  if (module == MODULE_GATE) return job->source->facts.gated;
  return arch->linear[module] || (module <= MODULE_V && arch->qkv);
}

static void known_modules(const struct job *job, char *text, size_t size) {
  size_t used = 0;
  text[0] = 0;
  for (int m = 0; m < MODULE_COUNT; m++)
    if (has_module(job, (enum module)m) && used < size)
      used += (size_t)snprintf(text + used, size - used, "%s%s", used ? ", " : "", module_names[m]);
}

/* lora.targets as a bit per module. */
static enum status target_bits(const struct job *job, unsigned *bits) {
  const struct string_list *targets = &job->config->lora.targets;
  *bits = 0;
  for (int i = 0; i < targets->n; i++) {
    const char *name = targets->items[i];
    if (strcmp(name, "all") == 0) {
      for (int m = 0; m < MODULE_COUNT; m++) *bits |= has_module(job, (enum module)m) ? 1u << m : 0;
      continue;
    }
    int module = module_from_name(name);
    if (module < 0 || !has_module(job, (enum module)module)) {
      char known[64];
      known_modules(job, known, sizeof known);
      return status_set(STATUS_USAGE, "lora.targets: a %s model has no linear '%s'; it has %s (or 'all')",
                        job->source->facts.family, name, known);
    }
    *bits |= 1u << module;
  }
  return STATUS_OK;
}

static bool in_list(const struct layer_list *layers, int layer) {
  if (layers->all) return true;
  for (int i = 0; i < layers->n; i++)
    if (layers->items[i] == layer) return true;
  return false;
}

static enum status check_layers(const struct job *job, const struct layer_list *layers, const char *key) {
  for (int i = 0; !layers->all && i < layers->n; i++)
    if (layers->items[i] < 0 || layers->items[i] >= job->source->facts.n_layers)
      return status_set(STATUS_USAGE, "%s: layer %d is not in the model, whose layers are 0 to %" PRId64, key,
                        layers->items[i], job->source->facts.n_layers - 1);
  return STATUS_OK;
}

/* Sizes and parts of an adapter on this rank. */
static void place(const struct job *job, struct adapter_spec *spec) {
  struct linear_dims dims = shard_linear(&job->shard, &job->source->facts, spec->module);
  spec->in = dims.in;
  spec->out = dims.out;
  spec->in_first = dims.in_t.first;
  spec->in_t = dims.in_t.n;
  spec->out_first = dims.out_t.first;
  spec->out_t = dims.out_t.n;
  spec->out_shared = job->shard.kv_replicated && (spec->module == MODULE_K || spec->module == MODULE_V);
}

/* The adapter that lora.* asks for at one place; false: none. */
static bool wanted(const struct config *config, unsigned bits, int layer, enum module module,
                   struct adapter_spec *spec) {
  bool on = (bits >> module & 1) && in_list(&config->lora.layers, layer);
  *spec = (struct adapter_spec){.layer = layer,
                                .module = module,
                                .r = config->lora.r,
                                .alpha = config->lora.alpha,
                                .rslora = config->lora.rslora};
  for (int i = 0; i < config->lora.n_overrides; i++) {
    const struct lora_override *rule = &config->lora.overrides[i];
    if ((rule->modules && !(rule->modules >> module & 1)) || !in_list(&rule->layers, layer)) continue;
    on = rule->off ? false : on || rule->modules;
    if (rule->r) spec->r = rule->r;
    if (rule->alpha >= 0) spec->alpha = rule->alpha;
  }
  return on;
}

static enum status plan_fresh(struct job *job, struct adapter_spec *specs, int *n) {
  const struct config *config = job->config;
  unsigned bits;
  TRY(target_bits(job, &bits));
  TRY(check_layers(job, &config->lora.layers, "lora.layers"));
  for (int i = 0; i < config->lora.n_overrides; i++)
    TRY(check_layers(job, &config->lora.overrides[i].layers, "lora.overrides"));
  for (int layer = 0; layer < job->source->facts.n_layers; layer++)
    for (int module = 0; module < MODULE_COUNT; module++)
      if (has_module(job, (enum module)module) && wanted(config, bits, layer, (enum module)module, &specs[*n]))
        place(job, &specs[(*n)++]);
  if (*n == 0)
    return status_set(STATUS_USAGE, "lora.targets, lora.layers and lora.overrides leave no adapter to train");
  return STATUS_OK;
}

static enum status plan_from_set(struct job *job, const struct adapter_set *set, struct adapter_spec *specs, int *n) {
  for (int i = 0; i < set->n_modules; i++) {
    const struct adapter_module *module = &set->modules[i];
    if (module->layer < 0 || module->layer >= job->source->facts.n_layers || !has_module(job, module->module))
      return status_set(STATUS_USAGE, "the adapter has a module layers/%d/%s that the base %s lacks", module->layer,
                        module_names[module->module], job->source->path);
    struct adapter_spec *spec = &specs[(*n)++];
    *spec = (struct adapter_spec){.layer = module->layer,
                                  .module = module->module,
                                  .r = module->r,
                                  .alpha = module->alpha,
                                  .rslora = module->rslora};
    place(job, spec);
    if (spec->in != module->in || spec->out != module->out)
      return status_set(
          STATUS_USAGE,
          "the adapter's layers/%d/%s is for a linear of %" PRId64 " x %" PRId64 ", but %s has %" PRId64 " x %" PRId64,
          module->layer, module_names[module->module], module->out, module->in, job->source->path, spec->out, spec->in);
    /* The file's scale decides, whatever rule made it. */
    if (fabs(adapter_scale(spec) - module->scale) > 1e-12 * fabs(module->scale)) {
      spec->rslora = false;
      spec->alpha = module->scale * (double)module->r;
    }
  }
  return STATUS_OK;
}

static enum status check_fingerprint(const struct job *job, const struct checkpoint_header *header, const char *path,
                                     bool any_base) {
  if (any_base || !header->base_fingerprint[0] || strcmp(header->base_fingerprint, job->fingerprint) == 0)
    return STATUS_OK;
  return status_set(
      STATUS_USAGE,
      "adapter %s was trained on another base (%s, fingerprint %.8s...) than %s (%.8s...): give that base, or "
      "--any-base if they are the same model in another format",
      path, header->base_path, header->base_fingerprint, job->source->path, job->fingerprint);
}

static enum status create(struct job *job, const struct adapter_spec *specs, int n) {
  const struct config *config = job->config;
  return adapters_create(job->device, job->mesh, specs, n, (float)config->lora.dropout, config->train.seed,
                         &job->adapters);
}

enum status adapter_plan_make(struct job *job, const struct job_options *options) {
  enum status status = STATUS_OK;
  struct adapter_set set = {0};
  struct checkpoint_header header;
  int n = 0;
  size_t places = (size_t)job->source->facts.n_layers * MODULE_COUNT;
  struct adapter_spec *specs = calloc(places, sizeof *specs);
  if (!specs) return status_set(STATUS_SYSTEM, "out of memory for the plan of adapters");
  if (options->adapter && *options->adapter) {
    TRY_OUT(adapter_set_read(options->adapter, &job->source->facts, &set, &header));
    TRY_OUT(check_fingerprint(job, &header, options->adapter, options->any_base));
    if ((size_t)set.n_modules > places) {
      status = status_set(STATUS_DATA, "%s: more modules than the model has linears", options->adapter);
      goto out;
    }
    TRY_OUT(plan_from_set(job, &set, specs, &n));
    TRY_OUT(create(job, specs, n));
    for (int i = 0; i < n; i++) {
      const struct param *a = &job->adapters.params.items[2 * i], *b = a + 1;
      TRY_OUT(param_set_from_whole(a, job->device, set.modules[i].A));
      TRY_OUT(param_set_from_whole(b, job->device, set.modules[i].B));
    }
  } else if (options->fresh_adapters) {
    TRY_OUT(plan_fresh(job, specs, &n));
    TRY_OUT(create(job, specs, n));
    enum adapter_init init = job->config->lora.init == LORA_INIT_GAUSSIAN ? ADAPTER_GAUSSIAN : ADAPTER_KAIMING;
    TRY_OUT(adapters_init(&job->adapters, job->device, init, job->config->train.seed));
  }
out:
  adapter_set_free(&set);
  free(specs);
  return status;
}

void adapter_plan_attach(struct job *job) {
  for (int i = 0; i < job->adapters.n; i++)
    model_attach(job->model, job->adapters.specs[i].layer, job->adapters.specs[i].module, &job->adapters.pairs[i]);
}

enum status adapter_plan_modules(const struct job *job, struct checkpoint_module **modules_p) {
  int n = job->adapters.n;
  struct checkpoint_module *modules = calloc((size_t)(n ? n : 1), sizeof *modules);
  if (!modules) return status_set(STATUS_SYSTEM, "out of memory for %d module records", n);
  for (int i = 0; i < n; i++) {
    const struct adapter_spec *spec = &job->adapters.specs[i];
    adapter_name(spec, modules[i].group);
    modules[i].r = spec->r;
    modules[i].in = spec->in;
    modules[i].out = spec->out;
    modules[i].alpha = spec->alpha;
    modules[i].rslora = spec->rslora;
  }
  *modules_p = modules;
  return STATUS_OK;
}
