/* The planner's object, its checks, and the search over layouts. */
#include "launch/planner.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launch/adapter_plan.h"
#include "launch/planner_internal.h"

/* --- create --- */

static enum status choose_rate(struct planner *planner) {
  const struct config *config = planner->config;
  const struct cluster_device *device = &planner->cluster->device;
  bool bf16 = config->train.compute == COMPUTE_BF16;
  bool tf32 = !bf16 && config->train.tf32 && device->kind == CLUSTER_GPU && device->matrix[CLUSTER_TF32].achieved > 0;
  enum cluster_matrix matrix = bf16 ? CLUSTER_BF16 : tf32 ? CLUSTER_TF32 : CLUSTER_F32;
  planner->rate = device->matrix[matrix];
  if (planner->rate.achieved > 0) return STATUS_OK;
  return status_set(STATUS_USAGE, "%s: no device.%s.achieved, but train.compute is %s", planner->cluster->name,
                    bf16 ? "bf16" : "f32", bf16 ? "bf16" : "f32");
}

static double type_bytes(enum dtype dtype) { return (double)dtype_block_bytes(dtype) / (double)dtype_block(dtype); }

/* Is it a tensor of a layer: one of the prefixes, then "h." and a number? */
static bool is_in_layer(const struct arch *arch, const char *name) {
  size_t fixed = strcspn(arch->layer, "%");
  for (int i = 0; i < 3 && arch->prefixes[i]; i++) {
    size_t prefix = strlen(arch->prefixes[i]);
    if (strncmp(name, arch->prefixes[i], prefix) == 0 && strncmp(name + prefix, arch->layer, fixed) == 0 &&
        name[prefix + fixed] >= '0' && name[prefix + fixed] <= '9')
      return true;
  }
  return false;
}

/* How the file stores the layers' linears: files of quantised models mix types. */
static void find_file_type(struct planner *planner, const struct arch *arch) {
  const struct tensor_source *source = planner->source;
  double weights[DTYPE_COUNT] = {0}, all = 0, bytes = 0;
  planner->file = DTYPE_BF16;
  for (int64_t i = 0; i < source->n_tensors; i++) {
    const struct tensor_info *info = source->at(source, i);
    if (info->n_dims != 2 || !is_in_layer(arch, info->name)) continue;
    double n = (double)info->shape[0] * (double)info->shape[1];
    weights[info->dtype] += n;
    all += n;
    bytes += n * type_bytes(info->dtype);
    if (weights[info->dtype] > weights[planner->file]) planner->file = info->dtype;
  }
  planner->file_bytes = all > 0 ? bytes / all : type_bytes(planner->file);
}

/* And the head, which is the embedding where the model has none of its own. */
static void find_head_type(struct planner *planner, const struct arch *arch) {
  struct tensor_source *source = planner->source;
  const struct tensor_info *info = NULL;
  char name[256];
  if (!planner->facts->tied_head && arch->head) {
    snprintf(name, sizeof name, "%s.weight", arch->head);
    info = source->find(source, name);
  }
  for (int i = 0; !info && i < 3 && arch->prefixes[i]; i++) {
    snprintf(name, sizeof name, "%s%s.weight", arch->prefixes[i], arch->embed);
    info = source->find(source, name);
  }
  planner->head_bytes = info ? type_bytes(info->dtype) : planner->file_bytes;
}

static enum status find_adapters(struct planner *planner) {
  TRY(adapter_plan_fresh(planner->facts, planner->config, &planner->specs, &planner->n_specs));
  planner->first_adapted = adapter_plan_first_layer(planner->facts, planner->specs, planner->n_specs);
  for (int i = 0; i < planner->n_specs; i++)
    if (planner->specs[i].layer == planner->first_adapted) planner->lowest_modules |= 1u << planner->specs[i].module;
  return STATUS_OK;
}

static enum status fill(struct planner *planner) {
  const struct model_facts *facts = planner->facts;
  const struct arch *arch = arch_find(facts->family);
  if (!arch)
    return status_set(STATUS_USAGE, "%s: model family '%s' is not supported: %s are", planner->source->path,
                      facts->family, arch_list());
  if (facts->position == POSITION_LEARNED && planner->seq_len > facts->max_positions)
    return status_set(STATUS_USAGE, "data.seq_len %" PRId64 " is longer than the %" PRId64 " learned positions of %s",
                      planner->seq_len, facts->max_positions, planner->source->path);
  TRY(choose_rate(planner));
  find_file_type(planner, arch);
  find_head_type(planner, arch);
  return find_adapters(planner);
}

enum status planner_create(const struct config *config, const struct cluster *cluster, struct tensor_source *source,
                           struct planner **planner_p) {
  struct planner *planner = calloc(1, sizeof *planner);
  if (!planner) return status_set(STATUS_SYSTEM, "out of memory for a plan");
  planner->config = config;
  planner->cluster = cluster;
  planner->source = source;
  planner->facts = &source->facts;
  planner->device.host_memory = cluster->device.kind == CLUSTER_CPU;
  planner->act = config->train.compute == COMPUTE_BF16 ? DTYPE_BF16 : DTYPE_F32;
  planner->seq_len = config->data.seq_len;
  enum status status = fill(planner);
  if (status != STATUS_OK)
    planner_destroy(&planner);
  else
    *planner_p = planner;
  return status;
}

