/* lorashard eval: loss and perplexity on a data set. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launch/evaluate.h"
#include "launch/model_args.h"
#include "launch/ranks.h"

static const struct cli_help help = {
    .usage = "eval --base BASE [--adapter ADAPTER] --data FILE [--set KEY=VALUE ...] [--json]",
    .summary = "Mean loss per target token, perplexity and token counts of a data set.",
    .details =
        "Under mpirun the base is cut over the ranks: mpirun -n 2 lorashard eval --base B --data F --set "
        "parallel.tp=2. "
        "FILE is read as training data is (data.format, data.seq_len, data.packing, data.chat_template through --set).",
};

struct arguments {
  struct model_args model;
  struct cli_values data;
  bool json;
};

static enum status parse(int argc, char **argv, struct arguments *a) {
  const struct cli_option options[] = {
      MODEL_ARGS_OPTIONS(&a->model),
      {.name = "data", .arg = "FILE", .doc = "a .jsonl, .txt or .bin file; may be repeated", .values = &a->data},
      {.name = "json", .doc = "print one JSON object", .flag = &a->json},
      {NULL},
  };
  int n;
  TRY(cli_parse(&help, options, argc, argv, NULL, 0, 0, &n, &a->model.done));
  if (!a->model.done && a->data.n == 0) return status_set(STATUS_USAGE, "no data given: --data FILE");
  return STATUS_OK;
}

static void print(const struct evaluation *result, const struct dataset_counts *counts, bool json) {
  if (json) {
    printf("{\"loss\": %.9g, \"perplexity\": %.9g, \"targets\": %" PRId64 ", \"tokens\": %" PRId64
           ", \"documents\": %" PRId64 ", \"truncated\": %" PRId64 ", \"without_target\": %" PRId64 "}\n",
           result->loss, exp(result->loss), result->targets, result->tokens, counts->documents, counts->truncated,
           counts->without_target);
    return;
  }
  printf("loss        %.6f\nperplexity  %.4f\ntargets     %" PRId64 "\ntokens      %" PRId64 "\ndocuments   %" PRId64
         "\n",
         result->loss, exp(result->loss), result->targets, result->tokens, counts->documents);
  if (counts->truncated) printf("truncated   %" PRId64 "\n", counts->truncated);
  if (counts->without_target) printf("skipped     %" PRId64 " (nothing to predict)\n", counts->without_target);
}

static enum status evaluate(const struct arguments *a, struct job *job, struct dataset **data,
                            struct batcher *batcher) {
  const struct config *config = job->config;
  struct evaluation result;
  struct string_list files = {(char **)a->data.items, a->data.n};
  TRY(evaluate_open_data(job, &files, NULL, data));
  int64_t at_once =
      batcher_rows_at_once(config->train.micro_batch, config->data.seq_len, job->mesh->n_tp, job->device->host_memory);
  TRY(ranks_agree(batcher_create(*data, config->data.seq_len, at_once, BATCH_TOKEN_UNIT, false, 0, batcher)));
  TRY(ranks_agree(job_prepare_model(job, batcher->max_tokens, false, 1)));
  ranks_must(evaluate_run(job, batcher, NULL, &result));
  if (!isfinite(result.loss))
    return ranks_agree(status_set(STATUS_DATA, "the loss is not finite: weights of %s%s%s are damaged",
                                  job->source->path, a->model.adapter ? " or " : "",
                                  a->model.adapter ? a->model.adapter : ""));
  print(&result, dataset_counts(*data), a->json);
  return STATUS_OK;
}

static enum status run(int argc, char **argv) {
  struct arguments a = {0};
  struct config config;
  struct job job = {0};
  struct dataset *data = NULL;
  struct batcher batcher = {0};
  TRY(ranks_agree(parse(argc, argv, &a)));
  if (a.model.done) return STATUS_OK;
  memset(&config, 0, sizeof config);
  enum status status = ranks_agree(model_args_configure(&a.model, &config));
  struct string_list files = {(char **)a.data.items, a.data.n};
  struct job_options options = {.no_text = evaluate_only_ids(&files)};
  if (status == STATUS_OK) status = model_args_open(&a.model, &config, options, &job);
  if (status == STATUS_OK) status = evaluate(&a, &job, &data, &batcher);
  batcher_destroy(&batcher);
  dataset_close(&data);
  job_close(&job);
  config_free(&config);
  return status;
}

enum status cmd_eval(int argc, char **argv) { return ranks_run(argc, argv, run); }
