/* The watchdog's time, and where this rank is. */
#include "dist/watchdog.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "dist/mesh.h"
#include "dist/watchdog_internal.h"
#include "io/log.h"
#include "io/thread.h"

/* A rank that was asked by another lets it speak for so long. */
#define HOLD_SECONDS 10.0

const char *const watchdog_group_names[WATCHDOG_GROUPS] = {"tp", "dp", "stage", "pp", "control"};

/* What the rank's own thread writes and the watchdog's reads. */
struct call {
  const char *_Atomic operation;
  _Atomic int group, to, from;
};

struct partner {
  _Atomic int group, rank; /* rank -1: free */
  _Atomic uint64_t sends, receives;
};

static struct {
  bool running;
  pthread_t thread;
  double limit;
  watchdog_expired_func_t *expired;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  bool stop;
  double bitten; /* the time that has run out; the thread's own */
  _Atomic int64_t step;
  const char *_Atomic task;     /* NULL: none */
  int warned;                   /* the rank whose task was told last; -1: none */
  _Atomic double since;         /* when the collective began; 0: in none */
  _Atomic double left;          /* when the last one ended; 0: there was none */
  struct call call;             /* the present or last one */
  const char *queued_operation; /* what the device may not have done; NULL: nothing */
  int queued_group, queued_to, queued_from;
  _Atomic int color[WATCHDOG_GROUPS], rank[WATCHDOG_GROUPS];
  _Atomic uint64_t entered[WATCHDOG_GROUPS];
  struct partner partners[WATCHDOG_PARTNERS];
} dog = {.lock = PTHREAD_MUTEX_INITIALIZER,
         .wake = PTHREAD_COND_INITIALIZER,
         .call.group = -1,
         .color = {-1, -1, -1, -1, -1}};

double watchdog_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int group_of(const char *name) {
  int g = 0;
  while (g < WATCHDOG_GROUPS && strcmp(watchdog_group_names[g], name) != 0) g++;
  return g < WATCHDOG_GROUPS ? g : -1;
}

/* --- the watchdog's thread ------------------------------------------------- */

void watchdog_place(struct watchdog_place *place) {
  memset(place, 0, sizeof *place);
  const double since = atomic_load(&dog.since), left = atomic_load(&dog.left);
  const char *operation = atomic_load(&dog.call.operation), *task = atomic_load(&dog.task);
  place->step = atomic_load(&dog.step);
  place->inside = since > 0;
  place->seconds = since > 0 ? watchdog_now() - since : left > 0 ? watchdog_now() - left : -1;
  place->group = operation ? atomic_load(&dog.call.group) : -1;
  snprintf(place->operation, sizeof place->operation, "%s", operation ? operation : "");
  snprintf(place->task, sizeof place->task, "%s", task ? task : "");
  place->to = atomic_load(&dog.call.to);
  place->from = atomic_load(&dog.call.from);
  for (int g = 0; g < WATCHDOG_GROUPS; g++) {
    place->color[g] = atomic_load(&dog.color[g]);
    place->rank[g] = atomic_load(&dog.rank[g]);
    place->entered[g] = atomic_load(&dog.entered[g]);
  }
  for (int p = 0; p < WATCHDOG_PARTNERS; p++)
    place->partners[p] =
        (struct watchdog_partner){atomic_load(&dog.partners[p].group), atomic_load(&dog.partners[p].rank),
                                  atomic_load(&dog.partners[p].sends), atomic_load(&dog.partners[p].receives)};
}

/* The collective whose time has run out is still under way. */
static bool still_bitten(void) { return !dog.stop && atomic_load(&dog.since) == dog.bitten; }

/* Ranks wait for one that works: once for each, the rank that asked says so. */
static void warn_of_busy(const struct watchdog_answers *answers, int busy, double seconds) {
  char name[96];
  if (dog.warned == busy) return;
  dog.warned = busy;
  mesh_name_rank(busy, mesh_host(busy), name, sizeof name);
  log_warn_here("waiting for %s, which %s, for %.0f s now", name, answers->places[busy].task, seconds);
}

/* Whether the line was spoken. */
static bool bite(double since, double seconds) {
  struct watchdog_answers answers;
  char message[1024], absent[768];
  dog.bitten = since;
  const char *operation = atomic_load(&dog.call.operation);
  const int group = atomic_load(&dog.call.group);
  bool asked = watchdog_peers_ask(still_bitten, &answers);
  const int busy = asked ? watchdog_busy(&answers) : -1;
  if (busy >= 0) warn_of_busy(&answers, busy, seconds);
  /* Where nobody can be asked, the others are taken to be about what this rank is about. */
  const bool blind = asked && answers.world == 0 && atomic_load(&dog.task);
  if (blind && dog.warned != 0)
    log_warn_here("waiting for other ranks for %.0f s now; without MPI_THREAD_MULTIPLE they cannot be asked", seconds);
  if (blind) dog.warned = 0;
  if (busy >= 0 || blind)
    asked = false;
  else if (asked) {
    watchdog_absent(&answers, mesh_host, absent, sizeof absent);
    snprintf(message, sizeof message,
             "%s over group %s has not finished after %.0f s at step %lld: %s (limit: dist.timeout_s)", operation,
             group >= 0 ? watchdog_group_names[group] : "?", seconds, (long long)atomic_load(&dog.step), absent);
  }
  watchdog_answers_free(&answers);
  if (asked) dog.expired(message);
  return asked;
}