void planner_destroy(struct planner **planner_p) {
  struct planner *planner = *planner_p;
  *planner_p = NULL;
  if (!planner) return;
  planner_free_costs(planner);
  free(planner->specs);
  free(planner);
}

double planner_room(const struct planner *planner) {
  return planner->cluster->device.memory - planner->cluster->device.reserved;
}

struct plan_totals planner_totals(const struct planner *planner) {
  struct plan_totals totals = {.base_parameters = model_base_parameters(planner->facts),
                               .rank_memory = planner_room(planner),
                               .peak = planner->rate.peak,
                               .file = planner->file};
  for (int i = 0; i < planner->n_specs; i++)
    totals.trained_parameters += planner->specs[i].r * (planner->specs[i].in + planner->specs[i].out);
  return totals;
}

/* --- one layout --- */

struct plan_layout planner_configured(const struct planner *planner, int64_t ranks) {
  const struct config *config = planner->config;
  int64_t replica = config->parallel.tp * config->parallel.pp;
  return (struct plan_layout){.tp = (int)config->parallel.tp,
                              .pp = (int)config->parallel.pp,
                              .dp = (int)(ranks / replica > 0 ? ranks / replica : 1),
                              .sequence = config->parallel.sequence && config->parallel.tp > 1,
                              .recompute = config->train.recompute,
                              .base_dtype = config->train.base_dtype,
                              .micro_batch = config->train.micro_batch};
}

/* Can the model be dealt over tp ranks? The first of them gets most heads. */
static enum status check_tp(const struct planner *planner, int64_t tp) {
  struct shard shard;
  if (tp > PLAN_MAX_TP) return status_set(STATUS_USAGE, "tp %" PRId64 " is more than plan's %d", tp, PLAN_MAX_TP);
  return shard_plan(planner->facts, (int)tp, 0, &shard);
}

static enum status check_pp(const struct planner *planner, int pp) {
  struct shard shard;
  if (pp > PLAN_MAX_PP) return status_set(STATUS_USAGE, "pp %d is more than plan's %d", pp, PLAN_MAX_PP);
  if (pp <= planner->facts->n_layers) return STATUS_OK;
  return shard_plan_stage(planner->facts, planner->first_adapted, pp, 0, &shard); /* says why not */
}

enum status planner_check(const struct planner *planner, const struct plan_job *job, const struct plan_layout *layout) {
  if (layout->tp < 1 || layout->pp < 1 || layout->dp < 1 || (int64_t)layout->tp * layout->pp * layout->dp != job->ranks)
    return status_set(STATUS_USAGE, "tp %d x pp %d x dp %d is not %" PRId64 " ranks", layout->tp, layout->pp,
                      layout->dp, job->ranks);
  TRY(check_tp(planner, layout->tp));
  TRY(check_pp(planner, layout->pp));
  if (layout->dp > job->global_batch)
    return status_set(STATUS_USAGE, "dp %d is more than the %" PRId64 " rows of a step: raise train.global_batch",
                      layout->dp, job->global_batch);
  return STATUS_OK;
}

enum status planner_state(struct planner *planner, const struct plan_job *job, const struct plan_layout *layout,
                          struct plan_result *result) {
  struct plan_result r = {.layout = *layout, .job = *job};
  TRY(planner_check(planner, job, layout));
  TRY(planner_predict(planner, job, layout, &r.time));
  TRY(planner_largest(planner, job, layout, 0, &r.memory));
  r.fits = (double)r.memory.total <= planner_room(planner);
  *result = r;
  return STATUS_OK;
}

/* --- search --- */

struct candidate {
  struct plan_layout layout;
  double step;
};

struct candidates {
  struct planner *planner;
  const struct plan_job *job;
  const struct plan_search *search;
  struct candidate *items;
  int n, capacity;
};

static enum status add_candidate(struct candidates *c, const struct plan_layout *layout) {
  struct plan_time time;
  if (planner_check(c->planner, c->job, layout) != STATUS_OK) return STATUS_OK;
  TRY(planner_predict(c->planner, c->job, layout, &time));
  if (c->n == c->capacity) {
    int capacity = c->capacity ? 2 * c->capacity : 256;
    struct candidate *items = realloc(c->items, (size_t)capacity * sizeof *items);
    if (!items) return status_set(STATUS_SYSTEM, "out of memory for %d layouts", capacity);
    c->items = items;
    c->capacity = capacity;
  }
  c->items[c->n++] = (struct candidate){*layout, time.step};
  return STATUS_OK;
}

static enum status vary_micro_batch(struct candidates *c, struct plan_layout layout) {
  int64_t rows = (c->job->global_batch + layout.dp - 1) / layout.dp;
  if (!c->search->micro_batch) return add_candidate(c, &layout);
  for (layout.micro_batch = 1; layout.micro_batch <= rows; layout.micro_batch *= 2) {
    /* Larger ones are cut to this size on the CPU. */
    if (planner_rows_at_once(c->planner, &layout) != layout.micro_batch) break;
    TRY(add_candidate(c, &layout));
  }
  return STATUS_OK;
}

