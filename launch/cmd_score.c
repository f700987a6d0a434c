/* lorashard score: the log-probability of each token of a sequence. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dist/mesh.h"
#include "dist/watchdog.h"
#include "launch/model_args.h"
#include "launch/ranks.h"

static const struct cli_help help = {
    .usage = "score --base BASE [--adapter ADAPTER] (--ids 12,55,7 | --text TEXT)",
    .summary = "Natural log-probability of each token after those before it, as JSON.",
    .details =
        "Prints {\"ids\": [...], \"logprobs\": [null, ...]}; the first token has none. Text is tokenised as the base's "
        "tokenizer does, special tokens (BOS) included.",
};

struct arguments {
  struct model_args model;
  const char *ids, *text;
};

static enum status parse(int argc, char **argv, struct arguments *a) {
  const struct cli_option options[] = {
      MODEL_ARGS_OPTIONS(&a->model),
      {.name = "ids", .arg = "LIST", .doc = "token ids, separated by commas or blanks", .value = &a->ids},
      {.name = "text", .arg = "TEXT", .doc = "a text, to be tokenised", .value = &a->text},
      {NULL},
  };
  int n;
  TRY(cli_parse(&help, options, argc, argv, NULL, 0, 0, &n, &a->model.done));
  if (!a->model.done && !a->ids == !a->text) return status_set(STATUS_USAGE, "give either --ids or --text");
  return STATUS_OK;
}

static enum status parse_ids(const char *text, struct token_list *list) {
  while (*text) {
    char *end;
    errno = 0;
    long id = strtol(text, &end, 10);
    if (end == text || errno || id < 0 || id > INT32_MAX)
      return status_set(STATUS_USAGE, "--ids: '%.20s' is not a token id", text);
    TRY(token_list_push(list, (int32_t)id));
    text = end + strspn(end, ", \t\n");
  }
  return STATUS_OK;
}

static enum status sequence(const struct arguments *a, const struct config *config, struct token_list *list) {
  enum status status = STATUS_OK;
  struct tokenizer *tokenizer = NULL;
  if (a->ids) {
    TRY(parse_ids(a->ids, list));
  } else {
    TRY(tokenizer_open(config->base, &tokenizer));
    status = tokenizer ? tokenizer_encode(tokenizer, a->text, strlen(a->text), true, true, list)
                       : status_set(STATUS_USAGE, "%s has no tokenizer: give --ids", config->base);
    tokenizer_close(&tokenizer);
  }
  if (status == STATUS_OK && list->n < 2)
    return status_set(STATUS_USAGE, "a sequence of at least two tokens is needed");
  return status;
}

static enum status check_ids(const struct token_list *list, int64_t n_vocab) {
  for (int64_t i = 0; i < list->n; i++)
    if (list->ids[i] < 0 || list->ids[i] >= n_vocab)
      return status_set(STATUS_USAGE, "token id %d is outside the vocabulary of %" PRId64, list->ids[i], n_vocab);
  return STATUS_OK;
}

static void print(const struct token_list *list, const float *nll) {
  mesh_waited();
  watchdog_set_task("prints"); /* for a reader who may take any time */
  printf("{\"ids\": [");
  for (int64_t i = 0; i < list->n; i++) printf("%s%d", i ? ", " : "", list->ids[i]);
  printf("], \"logprobs\": [null");
  for (int64_t i = 0; i + 1 < list->n; i++) printf(", %.9g", -(double)nll[i]);
  printf("]}\n");
}

static enum status score(struct job *job, const struct token_list *list) {
  int64_t n = list->n - 1;
  TRY(ranks_agree(check_ids(list, job->source->facts.n_vocab)));
  TRY(ranks_agree(job_prepare_model(job, n, false, 1)));
  int32_t *positions = malloc((size_t)n * sizeof *positions);
  float *nll = calloc((size_t)n, sizeof *nll);
  enum status status =
      ranks_agree(positions && nll ? STATUS_OK : status_set(STATUS_SYSTEM, "out of memory for %" PRId64 " tokens", n));
  if (status != STATUS_OK) goto out;
  for (int64_t i = 0; i < n; i++) positions[i] = (int32_t)i;
  struct segment segment = {0, (int32_t)n, 0, (int32_t)n};
  struct batch batch = {
      .M = n, .ids = list->ids, .positions = positions, .labels = list->ids + 1, .segments = &segment, .n_segments = 1};
  double loss = 0;
  ranks_must(transformer_loss(job->model, &batch, &loss, nll));
  bool finite = true; /* of nll, which every rank has; the loss is on the last stage alone */
  for (int64_t i = 0; i < n; i++) finite = finite && isfinite(nll[i]);
  if (finite)
    print(list, nll);
  else
    status = ranks_agree(status_set(STATUS_DATA,
                                    "the log-probabilities are not finite: weights of %s or of the adapter are "
                                    "damaged",
                                    job->source->path));
out:
  free(positions);
  free(nll);
  return status;
}

static enum status run(int argc, char **argv) {
  struct arguments a = {0};
  struct config config;
  struct job job = {0};
  struct token_list list = {0};
  TRY(ranks_agree(parse(argc, argv, &a)));
  if (a.model.done) return STATUS_OK;
  memset(&config, 0, sizeof config);
  enum status status = ranks_agree(model_args_configure(&a.model, &config));
  if (status == STATUS_OK) status = ranks_agree(sequence(&a, &config, &list));
  struct job_options options = {.n_positions = list.n - 1, .no_text = true};
  if (status == STATUS_OK) status = model_args_open(&a.model, &config, options, &job);
  if (status == STATUS_OK) status = score(&job, &list);
  token_list_free(&list);
  job_close(&job);
  config_free(&config);
  return status;
}

enum status cmd_score(int argc, char **argv) { return ranks_run(argc, argv, run); }
