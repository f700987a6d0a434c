#include "launch/train_step.h"

#include <inttypes.h>
#include <math.h>

#include "io/log.h"
#include "lora/adamw.h"
#include "lora/gradient.h"
#include "lora/schedule.h"

struct train_plan train_plan(const struct config *config, const struct run_state *state) {
  int64_t batch = config->train.global_batch;
  if (config->train.steps > 0) return (struct train_plan){config->train.steps, INT64_MAX};
  int64_t samples = (int64_t)llround(config->train.epochs * (double)state->rows);
  if (samples < 1) samples = 1;
  int64_t left = samples > state->samples ? samples - state->samples : 0;
  return (struct train_plan){state->step + (left + batch - 1) / batch, samples};
}

static enum schedule schedule_of(const struct config *config) {
  switch (config->train.schedule) {
    case SCHEDULE_COSINE:
      return LR_COSINE;
    case SCHEDULE_CONSTANT:
      return LR_CONSTANT;
    default:
      return LR_LINEAR;
  }
}

/* This rank's micro-batches of the global batch. */
struct share {
  struct batcher *batcher;
  const struct run_state *state;
  int64_t first, count; /* rows, of the global batch */
  bool training;
};

static struct share share_of(const struct mesh *mesh, struct batcher *batcher, const struct run_state *state,
                             int64_t samples) {
  struct share share = {.batcher = batcher, .state = state};
  batcher_deal(samples, mesh->n_dp, mesh->dp_rank, &share.first, &share.count);
  return share;
}

static int64_t share_micro_batches(const struct share *share) {
  return (share->count + share->batcher->micro_batch - 1) / share->batcher->micro_batch;
}

static enum status share_next(void *context, int64_t i, struct batch *batch) {
  const struct share *share = context;
  int64_t size = share->batcher->micro_batch, at = i * size;
  int64_t n = share->count - at < size ? share->count - at : size;
  batcher_fill(share->batcher, share->state->samples + share->first + at, n, share->first + at, batch);
  batch->step = share->state->step;
  batch->training = share->training;
  return STATUS_OK;
}

/* Sums over all ranks in one small message: partial -> whole. The loss is on the last stage, on each of its tp ranks;
 * the square is a share already (gradient_square_share). */
static enum status exchange(const struct mesh *mesh, double *loss, double *square, struct train_signals *signals) {
  double sums[5] = {mesh->tp_rank == 0 ? *loss : 0, *square, signals->stop, signals->writing, signals->failed};
  TRY(comm_all_reduce_f64(mesh->control, sums, 5, REDUCE_SUM));
  *loss = sums[0];
  *square = sums[1];
  signals->stop = sums[2] > 0;
  signals->writing = sums[3] > 0;
  signals->failed = sums[4] > 0;
  return STATUS_OK;
}

static enum status update(struct job *job, const struct run_state *state, struct train_result *result) {
  const struct config *config = job->config;
  struct adamw_settings settings = {result->lr, config->train.betas[0], config->train.betas[1], config->train.eps,
                                    config->train.weight_decay};
  double factor = gradient_clip_factor(result->grad_norm, config->train.clip_norm);
  return adamw_update(job->device, &job->adapters.params, &settings, factor, state->step - state->skipped + 1);
}

enum status train_step(struct job *job, struct batcher *batcher, const struct train_plan *plan, struct run_state *state,
                       struct train_signals *signals, struct train_result *result) {
  const struct config *config = job->config;
  double square;
  *result = (struct train_result){.samples = config->train.global_batch};
  if (result->samples > plan->samples - state->samples) result->samples = plan->samples - state->samples;
  batcher_count(batcher, state->samples, result->samples, &result->targets, &result->tokens);
  result->lr = schedule_lr(schedule_of(config), config->train.lr, state->step, config->train.warmup_steps, plan->steps);
  TRY(param_list_zero_gradients(&job->adapters.params, job->device));
  struct share share = share_of(job->mesh, batcher, state, result->samples);
  share.training = true;
  const struct micro_batches micro_batches = {share_micro_batches(&share), share_next, &share};
  double loss = 0;
  TRY(transformer_train(job->model, &micro_batches, 1.0f / (float)result->targets, &loss));
  TRY(gradient_reduce(&job->adapters.params, job->mesh));
  TRY(gradient_square_share(job->device, &job->adapters.params, job->mesh, &square));
  TRY(exchange(job->mesh, &loss, &square, signals));
  result->loss = loss / (double)result->targets;
  result->grad_norm = sqrt(square);
  if (isnan(result->loss)) result->loss = NAN; /* its sign means nothing and would be printed */
  if (isnan(result->grad_norm)) result->grad_norm = NAN;
  bool finite = isfinite(result->loss) && isfinite(square);
  result->skipped = !finite && config->train.skip_nan;
  result->not_finite = !finite && !result->skipped;
  if (signals->failed || result->not_finite) return STATUS_OK;
  if (result->skipped) {
    state->skipped++;
    log_warn("step %" PRId64 ": the loss or gradient is not finite; skipped (%" PRId64 " so far)", state->step + 1,
             state->skipped);
  } else {
    TRY(update(job, state, result));
  }
  state->step++;
  state->samples += result->samples;
  state->tokens_seen += result->tokens;
  return STATUS_OK;
}

enum status train_explain(struct job *job, struct batcher *batcher, const struct run_state *state,
                          const struct train_result *result) {
  const int L = (int)job->source->facts.n_layers;
  double first = L + 1;
  struct share share = share_of(job->mesh, batcher, state, result->samples);
  for (int64_t i = 0; i < share_micro_batches(&share); i++) {
    struct batch batch;
    int place;
    TRY(share_next(&share, i, &batch));
    TRY(transformer_find_not_finite(job->model, &batch, &place));
    if (place < first) first = place;
  }
  TRY(comm_all_reduce_f64(job->mesh->control, &first, 1, REDUCE_MIN));
  const char *advice = state->step == 0
                           ? "nothing was trained yet, so check the base's weights, and lora.adapter if it is set"
                           : "lower train.lr, check the data, or set train.skip_nan: true";
  if (first < 0)
    return status_set(STATUS_DATA,
                      "step %" PRId64
                      ": loss is not finite (%g); the embeddings already are not: the base's weights are damaged",
                      state->step + 1, result->loss);
  if (first < L)
    return status_set(STATUS_DATA,
                      "step %" PRId64
                      ": loss %g, gradient norm %g: not finite; the first values that are not appear in "
                      "layer %d: %s",
                      state->step + 1, result->loss, result->grad_norm, (int)first, advice);
  return status_set(STATUS_DATA,
                    "step %" PRId64
                    ": loss %g, gradient norm %g: not finite; all layers' outputs are, so it arose in the "
                    "head or in backward: %s",
                    state->step + 1, result->loss, result->grad_norm, advice);
}
