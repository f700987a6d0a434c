#include "launch/peers.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "dist/mesh.h"
#include "io/thread.h"

/* Process ids mean something within one pid namespace of one running kernel. */
struct identity {
  char boot[40];
  uint64_t space;
  int32_t process;
};

struct peer {
  int rank, process;
  bool gone; /* it was before it could be watched */
};

static struct {
  bool running;
  pthread_t thread;
  int rank;
  volatile int n;        /* other ranks of this machine; read by signal handlers */
  struct peer *peers;    /* [n], rising ranks */
  struct pollfd *events; /* [n + 1]; the last one asks the thread to end */
  peers_lost_func_t *lost;
} watch = {.rank = -1};

static volatile sig_atomic_t hushed;

void peers_block_signal(void) {
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &one, NULL);
}

/* A signal that is held back is there as soon as it was sent, however busy the machine is: before its sender ends. */
bool peers_hushed(void) {
  sigset_t pending;
  return hushed || (watch.n > 0 && sigpending(&pending) == 0 && sigismember(&pending, SIGUSR2) == 1);
}

void peers_hush(void) {
  int error = errno;
  /* By its descriptor: the number of a process that has ended may be another's by now. */
  if (!hushed)
    for (int i = 0; i < watch.n; i++)
      if (watch.events[i].fd >= 0) syscall(SYS_pidfd_send_signal, watch.events[i].fd, SIGUSR2, NULL, 0);
  hushed = 1;
  errno = error;
}

static void identify(struct identity *own) {
  struct stat info;
  memset(own, 0, sizeof *own);
  FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
  if (file && !fgets(own->boot, sizeof own->boot, file)) own->boot[0] = 0;
  if (file) fclose(file);
  if (stat("/proc/self/ns/pid", &info) == 0) own->space = (uint64_t)info.st_ino;
  own->process = getpid();
}

static bool gone(int i) { return watch.peers[i].gone || watch.events[i].revents; }

static void report(void) {
  int first = -1;
  bool speaks = true; /* no lower rank of this machine lives */
  for (int i = watch.n - 1; i >= 0; i--) {
    if (gone(i))
      first = i;
    else if (watch.peers[i].rank < watch.rank)
      speaks = false;
  }
  if (speaks && first >= 0) watch.lost(watch.peers[first].rank, watch.peers[first].process);
}

static void *run(void *unused) {
  const struct timespec moment = {.tv_nsec = 50 * 1000 * 1000};
  bool any = false;
  for (int i = 0; i < watch.n; i++) any |= watch.peers[i].gone;
  while (!any)
    if (poll(watch.events, (nfds_t)watch.n + 1, -1) > 0) break;
  if (watch.events[watch.n].revents) return unused;
  nanosleep(&moment, NULL); /* for others that end with it */
  if (peers_hushed()) return unused;
  poll(watch.events, (nfds_t)watch.n + 1, 0);
  if (!watch.events[watch.n].revents) report();
  return unused;
}

/* The others among all ranks that share this machine's process ids. */
static enum status find_peers(const struct identity *all, int world) {
  const struct identity *own = &all[watch.rank];
  watch.peers = calloc((size_t)world, sizeof *watch.peers);
  watch.events = calloc((size_t)world, sizeof *watch.events);
  if (watch.events) watch.events[0].fd = -1;
  if (!watch.peers || !watch.events) return status_set(STATUS_SYSTEM, "out of memory for a list of %d ranks", world);
  int n = 0;
  for (int r = 0; r < world; r++) {
    if (r == watch.rank || !own->boot[0] || strcmp(all[r].boot, own->boot) != 0 || all[r].space != own->space) continue;
    int fd = (int)syscall(SYS_pidfd_open, all[r].process, 0);
    if (fd < 0 && errno != ESRCH) continue;
    watch.events[n] = (struct pollfd){.fd = fd, .events = POLLIN};
    watch.peers[n++] = (struct peer){r, all[r].process, fd < 0};
  }
  watch.n = n;
  watch.events[n] = (struct pollfd){.fd = eventfd(0, EFD_CLOEXEC), .events = POLLIN};
  return watch.events[n].fd >= 0 ? STATUS_OK : status_set(STATUS_SYSTEM, "eventfd: %s", strerror(errno));
}

static enum status start(void) {
  int error = thread_start(&watch.thread, run, NULL);
  if (error)
    return status_set(STATUS_SYSTEM, "cannot start a thread that watches the other ranks: %s", strerror(error));
  watch.running = true;
  return STATUS_OK;
}

enum status peers_watch(int rank, int world, peers_lost_func_t *lost) {
  if (world == 1) return STATUS_OK;
  enum status status = STATUS_OK;
  bool speaker;
  struct identity own, *all = calloc((size_t)world, sizeof *all);
  if (!all) status = status_set(STATUS_SYSTEM, "out of memory for a list of %d ranks", world);
  /* A rank that cannot take part must not be waited for. */
  if (mesh_agree(status, &speaker) != STATUS_OK) {
    free(all);
    return status != STATUS_OK ? status : status_set(STATUS_PEER, "another rank has no memory for a list of the ranks");
  }
  watch.rank = rank;
  watch.lost = lost;
  identify(&own);
  status = mesh_gather(&own, sizeof own, all);
  if (status == STATUS_OK) status = find_peers(all, world);
  if (status == STATUS_OK) status = start();
  free(all);
  return status;
}

void peers_unwatch(void) {
  if (watch.running) {
    uint64_t one = 1;
    ssize_t written = write(watch.events[watch.n].fd, &one, sizeof one);
    (void)written;
    pthread_join(watch.thread, NULL);
  }
  watch.running = false;
  const int n = watch.n;
  watch.n = 0; /* first: from here on a signal handler finds no ranks to tell */
  if (watch.events)
    for (int i = 0; i <= n; i++)
      if (watch.events[i].fd >= 0) close(watch.events[i].fd);
  free(watch.events);
  free(watch.peers);
  watch.events = NULL;
  watch.peers = NULL;
}
