/* The watchdog's time: what starts it, what ends it, and what its line names. */
#include "dist/watchdog.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

/* The watchdog looks five times a second, and a busy machine may keep this program waiting inside a collective. */
#define LIMIT 0.5

static char line[256];
static atomic_int bites;

static void bite(const char *message) {
  snprintf(line, sizeof line, "%s", message);
  bites++;
}

/* Until it bites, `seconds` at most. */
static void pass(double seconds) {
  const struct timespec tick = {0, 50 * 1000 * 1000};
  for (double passed = 0; passed < seconds && bites == 0; passed += 0.05) nanosleep(&tick, NULL);
}

static void expect_silence(void) {
  pass(1.2);
  assert_int_equal(bites, 0);
}

static int start(void **state) {
  (void)state;
  bites = 0;
  *line = 0;
  watchdog_set_step(17);
  return watchdog_start(LIMIT, bite) == STATUS_OK ? 0 : -1;
}

static int stop(void **state) {
  (void)state;
  watchdog_stop();
  return 0;
}

static void expect_line(const char *operation, const char *group) {
  char begins[128];
  pass(20);
  snprintf(begins, sizeof begins, "%s over group %s has not finished after", operation, group);
  assert_int_equal(bites, 1);
  assert_memory_equal(line, begins, strlen(begins));
  assert_non_null(strstr(line, "step 17"));
}

static void test_entered(void **state) {
  (void)state;
  watchdog_enter("broadcast", "control");
  expect_line("broadcast", "control");
}

static void test_left(void **state) {
  (void)state;
  watchdog_enter("broadcast", "control");
  watchdog_leave();
  expect_silence();
}

/* Without a wait: the rank may be held in a call that queues work. */
static void test_queued(void **state) {
  (void)state;
  watchdog_queued("all-reduce", "dp");
  watchdog_queued("all-gather", "tp");
  expect_line("all-gather", "tp");
}

static void test_waited(void **state) {
  (void)state;
  watchdog_queued("all-reduce", "tp");
  watchdog_waited();
  watchdog_waiting(); /* for something else than a collective */
  expect_silence();
}

/* A collective of the host ends the time; a wait for the device begins it again. */
static void test_waiting(void **state) {
  (void)state;
  watchdog_queued("all-reduce", "stage");
  watchdog_enter("barrier", "control");
  watchdog_leave();
  expect_silence();
  watchdog_waiting();
  expect_line("all-reduce", "stage");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_entered, start, stop),
      cmocka_unit_test_setup_teardown(test_left, start, stop),
      cmocka_unit_test_setup_teardown(test_queued, start, stop),
      cmocka_unit_test_setup_teardown(test_waited, start, stop),
      cmocka_unit_test_setup_teardown(test_waiting, start, stop),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
