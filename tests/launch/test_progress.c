/* The progress line, in a file and on a (pretended) terminal. */
#include "launch/progress.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct progress progress;
static FILE *out;

static int setup(void **state) {
  (void)state;
  out = tmpfile();
  return out ? 0 : -1;
}

static void assert_written(const char *expected) {
  char text[4096];
  rewind(out);
  text[fread(text, 1, sizeof text - 1, out)] = 0;
  fclose(out);
  assert_string_equal(text, expected);
}

static void lines_in_a_file_keep_five_seconds_apart(void **state) {
  (void)state;
  progress_begin(&progress, out, 10, 20, 100);
  assert_false(progress.terminal);
  progress_step(&progress, 102, 11, 3.25, 512.4); /* the first is written at once */
  progress_step(&progress, 104, 12, 3, 512);
  progress_step(&progress, 106, 13, 2.5, 512);
  progress_step(&progress, 107, 14, 2, 512);
  progress_step(&progress, 107.5, 20, 1, 600); /* and the last */
  progress_end(&progress);
  assert_written(
      "lorashard: step 11/20  loss 3.2500  512 tokens/s  0:18 left\n"
      "lorashard: step 14/20  loss 2.0000  512 tokens/s  0:11 left\n"
      "lorashard: step 20/20  loss 1.0000  600 tokens/s  0:00 left\n");
}

static void a_terminal_line_is_redrawn(void **state) {
  (void)state;
  progress_begin(&progress, out, 0, 20000, 0);
  progress.terminal = true;
  progress_step(&progress, 1, 1, 12.5, 1000);
  progress_step(&progress, 1.05, 2, 12.5, 1000); /* too soon */
  progress_step(&progress, 2, 2, 2.5, 10);
  progress_clear(&progress);
  progress_clear(&progress); /* nothing left to wipe */
  progress_step(&progress, 3, 3, 2.5, 10);
  progress_end(&progress);
  assert_written(
      "\rlorashard: step 1/20000  loss 12.5000  1000 tokens/s  5:33:19 left"
      "\rlorashard: step 2/20000  loss 2.5000  10 tokens/s  5:33:18 left   "
      "\r                                                               \r"
      "\rlorashard: step 3/20000  loss 2.5000  10 tokens/s  5:33:17 left\n");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(lines_in_a_file_keep_five_seconds_apart, setup),
      cmocka_unit_test_setup(a_terminal_line_is_redrawn, setup),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
