/* lorashard generate: continue a prompt. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dist/mesh.h"
#include "dist/watchdog.h"
#include "io/chat_template.h"
#include "launch/model_args.h"
#include "launch/ranks.h"
#include "model/sampling.h"

static const struct cli_help help = {
    .usage = "generate --base BASE [--adapter ADAPTER] --prompt TEXT [--max-tokens N] [--temperature T] [--top-p P]",
    .summary = "Continue a prompt and print the continuation.",
    .details =
        "Greedy by default. --chat puts the prompt into the base's chat template as a user's turn; --e2e writes it as "
        "the e2e data format does (prompt, then the end token). Generation ends at the model's end token.",
};

struct arguments {
  struct model_args model;
  const char *prompt, *max_tokens, *temperature, *top_p, *seed;
  bool chat, e2e, show_ids;
};

struct request {
  struct sampling sampling;
  int64_t max_tokens;
};

static enum status parse(int argc, char **argv, struct arguments *a, struct request *request) {
  const struct cli_option options[] = {
      MODEL_ARGS_OPTIONS(&a->model),
      {.name = "prompt", .arg = "TEXT", .doc = "the text to continue", .value = &a->prompt},
      {.name = "max-tokens", .arg = "N", .doc = "tokens to generate at most (default 128)", .value = &a->max_tokens},
      {.name = "temperature",
       .arg = "T",
       .doc = "0 (default): the likeliest token; higher: more varied",
       .value = &a->temperature},
      {.name = "top-p",
       .arg = "P",
       .doc = "sample from the likeliest tokens that reach this probability (default 1)",
       .value = &a->top_p},
      {.name = "seed", .arg = "N", .doc = "of the sampling (default 0)", .value = &a->seed},
      {.name = "chat", .doc = "the prompt is a user's turn of the chat template", .flag = &a->chat},
      {.name = "e2e", .doc = "the prompt is an input of the e2e data format", .flag = &a->e2e},
      {.name = "ids", .doc = "print the token ids instead of text", .flag = &a->show_ids},
      {NULL},
  };
  int n;
  long long max_tokens = 128, seed = 0;
  *request = (struct request){.sampling = {.top_p = 1}};
  TRY(cli_parse(&help, options, argc, argv, NULL, 0, 0, &n, &a->model.done));
  if (a->model.done) return STATUS_OK;
  if (!a->prompt) return status_set(STATUS_USAGE, "no prompt given: --prompt TEXT");
  if (a->chat && a->e2e) return status_set(STATUS_USAGE, "--chat and --e2e exclude each other");
  if (a->max_tokens) TRY(cli_int("--max-tokens", a->max_tokens, 1, 1 << 20, &max_tokens));
  if (a->seed) TRY(cli_int("--seed", a->seed, 0, INT64_MAX, &seed));
  if (a->temperature) TRY(cli_double("--temperature", a->temperature, 0, 100, &request->sampling.temperature));
  if (a->top_p) TRY(cli_double("--top-p", a->top_p, 1e-6, 1, &request->sampling.top_p));
  request->max_tokens = max_tokens;
  request->sampling.seed = (uint64_t)seed;
  return STATUS_OK;
}

/* The prompt's ids, as training data of the same kind would begin. */
static enum status prompt_ids(const struct arguments *a, const struct config *config, struct token_list *ids) {
  enum status status = STATUS_OK;
  struct tokenizer *tokenizer = NULL;
  struct token_list mask = {0};
  TRY(tokenizer_open(config->base, &tokenizer));
  if (!tokenizer) return status_set(STATUS_USAGE, "%s has no tokenizer, which generate needs", config->base);
  if (a->chat) {
    enum chat_template chat;
    struct chat_message message = {"user", a->prompt};
    TRY_OUT(chat_template_choose(config->data.chat_template, tokenizer, &chat));
    if (chat == CHAT_NONE) {
      status = status_set(STATUS_USAGE,
                          "--chat: the base has no chat template; choose one with --set data.chat_template=chatml");
      goto out;
    }
    TRY_OUT(chat_template_apply(chat, tokenizer, &message, 1, true, ids, &mask));
  } else {
    TRY_OUT(tokenizer_encode(tokenizer, a->prompt, strlen(a->prompt), true, !a->e2e, ids));
    if (a->e2e) TRY_OUT(token_list_push(ids, tokenizer_eos(tokenizer)));
  }
  if (ids->n == 0) status = status_set(STATUS_USAGE, "the prompt has no token");
out:
  token_list_free(&mask);
  tokenizer_close(&tokenizer);
  return status;
}