static enum status vary_memory(struct candidates *c, struct plan_layout layout) {
  const struct plan_search *search = c->search;
  static const enum base_dtype dtypes[] = {BASE_KEEP, BASE_FP8, BASE_INT8, BASE_NF4};
  for (int d = 0; d < (search->base_dtype ? 4 : 1); d++)
    for (int r = 0; r < (search->recompute ? 3 : 1); r++)
      for (int s = 0; s < (search->sequence && layout.tp > 1 ? 2 : 1); s++) {
        struct plan_layout one = layout;
        if (search->base_dtype) one.base_dtype = dtypes[d];
        if (search->recompute) one.recompute = (enum recompute_kind)r;
        if (search->sequence || one.tp == 1) one.sequence = s;
        TRY(vary_micro_batch(c, one));
      }
  return STATUS_OK;
}

static enum status vary_parallel(struct candidates *c) {
  const struct plan_search *search = c->search;
  int64_t ranks = c->job->ranks;
  for (int64_t tp = 1; tp <= ranks && tp <= PLAN_MAX_TP; tp++) {
    if (search->tp ? !planner_placed_well(c->job, tp) : tp != search->fixed.tp) continue;
    if (ranks % tp || check_tp(c->planner, tp) != STATUS_OK) continue;
    for (int64_t pp = 1; pp <= ranks / tp && pp <= c->planner->facts->n_layers && pp <= PLAN_MAX_PP; pp++) {
      if ((ranks / tp) % pp || (!search->pp && pp != search->fixed.pp)) continue;
      struct plan_layout layout = search->fixed;
      layout.tp = (int)tp;
      layout.pp = (int)pp;
      layout.dp = (int)(ranks / tp / pp);
      TRY(vary_memory(c, layout));
    }
  }
  return STATUS_OK;
}

static int by_step(const void *a, const void *b) {
  const struct candidate *x = a, *y = b;
  if (x->step != y->step) return x->step < y->step ? -1 : 1;
  int tp = x->layout.tp - y->layout.tp;
  return tp ? tp : x->layout.pp - y->layout.pp;
}

static bool has_grid(const struct plan_result *results, int n, const struct plan_layout *layout) {
  for (int i = 0; i < n; i++)
    if (results[i].layout.tp == layout->tp && results[i].layout.pp == layout->pp &&
        results[i].layout.base_dtype == layout->base_dtype)
      return true;
  return false;
}

/* From the fastest on, those that fit: one of each tp x pp x dp. */
static enum status take_best(struct candidates *c, struct plan_result *results, int *n_p) {
  struct planner *planner = c->planner;
  double room = planner_room(planner);
  int n = 0;
  for (int i = 0; i < c->n && n < c->search->most; i++) {
    const struct plan_layout *layout = &c->items[i].layout;
    struct plan_result r = {.layout = *layout, .job = *c->job, .fits = true};
    if (has_grid(results, n, layout) || planner_least_memory(planner, layout) > room) continue;
    TRY(planner_largest(planner, c->job, layout, room, &r.memory));
    if ((double)r.memory.total > room) continue;
    TRY(planner_predict(planner, c->job, layout, &r.time));
    results[n++] = r;
  }
  *n_p = n;
  return STATUS_OK;
}

enum status planner_search(struct planner *planner, const struct plan_job *job, const struct plan_search *search,
                           struct plan_result *results, int *n_p, int *tried_p) {
  struct candidates c = {.planner = planner, .job = job, .search = search};
  enum status status = vary_parallel(&c);
  if (status == STATUS_OK && c.n) {
    qsort(c.items, (size_t)c.n, sizeof *c.items, by_step);
    status = take_best(&c, results, n_p);
  } else {
    *n_p = 0;
  }
  *tried_p = c.n;
  free(c.items);
  return status;
}

enum status planner_smallest(struct planner *planner, const struct plan_job *job, const struct plan_search *search,
                             struct plan_result *result, bool *found_p) {
  struct plan_search least = *search;
  struct candidates c = {.planner = planner, .job = job, .search = &least};
  enum status status = STATUS_OK;
  least.micro_batch = least.recompute = least.sequence = least.base_dtype = false;
  if (search->micro_batch) least.fixed.micro_batch = 1;
  if (search->recompute) least.fixed.recompute = RECOMPUTE_KIND_FULL;
  if (search->base_dtype) least.fixed.base_dtype = BASE_NF4;
  *found_p = false;
  for (int sequence = 0; sequence < (search->sequence ? 2 : 1); sequence++) {
    if (search->sequence) least.fixed.sequence = sequence;
    TRY_OUT(vary_parallel(&c));
  }
  for (int i = 0; i < c.n; i++) {
    struct plan_result r;
    TRY_OUT(planner_state(planner, job, &c.items[i].layout, &r));
    if (*found_p && r.memory.total >= result->memory.total) continue;
    *result = r;
    *found_p = true;
  }
out:
  free(c.items);
  return status;
}
