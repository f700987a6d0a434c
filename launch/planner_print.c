/* A plan as text. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "launch/planner_report.h"

/* "43.7 GB" */
static const char *bytes(double n, char text[32]) {
  static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  int unit = 0;
  while (n >= 999.5 && unit < 5) {
    n /= 1000;
    unit++;
  }
  snprintf(text, 32, unit == 0 || n >= 99.95 ? "%.0f %s" : n >= 9.995 ? "%.1f %s" : "%.2f %s", n, units[unit]);
  return text;
}

static const char *count(double n, char text[32]) {
  static const char *const units[] = {"", " k", " M", " G", " T"};
  int unit = 0;
  while (n >= 999.5 && unit < 4) {
    n /= 1000;
    unit++;
  }
  snprintf(text, 32, unit == 0 ? "%.0f%s" : "%.4g%s", n, units[unit]);
  return text;
}

static const char *seconds(double s, char text[32]) {
  if (s >= 1 || s == 0)
    snprintf(text, 32, "%.3g s", s);
  else if (s >= 1e-3)
    snprintf(text, 32, "%.3g ms", 1e3 * s);
  else
    snprintf(text, 32, "%.3g us", 1e6 * s);
  return text;
}

/* "41.2"; a cluster file without peak rates has no MFU. */
static const char *mfu(const struct plan_time *t, char text[32]) {
  snprintf(text, 32, t->mfu > 0 ? "%.1f" : "-", 100 * t->mfu);
  return text;
}

static void print_head(const struct plan_report *r) {
  char a[32], b[32];
  const struct cluster *c = r->cluster;
  const struct config *config = r->config;
  printf("model     %s: %s, %s parameters in %s%s, %" PRId64 " layers of width %" PRId64
         "; adapters: %s parameters (%.3g %%)\n",
         r->model, r->facts->family, count((double)r->totals.base_parameters, a), dtype_name(r->totals.file),
         r->assumed_dtype ? " (assumed)" : "", r->facts->n_layers, r->facts->d_model,
         count((double)r->totals.trained_parameters, b),
         100.0 * (double)r->totals.trained_parameters / (double)r->totals.base_parameters);
  printf("cluster   %s: %" PRId64 " node%s of %" PRId64 " rank%s, %s for each\n", c->name, c->nodes,
         c->nodes == 1 ? "" : "s", c->device.per_node, c->device.per_node == 1 ? "" : "s",
         bytes(r->totals.rank_memory, a));
  if (*c->device.source) printf("          rates: %s\n", c->device.source);
  if (*c->note) printf("          note: %s\n", c->note);
  printf("job       %" PRId64 " rank%s, %" PRId64 " a node, a step is %" PRId64 " rows of %" PRId64
         " tokens; compute %s\n",
         r->job.ranks, r->job.ranks == 1 ? "" : "s", r->job.per_node, r->job.global_batch, config->data.seq_len,
         plan_word("train.compute", config->train.compute));
}

static double gradient_seconds(const struct plan_time *t) {
  return t->traffic[PLAN_STAGE].seconds + t->traffic[PLAN_DP].seconds + t->traffic[PLAN_CONTROL].seconds;
}

static void print_row(const struct plan_result *r) {
  char memory[32], step[32], rate[32], used[32];
  const struct plan_layout *l = &r->layout;
  const struct plan_time *t = &r->time;
  printf("%5d %4d %5d  %-4s %-10s %-6s %5" PRId64 "  %9s%s %9s %9s  %5s  %6.1f %5.1f %5.1f %6.1f\n", l->tp, l->pp,
         l->dp, l->sequence ? "on" : "off", plan_word("train.recompute", l->recompute),
         plan_word("train.base_dtype", l->base_dtype), l->micro_batch, bytes((double)r->memory.total, memory),
         r->fits ? " " : "!", seconds(t->step, step), count(t->tokens_per_s, rate), mfu(t, used),
         100 * t->bubble / t->step, 100 * t->traffic[PLAN_TP].seconds / t->step,
         100 * t->traffic[PLAN_PP].seconds / t->step, 100 * gradient_seconds(t) / t->step);
}

