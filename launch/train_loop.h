/*
 * train_loop.h: a training run from first step to last checkpoint.
 */
#ifndef LORASHARD_LAUNCH_TRAIN_LOOP_H
#define LORASHARD_LAUNCH_TRAIN_LOOP_H

#include "launch/job.h"

struct train_options {
  bool resume, overwrite;
  const char *resume_from; /* a checkpoint of another run to go on from; NULL: none */
};

/* Train job's adapters as its configuration says; writes only below
 * config->output. A signal (launch/stop_signal.h) ends it in good order. Collective; failures are agreed, or end the
 * whole job once the ranks depend on each other. */
enum status train_run(struct job *job, const struct train_options *options);

#endif
