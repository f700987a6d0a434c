/* ranks: 4 */
/*
 * A rank that does not come is named by one of those that wait for it, and only
 * one of them speaks. The late rank comes as soon as it has been named, so that
 * each case ends well.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "dist/watchdog.h"
#include "golden_case.h"

/* Far more than a busy machine keeps a rank waiting that is not to be late. */
#define LIMIT 2.0

static char signal_file[64]; /* is there once a rank has spoken */
static char line[1024];
static atomic_int bites;

static void bite(const char *message) {
  snprintf(line, sizeof line, "%s", message);
  bites++;
  FILE *file = fopen(signal_file, "w");
  if (file) fclose(file);
}

static void come_late(void) {
  const struct timespec tick = {0, 20 * 1000 * 1000};
  for (int i = 0; i < 3000 && access(signal_file, F_OK) != 0; i++) nanosleep(&tick, NULL);
}

/* One rank has spoken: its line begins so, and names that. */
static void expect(struct mesh *mesh, const char *what, const char *begin, const char *named) {
  char message[sizeof line] = "";
  float count = (float)bites;
  watchdog_stop();
  golden_must(comm_all_reduce_f32(mesh->control, &count, 1, REDUCE_SUM));
  golden_check(count == 1, "%s: %g ranks have spoken", what, (double)count);
  if (bites) {
    snprintf(message, sizeof message, "%s", line);
    golden_check(strncmp(message, begin, strlen(begin)) == 0 && strstr(message, named) &&
                     strstr(message, "at step 3") && strstr(message, "dist.timeout_s"),
                 "%s: the line is '%s', should begin with '%s' and have '%s'", what, message, begin, named);
  }
  if (mesh->rank == 0) unlink(signal_file);
  golden_must(comm_barrier(mesh->control));
}

static void start(struct mesh *mesh) {
  bites = 0;
  watchdog_set_step(3);
  golden_must(watchdog_start(LIMIT, bite));
  golden_must(comm_barrier(mesh->control));
}

/* The whole world waits for rank 2. */
static void test_missing(struct mesh *mesh) {
  float one = 1;
  start(mesh);
  if (mesh->rank == 2) come_late();
  golden_must(comm_all_reduce_f32(mesh->control, &one, 1, REDUCE_SUM));
  expect(mesh, "a late rank", "all-reduce over group control has not finished after", "has not reached it: for ");
}

/* Rank 3 lets 2 wait within tp, and 2 the others in the world: 3 is to blame. */
static void test_through_another(struct mesh *mesh) {
  float one = 1;
  char named[128];
  start(mesh);
  if (mesh->rank == 3) come_late();
  if (mesh->rank >= 2) golden_must(comm_all_reduce_f32(mesh->tp, &one, 1, REDUCE_SUM));
  golden_must(comm_barrier(mesh->control));
  snprintf(named, sizeof named, "at step 3: rank 3 (host %s) has not reached it: for ", mesh_host(3));
  expect(mesh, "a late rank behind a waiting one", "", named);
}

/* A stage waits for what the one before sends, and its tp neighbour for it. */
static void test_exchange(struct mesh *mesh) {
  float data[8] = {0};
  char named[128];
  start(mesh);
  if (mesh->rank == 0) come_late();
  if (mesh->rank == 0) golden_must(comm_exchange_f32(mesh->pp, data, 8, 1, NULL, 0, -1));
  if (mesh->rank == 2) golden_must(comm_exchange_f32(mesh->pp, NULL, 0, -1, data, 8, 0));
  if (mesh->rank >= 2) golden_must(comm_all_reduce_f32(mesh->tp, data, 1, REDUCE_SUM));
  golden_must(comm_barrier(mesh->control)); /* no watchdog stops before the line */
  snprintf(named, sizeof named, "at step 3: rank 0 (host %s) ", mesh_host(0));
  expect(mesh, "a late sender", "", named);
}

int main(void) {
  int world, rank;
  struct mesh *mesh;
  golden_must(mesh_start(&world, &rank));
  golden_must(mesh_create(2, 2, &mesh));
  if (rank == 0) snprintf(signal_file, sizeof signal_file, "/tmp/lorashard-watchdog-%d", (int)getpid());
  golden_must(comm_broadcast(mesh->control, signal_file, sizeof signal_file, 0));
  test_missing(mesh);
  test_through_another(mesh);
  test_exchange(mesh);
  if (rank == 0) printf("good\n");
  mesh_destroy(&mesh);
  mesh_stop();
  return 0;
}
