/* metrics.jsonl: exact keys, values back, cutting on resume. */
#include "io/metrics.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

static char folder[] = "/tmp/lorashard-metrics-XXXXXX";
static char path[128];

static int setup(void **state) {
  (void)state;
  memcpy(folder + strlen(folder) - 6, "XXXXXX", 6);
  if (!mkdtemp(folder)) return -1;
  snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  unlink(path);
  return rmdir(folder); /* fails if a temporary file was left */
}

static struct metrics_step example(int64_t step) {
  return (struct metrics_step){
      .step = step,
      .epoch = 0.25,
      .loss = 2.5,
      .grad_norm = 1e-3,
      .lr = 2e-4,
      .tokens = 2048,
      .tokens_per_second = 512,
      .step_seconds = 4,
      .comm = {.tp = {61, 1000}, .dp = {1, 5000000000}, .stage = {2, 3}, .pp = {0, 0}, .control = {1, 8}},
      .peak_rss_bytes = 6000000000,
  };
}

static void append(int64_t last_step, int64_t first, int64_t last) {
  struct metrics *metrics;
  assert_int_equal(metrics_open(path, last_step, &metrics), STATUS_OK);
  for (int64_t step = first; step <= last; step++) {
    struct metrics_step row = example(step);
    assert_int_equal(metrics_append(metrics, &row), STATUS_OK);
  }
  metrics_close(&metrics);
  assert_null(metrics);
}

/* The whole file; the caller's. */
static char *contents(void) {
  FILE *file = fopen(path, "r");
  assert_non_null(file);
  char *text = calloc(1, 1 << 20);
  assert_non_null(text);
  assert_true(fread(text, 1, (1 << 20) - 1, file) < (1 << 20) - 1);
  fclose(file);
  return text;
}

/* The steps in the file are first, first + 1, ..., last. */
static void assert_steps(int64_t first, int64_t last) {
  char *text = contents();
  int64_t expected = first;
  for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"), expected++) {
    json_t *object = json_loads(line, 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(object, "step")), expected);
    json_decref(object);
  }
  assert_int_equal(expected, last + 1);
  free(text);
}

static void a_line_has_exactly_the_keys(void **state) {
  (void)state;
  append(0, 7, 7);
  char *text = contents();
  assert_string_equal(
      text,
      "{\"step\":7,\"epoch\":0.25,\"loss\":2.5,\"grad_norm\":0.001,\"lr\":0.00020000000000000001,\"tokens\":2048,"
      "\"tokens_per_second\":512.0,\"step_seconds\":4.0,\"comm\":{\"tp\":{\"calls\":61,\"bytes\":1000},\"dp\":{"
      "\"calls\":"
      "1,\"bytes\":5000000000},\"stage\":{\"calls\":2,\"bytes\":3},\"pp\":{\"calls\":0,\"bytes\":0},\"control\":{"
      "\"calls\":1,\"bytes\":8}},\"peak_rss_bytes\":6000000000}\n");
  free(text);
}

static void eval_loss_and_non_finite_numbers(void **state) {
  (void)state;
  struct metrics *metrics;
  struct metrics_step row = example(1);
  row.has_eval_loss = true;
  row.eval_loss = 1.5;
  row.loss = NAN;
  row.grad_norm = INFINITY;
  assert_int_equal(metrics_open(path, 0, &metrics), STATUS_OK);
  assert_int_equal(metrics_append(metrics, &row), STATUS_OK);
  /* Seen by others before the file is closed. */
  char *text = contents();
  json_t *object = json_loads(text, 0, NULL);
  assert_true(json_is_null(json_object_get(object, "loss")));
  assert_true(json_is_null(json_object_get(object, "grad_norm")));
  assert_true(json_real_value(json_object_get(object, "eval_loss")) == 1.5);
  json_decref(object);
  free(text);
  metrics_close(&metrics);
  metrics_close(&metrics);
}

static void resume_cuts_later_steps(void **state) {
  (void)state;
  append(0, 1, 10);
  append(6, 7, 8);
  assert_steps(1, 8);
  append(20, 9, 9); /* nothing to cut */
  assert_steps(1, 9);
}

static void a_fresh_run_starts_an_empty_file(void **state) {
  (void)state;
  append(0, 1, 5);
  append(0, 1, 2);
  assert_steps(1, 2);
}

static void torn_and_foreign_lines_are_dropped(void **state) {
  (void)state;
  append(0, 1, 3);
  FILE *file = fopen(path, "a");
  assert_non_null(file);
  fputs("not json\n{\"loss\": 3}\n[1]\n\n", file);
  for (int i = 0; i < 200000; i++) fputc('x', file); /* longer than any buffer */
  fputs("\n{\"step\":4}\n{\"step\":5,\"lo", file);
  fclose(file);
  append(5, 5, 6);
  assert_steps(1, 6);
}

static void an_unwritable_place_is_named(void **state) {
  (void)state;
  struct metrics *metrics = NULL;
  char missing[160];
  snprintf(missing, sizeof missing, "%s/none/metrics.jsonl", folder);
  assert_int_equal(metrics_open(missing, 0, &metrics), STATUS_SYSTEM);
  assert_non_null(strstr(status_message(), missing));
  assert_null(metrics);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
  const struct CMUnitTest tests[] = {
      TEST(a_line_has_exactly_the_keys),
      TEST(eval_loss_and_non_finite_numbers),
      TEST(resume_cuts_later_steps),
      TEST(a_fresh_run_starts_an_empty_file),
      TEST(torn_and_foreign_lines_are_dropped),
      TEST(an_unwritable_place_is_named),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
