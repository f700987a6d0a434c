/*
 * train_loop.h: a training run from first step to last checkpoint.
 */
#ifndef LORASHARD_LAUNCH_TRAIN_LOOP_H
#define LORASHARD_LAUNCH_TRAIN_LOOP_H

#include "launch/job.h"

struct train_options {
  bool resume, overwrite;
};

/* Train job's adapters as its configuration says; writes only below
 * config->output. Collective; failures are agreed, or end the whole job once the
 * ranks depend on each other. */
enum status train_run(struct job *job, const struct train_options *options);

#endif
