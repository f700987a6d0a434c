/* lorashard plan: layouts, their memory and their speed, without running anything. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/base_model.h"
#include "io/log.h"
#include "io/schema.h"
#include "io/synthetic.h"
#include "launch/cli.h"
#include "launch/planner_report.h"

#define MAX_RESULTS 100

static const struct cli_help help = {
    .usage = "plan --cluster CLUSTER.yaml (--model MODEL | --config RUN.yaml) [OPTIONS]",
    .summary =
        "Find the layouts of a training job that fit a cluster, and say what each needs and how fast it should be.",
    .details =
        "MODEL is a built-in name (gpt3-175b, llama-3.1-405b, ...), a config.json, or a model's folder or file. With "
        "--config\n"
        "the job is that of a run; without, it is 256 rows of up to 2048 tokens a step, in bf16 where the device has "
        "it.\n\n"
        "  lorashard plan --model gpt3-175b --cluster cluster-configs/h100-16x8.yaml\n"
        "  lorashard plan --config RUN.yaml --cluster cluster-configs/a100-4x8.yaml --layout config\n"
        "  lorashard plan --model llama-3.1-405b --cluster cluster-configs/h100-16x8.yaml --sweep 8..16384 --json\n\n"
        "Memory is exact: the tables that train allocates from. Time is a model of the cluster's rates and links;\n"
        "docs/scaling.md says what it assumes. A cluster file of the machine at hand comes from lorashard probe.",
};

struct arguments {
  const char *model, *cluster, *run, *layout, *sweep, *ranks, *top, *share;
  struct cli_values set;
  bool json, strong, search_base, keys, done;
};

/* An option that would do nothing beside another, or without it, is a mistake. */
static enum status check_pairs(const struct arguments *a) {
  const struct {
    const char *one, *other;
    bool both;
  } pairs[] = {{"--layout", "--sweep", a->layout && a->sweep},
               {"--layout", "--top", a->layout && a->top},
               {"--layout", "--search-base-dtype", a->layout && a->search_base},
               {"--ranks", "--sweep", a->ranks && a->sweep},
               {"--top", "--sweep", a->top && a->sweep}};
  for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
    if (pairs[i].both)
      return status_set(STATUS_USAGE, "plan: %s and %s exclude each other", pairs[i].one, pairs[i].other);
  if (!a->sweep && (a->strong || a->share))
    return status_set(STATUS_USAGE, "plan: %s is about a sweep; give --sweep FROM..TO",
                      a->strong ? "--strong" : "--share");
  return STATUS_OK;
}

static enum status parse(int argc, char **argv, struct arguments *a) {
  const struct cli_option options[] = {
      {.name = "cluster", .arg = "FILE", .doc = "the cluster (cluster-configs/)", .value = &a->cluster},
      {.name = "model", .arg = "MODEL", .doc = "the base model; default: the run's", .value = &a->model},
      {.name = "config", .arg = "RUN.yaml", .doc = "the run's lora, train and data settings", .value = &a->run},
      {.name = "set", .arg = "KEY=VALUE", .doc = "set a configuration key; may be repeated", .values = &a->set},
      {.name = "layout",
       .arg = "LAYOUT",
       .doc = "state one layout: tp=N,pp=N,dp=N and any of sequence=on|off, recompute=MODE, micro_batch=N, "
              "base_dtype=TYPE; or 'config' for the run's own",
       .value = &a->layout},
      {.name = "ranks", .arg = "N", .doc = "use this many ranks of the cluster; default: all", .value = &a->ranks},
      {.name = "search-base-dtype", .doc = "try 8 and 4 bits for the base too", .flag = &a->search_base},
      {.name = "top", .arg = "N", .doc = "show this many layouts (10)", .value = &a->top},
      {.name = "sweep",
       .arg = "FROM..TO",
       .doc = "so many ranks of the same kind, doubled each time: which layout wins, and where messages take over",
       .value = &a->sweep},
      {.name = "strong",
       .doc = "sweep with the same rows of a step at every size; default: rows grow with the ranks",
       .flag = &a->strong},
      {.name = "share",
       .arg = "X",
       .doc = "share of the step at which messages count as the limit (0.1)",
       .value = &a->share},
      {.name = "json", .doc = "print one JSON object", .flag = &a->json},
      {.name = "cluster-keys", .doc = "print every key of a cluster file (Markdown) and end", .flag = &a->keys},
      {NULL},
  };
  TRY(cli_parse(&help, options, argc, argv, NULL, 0, 0, NULL, &a->done));
  if (a->done || a->keys) return STATUS_OK;
  if (!a->cluster) return status_set(STATUS_USAGE, "plan: --cluster is missing; cluster-configs/ has examples");
  if (!a->model && !a->run) return status_set(STATUS_USAGE, "plan: --model or --config is missing");
  return check_pairs(a);
}

