/*
 * progress.h: how far a run is, on one line. On a terminal the line is redrawn
 * in place; elsewhere a line is written at most every five seconds, and at the
 * last step.
 */
#ifndef LORASHARD_LAUNCH_PROGRESS_H
#define LORASHARD_LAUNCH_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct progress {
  FILE *out;
  bool terminal;
  int64_t first, total; /* steps done at the start, steps at the end */
  double start;         /* seconds at the start */
  double shown;         /* seconds at the last line; before the start: none yet */
  size_t width;         /* columns of the line on the terminal; 0: none */
};

/* Begin at `now` seconds (any clock that only rises) with `first` of `total`
 * steps done. `out` is usually stderr and stays the caller's. */
void progress_begin(struct progress *progress, FILE *out, int64_t first, int64_t total, double now);

/* Step `step` is done. tokens_per_second is over all ranks. */
void progress_step(struct progress *progress, double now, int64_t step, double loss, double tokens_per_second);

/* Wipe the line, so that another message can take its place; it comes back with
 * the next step. */
void progress_clear(struct progress *progress);

/* Leave the last line where it is. */
void progress_end(struct progress *progress);

#endif
