/*
 * metrics.h: one JSON object a step in a text file (metrics.jsonl), for plots
 * and for comparing runs.
 *
 * Keys: step, epoch, loss, grad_norm, lr, tokens, tokens_per_second,
 * step_seconds, comm {"tp": {"calls", "bytes"}, "dp", "stage", "pp",
 * "control"}, peak_rss_bytes and, where an evaluation was made, eval_loss. A
 * number that is not finite is null.
 */
#ifndef LORASHARD_IO_METRICS_H
#define LORASHARD_IO_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "io/status.h"

struct metrics_comm {
  uint64_t calls, bytes; /* of this step, this rank */
};

struct metrics_step {
  int64_t step; /* from 1 */
  double epoch; /* passes over the data so far */
  double loss, grad_norm, lr;
  int64_t tokens; /* of this step, all ranks */
  double tokens_per_second, step_seconds;
  struct {
    struct metrics_comm tp, dp, stage, pp, control;
  } comm;
  uint64_t peak_rss_bytes;
  bool has_eval_loss;
  double eval_loss;
};

struct metrics; /* an open file */

/* Open `path` for appending, making it if it is not there. Lines of steps after
 * last_step (0: a fresh run, all lines) are cut off first, and with them lines
 * that are broken or have no step; the file is replaced as a whole or not at
 * all. On success *metrics_p is the caller's, to be closed with metrics_close.
 * Errors: STATUS_SYSTEM. */
enum status metrics_open(const char *path, int64_t last_step, struct metrics **metrics_p);

/* Append one line; it is handed to the operating system before the return. */
enum status metrics_append(struct metrics *metrics, const struct metrics_step *step);

/* Close; NULL is fine; sets the pointer to NULL. */
void metrics_close(struct metrics **metrics_p);

#endif
