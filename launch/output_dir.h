/*
 * output_dir.h: the directory of a training run.
 */
#ifndef LORASHARD_LAUNCH_OUTPUT_DIR_H
#define LORASHARD_LAUNCH_OUTPUT_DIR_H

#include <stdbool.h>

#include "io/status.h"

/* Make the directory (and its parents), or accept an existing one: empty or
 * foreign files are fine; one that holds a run is STATUS_USAGE unless `resume` or
 * `overwrite`. With `resume` one that holds no run is STATUS_USAGE, and is not made. */
enum status output_dir_prepare(const char *path, bool resume, bool overwrite);

/* True if `path`, a step of a run, is in the directory. */
bool output_dir_holds(const char *output, const char *path);

/* Remove the files of the run that the directory holds, nothing else. */
enum status output_dir_clear(const char *path);

#endif
