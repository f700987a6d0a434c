#include "launch/stop_signal.h"

#include <signal.h>
#include <string.h>

static volatile sig_atomic_t came;

static void on_signal(int number) {
  (void)number;
  came = 1;
}

void stop_signal_watch(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGUSR1, &action, NULL);
  action.sa_flags = SA_RESTART | SA_RESETHAND; /* the second one acts as usual */
  sigaction(SIGINT, &action, NULL);
}

bool stop_signal_came(void) { return came; }
