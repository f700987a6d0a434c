#include "dist/watchdog.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static struct {
  bool running;
  pthread_t thread;
  double limit;
  watchdog_expired_func_t *expired;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  bool stop;
  _Atomic int64_t step;
  _Atomic double since; /* when the collective began; 0: in none */
  const char *_Atomic operation;
  const char *_Atomic group;
  const char *queued_operation, *queued_group; /* what the device may not have done; NULL: nothing */
} dog = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void report(double seconds) {
  char message[256];
  snprintf(message, sizeof message,
           "%s over group %s has not finished after %.0f s at step %lld: another rank of the group is stuck or gone "
           "(limit: dist.timeout_s)",
           atomic_load(&dog.operation), atomic_load(&dog.group), seconds, (long long)atomic_load(&dog.step));
  dog.expired(message);
}

static void *watch(void *unused) {
  (void)unused;
  pthread_mutex_lock(&dog.lock);
  double last = now(), watched = 0, waited = 0;
  while (!dog.stop) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 200 * 1000 * 1000;
    if (until.tv_nsec >= 1000000000) {
      until.tv_sec++;
      until.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&dog.wake, &dog.lock, &until);
    /* A process that was suspended has not waited for the others meanwhile. */
    double since = atomic_load(&dog.since), tick = now() - last;
    last += tick;
    if (since != watched) waited = 0;
    watched = since;
    if (since > 0) waited += tick < 1 ? tick : 1;
    if (!dog.stop && waited > dog.limit) {
      report(waited);
      break;
    }
  }
  pthread_mutex_unlock(&dog.lock);
  return NULL;
}

enum status watchdog_start(double seconds, watchdog_expired_func_t *expired) {
  dog.limit = seconds;
  dog.expired = expired;
  dog.stop = false;
  atomic_store(&dog.since, 0.0);
  int error = pthread_create(&dog.thread, NULL, watch, NULL);
  if (error) return status_set(STATUS_SYSTEM, "cannot start the watchdog thread: %s", strerror(error));
  dog.running = true;
  return STATUS_OK;
}

void watchdog_stop(void) {
  if (!dog.running) return;
  pthread_mutex_lock(&dog.lock);
  dog.stop = true;
  pthread_cond_signal(&dog.wake);
  pthread_mutex_unlock(&dog.lock);
  pthread_join(dog.thread, NULL);
  dog.running = false;
}

void watchdog_set_step(int64_t step) { atomic_store(&dog.step, step); }

void watchdog_enter(const char *operation, const char *group) {
  if (!dog.running) return;
  atomic_store(&dog.operation, operation);
  atomic_store(&dog.group, group);
  atomic_store(&dog.since, now());
}

void watchdog_leave(void) {
  if (dog.running) atomic_store(&dog.since, 0.0);
}

void watchdog_queued(const char *operation, const char *group) {
  dog.queued_operation = operation;
  dog.queued_group = group;
  watchdog_enter(operation, group);
}

void watchdog_waiting(void) {
  if (dog.running && dog.queued_operation && atomic_load(&dog.since) == 0)
    watchdog_enter(dog.queued_operation, dog.queued_group);
}

void watchdog_waited(void) {
  dog.queued_operation = NULL;
  watchdog_leave();
}