/* A process that was suspended has not waited for the others meanwhile. */
static double elapsed(double *last) {
  const double tick = watchdog_now() - *last;
  *last += tick;
  return tick < 1 ? tick : 1;
}

static void *watch(void *unused) {
  (void)unused;
  pthread_mutex_lock(&dog.lock);
  double last = watchdog_now(), watched = 0, waited = 0, hold = 0;
  while (!dog.stop) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 200 * 1000 * 1000;
    if (until.tv_nsec >= 1000000000) {
      until.tv_sec++;
      until.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&dog.wake, &dog.lock, &until);
    if (dog.stop) break;
    const double since = atomic_load(&dog.since), tick = elapsed(&last);
    if (since != watched) {
      waited = 0;
      dog.warned = -1;
    }
    watched = since;
    if (since > 0) waited += tick;
    hold -= tick;
    if (watchdog_peers_serve() >= 0) hold = HOLD_SECONDS;
    if (since == 0 || waited <= dog.limit || hold > 0) continue;
    if (bite(since, waited)) break;
    hold = HOLD_SECONDS;
  }
  pthread_mutex_unlock(&dog.lock);
  return NULL;
}

enum status watchdog_start(double seconds, watchdog_expired_func_t *expired) {
  dog.limit = seconds;
  dog.expired = expired;
  dog.stop = false;
  dog.warned = -1;
  atomic_store(&dog.task, NULL);
  atomic_store(&dog.since, 0.0);
  atomic_store(&dog.left, 0.0);
  atomic_store(&dog.call.operation, NULL);
  dog.queued_operation = NULL;
  for (int g = 0; g < WATCHDOG_GROUPS; g++) atomic_store(&dog.entered[g], 0);
  for (int p = 0; p < WATCHDOG_PARTNERS; p++) {
    atomic_store(&dog.partners[p].rank, -1);
    atomic_store(&dog.partners[p].sends, 0);
    atomic_store(&dog.partners[p].receives, 0);
  }
  int error = thread_start(&dog.thread, watch, NULL);
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

/* --- the rank's own thread ------------------------------------------------- */

const char *watchdog_set_task(const char *task) { return atomic_exchange(&dog.task, task); }

void watchdog_set_step(int64_t step) { atomic_store(&dog.step, step); }

void watchdog_set_group(const char *name, int color, int rank) {
  const int group = group_of(name);
  if (group < 0) return;
  atomic_store(&dog.color[group], color);
  atomic_store(&dog.rank[group], rank);
}

static void begin(const char *operation, int group, int to, int from) {
  atomic_store(&dog.call.operation, operation);
  atomic_store(&dog.call.group, group);
  atomic_store(&dog.call.to, to);
  atomic_store(&dog.call.from, from);
  atomic_store(&dog.since, watchdog_now());
}

/* Only this thread writes: no other addition can come between. */
static void add(_Atomic uint64_t *count, uint64_t more) {
  atomic_store_explicit(count, atomic_load_explicit(count, memory_order_relaxed) + more, memory_order_relaxed);
}

static void add_entered(int group, uint64_t calls) {
  if (group >= 0) add(&dog.entered[group], calls);
}

static void add_partner(int group, int rank, uint64_t sends, uint64_t receives) {
  for (int p = 0; p < WATCHDOG_PARTNERS; p++) {
    struct partner *partner = &dog.partners[p];
    if (atomic_load(&partner->rank) < 0) {
      atomic_store(&partner->group, group);
      atomic_store(&partner->rank, rank);
    }
    if (atomic_load(&partner->group) != group || atomic_load(&partner->rank) != rank) continue;
    add(&partner->sends, sends);
    add(&partner->receives, receives);
    return;
  }
}

static void add_exchange(int group, int to, int from) {
  if (to >= 0) add_partner(group, to, 1, 0);
  if (from >= 0) add_partner(group, from, 0, 1);
}

void watchdog_enter(const char *operation, const char *name) {
  if (!dog.running) return;
  const int group = group_of(name);
  add_entered(group, 1);
  begin(operation, group, -1, -1);
}

void watchdog_enter_exchange(const char *name, int to, int from) {
  if (!dog.running) return;
  const int group = group_of(name);
  add_exchange(group, to, from);
  begin("exchange", group, to, from);
}

void watchdog_leave(void) {
  if (!dog.running) return;
  atomic_store(&dog.left, watchdog_now());
  atomic_store(&dog.since, 0.0);
}

static void queue(const char *operation, int group, int to, int from) {
  dog.queued_operation = operation;
  dog.queued_group = group;
  dog.queued_to = to;
  dog.queued_from = from;
  begin(operation, group, to, from);
}

void watchdog_queued(const char *operation, const char *name) {
  if (!dog.running) return;
  const int group = group_of(name);
  add_entered(group, 1);
  queue(operation, group, -1, -1);
}

void watchdog_queued_exchange(const char *name, int to, int from) {
  if (!dog.running) return;
  const int group = group_of(name);
  add_exchange(group, to, from);
  queue("exchange", group, to, from);
}

void watchdog_repeated(const char *name, uint64_t calls) {
  if (!dog.running) return;
  const int group = group_of(name);
  add_entered(group, calls);
  queue("a repeated collective", group, -1, -1);
}

void watchdog_waiting(void) {
  if (dog.running && dog.queued_operation && atomic_load(&dog.since) == 0)
    begin(dog.queued_operation, dog.queued_group, dog.queued_to, dog.queued_from);
}

void watchdog_waited(void) {
  dog.queued_operation = NULL;
  watchdog_leave();
}
