/*
 * stop_signal.h: the first SIGTERM, SIGUSR1 (Slurm's preemption) or SIGINT asks a
 * run to checkpoint and stop after its step; a second one ends it at once, with
 * one line.
 */
#ifndef LORASHARD_LAUNCH_STOP_SIGNAL_H
#define LORASHARD_LAUNCH_STOP_SIGNAL_H

#include <stdbool.h>

/* From here on. If all ranks get the second signal, the lowest of them speaks for all. */
void stop_signal_watch(int rank);
bool stop_signal_came(void);

#endif
