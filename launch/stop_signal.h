/*
 * stop_signal.h: SIGTERM, SIGUSR1 (Slurm's preemption) and the first SIGINT ask
 * a run to checkpoint and stop after its step; a second SIGINT kills it.
 */
#ifndef LORASHARD_LAUNCH_STOP_SIGNAL_H
#define LORASHARD_LAUNCH_STOP_SIGNAL_H

#include <stdbool.h>

void stop_signal_watch(void);
bool stop_signal_came(void);

#endif