/* --- the job --- */

static enum status configure(const struct arguments *a, const struct cluster *cluster, struct config *config) {
  TRY(config_init(config));
  if (a->run) {
    TRY(config_read(config, a->run));
  } else {
    TRY(config_set(config, "data.seq_len=2048"));
    TRY(config_set(config, "train.global_batch=256"));
    if (cluster->device.matrix[CLUSTER_BF16].achieved > 0) TRY(config_set(config, "train.compute=bf16"));
  }
  for (int i = 0; i < a->set.n; i++) TRY(config_set(config, a->set.items[i]));
  return STATUS_OK;
}

static bool is_json(const char *model) {
  size_t length = strlen(model);
  return length > 5 && strcmp(model + length - 5, ".json") == 0;
}

/* Does it name weights, as train's base does? The name of a built-in model and a config.json name sizes only. */
static bool has_weights(const char *model) {
  return synthetic_is_name(model) || (access(model, F_OK) == 0 && !is_json(model));
}

static enum status open_model(const char *model, struct tensor_source **source_p) {
  struct model_facts facts;
  char name[4200];
  if (has_weights(model)) return base_model_open(model, source_p);
  if (!is_json(model)) TRY(synthetic_facts(model, &facts)); /* not "NAME,layers=2": that is synthetic:'s */
  snprintf(name, sizeof name, "synthetic:%s", model);
  return base_model_open(name, source_p);
}

/* Without a run the sequence is no longer than the model's positions. */
static void limit_length(const struct arguments *a, const struct model_facts *facts, struct config *config) {
  bool own = a->run != NULL;
  for (int i = 0; i < a->set.n; i++) own |= strncmp(a->set.items[i], "data.seq_len", 12) == 0;
  if (!own && facts->max_positions && config->data.seq_len > facts->max_positions)
    config->data.seq_len = facts->max_positions;
}

/* --- --layout --- */

/* Too few names, and too short, for a nearest one to mean much: all of them. */
static enum status unknown_part(const char *text, const char *const *names, int n) {
  char list[256] = "";
  size_t length = 0;
  for (int i = 0; i < n && length < sizeof list; i++)
    length += (size_t)snprintf(list + length, sizeof list - length, "%s%s", i ? ", " : "", names[i]);
  return status_set(STATUS_USAGE, "--layout: unknown '%.40s'; there are %s", text, list);
}

static enum status set_choice(const char *key, const char *value, int *field) {
  const char *const *choices = schema_find(schema_rows, schema_n_rows, key)->choices;
  int n = 0;
  for (; choices[n]; n++)
    if (strcmp(choices[n], value) == 0) {
      *field = n;
      return STATUS_OK;
    }
  return unknown_part(value, choices, n);
}

static enum status set_switch(const char *value, bool *field) {
  bool on = strcmp(value, "on") == 0 || strcmp(value, "true") == 0;
  if (!on && strcmp(value, "off") != 0 && strcmp(value, "false") != 0)
    return status_set(STATUS_USAGE, "--layout: sequence is on or off; found '%.40s'", value);
  *field = on;
  return STATUS_OK;
}

