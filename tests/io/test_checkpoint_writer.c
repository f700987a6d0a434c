/*
 * The background writer: what reaches the disk is the snapshot of the moment of
 * submission, errors come back to the caller, and reading elsewhere meanwhile
 * is safe.
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/checkpoint_writer.h"

#define ROWS 8
#define COLS 20000

struct world {
  char root[64];
  struct checkpoint_header header;
  struct checkpoint_module module;
  struct checkpoint_array arrays[2];
  struct checkpoint_writer *writer;
};

static void ok(enum status status) {
  if (status != STATUS_OK) fail_msg("%s", status_message());
}

static void fill(struct world *w, float base) {
  for (int64_t i = 0; i < ROWS * COLS; i++) w->arrays[0].data[i] = base + (float)i;
  for (int64_t i = 0; i < ROWS * ROWS; i++) w->arrays[1].data[i] = base - (float)i;
}

static int setup(void **state) {
  struct world *w = calloc(1, sizeof *w);
  strcpy(w->root, "/tmp/test_writer_XXXXXX");
  assert_non_null(mkdtemp(w->root));
  w->header = (struct checkpoint_header){.method = "lora", .step = 1};
  w->module = (struct checkpoint_module){.group = "layers/0/q", .r = ROWS, .in = COLS, .out = ROWS, .alpha = 16};
  w->arrays[0] = (struct checkpoint_array){
      .group = "layers/0/q", .name = "A", .rows = ROWS, .cols = COLS, .part_rows = ROWS, .part_cols = COLS};
  w->arrays[1] = (struct checkpoint_array){
      .group = "layers/0/q", .name = "B", .rows = ROWS, .cols = ROWS, .part_rows = ROWS, .part_cols = ROWS};
  w->arrays[0].data = malloc(ROWS * COLS * sizeof(float));
  w->arrays[1].data = malloc(ROWS * ROWS * sizeof(float));
  ok(checkpoint_writer_create(&w->writer));
  *state = w;
  return 0;
}

static int teardown(void **state) {
  struct world *w = *state;
  char command[128];
  checkpoint_writer_destroy(&w->writer);
  assert_null(w->writer);
  free(w->arrays[0].data);
  free(w->arrays[1].data);
  snprintf(command, sizeof command, "rm -rf %s", w->root);
  free(w);
  return system(command);
}

static enum status submit(struct world *w, const char *file) {
  return checkpoint_writer_submit(w->writer, w->root, file, &w->header, &w->module, 1, w->arrays, 2);
}

static void check_file(struct world *w, const char *file, float base, int64_t step) {
  char path[128];
  struct checkpoint *checkpoint = NULL;
  struct checkpoint_array array = w->arrays[0];
  array.data = malloc(ROWS * COLS * sizeof(float));
  snprintf(path, sizeof path, "%s/%s", w->root, file);
  ok(checkpoint_open(path, &checkpoint));
  assert_int_equal(checkpoint_header(checkpoint)->step, step);
  ok(checkpoint_read(checkpoint, &array));
  for (int64_t i = 0; i < ROWS * COLS; i++) assert_true(array.data[i] == base + (float)i);
  free(array.data);
  checkpoint_close(&checkpoint);
}

/* The caller goes on training at once: the file holds what was there before. */
static void test_snapshot(void **state) {
  struct world *w = *state;
  bool done = false;
  ok(checkpoint_writer_poll(w->writer, &done));
  assert_true(done);
  for (int i = 0; i < 5; i++) {
    char file[32];
    snprintf(file, sizeof file, "shard-%d.h5", i);
    fill(w, (float)i * 7);
    w->header.step = 10 + i;
    ok(submit(w, file));
    fill(w, -1000);
    w->header.step = -1;
    memset(&w->module, 0x55, sizeof w->module.group - 1);
    ok(checkpoint_writer_wait(w->writer));
    ok(checkpoint_writer_poll(w->writer, &done));
    assert_true(done);
    check_file(w, file, (float)i * 7, 10 + i);
    strcpy(w->module.group, "layers/0/q");
  }
}

