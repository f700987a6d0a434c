/*
 * output_dir.h: the directory of a training run.
 */
#ifndef LORASHARD_LAUNCH_OUTPUT_DIR_H
#define LORASHARD_LAUNCH_OUTPUT_DIR_H

#include <stdbool.h>

#include "io/status.h"

/* Make the directory (and its parents), or accept an existing one: empty or
 * foreign files are fine; one that holds a run is STATUS_USAGE unless `resume`
 * (kept) or `overwrite` (the run's own files are removed, nothing else). */
enum status output_dir_prepare(const char *path, bool resume, bool overwrite);

#endif
