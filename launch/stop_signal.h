/*
 * stop_signal.h: the first SIGTERM, SIGUSR1 (Slurm's preemption) or SIGINT asks a
 * run to checkpoint and stop after its step; a second one ends it at once, with
 * one line.
 */
#ifndef LORASHARD_LAUNCH_STOP_SIGNAL_H
#define LORASHARD_LAUNCH_STOP_SIGNAL_H

#include <stdbool.h>

/* From here on. `first_rank`: this rank speaks for all if all get the signal. */
void stop_signal_watch(bool first_rank);
bool stop_signal_came(void);

#endif