static enum status set_part(const char *key, const char *value, struct plan_layout *layout) {
  static const char *const names[] = {"tp", "pp", "dp", "micro_batch", "sequence", "recompute", "base_dtype"};
  long long number = 0;
  int choice = 0, which = 0;
  while (which < 7 && strcmp(names[which], key) != 0) which++;
  if (which < 4) TRY(cli_int("--layout", value, 1, 1048576, &number));
  switch (which) {
    case 0:
      layout->tp = (int)number;
      return STATUS_OK;
    case 1:
      layout->pp = (int)number;
      return STATUS_OK;
    case 2:
      layout->dp = (int)number;
      return STATUS_OK;
    case 3:
      layout->micro_batch = number;
      return STATUS_OK;
    case 4:
      return set_switch(value, &layout->sequence);
    case 5:
      TRY(set_choice("train.recompute", value, &choice));
      layout->recompute = (enum recompute_kind)choice;
      return STATUS_OK;
    case 6:
      TRY(set_choice("train.base_dtype", value, &choice));
      layout->base_dtype = (enum base_dtype)choice;
      return STATUS_OK;
    default:
      return unknown_part(key, names, 7);
  }
}

/* "tp=8,pp=2,recompute=full"; ranks without a given dp decide it. */
static enum status parse_layout(const char *text, int64_t ranks, struct plan_layout *layout) {
  char copy[256];
  if (strlen(text) >= sizeof copy) return status_set(STATUS_USAGE, "--layout is too long");
  strcpy(copy, text);
  layout->dp = 0;
  char *rest = copy, *part;
  while ((part = strsep(&rest, ",")) != NULL) {
    char *equals = strchr(part, '=');
    if (!equals) return status_set(STATUS_USAGE, "--layout: write tp=N,pp=N,dp=N; found '%.40s'", part);
    *equals = 0;
    TRY(set_part(part, equals + 1, layout));
  }
  int64_t replica = (int64_t)layout->tp * layout->pp;
  if (!layout->dp) layout->dp = (int)(ranks / replica > 0 ? ranks / replica : 1);
  if (layout->tp == 1) layout->sequence = false; /* as train has it: there is nothing to split */
  return STATUS_OK;
}

/* --- the plan --- */

/* What run() opens and must close. */
struct work {
  struct config config;
  struct cluster cluster;
  struct tensor_source *source;
  struct planner *planner;
  struct plan_result results[MAX_RESULTS];
  struct sweep sweep;
};

static enum status state_one(const struct arguments *a, struct work *w, struct plan_report *report) {
  struct plan_layout layout = planner_configured(w->planner, report->job.ranks);
  bool own = strcmp(a->layout, "config") == 0;
  if (!own) TRY(parse_layout(a->layout, report->job.ranks, &layout));
  int64_t wanted = (int64_t)layout.tp * layout.pp * layout.dp, most = w->cluster.nodes * w->cluster.device.per_node;
  if (wanted > most)
    return status_set(STATUS_USAGE, "tp %d x pp %d x dp %d is %lld ranks, but %s has %lld", layout.tp, layout.pp,
                      layout.dp, (long long)wanted, w->cluster.name, (long long)most);
  if (!a->ranks && !own) report->job = planner_job(&w->cluster, wanted, report->job.global_batch);
  TRY(planner_check_nodes(&w->cluster, &report->job));
  TRY(planner_state(w->planner, &report->job, &layout, &w->results[0]));
  report->n = 1;
  return STATUS_OK;
}

static enum status nothing_fits(struct work *w, const struct plan_report *report, const struct plan_search *search) {
  bool found;
  struct plan_result r;
  TRY(planner_smallest(w->planner, &report->job, search, &r, &found));
  if (!found)
    return status_set(STATUS_USAGE, "no layout of %lld ranks can be for this model and %lld rows of a step",
                      (long long)report->job.ranks, (long long)report->job.global_batch);
  return status_set(
      STATUS_USAGE,
      "nothing fits: the smallest layout, tp %d x pp %d x dp %d, needs %.1f GB on a rank that has %.1f GB; "
      "give more ranks, or a smaller base (--search-base-dtype)",
      r.layout.tp, r.layout.pp, r.layout.dp, 1e-9 * (double)r.memory.total, 1e-9 * report->totals.rank_memory);
}

static enum status search_all(const struct arguments *a, struct work *w, struct plan_report *report,
                              const struct plan_search *search) {
  if (a->sweep) return sweep_run(w->planner, &w->cluster, search, &report->sweep_options, &w->sweep);
  TRY(planner_check_nodes(&w->cluster, &report->job));
  TRY(planner_search(w->planner, &report->job, search, w->results, &report->n, &report->tried));
  return report->n ? STATUS_OK : nothing_fits(w, report, search);
}

