/*
 * train_step.h: one optimizer step over a global batch.
 */
#ifndef LORASHARD_LAUNCH_TRAIN_STEP_H
#define LORASHARD_LAUNCH_TRAIN_STEP_H

#include "launch/batcher.h"
#include "launch/job.h"
#include "launch/saver.h"

/* How long the run is. */
struct train_plan {
  int64_t steps;   /* optimizer steps, those already done included */
  int64_t samples; /* of the run; the last global batch may be smaller */
};
/* state: where the run stands now. A resumed run may have another global batch. */
struct train_plan train_plan(const struct config *config, const struct run_state *state);

/* Flags that all ranks learn of at the end of each step: in, this rank's; out,
 * whether any rank raised it. */
struct train_signals {
  bool stop, writing, failed;
};

struct train_result {
  double loss;      /* mean over the global batch's targets */
  double grad_norm; /* global, before clipping */
  double lr;
  int64_t samples, targets, tokens; /* of the global batch */
  bool not_finite;                  /* loss or gradient is; nothing was updated */
  bool skipped;                     /* the same, and train.skip_nan is on: counted, the run goes on */
};

/* Forward, backward, one reduction per group, clip, AdamW; *state moves on unless
 * not_finite. Collective; a failure leaves the ranks out of step. */
enum status train_step(struct job *job, struct batcher *batcher, const struct train_plan *plan, struct run_state *state,
                       struct train_signals *signals, struct train_result *result);

/* After not_finite: find where the first such value appears. Collective; always
 * STATUS_DATA, with the layer in its message. */
enum status train_explain(struct job *job, struct batcher *batcher, const struct run_state *state,
                          const struct train_result *result);

#endif
