#include "launch/adapter_plan.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool has_module(const struct model_facts *facts, enum module module) {
  const struct arch *arch = arch_find(facts->family);
  if (module == MODULE_GATE) return facts->gated;
  return arch->linear[module] || (module <= MODULE_V && arch->qkv);
}

static void known_modules(const struct model_facts *facts, char *text, size_t size) {
  size_t used = 0;
  text[0] = 0;
  for (int m = 0; m < MODULE_COUNT; m++)
    if (has_module(facts, (enum module)m) && used < size)
      used += (size_t)snprintf(text + used, size - used, "%s%s", used ? ", " : "", module_names[m]);
}

/* --- what lora.* asks for --- */

/* lora.targets as a bit per module. */
static enum status target_bits(const struct model_facts *facts, const struct config *config, unsigned *bits) {
  const struct string_list *targets = &config->lora.targets;
  *bits = 0;
  for (int i = 0; i < targets->n; i++) {
    const char *name = targets->items[i];
    if (strcmp(name, "all") == 0) {
      for (int m = 0; m < MODULE_COUNT; m++) *bits |= has_module(facts, (enum module)m) ? 1u << m : 0;
      continue;
    }
    int module = module_from_name(name);
    if (module < 0 || !has_module(facts, (enum module)module)) {
      char known[64];
      known_modules(facts, known, sizeof known);
      return status_set(STATUS_USAGE, "lora.targets: a %s model has no linear '%s'; it has %s (or 'all')",
                        facts->family, name, known);
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

static enum status check_layers(const struct model_facts *facts, const struct layer_list *layers, const char *key) {
  for (int i = 0; !layers->all && i < layers->n; i++)
    if (layers->items[i] < 0 || layers->items[i] >= facts->n_layers)
      return status_set(STATUS_USAGE, "%s: layer %d is not in the model, whose layers are 0 to %" PRId64, key,
                        layers->items[i], facts->n_layers - 1);
  return STATUS_OK;
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

static enum status check_lora(const struct model_facts *facts, const struct config *config, unsigned *bits) {
  TRY(target_bits(facts, config, bits));
  TRY(check_layers(facts, &config->lora.layers, "lora.layers"));
  for (int i = 0; i < config->lora.n_overrides; i++)
    TRY(check_layers(facts, &config->lora.overrides[i].layers, "lora.overrides"));
  return STATUS_OK;
}

static enum status make_specs(const struct model_facts *facts, struct adapter_spec **specs_p) {
  *specs_p = calloc((size_t)facts->n_layers * MODULE_COUNT, sizeof **specs_p);
  return *specs_p ? STATUS_OK : status_set(STATUS_SYSTEM, "out of memory for the plan of adapters");
}

/* Whole sizes of an adapter. */
static void set_sizes(const struct model_facts *facts, struct adapter_spec *spec) {
  struct shard whole = {.n_tp = 1};
  struct linear_dims dims = shard_linear(&whole, facts, spec->module);
  spec->in = dims.in;
  spec->out = dims.out;
}

enum status adapter_plan_fresh(const struct model_facts *facts, const struct config *config,
                               struct adapter_spec **specs_p, int *n_p) {
  unsigned bits;
  struct adapter_spec *specs;
  int n = 0;
  TRY(check_lora(facts, config, &bits));
  TRY(make_specs(facts, &specs));
  for (int layer = 0; layer < facts->n_layers; layer++)
    for (int module = 0; module < MODULE_COUNT; module++)
      if (has_module(facts, (enum module)module) && wanted(config, bits, layer, (enum module)module, &specs[n]))
        set_sizes(facts, &specs[n++]);
  *specs_p = specs;
  *n_p = n;
  if (n) return STATUS_OK;
  free(specs);
  *specs_p = NULL;
  return status_set(STATUS_USAGE, "lora.targets, lora.layers and lora.overrides leave no adapter to train");
}

/* --- what an adapter file holds --- */

static enum status plan_from_set(struct job *job, const struct adapter_set *set) {
  const struct model_facts *facts = &job->source->facts;
  TRY(make_specs(facts, &job->planned));
  for (int i = 0; i < set->n_modules; i++) {
    const struct adapter_module *module = &set->modules[i];
    if (module->layer < 0 || module->layer >= facts->n_layers || !has_module(facts, module->module))
      return status_set(STATUS_USAGE, "the adapter has a module layers/%d/%s that the base %s lacks", module->layer,
                        module_names[module->module], job->source->path);
    struct adapter_spec *spec = &job->planned[job->n_planned++];
    *spec = (struct adapter_spec){.layer = module->layer,
                                  .module = module->module,
                                  .r = module->r,
                                  .alpha = module->alpha,
                                  .rslora = module->rslora};
    set_sizes(facts, spec);
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

static enum status read_set(struct job *job, const struct job_options *options, struct adapter_set *set) {
  struct checkpoint_header header;
  TRY(adapter_set_read(options->adapter, &job->source->facts, set, &header));
  TRY(check_fingerprint(job, &header, options->adapter, options->any_base));
  if ((int64_t)set->n_modules > job->source->facts.n_layers * MODULE_COUNT)
    return status_set(STATUS_DATA, "%s: more modules than the model has linears", options->adapter);
  return plan_from_set(job, set);
}

/* --- the whole plan, and this rank's part of it --- */

int adapter_plan_first_layer(const struct model_facts *facts, const struct adapter_spec *specs, int n) {
  int first = (int)facts->n_layers;
  for (int i = 0; i < n; i++)
    if (specs[i].layer < first) first = specs[i].layer;
  return first;
}

enum status adapter_plan_choose(struct job *job, const struct job_options *options, struct adapter_set *set) {
  const struct model_facts *facts = &job->source->facts;
  if (options->adapter && *options->adapter)
    TRY(read_set(job, options, set));
  else if (options->fresh_adapters)
    TRY(adapter_plan_fresh(facts, job->config, &job->planned, &job->n_planned));
  job->first_adapted = adapter_plan_first_layer(facts, job->planned, job->n_planned);
  return STATUS_OK;
}

/* Which part of an adapter a rank with this shard holds. */
static void place(const struct model_facts *facts, const struct shard *shard, struct adapter_spec *spec) {
  struct linear_dims dims = shard_linear(shard, facts, spec->module);
  spec->in_first = dims.in_t.first;
  spec->in_t = dims.in_t.n;
  spec->out_first = dims.out_t.first;
  spec->out_t = dims.out_t.n;
  spec->out_shared = shard->kv_replicated && (spec->module == MODULE_K || spec->module == MODULE_V);
}

int adapter_plan_of_shard(const struct model_facts *facts, const struct shard *shard,
                          const struct adapter_spec *planned, int n_planned, struct adapter_spec *own, int *kept) {
  int n = 0;
  for (int i = 0; i < n_planned; i++) {
    if (!shard_has_layer(shard, planned[i].layer)) continue;
    own[n] = planned[i];
    place(facts, shard, &own[n]);
    if (kept) kept[n] = i;
    n++;
  }
  return n;
}

/* Values of this stage's adapters, which are `kept` of the set's modules. */
static enum status set_values(struct job *job, const struct adapter_set *set, const int *kept) {
  for (int i = 0; i < job->adapters.n; i++) {
    const struct param *a = &job->adapters.params.items[2 * i], *b = a + 1;
    TRY(param_set_from_whole(a, job->device, set->modules[kept[i]].A));
    TRY(param_set_from_whole(b, job->device, set->modules[kept[i]].B));
  }
  return STATUS_OK;
}

enum status adapter_plan_make(struct job *job, const struct adapter_set *set) {
  const struct config *config = job->config;
  enum status status = STATUS_OK;
  struct adapter_spec *own = NULL;
  int n = 0, *kept = calloc((size_t)job->n_planned + 1, sizeof *kept);
  TRY_OUT(make_specs(&job->source->facts, &own));
  if (!kept) {
    status = status_set(STATUS_SYSTEM, "out of memory for the plan of adapters");
    goto out;
  }
  n = adapter_plan_of_shard(&job->source->facts, &job->shard, job->planned, job->n_planned, own, kept);
  TRY_OUT(adapters_create(job->device, job->mesh->n_tp, own, n, (float)config->lora.dropout, config->train.seed,
                          &job->adapters));
  if (set->n_modules) {
    TRY_OUT(set_values(job, set, kept));
  } else {
    enum adapter_init init = config->lora.init == LORA_INIT_GAUSSIAN ? ADAPTER_GAUSSIAN : ADAPTER_KAIMING;
    TRY_OUT(adapters_init(&job->adapters, job->device, init, config->train.seed));
  }
out:
  free(own);
  free(kept);
  return status;
}

void adapter_plan_attach(struct job *job) {
  for (int i = 0; i < job->adapters.n; i++)
    model_attach(job->model, job->adapters.specs[i].layer, job->adapters.specs[i].module, &job->adapters.pairs[i]);
}

int64_t adapter_plan_parameters(const struct job *job) {
  int64_t n = 0;
  for (int i = 0; i < job->n_planned; i++) n += job->planned[i].r * (job->planned[i].in + job->planned[i].out);
  return n;
}

enum status adapter_plan_modules(const struct job *job, struct checkpoint_module **modules_p, int *n_p) {
  int n = job->n_planned;
  struct checkpoint_module *modules = calloc((size_t)(n ? n : 1), sizeof *modules);
  if (!modules) return status_set(STATUS_SYSTEM, "out of memory for %d module records", n);
  for (int i = 0; i < n; i++) {
    const struct adapter_spec *spec = &job->planned[i];
    adapter_name(spec, modules[i].group);
    modules[i].r = spec->r;
    modules[i].in = spec->in;
    modules[i].out = spec->out;
    modules[i].alpha = spec->alpha;
    modules[i].rslora = spec->rslora;
  }
  *modules_p = modules;
  *n_p = n;
  return STATUS_OK;
}