static void test_one_at_a_time(void **state) {
  struct world *w = *state;
  enum status second = STATUS_OK;
  /* The first write may be over before the second submission, but not 50 times. */
  for (int i = 0; i < 50 && second == STATUS_OK; i++) {
    fill(w, 3);
    ok(submit(w, "shard-0.h5"));
    second = submit(w, "shard-1.h5");
    if (second != STATUS_OK) assert_non_null(strstr(status_message(), "in flight"));
    ok(checkpoint_writer_wait(w->writer));
  }
  assert_int_equal(second, STATUS_USAGE);
  check_file(w, "shard-0.h5", 3, 1);
}

static void test_error_comes_back(void **state) {
  struct world *w = *state;
  char root[64];
  bool done = false;
  fill(w, 0);
  strcpy(root, w->root);
  strcat(w->root, "/nowhere");
  ok(submit(w, "shard-0.h5"));
  enum status status = STATUS_OK;
  while (!done) {
    status = checkpoint_writer_poll(w->writer, &done);
    usleep(1000);
  }
  assert_int_equal(status, STATUS_SYSTEM);
  assert_non_null(strstr(status_message(), "nowhere/shard-0.h5"));
  ok(checkpoint_writer_poll(w->writer, &done)); /* told once */
  ok(submit(w, "shard-0.h5"));
  assert_int_equal(checkpoint_writer_wait(w->writer), STATUS_SYSTEM);
  ok(submit(w, "shard-0.h5"));
  for (done = false; !done; usleep(1000)) { /* poll would take the error: look from submit instead */
    status = submit(w, "shard-0.h5");
    done = status != STATUS_USAGE;
  }
  assert_int_equal(status, STATUS_SYSTEM);
  strcpy(w->root, root);
  ok(submit(w, "shard-0.h5"));
  ok(checkpoint_writer_wait(w->writer));
  check_file(w, "shard-0.h5", 0, 1);
}

/* Destroying finishes what is in flight. */
static void test_destroy_finishes(void **state) {
  struct world *w = *state;
  fill(w, 11);
  ok(submit(w, "shard-0.h5"));
  checkpoint_writer_destroy(&w->writer);
  assert_null(w->writer);
  check_file(w, "shard-0.h5", 11, 1);
  checkpoint_writer_destroy(&w->writer);
}

/* HDF5 may be built without thread safety: reads and writes of other threads
 * wait for the library's lock. (A race shows under -fsanitize=thread, too.) */
static void test_reads_beside_writes(void **state) {
  struct world *w = *state;
  fill(w, 2);
  ok(submit(w, "first.h5"));
  ok(checkpoint_writer_wait(w->writer));
  for (int i = 0; i < 20; i++) {
    ok(submit(w, "second.h5"));
    check_file(w, "first.h5", 2, 1);
    ok(checkpoint_writer_wait(w->writer));
  }
  check_file(w, "second.h5", 2, 1);
}

static volatile sig_atomic_t on_main;
static pthread_t main_thread;
static void on_signal(int number) {
  (void)number;
  on_main = pthread_equal(pthread_self(), main_thread) ? 1 : -1;
}

/* SIGTERM belongs to the training loop, also while the main thread blocks it. */
static void test_signals_stay_away(void **state) {
  struct world *w = *state;
  sigset_t term, before;
  main_thread = pthread_self();
  signal(SIGTERM, on_signal);
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &term, &before);
  fill(w, 1);
  ok(submit(w, "shard-0.h5"));
  kill(getpid(), SIGTERM);
  ok(checkpoint_writer_wait(w->writer));
  assert_int_equal(on_main, 0);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  assert_int_equal(on_main, 1);
  signal(SIGTERM, SIG_DFL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_snapshot, setup, teardown),
      cmocka_unit_test_setup_teardown(test_one_at_a_time, setup, teardown),
      cmocka_unit_test_setup_teardown(test_error_comes_back, setup, teardown),
      cmocka_unit_test_setup_teardown(test_destroy_finishes, setup, teardown),
      cmocka_unit_test_setup_teardown(test_reads_beside_writes, setup, teardown),
      cmocka_unit_test_setup_teardown(test_signals_stay_away, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
