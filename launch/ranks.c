#include "launch/ranks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dist/mesh.h"
#include "io/log.h"

static int own_rank;

enum status ranks_agree(enum status own) {
  char message[1024];
  bool speaker;
  snprintf(message, sizeof message, "%s", status_message()); /* a failing agreement writes its own */
  enum status all = mesh_agree(own, &speaker);
  if (all == STATUS_OK) return STATUS_OK;
  if (speaker && own == STATUS_OK) return all; /* the agreement itself failed, and says so */
  return status_set(all, "%s", speaker ? message : "");
}

void ranks_fail(enum status status) {
  /* A failed collective is seen by every rank: the others give rank 0 time to end the job with its line. */
  if (status == STATUS_PEER && own_rank > 0) sleep(1);
  log_error("%s", status_message());
  fflush(NULL);
  mesh_abort(status_exit_code(status));
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
  enum status status = mesh_start(&world, &rank);
  own_rank = rank;
  log_setup(rank, world, wanted_level());
  if (status == STATUS_OK) {
    if (rank > 0 && !freopen("/dev/null", "w", stdout)) status = status_set(STATUS_SYSTEM, "cannot open /dev/null");
    status = status == STATUS_OK ? body(argc, argv) : ranks_agree(status);
  }
  fflush(stdout);
  /* Before the others may leave: a launcher ends the job when the first of them does. */
  if (status != STATUS_OK && *status_message()) log_error("%s", status_message());
  mesh_stop();
  return status == STATUS_OK ? STATUS_OK : status_set(status, "%s", "");
}
