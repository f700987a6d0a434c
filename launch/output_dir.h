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

/* Keep other jobs out of the directory: a lock on OUTPUT/.lock until output_dir_unlock, or the end of this process,
 * however it comes; *lock_p is the file's descriptor. While another job has it this waits for `patience`
 * seconds or until stop() is true (then STATUS_OK and no lock, *lock_p < 0); after them it is STATUS_USAGE, with that
 * job's machine and process. File systems without locks: a warning, *lock_p < 0. */
enum status output_dir_lock(const char *path, double patience, bool (*stop)(void), int *lock_p);

/* lock < 0: there is none. */
void output_dir_unlock(const char *path, int lock);

/* True if `path`, a step of a run, is in the directory. */
bool output_dir_holds(const char *output, const char *path);

/* Remove the files of the run that the directory holds, nothing else. */
enum status output_dir_clear(const char *path);

#endif