static void print_table(const struct plan_report *r) {
  if (r->tried)
    printf("\nthe fastest of each tp x pp that fit, of %d layouts:\n\n", r->tried);
  else
    printf("\n");
  printf("                                                memory of                       share of the step, %%\n");
  printf(
      "   tp   pp    dp  seq  recompute  base   micro      a rank       step  tokens/s  MFU %%  bubble    tp    pp  "
      "grads\n");
  for (int i = 0; i < r->n; i++) print_row(&r->results[i]);
}

static void print_part(const char *name, size_t n, size_t total) {
  char text[32];
  printf("  %-12s %10s  %5.1f %%\n", name, bytes((double)n, text), 100.0 * (double)n / (double)total);
}

static void print_memory(const struct plan_report *report, const struct plan_result *r) {
  const struct plan_memory *m = &r->memory;
  char a[32], b[32];
  printf("memory of the largest rank (tp rank %d of stage %d)\n", m->tp_rank, m->pp_rank);
  print_part("base", m->base, m->total);
  print_part("adapters", m->adapters, m->total);
  print_part("optimizer", m->optimizer, m->total);
  print_part("activations", m->activations, m->total);
  print_part("buffers", m->buffers, m->total);
  printf("  %-12s %10s  of %s%s\n", "total", bytes((double)m->total, a), bytes(report->totals.rank_memory, b),
         r->fits ? "" : ": DOES NOT FIT");
}

static void print_time_part(const char *name, double s, double step) {
  char text[32];
  if (s > 0) printf("  %-12s %10s  %5.1f %%\n", name, seconds(s, text), 100 * s / step);
}

/* ", MFU 41.2 %" */
static void print_mfu(const struct plan_time *t) {
  char used[32];
  if (t->mfu > 0) printf(", MFU %s %%", mfu(t, used));
}

static void print_time(const struct plan_result *r) {
  const struct plan_time *t = &r->time;
  char step[32], rate[32];
  printf("\ntime of a step: %s, %s tokens/s", seconds(t->step, step), count(t->tokens_per_s, rate));
  print_mfu(t);
  printf(" (%" PRId64 " micro-batches; stage %d is the slowest)\n", t->micro_batches, t->slowest);
  print_time_part("products", t->products, t->step);
  print_time_part("attention", t->attention, t->step);
  print_time_part("adapters", t->adapters, t->step);
  print_time_part("elementwise", t->elementwise, t->step);
  print_time_part("recompute", t->recompute, t->step);
  print_time_part("optimizer", t->optimizer, t->step);
  print_time_part("bubble", t->bubble, t->step);
  double messages = 0;
  for (int flow = 0; flow < PLAN_FLOWS; flow++) messages += t->traffic[flow].seconds;
  print_time_part("messages", messages, t->step);
  if (messages <= 0) return;
  printf(
      "\nmessages of a rank in a step\n  group        calls     buffers   in the node     network       time  share\n");
  for (int flow = 0; flow < PLAN_FLOWS; flow++) {
    const struct plan_traffic *f = &t->traffic[flow];
    char buffers[32], node[32], network[32], time[32];
    if (f->calls > 0)
      printf("  %-8s %9.0f  %10s    %10s  %10s  %9s  %5.1f %%\n", plan_flow_names[flow], f->calls,
             bytes(f->bytes, buffers), bytes(f->node, node), bytes(f->network, network), seconds(f->seconds, time),
             100 * f->seconds / t->step);
  }
}

static void print_comparison(const struct plan_report *r) {
  struct plan_comparison c = plan_compare(&r->totals);
  char a[32], b[32], d[32], e[32], f[32];
  printf("\nall ranks together, without activations\n");
  printf("  full fine-tuning  %8s  weights and gradients in 16 bit %s, master weights %s, Adam's moments %s\n",
         bytes(c.full, a), bytes(c.full_weights + c.full_gradients, b), bytes(c.full_master, d),
         bytes(c.full_moments, e));
  printf("  LoRA              %8s  weights in 16 bit %s, what trains %s\n", bytes(c.lora_weights + c.lora_trained, a),
         bytes(c.lora_weights, b), bytes(c.lora_trained, d));
  if (!plan_is_gpt3(r->facts)) return;
  printf(
      "  the LoRA paper    1.2 TB to 350 GB. 350 GB are the weights in 16 bit. It does not say what its 1.2 TB hold:\n"
      "                    weights and Adam's moments in 16 bit are %s, with gradients %s, with all in mixed\n"
      "                    precision as above %s\n",
      bytes(3 * c.full_weights, d), bytes(4 * c.full_weights, e), bytes(c.full, f));
}