static enum status parse_sweep(const struct arguments *a, struct work *w, struct plan_report *report) {
  long long from, to;
  char text[64];
  const char *dots = a->sweep ? strstr(a->sweep, "..") : NULL;
  double share = 0.1;
  if (a->share) TRY(cli_double("--share", a->share, 0.001, 1, &share));
  if (!a->sweep) return STATUS_OK;
  if (!dots || strlen(a->sweep) >= sizeof text)
    return status_set(STATUS_USAGE, "--sweep needs FROM..TO, such as 8..16384; found '%.40s'", a->sweep);
  snprintf(text, sizeof text, "%.*s", (int)(dots - a->sweep), a->sweep);
  TRY(cli_int("--sweep", text, 1, 1 << 20, &from));
  TRY(cli_int("--sweep", dots + 2, from, 1 << 20, &to));
  report->sweep_options = (struct sweep_options){
      .from = from, .to = to, .global_batch = w->config.train.global_batch, .weak = !a->strong, .threshold = share};
  report->sweep = &w->sweep;
  return STATUS_OK;
}

static enum status plan(const struct arguments *a, struct work *w, struct plan_report *report) {
  long long ranks = w->cluster.nodes * w->cluster.device.per_node, top = 10;
  if (a->ranks) TRY(cli_int("--ranks", a->ranks, 1, ranks, &ranks));
  if (a->top) TRY(cli_int("--top", a->top, 1, MAX_RESULTS, &top));
  report->job = planner_job(&w->cluster, ranks, w->config.train.global_batch);
  TRY(parse_sweep(a, w, report));
  report->totals = planner_totals(w->planner);
  struct plan_search search = {.fixed = planner_configured(w->planner, ranks),
                               .tp = true,
                               .pp = true,
                               .sequence = true,
                               .recompute = true,
                               .base_dtype = a->search_base,
                               .micro_batch = true,
                               .most = (int)top};
  return a->layout ? state_one(a, w, report) : search_all(a, w, report, &search);
}

static enum status show(const struct arguments *a, const struct plan_report *report) {
  json_t *object;
  if (!a->json) return plan_report_print(report);
  TRY(plan_report_json(report, &object));
  json_dumpf(object, stdout, JSON_INDENT(2));
  putchar('\n');
  json_decref(object);
  return STATUS_OK;
}

static enum status run(const struct arguments *a, struct work *w) {
  TRY(cluster_read(a->cluster, &w->cluster));
  TRY(configure(a, &w->cluster, &w->config));
  const char *model = a->model ? a->model : w->config.base;
  if (!*model) return status_set(STATUS_USAGE, "plan: %s names no base; give --model", a->run);
  if (*w->config.lora.adapter)
    log_warn("lora.adapter is not read: the plan is for fresh adapters as lora.r and lora.targets say");
  TRY(open_model(model, &w->source));
  limit_length(a, &w->source->facts, &w->config);
  TRY(planner_create(&w->config, &w->cluster, w->source, &w->planner));
  struct plan_report report = {.config = &w->config,
                               .cluster = &w->cluster,
                               .facts = &w->source->facts,
                               .model = model,
                               .run = a->run,
                               .base = a->model && has_weights(a->model) ? a->model : NULL,
                               .trains = a->model && !has_weights(a->model) && *w->config.base ? w->config.base : NULL,
                               .assumed_dtype = !has_weights(model) && !w->source->facts.has_dtype,
                               .set = a->set.items,
                               .n_set = a->set.n,
                               .own_length = !a->run,
                               .results = w->results};
  TRY(plan(a, w, &report));
  return show(a, &report);
}

enum status cmd_plan(int argc, char **argv) {
  struct arguments a = {0};
  TRY(parse(argc, argv, &a));
  if (a.done) return STATUS_OK;
  if (a.keys) {
    cluster_describe(stdout);
    return STATUS_OK;
  }
  struct work *w = calloc(1, sizeof *w);
  if (!w) return status_set(STATUS_SYSTEM, "out of memory for a plan");
  enum status status = run(&a, w);
  planner_destroy(&w->planner);
  base_model_close(&w->source);
  config_free(&w->config);
  free(w);
  return status;
}
