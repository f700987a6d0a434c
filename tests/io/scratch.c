#include "scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

char scratch_root[64];

int scratch_setup(void **state) {
  (void)state;
  strcpy(scratch_root, "/tmp/lorashard_test_XXXXXX");
  return mkdtemp(scratch_root) ? 0 : -1;
}

int scratch_teardown(void **state) {
  (void)state;
  char command[128];
  snprintf(command, sizeof command, "rm -rf %s", scratch_root);
  return system(command);
}

void expect_ok(enum status status) {
  if (status != STATUS_OK) fail_msg("%s", status_message());
}

void expect_refused(enum status status, enum status expected, const char *a, const char *b) {
  assert_int_equal(status, expected);
  if (!strstr(status_message(), a) || (b && !strstr(status_message(), b)))
    fail_msg("message lacks \"%s\" or \"%s\": %s", a, b ? b : "", status_message());
}
