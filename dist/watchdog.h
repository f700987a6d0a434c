/*
 * watchdog.h: a deadline for collectives. A thread looks several times a second
 * whether the collective that this rank is in, or has queued on its device, has
 * taken too long. Then it asks the other ranks' watchdogs where they are, and
 * calls the given function once, from that thread, with a line that names the
 * ranks that are missing. A rank that is asked lets the one that asks speak.
 *
 * Asking needs an MPI with MPI_THREAD_MULTIPLE (mesh_start requests it); without,
 * the line says that another rank is missing and not which.
 */
#ifndef LORASHARD_DIST_WATCHDOG_H
#define LORASHARD_DIST_WATCHDOG_H

#include <stdint.h>

#include "io/status.h"

/* Called with one line naming operation, group, step, seconds and the ranks that
 * are missing; it should end the process, for the collective will not return. */
typedef void watchdog_expired_func_t(const char *message);

/* Start the thread; seconds > 0. One watchdog a process; each rank starts its own
 * before they go on together: what they have entered is counted from here.
 * STATUS_SYSTEM. */
enum status watchdog_start(double seconds, watchdog_expired_func_t *expired);
void watchdog_stop(void);

/* What this rank does between collectives, if that may take any time: "reads the base". Then those that wait for it
 * wait on for as long as its watchdog answers, and the lowest of them warns of it. NULL: nothing of the kind, and the
 * deadline holds. The earlier task, to be set again; a literal each. */
const char *watchdog_set_task(const char *task);

/* The step shown in the message. */
void watchdog_set_step(int64_t step);

/* This rank's place in the group of that name, by mesh.c: `color` is the same on
 * the group's members and no others. */
void watchdog_set_group(const char *group, int color, int rank);

/* Around a collective, by comm_*.c; free of cost when no watchdog runs. Names
 * are literals. */
void watchdog_enter(const char *operation, const char *group);
void watchdog_leave(void);

/* The same around an exchange; `to` and `from` are ranks of the group or -1. */
void watchdog_enter_exchange(const char *group, int to, int from);

/* A collective that a device will do later. Its time runs from here, since a rank
 * whose device is stuck may next be held in a call that queues work, until the
 * rank gets as far as another collective, or through one of the host's, or knows
 * that the device has done all (watchdog_waited). */
void watchdog_queued(const char *operation, const char *group);
void watchdog_queued_exchange(const char *group, int to, int from);

/* `calls` collectives, queued as one repeated record. */
void watchdog_repeated(const char *group, uint64_t calls);

/* This rank waits for its device: unless a time runs, that of the collective
 * queued last begins again. */
void watchdog_waiting(void);

/* The device has done what was queued. */
void watchdog_waited(void);

#endif
