/*
 * Memory of a rank: the tables of weights, adapters and activations, filled by the
 * code that train fills them with, without allocating.
 */
#include <stdlib.h>
#include <string.h>

#include "launch/adapter_plan.h"
#include "launch/job.h"
#include "launch/planner_internal.h"

static void count(const struct model *model, const struct adapters *adapters, struct plan_memory *memory) {
  const struct memory_table *acts = &model->acts.memory;
  memory->base = model->weights.memory.total;
  /* Four arrays of one size: values, gradients and two moments. */
  memory->adapters = param_list_bytes(&adapters->params) / 2;
  memory->optimizer = memory->adapters;
  memory->activations = model->acts.kept;
  memory->buffers = acts->total - memory->activations + model->tables.total; /* alignment too */
  memory->total = memory->base + memory->adapters + memory->optimizer + memory->activations + memory->buffers;
}

/* The adapters of a shard, sizes only. */
static enum status list_adapters(const struct planner *planner, const struct shard *shard, struct adapters *adapters) {
  struct adapter_spec *own = malloc((size_t)(planner->n_specs + 1) * sizeof *own);
  if (!own) return status_set(STATUS_SYSTEM, "out of memory for the plan of adapters");
  int n = adapter_plan_of_shard(planner->facts, shard, planner->specs, planner->n_specs, own, NULL);
  enum status status = adapters_list(shard->n_tp, own, n, adapters);
  free(own);
  return status;
}

enum status planner_rank_memory(struct planner *planner, const struct plan_job *job, const struct plan_layout *layout,
                                int tp_rank, int pp_rank, struct plan_memory *memory) {
  struct shard shard;
  struct adapters adapters;
  struct model *model = NULL;
  struct lowrank *pairs = calloc((size_t)planner->n_specs + 1, sizeof *pairs);
  enum status status = STATUS_OK;
  const struct model_options options = {.act = planner->act,
                                        .storage = job_storage(layout->base_dtype),
                                        .n_positions = planner->seq_len,
                                        .shard = &shard,
                                        .dry = true};
  struct prepare_options prepare;
  const struct plan_memory none = {.tp_rank = tp_rank, .pp_rank = pp_rank};
  memset(&adapters, 0, sizeof adapters);
  if (!pairs) return status_set(STATUS_SYSTEM, "out of memory for the plan of adapters");
  TRY_OUT(shard_plan(planner->facts, layout->tp, tp_rank, &shard));
  TRY_OUT(shard_plan_stage(planner->facts, planner->first_adapted, layout->pp, pp_rank, &shard));
  prepare = job_prepare_options(planner_tokens(planner, layout), planner_micro_batches(planner, job, layout), true,
                                layout->recompute, layout->sequence);
  TRY_OUT(list_adapters(planner, &shard, &adapters));
  TRY_OUT(model_create(&planner->device, planner->source, NULL, NULL, &options, &model));
  for (int i = 0; i < adapters.n; i++) {
    pairs[i] = (struct lowrank){.r = adapters.specs[i].r}; /* all that the tables depend on */
    model_attach(model, adapters.specs[i].layer, adapters.specs[i].module, &pairs[i]);
  }
  TRY_OUT(model_prepare(model, &prepare));
  *memory = none;
  count(model, &adapters, memory);
out:
  model_destroy(&model);
  free(pairs);
  adapters_destroy(&adapters, &planner->device);
  return status;
}

/* --- the largest rank --- */

/* Layers of a stage that have a backward pass. */
static int64_t trained_layers(const struct planner *planner, const struct span *layers) {
  int64_t end = layers->first + layers->n;
  int64_t low = layers->first > planner->first_adapted ? layers->first : planner->first_adapted;
  return end > low ? end - low : 0;
}

/* A stage between the ends that is like an earlier one holds no more: it has fewer
 * micro-batches under way. */
static bool is_covered(const struct planner *planner, const struct plan_stages *stages, int s) {
  if (s == 0 || s == stages->pp - 1) return false;
  for (int earlier = 1; earlier < s; earlier++)
    if (stages->layers[earlier].n == stages->layers[s].n &&
        trained_layers(planner, &stages->layers[earlier]) == trained_layers(planner, &stages->layers[s]))
      return true;
  return false;
}

static bool same(const struct plan_layout *a, const struct plan_layout *b) {
  return a->tp == b->tp && a->pp == b->pp && a->sequence == b->sequence && a->recompute == b->recompute &&
         a->base_dtype == b->base_dtype && a->micro_batch == b->micro_batch;
}

static const struct plan_known *find_known(const struct planner *planner, const struct plan_layout *layout,
                                           int64_t in_flight) {
  for (const struct plan_known *known = planner->known; known; known = known->next)
    if (known->in_flight == in_flight && same(&known->layout, layout)) return known;
  return NULL;
}

static enum status remember(struct planner *planner, const struct plan_layout *layout, int64_t in_flight,
                            const struct plan_memory *memory) {
  struct plan_known *known = malloc(sizeof *known);
  if (!known) return status_set(STATUS_SYSTEM, "out of memory for the plan's tables");
  *known = (struct plan_known){planner->known, *layout, in_flight, *memory};
  planner->known = known;
  return STATUS_OK;
}

enum status planner_largest(struct planner *planner, const struct plan_job *job, const struct plan_layout *layout,
                            double room, struct plan_memory *memory) {
  int64_t m = planner_micro_batches(planner, job, layout), in_flight = m < layout->pp ? m : layout->pp;
  const struct plan_known *known = find_known(planner, layout, in_flight);
  const struct plan_cut *cut;
  const struct plan_stages *stages;
  struct plan_memory largest = {0}, one;
  TRY(planner_cut(planner, layout->tp, &cut));
  TRY(planner_stages(planner, layout->pp, &stages));
  for (int s = 0; !known && s < layout->pp; s++) {
    if (is_covered(planner, stages, s)) continue;
    for (int i = 0; i < cut->n_ranks; i++) {
      TRY(planner_rank_memory(planner, job, layout, cut->ranks[i], s, &one));
      if (one.total > largest.total) largest = one;
      if (room > 0 && (double)largest.total > room) { /* too large: how large does not matter */
        *memory = largest;
        return STATUS_OK;
      }
    }
  }
  if (!known) TRY(remember(planner, layout, in_flight, &largest));
  *memory = known ? known->memory : largest;
  return STATUS_OK;
}

double planner_least_memory(const struct planner *planner, const struct plan_layout *layout) {
  return planner_layer_weights(planner) * (double)planner->facts->n_layers / layout->tp / layout->pp *
         planner_weight_bytes(planner, layout->base_dtype);
}
