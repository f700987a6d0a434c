/*
 * Watchdogs ask each other where their ranks are. A question has no content and
 * an answer is made when it is given, so that a late one is still true. All
 * messages go over a communicator of their own and are received by one thread.
 */
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "dist/watchdog_internal.h"

/* Time for an answer: a watchdog looks for questions five times a second, but its
 * machine may be busy, and one rank asks all. */
#define ANSWER_SECONDS          3.0
#define ANSWER_SECONDS_PER_RANK 1e-3

enum { TAG_QUESTION = 1, TAG_ANSWER = 2 };
enum { UNSENT = 8 }; /* answers under way at a time */

static struct {
  MPI_Comm comm; /* MPI_COMM_NULL: nobody can be asked */
  int world, rank;
  struct watchdog_place answers[UNSENT];
  MPI_Request sending[UNSENT];
} peers = {.comm = MPI_COMM_NULL};

void watchdog_peers_open(void) {
  int threads = MPI_THREAD_SINGLE;
  MPI_Query_thread(&threads);
  /* All ranks or none. */
  MPI_Allreduce(MPI_IN_PLACE, &threads, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  if (threads < MPI_THREAD_MULTIPLE || MPI_Comm_dup(MPI_COMM_WORLD, &peers.comm) != MPI_SUCCESS) {
    peers.comm = MPI_COMM_NULL;
    return;
  }
  MPI_Comm_size(peers.comm, &peers.world);
  MPI_Comm_rank(peers.comm, &peers.rank);
  for (int i = 0; i < UNSENT; i++) peers.sending[i] = MPI_REQUEST_NULL;
}

void watchdog_peers_close(void) {
  if (peers.comm != MPI_COMM_NULL) MPI_Comm_free(&peers.comm);
}

/* --- answering --------------------------------------------------------------- */

/* The place of an answer that is not under way; -1: none is free. */
static int free_answer(void) {
  for (int i = 0; i < UNSENT; i++) {
    int sent = 1;
    if (peers.sending[i] != MPI_REQUEST_NULL) MPI_Test(&peers.sending[i], &sent, MPI_STATUS_IGNORE);
    if (sent) return i;
  }
  return -1;
}

/* Whether a message with that tag is there, and whose. */
static bool probe(int tag, int *source) {
  MPI_Status status;
  int there = 0;
  if (MPI_Iprobe(MPI_ANY_SOURCE, tag, peers.comm, &there, &status) != MPI_SUCCESS || !there) return false;
  *source = status.MPI_SOURCE;
  return true;
}

static int answer_all(void) {
  int lowest = -1, source, free;
  while ((free = free_answer()) >= 0 && probe(TAG_QUESTION, &source)) {
    MPI_Recv(NULL, 0, MPI_BYTE, source, TAG_QUESTION, peers.comm, MPI_STATUS_IGNORE);
    watchdog_place(&peers.answers[free]);
    MPI_Isend(&peers.answers[free], sizeof peers.answers[free], MPI_BYTE, source, TAG_ANSWER, peers.comm,
              &peers.sending[free]);
    if (lowest < 0 || source < lowest) lowest = source;
  }
  return lowest;
}

static bool receive_answer(struct watchdog_place *place, int *source) {
  if (!probe(TAG_ANSWER, source)) return false;
  MPI_Recv(place, sizeof *place, MPI_BYTE, *source, TAG_ANSWER, peers.comm, MPI_STATUS_IGNORE);
  return true;
}

int watchdog_peers_serve(void) {
  struct watchdog_place late;
  int source;
  if (peers.comm == MPI_COMM_NULL) return -1;
  while (receive_answer(&late, &source)) continue; /* to a question that has been given up */
  return answer_all();
}

/* --- asking ------------------------------------------------------------------ */

static bool alloc_answers(struct watchdog_answers *answers) {
  const size_t world = (size_t)peers.world;
  answers->world = peers.world;
  answers->rank = peers.rank;
  answers->answered = calloc(world, sizeof *answers->answered);
  answers->places = calloc(world, sizeof *answers->places);
  return answers->answered && answers->places;
}

void watchdog_answers_free(struct watchdog_answers *answers) {
  free(answers->answered);
  free(answers->places);
  memset(answers, 0, sizeof *answers);
}

/* A question to a rank that is gone may stay under way for ever; nobody waits for it. */
static void ask_all(void) {
  for (int r = 0; r < peers.world; r++) {
    MPI_Request sending;
    if (r == peers.rank) continue;
    if (MPI_Isend(NULL, 0, MPI_BYTE, r, TAG_QUESTION, peers.comm, &sending) == MPI_SUCCESS) MPI_Request_free(&sending);
  }
}

bool watchdog_peers_ask(bool (*go_on)(void), struct watchdog_answers *answers) {
  const struct timespec pause = {0, 10 * 1000 * 1000};
  memset(answers, 0, sizeof *answers);
  if (peers.comm == MPI_COMM_NULL) return true;
  if (!alloc_answers(answers)) {
    watchdog_answers_free(answers);
    return true;
  }
  watchdog_place(&answers->places[peers.rank]);
  answers->answered[peers.rank] = true;
  const double until = watchdog_now() + ANSWER_SECONDS + ANSWER_SECONDS_PER_RANK * peers.world;
  int missing = peers.world - 1;
  ask_all();
  while (missing > 0 && watchdog_now() < until) {
    struct watchdog_place place;
    int source;
    const int asker = answer_all();
    if (!go_on() || (asker >= 0 && asker < peers.rank)) {
      watchdog_answers_free(answers);
      return false;
    }
    while (receive_answer(&place, &source)) {
      missing -= !answers->answered[source];
      answers->answered[source] = true;
      answers->places[source] = place;
    }
    nanosleep(&pause, NULL);
  }
  if (go_on()) return true; /* the collective may have ended with the last answer */
  watchdog_answers_free(answers);
  return false;
}
