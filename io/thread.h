/*
 * thread.h: threads beside the one that the program began with.
 */
#ifndef LORASHARD_IO_THREAD_H
#define LORASHARD_IO_THREAD_H

#include <pthread.h>

/* pthread_create for a thread that takes no signals: they belong to the program's
 * first thread. Its error number is returned. */
int thread_start(pthread_t *thread, void *(*run)(void *), void *argument);

#endif
