#include "launch/planner_report.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "io/schema.h"

struct plan_comparison plan_compare(const struct plan_totals *totals) {
  double base = (double)totals->base_parameters, trained = (double)totals->trained_parameters;
  struct plan_comparison c = {.full_weights = 2 * base,
                              .full_gradients = 2 * base,
                              .full_master = 4 * base,
                              .full_moments = 8 * base,
                              .lora_weights = 2 * base,
                              .lora_trained = 16 * trained};
  c.full = c.full_weights + c.full_gradients + c.full_master + c.full_moments;
  return c;
}

bool plan_is_gpt3(const struct model_facts *facts) {
  return facts->n_layers == 96 && facts->d_model == 12288 && facts->n_heads == 96 && facts->d_ffn == 49152;
}

const char *plan_word(const char *key, int value) {
  return schema_find(schema_rows, schema_n_rows, key)->choices[value];
}

/* --- JSON --- */

static json_t *layout_json(const struct plan_layout *l) {
  return json_pack("{s:i, s:i, s:i, s:b, s:s, s:s, s:I}", "tp", l->tp, "pp", l->pp, "dp", l->dp, "sequence",
                   l->sequence, "recompute", plan_word("train.recompute", l->recompute), "base_dtype",
                   plan_word("train.base_dtype", l->base_dtype), "micro_batch", (json_int_t)l->micro_batch);
}

static json_t *memory_json(const struct plan_memory *m) {
  return json_pack("{s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I}", "tp_rank", m->tp_rank, "stage", m->pp_rank, "base",
                   (json_int_t)m->base, "adapters", (json_int_t)m->adapters, "optimizer", (json_int_t)m->optimizer,
                   "activations", (json_int_t)m->activations, "buffers", (json_int_t)m->buffers, "total",
                   (json_int_t)m->total);
}

static json_t *traffic_json(const struct plan_time *time) {
  json_t *all = json_object();
  for (int flow = 0; flow < PLAN_FLOWS; flow++) {
    const struct plan_traffic *t = &time->traffic[flow];
    json_object_set_new(all, plan_flow_names[flow],
                        json_pack("{s:f, s:f, s:f, s:f, s:f}", "calls", t->calls, "bytes", t->bytes, "node_bytes",
                                  t->node, "network_bytes", t->network, "seconds", t->seconds));
  }
  return all;
}

/* 0 stands for a rate that the cluster file does not give. */
static json_t *known(double value) { return value > 0 ? json_real(value) : json_null(); }

static json_t *time_json(const struct plan_time *t) {
  return json_pack("{s:I, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o}", "micro_batches",
                   (json_int_t)t->micro_batches, "slowest_stage", t->slowest, "products_s", t->products, "attention_s",
                   t->attention, "adapters_s", t->adapters, "elementwise_s", t->elementwise, "recompute_s",
                   t->recompute, "bubble_s", t->bubble, "optimizer_s", t->optimizer, "step_s", t->step, "tokens_per_s",
                   t->tokens_per_s, "flops", t->flops, "mfu", known(t->mfu));
}

static enum status result_json(const struct plan_report *report, const struct plan_result *r, json_t **object_p) {
  char *command = NULL;
  TRY(plan_command(report, r, &command));
  *object_p = json_pack("{s:I, s:I, s:I, s:b, s:o, s:o, s:o, s:o, s:s?}", "ranks", (json_int_t)r->job.ranks,
                        "ranks_per_node", (json_int_t)r->job.per_node, "global_batch", (json_int_t)r->job.global_batch,
                        "fits", r->fits, "layout", layout_json(&r->layout), "memory", memory_json(&r->memory), "time",
                        time_json(&r->time), "traffic", traffic_json(&r->time), "command", command);
  free(command);
  return *object_p ? STATUS_OK : status_set(STATUS_USAGE, "a name or path of the plan is not UTF-8");
}

static enum status results_json(const struct plan_report *report, const struct plan_result *results, int n,
                                json_t *list) {
  for (int i = 0; i < n; i++) {
    json_t *one;
    if (results[i].layout.tp == 0)
      one = json_pack("{s:I, s:I, s:b}", "ranks", (json_int_t)results[i].job.ranks, "global_batch",
                      (json_int_t)results[i].job.global_batch, "fits", false);
    else
      TRY(result_json(report, &results[i], &one));
    json_array_append_new(list, one);
  }
  return STATUS_OK;
}

static json_t *comparison_json(const struct plan_report *report) {
  struct plan_comparison c = plan_compare(&report->totals);
  json_t *object = json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "full", c.full, "full_weights", c.full_weights,
                             "full_gradients", c.full_gradients, "full_master_weights", c.full_master, "full_moments",
                             c.full_moments, "lora", c.lora_weights + c.lora_trained, "lora_weights", c.lora_weights,
                             "lora_trained", c.lora_trained);
  if (plan_is_gpt3(report->facts))
    json_object_set_new(object, "paper", json_pack("{s:f, s:f}", "full", 1.2e12, "lora", 350e9));
  return object;
}

static enum status sweep_json(const struct plan_report *report, json_t **object_p) {
  const struct sweep *sweep = report->sweep;
  const struct sweep_options *options = &report->sweep_options;
  json_t *best = json_array(), *ways = json_object();
  *object_p = json_pack("{s:s, s:f, s:o, s:o}", "scaling", options->weak ? "weak" : "strong", "threshold",
                        options->threshold, "best", best, "ways", ways);
  TRY(results_json(report, sweep->best, sweep->n, best));
  for (int way = 0; way < SWEEP_WAYS; way++) {
    const struct sweep_line *line = &sweep->ways[way];
    json_t *points = json_array(), *shares = json_array();
    json_object_set_new(
        ways, sweep_way_names[way],
        json_pack("{s:I, s:o, s:o}", "stops_at_ranks", (json_int_t)line->stops, "shares", shares, "points", points));
    for (int i = 0; i < line->n; i++) json_array_append_new(shares, json_real(line->share[i]));
    TRY(results_json(report, line->points, line->n, points));
  }
  return STATUS_OK;
}

enum status plan_report_json(const struct plan_report *report, json_t **object_p) {
  const struct cluster *cluster = report->cluster;
  json_t *layouts = json_array(), *sweep = NULL;
  json_t *object = json_pack(
      "{s:s, s:s, s:b, s:s, s:s, s:I, s:I, s:I, s:I, s:f, s:o, s:i, s:o, s:o}", "model", report->model, "dtype",
      dtype_name(report->totals.file), "dtype_assumed", report->assumed_dtype, "cluster", cluster->name, "cluster_note",
      cluster->note, "base_parameters", (json_int_t)report->totals.base_parameters, "trained_parameters",
      (json_int_t)report->totals.trained_parameters, "seq_len", (json_int_t)report->config->data.seq_len, "ranks",
      (json_int_t)report->job.ranks, "rank_memory", report->totals.rank_memory, "peak_flops",
      known(report->totals.peak), "layouts_tried", report->tried, "memory_of_methods", comparison_json(report),
      "layouts", layouts);
  if (!object) return status_set(STATUS_USAGE, "a name or path of the plan is not UTF-8");
  enum status status = results_json(report, report->results, report->n, layouts);
  if (status == STATUS_OK && report->sweep) {
    status = sweep_json(report, &sweep);
    if (sweep) json_object_set_new(object, "sweep", sweep);
  }
  if (status == STATUS_OK)
    *object_p = object;
  else
    json_decref(object);
  return status;
}
