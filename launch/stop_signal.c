#include "launch/stop_signal.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "launch/peers.h"

/* Launchers, Slurm's daemons and timeout(1) send one request by several ways: within this time it is the same one.
 * A hand at the keyboard is quicker. */
#define SAME_REQUEST_S  3.0
#define SAME_KEYPRESS_S 1.0
/* Ranks beyond it speak together, if none before them did. */
#define LAST_TURN 8

static volatile sig_atomic_t came;
static struct timespec first;
static int turn; /* of this rank, if all get the signal */
static bool terminal;

static double since_first(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)(now.tv_sec - first.tv_sec) + 1e-9 * (double)(now.tv_nsec - first.tv_nsec);
}

/* No step is half published: a checkpoint that is being written stays under its temporary name. */
static void stop_now(int number) {
  static const char line[] =
      "lorashard: error: stopped at once by a second signal; the steps since the last checkpoint are lost; go on "
      "with: lorashard train CONFIG --resume\n";
  const struct timespec moment = {.tv_nsec = 200 * 1000 * 1000};
  /* A lower rank may have got it too, and says so. */
  for (int i = 0; i < turn && !peers_hushed(); i++) nanosleep(&moment, NULL);
  if (!peers_hushed()) {
    peers_hush();
    ssize_t written = write(STDERR_FILENO, line, sizeof line - 1);
    (void)written;
  }
  _exit(128 + number);
}

/* A step may be long: who asked shall not ask again for want of an answer. */
static void confirm(void) {
  static const char line[] =
      "\nlorashard: asked to stop: a step under way is finished and saved first; a second signal ends it at once\n";
  const int skip = !terminal; /* the line break ends a progress line */
  ssize_t written = turn == 0 ? write(STDERR_FILENO, line + skip, sizeof line - 1 - (size_t)skip) : 0;
  (void)written;
}

static void on_signal(int number) {
  int error = errno;
  if (!came) {
    clock_gettime(CLOCK_MONOTONIC, &first);
    came = 1;
    confirm();
  } else if (since_first() > (number == SIGINT ? SAME_KEYPRESS_S : SAME_REQUEST_S)) {
    stop_now(number);
  }
  errno = error;
}

void stop_signal_watch(int rank) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  turn = rank < LAST_TURN ? rank : LAST_TURN;
  terminal = isatty(STDERR_FILENO);
  signal(SIGPIPE, SIG_IGN); /* Ctrl-C ends a tee behind this program, too */
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  /* One at a time: the handler looks at what the one before it noted. */
  sigaddset(&action.sa_mask, SIGTERM);
  sigaddset(&action.sa_mask, SIGUSR1);
  sigaddset(&action.sa_mask, SIGINT);
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGUSR1, &action, NULL);
  sigaction(SIGINT, &action, NULL);
}

bool stop_signal_came(void) { return came; }
