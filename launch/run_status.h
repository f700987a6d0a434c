/*
 * run_status.h: status.json in a run's output, for programs that start runs again:
 * {"state": "finished", "step": 40, "steps": 40}.
 */
#ifndef LORASHARD_LAUNCH_RUN_STATUS_H
#define LORASHARD_LAUNCH_RUN_STATUS_H

#include <stdint.h>

#include "io/status.h"

#define RUN_STATUS_FILE "status.json"

enum run_status {
  RUN_RUNNING,  /* or ended without being able to say so */
  RUN_FINISHED, /* all steps are done */
  RUN_STOPPED,  /* by a signal, to be resumed */
  RUN_FAILED,   /* with a message */
};

/* Replace OUTPUT/status.json, whole. step: done so far, of steps. */
enum status run_status_write(const char *output, enum run_status run_status, int64_t step, int64_t steps);

#endif
