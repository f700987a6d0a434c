#include "launch/planner_report.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/schema.h"
#include "io/yaml_tree.h"

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

/* --- the command --- */

/* As one word of a shell. */
static void put_word(FILE *out, const char *text) {
  static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+./:,=@%";
  if (*text && strspn(text, plain) == strlen(text)) {
    fputs(text, out);
    return;
  }
  fputc('\'', out);
  for (; *text; text++) *text == '\'' ? fputs("'\\''", out) : fputc(*text, out);
  fputc('\'', out);
}

/* --set base=PATH, the path as a YAML scalar that cannot be taken for anything else. */
static enum status put_base(FILE *out, const char *base) {
  char *text = NULL;
  size_t size;
  FILE *value = open_memstream(&text, &size);
  if (!value) return status_set(STATUS_SYSTEM, "out of memory for a command line");
  fputs("base=", value);
  yaml_quote(value, base);
  bool failed = fclose(value) != 0 || !text;
  fputs(" --set ", out);
  if (!failed) put_word(out, text);
  free(text);
  return failed ? status_set(STATUS_SYSTEM, "out of memory for a command line") : STATUS_OK;
}

/* The user's own settings, then those of the layout, which therefore win. */
static enum status put_settings(FILE *out, const struct plan_report *report, const struct plan_result *result) {
  const struct plan_layout *l = &result->layout;
  for (int i = 0; i < report->n_set; i++) {
    fputs(" --set ", out);
    put_word(out, report->set[i]);
  }
  if (report->base) TRY(put_base(out, report->base));
  fprintf(out, " --set parallel.tp=%d --set parallel.pp=%d --set parallel.sequence=%s", l->tp, l->pp,
          l->sequence ? "true" : "false");
  fprintf(out, " --set train.micro_batch=%" PRId64 " --set train.recompute=%s", l->micro_batch,
          plan_word("train.recompute", l->recompute));
  if (l->base_dtype != report->config->train.base_dtype)
    fprintf(out, " --set train.base_dtype=%s", plan_word("train.base_dtype", l->base_dtype));
  if (report->own_length)
    fprintf(out, " --set train.compute=%s --set data.seq_len=%" PRId64,
            plan_word("train.compute", report->config->train.compute), report->config->data.seq_len);
  if (report->own_length || result->job.global_batch != report->config->train.global_batch)
    fprintf(out, " --set train.global_batch=%" PRId64, result->job.global_batch);
  return STATUS_OK;
}

/* Ranks of each node. The job scripts of Slurm start equally many on each. */
static int64_t ranks_of_a_node(const struct plan_report *report, int64_t ranks) {
  int64_t n = report->cluster->device.per_node;
  if (n > ranks) n = ranks;
  while (report->cluster->launcher == CLUSTER_SLURM && ranks % n != 0) n--;
  return n;
}

enum status plan_command(const struct plan_report *report, const struct plan_result *result, char **command_p) {
  const struct cluster_device *device = &report->cluster->device;
  int64_t ranks = result->job.ranks, per_node = ranks_of_a_node(report, ranks);
  int64_t nodes = (ranks + per_node - 1) / per_node;
  const char *run = report->run ? report->run : "RUN.yaml";
  char *text = NULL;
  size_t size;
  FILE *out = open_memstream(&text, &size);
  if (!out) return status_set(STATUS_SYSTEM, "out of memory for a command line");
  if (report->cluster->launcher == CLUSTER_SLURM) {
    bool gpu = device->kind == CLUSTER_GPU;
    fprintf(out, "sbatch --nodes=%" PRId64 " --ntasks-per-node=%" PRId64, nodes, per_node);
    if (gpu) fprintf(out, " --gpus-per-node=%" PRId64, per_node);
    if (device->cores) fprintf(out, " --cpus-per-task=%" PRId64, device->cores);
    fprintf(out, " launch/slurm/%s.sbatch ", gpu ? "gpu" : "cpu");
    put_word(out, run);
    fputs(" OUTPUT", out);
  } else {
    if (device->cores) fprintf(out, "OMP_NUM_THREADS=%" PRId64 " ", device->cores);
    fprintf(out, "mpirun -n %" PRId64, ranks);
    if (nodes > 1) fprintf(out, " --hostfile HOSTS --map-by ppr:%" PRId64 ":node", per_node);
    fprintf(out, " --bind-to none lorashard train ");
    put_word(out, run);
    fputs(" --set output=OUTPUT", out);
  }
  enum status status = put_settings(out, report, result);
  if (fclose(out) != 0 || !text) status = status_set(STATUS_SYSTEM, "out of memory for a command line");
  if (status == STATUS_OK)
    *command_p = text;
  else
    free(text);
  return status;
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

static json_t *time_json(const struct plan_time *t) {
  return json_pack("{s:I, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "micro_batches",
                   (json_int_t)t->micro_batches, "slowest_stage", t->slowest, "products_s", t->products, "attention_s",
                   t->attention, "adapters_s", t->adapters, "elementwise_s", t->elementwise, "recompute_s",
                   t->recompute, "bubble_s", t->bubble, "optimizer_s", t->optimizer, "step_s", t->step, "tokens_per_s",
                   t->tokens_per_s, "flops", t->flops, "mfu", t->mfu);
}

static enum status result_json(const struct plan_report *report, const struct plan_result *r, json_t **object_p) {
  char *command = NULL;
  TRY(plan_command(report, r, &command));
  *object_p = json_pack("{s:I, s:I, s:b, s:o, s:o, s:o, s:o, s:s}", "ranks", (json_int_t)r->job.ranks, "global_batch",
                        (json_int_t)r->job.global_batch, "fits", r->fits, "layout", layout_json(&r->layout), "memory",
                        memory_json(&r->memory), "time", time_json(&r->time), "traffic", traffic_json(&r->time),
                        "command", command);
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
      "{s:s, s:s, s:I, s:I, s:I, s:I, s:f, s:f, s:i, s:o, s:o}", "model", report->model, "cluster", cluster->name,
      "base_parameters", (json_int_t)report->totals.base_parameters, "trained_parameters",
      (json_int_t)report->totals.trained_parameters, "seq_len", (json_int_t)report->config->data.seq_len, "ranks",
      (json_int_t)report->job.ranks, "rank_memory", report->totals.rank_memory, "peak_flops", report->totals.peak,
      "layouts_tried", report->tried, "memory_of_methods", comparison_json(report), "layouts", layouts);
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
