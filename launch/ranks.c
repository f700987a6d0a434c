#include "launch/ranks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "dist/mesh.h"
#include "dist/mesh_compare.h"
#include "io/log.h"
#include "launch/peers.h"
#include "launch/stop_signal.h"

static int own_rank;
static const char *lost_hint = "";
static uint64_t command_line;

uint64_t ranks_command_line(void) { return command_line; }

enum status ranks_agree(enum status own) {
  char message[1024];
  bool speaker;
  snprintf(message, sizeof message, "%s", status_message()); /* a failing agreement writes its own */
  enum status all = mesh_agree(own, &speaker);
  if (all == STATUS_OK) return STATUS_OK;
  if (speaker && own == STATUS_OK) return all; /* the agreement itself failed, and says so */
  return status_set(all, "%s", speaker ? message : "");
}

/* Signals do not shorten it. */
static void give_way(double seconds) {
  struct timespec left = {.tv_sec = (time_t)seconds, .tv_nsec = (long)(1e9 * (seconds - (double)(time_t)seconds))};
  while (nanosleep(&left, &left) != 0 && errno == EINTR) {
  }
}

void ranks_fail(enum status status) {
  /* A failed collective is seen by every rank: the others give rank 0 time to end the job with its line, then each
   * other by their ranks, and all of them to who knows which rank is gone. */
  if (status == STATUS_PEER) {
    give_way(own_rank > 0 ? 4 + 0.1 * (own_rank < 20 ? own_rank : 20) : 0.2);
    /* Open MPI sends SIGTERM to other nodes two seconds after MPI_Abort: somebody has spoken. */
    if (peers_hushed() || stop_signal_came()) give_way(10);
  }
  if (peers_hushed()) mesh_abort(status_exit_code(status));
  peers_hush();
  log_error("%s", status_message());
  fflush(NULL);
  mesh_abort(status_exit_code(status));
}

void ranks_hint(const char *hint) { lost_hint = hint; }

static void peer_lost(int rank, int process) {
  peers_hush();
  log_error("rank %d (process %d) is gone: something killed it, or it crashed%s%s", rank, process,
            *lost_hint ? "; " : "", lost_hint);
  sleep(3); /* mpirun ends the job by itself, with fewer lines than for MPI_Abort */
  mesh_abort(1);
}

static enum log_level wanted_level(void) {
  static const char *const names[] = {"error", "warn", "info", "debug", "trace"};
  const char *wanted = getenv("LORASHARD_LOG");
  for (int level = LOG_ERROR; wanted && level <= LOG_TRACE; level++)
    if (strcmp(wanted, names[level]) == 0) return (enum log_level)level;
  return LOG_INFO;
}

enum status ranks_run(int argc, char **argv, enum status (*body)(int argc, char **argv)) {
  int world = 1, rank = 0;
  for (int i = 1; i < argc; i++) command_line = mesh_hash(command_line, argv[i], strlen(argv[i]) + 1);
  peers_block_signal();
  enum status status = mesh_start(&world, &rank);
  own_rank = rank;
  log_setup(rank, world, wanted_level());
  if (status == STATUS_OK) {
    if (rank > 0 && !freopen("/dev/null", "w", stdout)) status = status_set(STATUS_SYSTEM, "cannot open /dev/null");
    status = ranks_agree(status);
    if (status == STATUS_OK) status = ranks_agree(peers_watch(rank, world, peer_lost));
    if (status == STATUS_OK) status = body(argc, argv);
  }
  peers_unwatch();
  fflush(stdout);
  /* Before the others may leave: a launcher ends the job when the first of them does. */
  if (status != STATUS_OK && *status_message()) log_error("%s", status_message());
  mesh_stop();
  return status == STATUS_OK ? STATUS_OK : status_set(status, "%s", "");
}
