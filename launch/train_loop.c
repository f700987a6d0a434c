#include "launch/train_loop.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "dist/watchdog.h"
#include "io/durable.h"
#include "io/log.h"
#include "io/metrics.h"
#include "io/peft.h"
#include "launch/evaluate.h"
#include "launch/idle_check.h"
#include "launch/output_dir.h"
#include "launch/progress.h"
#include "launch/ranks.h"
#include "launch/run_status.h"
#include "launch/saver.h"
#include "launch/stop_signal.h"
#include "launch/train_step.h"
#include "lora/replicas.h"

struct run {
  struct job *job;
  const struct config *config;
  struct dataset *data, *eval_data;
  struct batcher batcher, eval_batcher;
  struct saver *saver;
  struct metrics *metrics; /* rank 0 */
  struct progress progress;
  struct idle_check idle;
  struct run_state state;
  struct train_plan plan;
  int lock;          /* rank 0's on the output; -1: none */
  bool nothing_left; /* all steps were done before */
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool speaks(const struct run *run) { return run->job->mesh->rank == 0; }

/* Ranks of other stages have other adapters. */
static bool speaks_for_stage(const struct run *run) {
  return run->job->mesh->tp_rank == 0 && run->job->mesh->dp_rank == 0;
}

/* --- before the first step --- */

static void report_data(const struct run *run, const char *what, const struct dataset *data) {
  const struct dataset_counts *counts = dataset_counts(data);
  if (!speaks(run)) return;
  log_info("%-9s %" PRId64 " documents, %" PRId64 " tokens, %" PRId64 " targets in %" PRId64 " rows of up to %" PRId64
           " tokens",
           what, counts->documents, counts->tokens, counts->targets, counts->rows, run->config->data.seq_len);
  if (counts->truncated)
    log_warn("%s: %" PRId64 " samples are longer than data.seq_len %" PRId64 " and were cut at the end", what,
             counts->truncated, run->config->data.seq_len);
  if (counts->without_target)
    log_warn("%s: %" PRId64 " samples have no target left to learn and were skipped", what, counts->without_target);
}

static enum status open_data(struct run *run) {
  const struct config *config = run->config;
  char cache[4096];
  TRY(ranks_agree((size_t)snprintf(cache, sizeof cache, "%s/cache", config->output) < sizeof cache
                      ? STATUS_OK
                      : status_set(STATUS_USAGE, "output: the path is too long")));
  int64_t at_once = batcher_rows_at_once(config->train.micro_batch, config->data.seq_len, run->job->mesh->n_tp,
                                         run->job->device->host_memory);
  int64_t unit = batcher_unit(run->job->mesh->n_tp, config->parallel.sequence);
  TRY(evaluate_open_data(run->job, &config->data.train, cache, &run->data));
  report_data(run, "data", run->data);
  TRY(ranks_agree(
      batcher_create(run->data, config->data.seq_len, at_once, unit, true, config->train.seed, &run->batcher)));
  if (config->data.eval.n == 0) return STATUS_OK;
  TRY(evaluate_open_data(run->job, &config->data.eval, cache, &run->eval_data));
  report_data(run, "eval data", run->eval_data);
  return ranks_agree(batcher_create(run->eval_data, config->data.seq_len, at_once, unit, false, 0, &run->eval_batcher));
}

/* The newest whole checkpoint of the output. */
static enum status find_own(const struct run *run, char *path, size_t size) {
  int64_t step;
  TRY(checkpoint_find_latest(run->config->output, path, size, &step));
  if (step >= 0) return STATUS_OK;
  return status_set(STATUS_USAGE, "--resume: %s holds no whole checkpoint to go on from: begin anew with --overwrite",
                    run->config->output);
}

/* A step directory, an output directory or a gathered file, which --overwrite is not to remove. */
static enum status find_given(const struct run *run, const char *from, bool overwrite, char *path, size_t size) {
  bool peft = false;
  TRY(adapter_resolve(from, path, size, &peft));
  if (peft)
    return status_set(
        STATUS_USAGE,
        "--resume-from: %s is a PEFT adapter, which has no optimizer state to go on with: start a new run "
        "from it with lora.adapter",
        from);
  if (overwrite && output_dir_holds(run->config->output, path))
    return status_set(STATUS_USAGE,
                      "--resume-from: %s lies in the output directory that --overwrite clears: give another output",
                      path);
  return STATUS_OK;
}

/* Rank 0 looks, all read their parts. */
static enum status resume(struct run *run, const struct train_options *options) {
  char path[DURABLE_PATH] = "";
  enum status status = STATUS_OK;
  if (speaks(run))
    status = options->resume ? find_own(run, path, sizeof path)
                             : find_given(run, options->resume_from, options->overwrite, path, sizeof path);
  TRY(ranks_agree(status));
  TRY(comm_broadcast(run->job->mesh->control, path, sizeof path, 0));
  TRY(ranks_agree(saver_restore(run->job, path, dataset_rows(run->data), dataset_digest(run->data), &run->state)));
  log_info("resume    from %s: step %" PRId64 ", epoch %" PRId64 ", %" PRId64 " of %" PRId64 " rows used", path,
           run->state.step, run->state.samples / run->state.rows, run->state.samples % run->state.rows,
           run->state.rows);
  return STATUS_OK;
}

static enum status write_config(const struct run *run) {
  char path[DURABLE_PATH], *text = NULL;
  TRY(durable_path(path, sizeof path, "%s/config.yaml", run->config->output));
  TRY(config_print(run->config, &text));
  enum status status = durable_write(path, text, strlen(text));
  free(text);
  return status;
}

static enum status open_outputs(struct run *run) {
  char path[4096];
  if (!speaks(run)) return STATUS_OK;
  TRY(write_config(run));
  TRY(run_status_write(run->config->output, RUN_RUNNING, run->state.step, run->plan.steps));
  snprintf(path, sizeof path, "%s/metrics.jsonl", run->config->output);
  return metrics_open(path, run->state.step, &run->metrics);
}

/* Has a signal come to any rank. Asked between the parts of the preparation, which may be long. */
static enum status asked_to_stop(const struct run *run, bool *stop) {
  double asked = stop_signal_came();
  TRY(comm_all_reduce_f64(run->job->mesh->control, &asked, 1, REDUCE_MAX));
  *stop = asked > 0;
  return STATUS_OK;
}

/* Data and checkpoint, before the base: what is wrong with them shows at once. *stop: the run was told to stop
 * meanwhile; nothing is done and nothing written. */
static enum status read_inputs(struct run *run, const struct train_options *options, bool *stop) {
  TRY(asked_to_stop(run, stop)); /* while it waited for another job */
  if (*stop) return STATUS_OK;
  TRY(open_data(run));
  run->state.rows = dataset_rows(run->data);
  snprintf(run->state.data_digest, sizeof run->state.data_digest, "%s", dataset_digest(run->data));
  if (options->resume || options->resume_from) TRY(resume(run, options));
  run->plan = train_plan(run->config, &run->state);
  run->nothing_left = run->state.step >= run->plan.steps && !options->resume_from;
  return asked_to_stop(run, stop);
}

/* The base's weights, and the buffers. */
static enum status load(struct run *run, bool *stop) {
  struct job *job = run->job;
  TRY(job_load(job));
  TRY(asked_to_stop(run, stop));
  if (*stop) return STATUS_OK;
  int64_t tokens = run->batcher.max_tokens;
  if (run->eval_batcher.max_tokens > tokens) tokens = run->eval_batcher.max_tokens;
  int64_t n_micro =
      batcher_most_micro_batches(run->config->train.global_batch, job->mesh->n_dp, run->batcher.micro_batch);
  TRY(ranks_agree(job_prepare_model(job, tokens, true, n_micro)));
  return STATUS_OK;
}

/* The directory is this job's alone. A job that is started again may meet ranks of its last start that wait for ranks
 * that are gone: they end by dist.timeout_s. */
static enum status take_output(struct run *run, const struct train_options *options) {
  const char *output = run->config->output;
  TRY(output_dir_prepare(output, options->resume, options->overwrite));
  const char *task = watchdog_set_task("waits for another job to end");
  const double limit = run->config->dist.timeout_s, patience = limit + (limit < 10 ? limit : 10);
  const bool again = options->resume || options->overwrite;
  enum status status = output_dir_lock(output, again ? patience : 0, stop_signal_came, &run->lock);
  watchdog_set_task(task);
  return status;
}

static enum status prepare(struct run *run, const struct train_options *options, bool *stop) {
  struct job *job = run->job;
  const struct config *config = run->config;
  enum status status = STATUS_OK;
  if (speaks(run)) status = take_output(run, options);
  TRY(ranks_agree(status));
  TRY(read_inputs(run, options, stop));
  if (*stop || run->nothing_left) return STATUS_OK;
  TRY(load(run, stop));
  if (*stop) return STATUS_OK;
  /* A run is replaced only by one that can begin. */
  if (options->overwrite && speaks(run)) status = output_dir_clear(config->output);
  TRY(ranks_agree(status));
  TRY(ranks_agree(saver_create(job, config->output, (int)config->checkpoint.keep_last, &run->saver)));
  TRY(ranks_agree(open_outputs(run)));
  TRY(ranks_agree(idle_check_create(&job->adapters, &run->idle)));
  log_info("memory    %.1f MB of weights, %.1f MB of activations, %.1f MB of adapters with gradients and moments",
           1e-6 * (double)job->model->weights.memory.total, 1e-6 * (double)job->model->acts.memory.total,
           1e-6 * (double)job->adapters.params.memory_bytes);
  ranks_hint("go on from the last checkpoint with: lorashard train CONFIG --resume");
  watchdog_set_task(NULL);
  return STATUS_OK;
}

/* --- the loop --- */

/* A checkpoint is whole. For who looks on: the run does not depend on it. */
static void tell_progress(const struct run *run) {
  if (speaks(run) && run_status_write(run->config->output, RUN_RUNNING, run->state.step, run->plan.steps) != STATUS_OK)
    log_warn("%s", status_message());
}

static enum status checkpoint(struct run *run) {
  bool pending = saver_pending(run->saver);
  watchdog_set_task("writes a checkpoint");
  TRY(saver_finish(run->saver));
  if (pending) tell_progress(run);
  TRY(ranks_agree(saver_begin(run->saver, &run->state)));
  watchdog_set_task(NULL);
  return STATUS_OK;
}

static struct metrics_comm counts_of(const struct comm *comm) {
  struct comm_counts counts = comm_counts(comm);
  return (struct metrics_comm){counts.calls, counts.bytes};
}

static void reset_counts(const struct mesh *mesh) {
  comm_reset_counts(mesh->tp);
  comm_reset_counts(mesh->dp);
  comm_reset_counts(mesh->stage);
  comm_reset_counts(mesh->pp);
  comm_reset_counts(mesh->control);
}

static void record(struct run *run, const struct train_result *result, double seconds, struct metrics_step *line) {
  const struct mesh *mesh = run->job->mesh;
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  *line = (struct metrics_step){
      .step = run->state.step,
      .epoch = (double)run->state.samples / (double)run->state.rows,
      .loss = result->loss,
      .grad_norm = result->grad_norm,
      .lr = result->lr,
      .tokens = result->tokens,
      .tokens_per_second = (double)result->tokens / seconds,
      .step_seconds = seconds,
      .comm = {.tp = counts_of(mesh->tp),
               .dp = counts_of(mesh->dp),
               .stage = counts_of(mesh->stage),
               .pp = counts_of(mesh->pp),
               .control = counts_of(mesh->control)},
      .peak_rss_bytes = (uint64_t)usage.ru_maxrss * 1024,
  };
}

/* *stop is set when a signal came meanwhile: then there is no result. */
static enum status evaluate(struct run *run, struct metrics_step *line, bool *stop) {
  struct evaluation result;
  TRY(evaluate_run(run->job, &run->eval_batcher, stop_signal_came, &result));
  if (result.interrupted) {
    *stop = true;
    return STATUS_OK;
  }
  line->has_eval_loss = true;
  line->eval_loss = result.loss;
  if (speaks(run)) progress_clear(&run->progress);
  log_info("step %" PRId64 "    eval loss %.4f over %" PRId64 " targets", run->state.step, result.loss, result.targets);
  return STATUS_OK;
}

/* A checkpoint that was being written goes a step on if all ranks have done their part. */
static void publish(struct run *run) {
  ranks_must(saver_advance(run->saver));
  if (!saver_pending(run->saver)) tell_progress(run);
}

static bool due(int64_t every, int64_t step, bool last) { return last || (every > 0 && step % every == 0); }

/* One step and what belongs to it; *stop when it was the last. */
static enum status advance(struct run *run, bool *stop) {
  struct train_signals signals = {.stop = stop_signal_came()};
  struct train_result result;
  struct metrics_step line;
  double start = now();
  watchdog_set_step(run->state.step + 1);
  reset_counts(run->job->mesh);
  enum status writing = saver_poll(run->saver, &signals.writing);
  signals.failed = writing != STATUS_OK;
  ranks_must(train_step(run->job, &run->batcher, &run->plan, &run->state, &signals, &result));
  if (signals.failed) return ranks_agree(writing);
  if (result.not_finite) return ranks_agree(train_explain(run->job, &run->batcher, &run->state, &result));
  if (!result.skipped && speaks_for_stage(run))
    ranks_must(idle_check_step(&run->idle, &run->job->adapters, run->job->device));
  record(run, &result, now() - start, &line);
  if (due(run->config->train.check_every, run->state.step, false))
    TRY(ranks_agree(replicas_compare(&run->job->adapters.params, run->job->mesh, run->job->device)));
  if (saver_pending(run->saver) && !signals.writing) publish(run);
  bool last = run->state.step >= run->plan.steps, asked = signals.stop;
  if (speaks(run)) progress_step(&run->progress, now(), run->state.step, result.loss, line.tokens_per_second);
  if (run->eval_data && !asked && due(run->config->eval.every, run->state.step, last))
    ranks_must(evaluate(run, &line, &asked));
  mesh_waited(); /* what follows may be slow and is no message */
  *stop = last || asked;
  if (speaks(run)) ranks_must(metrics_append(run->metrics, &line));
  if (due(run->config->checkpoint.every, run->state.step, *stop)) TRY(checkpoint(run));
  if (asked && !last)
    log_info("stopping at step %" PRId64 " as asked by a signal; go on with: lorashard train CONFIG --resume",
             run->state.step);
  return STATUS_OK;
}

static enum status loop(struct run *run, bool foreign) {
  bool stop = run->state.step >= run->plan.steps;
  if (foreign) TRY(checkpoint(run)); /* from here on --resume finds the run here */
  if (speaks(run)) progress_begin(&run->progress, stderr, run->state.step, run->plan.steps, now());
  enum status status = STATUS_OK;
  while (!stop && status == STATUS_OK) status = advance(run, &stop);
  if (speaks(run)) status == STATUS_OK ? progress_end(&run->progress) : progress_clear(&run->progress);
  TRY(status);
  watchdog_set_task("writes a checkpoint");
  return saver_finish(run->saver);
}

/* Agreed on: the end of a run that went well, or, as far as possible, of one that failed, whose message stays. */
static enum status tell_end(const struct run *run, enum status status) {
  char message[1024];
  bool writes = speaks(run) && (run->metrics || run->nothing_left); /* else no output was written yet */
  snprintf(message, sizeof message, "%s", status_message());
  enum run_status end = status != STATUS_OK                  ? RUN_FAILED
                        : run->state.step >= run->plan.steps ? RUN_FINISHED
                                                             : RUN_STOPPED;
  enum status told = writes ? run_status_write(run->config->output, end, run->state.step, run->plan.steps) : STATUS_OK;
  return status == STATUS_OK ? ranks_agree(told) : status_set(status, "%s", message);
}

enum status train_run(struct job *job, const struct train_options *options) {
  struct run run = {.job = job, .config = job->config, .lock = -1};
  bool stop = false;
  enum status status = prepare(&run, options, &stop);
  if (status == STATUS_OK && !stop && run.nothing_left)
    log_info("nothing left to do: step %" PRId64 " of %" PRId64 " is done", run.state.step, run.plan.steps);
  else if (status == STATUS_OK && !stop)
    status = loop(&run, options->resume_from != NULL);
  if (status == STATUS_OK && !stop)
    log_info("%s %s/step-%06" PRId64 " (gather it with: lorashard gather %s/step-%06" PRId64 " -o adapter.h5)",
             run.nothing_left ? "newest   " : "saved    ", job->config->output, run.state.step, job->config->output,
             run.state.step);
  if (stop) log_info("stopped before the first step, as asked by a signal; start it again as before");
  if (status != STATUS_OK) saver_settle(run.saver);
  status = tell_end(&run, status);
  idle_check_destroy(&run.idle);
  saver_destroy(&run.saver);
  metrics_close(&run.metrics);
  batcher_destroy(&run.batcher);
  batcher_destroy(&run.eval_batcher);
  dataset_close(&run.data);
  dataset_close(&run.eval_data);
  output_dir_unlock(job->config->output, run.lock);
  return status;
}