static enum status print(const struct arguments *a, const struct job *job, const struct token_list *ids,
                         int64_t n_prompt) {
  mesh_waited();
  watchdog_set_task("prints"); /* for a reader who may take any time */
  if (a->show_ids) {
    for (int64_t i = n_prompt; i < ids->n; i++) printf("%s%d", i > n_prompt ? " " : "", ids->ids[i]);
    printf("\n");
    return STATUS_OK;
  }
  char *text;
  size_t length;
  TRY(tokenizer_decode(job->tokenizer, ids->ids + n_prompt, ids->n - n_prompt, true, &text, &length));
  fwrite(text, 1, length, stdout);
  printf("\n");
  free(text);
  return STATUS_OK;
}

static enum status generate(const struct arguments *a, const struct request *request, struct job *job,
                            struct token_list *ids) {
  int64_t n_prompt = ids->n, V = job->source->facts.n_vocab;
  struct kv_cache *cache = NULL;
  float *logits = NULL;
  int64_t max_tokens = job->model->n_positions - n_prompt; /* fewer than asked for where positions are learned */
  if (max_tokens < 1)
    return ranks_agree(status_set(STATUS_USAGE,
                                  "the prompt of %" PRId64 " tokens leaves no room in the %" PRId64 " positions of %s",
                                  n_prompt, job->model->n_positions, job->source->path));
  enum status status = job_prepare_model(job, n_prompt, false, 1);
  if (status == STATUS_OK) status = kv_cache_create(job->model, n_prompt + max_tokens, &cache);
  if (status == STATUS_OK && !(logits = malloc((size_t)V * sizeof *logits)))
    status = status_set(STATUS_SYSTEM, "out of memory for logits");
  status = ranks_agree(status);
  if (status == STATUS_OK) ranks_must(transformer_decode(job->model, cache, ids->ids, n_prompt, logits));
  for (int64_t i = 0; i < max_tokens && status == STATUS_OK; i++) {
    int32_t token = 0;
    status = sampling_choose(&request->sampling, logits, V, ids->n, &token); /* the same on every rank */
    if (status != STATUS_OK || tokenizer_is_end(job->tokenizer, token)) break;
    ranks_must(token_list_push(ids, token));
    if (i + 1 < max_tokens) ranks_must(transformer_decode(job->model, cache, &token, 1, logits));
  }
  free(logits);
  kv_cache_destroy(job->model, &cache);
  return ranks_agree(status == STATUS_OK ? print(a, job, ids, n_prompt) : status);
}

static enum status run(int argc, char **argv) {
  struct arguments a = {0};
  struct request request;
  struct config config;
  struct job job = {0};
  struct token_list ids = {0};
  TRY(ranks_agree(parse(argc, argv, &a, &request)));
  if (a.model.done) return STATUS_OK;
  memset(&config, 0, sizeof config);
  enum status status = ranks_agree(model_args_configure(&a.model, &config));
  if (status == STATUS_OK) status = ranks_agree(prompt_ids(&a, &config, &ids));
  struct job_options options = {.n_positions = ids.n + request.max_tokens, .clamp_positions = true};
  if (status == STATUS_OK) status = model_args_open(&a.model, &config, options, &job);
  if (status == STATUS_OK) status = generate(&a, &request, &job, &ids);
  token_list_free(&ids);
  job_close(&job);
  config_free(&config);
  return status;
}

enum status cmd_generate(int argc, char **argv) { return ranks_run(argc, argv, run); }