static enum status print_command(const struct plan_report *report, const struct plan_result *r) {
  char *command;
  TRY(plan_command(report, r, &command));
  if (command) printf("\nstart it\n  %s\n", command);
  if (command && report->trains)
    printf("it trains the run's own base, %s; the sizes above are %s's\n", report->trains, report->model);
  if (!command) printf("\nit cannot be started: lorashard does not run on this cluster (launcher: none)\n");
  free(command);
  return STATUS_OK;
}

static void print_sweep_row(const struct plan_result *r) {
  char rate[32], used[32];
  if (!r->layout.tp) {
    printf("%7" PRId64 "   nothing fits\n", r->job.ranks);
    return;
  }
  const struct plan_layout *l = &r->layout;
  printf("%7" PRId64 " %8" PRId64 "  %5d %4d %6d  %-4s %-10s %5" PRId64 "  %9s  %6s   %6.1f %5.1f %6.1f\n",
         r->job.ranks, r->job.global_batch, l->tp, l->pp, l->dp, l->sequence ? "on" : "off",
         plan_word("train.recompute", l->recompute), l->micro_batch, count(r->time.tokens_per_s, rate),
         mfu(&r->time, used), 100 * sweep_share(r, SWEEP_TP), 100 * sweep_share(r, SWEEP_PP),
         100 * sweep_share(r, SWEEP_DP));
}

static void print_way(const struct sweep_line *line, enum sweep_way way, double threshold) {
  static const char *const names[SWEEP_WAYS] = {"tensor parallelism", "pipeline stages, bubble counted", "replicas"};
  char rate[32];
  const struct plan_result *last = line->n ? &line->points[line->n - 1] : NULL;
  printf("  more of %s alone (%s): ", sweep_way_names[way], names[way]);
  if (!last)
    printf("nothing fits\n");
  else if (line->stops)
    printf("above %.0f %% of the step from %" PRId64 " ranks on", 100 * threshold, line->stops);
  else
    printf("never above %.0f %% of the step", 100 * threshold);
  if (!last) return;
  printf("; ends at %" PRId64 " ranks, %.1f %%, %s tokens/s", last->job.ranks, 100 * line->share[line->n - 1],
         count(last->time.tokens_per_s, rate));
  print_mfu(&last->time);
  printf("\n");
}

static void print_sweep(const struct plan_report *r) {
  const struct sweep *sweep = r->sweep;
  printf("\nsweep, %s\n\n",
         r->sweep_options.weak ? "rows of a step grow with the ranks" : "the same rows of a step at every size");
  printf("                                                                         share of the step, %%\n");
  printf("  ranks     rows     tp   pp     dp  seq  recompute  micro   tokens/s   MFU %%       tp    pp  grads\n");
  for (int i = 0; i < sweep->n; i++) print_sweep_row(&sweep->best[i]);
  printf("\nwhere growing one way stops, from the smallest layout that fits\n");
  for (int way = 0; way < SWEEP_WAYS; way++)
    print_way(&sweep->ways[way], (enum sweep_way)way, r->sweep_options.threshold);
}

enum status plan_report_print(const struct plan_report *report) {
  print_head(report);
  if (report->sweep) {
    print_sweep(report);
    return STATUS_OK;
  }
  print_table(report);
  const struct plan_layout *l = &report->results[0].layout;
  printf("\ntp %d x pp %d x dp %d\n\n", l->tp, l->pp, l->dp);
  print_memory(report, &report->results[0]);
  print_time(&report->results[0]);
  print_comparison(report);
  return print_command(report, &report->results[0]);
}
