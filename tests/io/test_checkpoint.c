/*
 * Adapter checkpoints: what is written is what is read, whatever happens to the
 * files in between is noticed, and nothing half-written is ever taken for whole.
 */
#include <errno.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint_world.h"
#include "io/log.h"

/* HDF5 1.10 itself leaks what it had decoded when a checksum fails
 * (test_corrupt_file); ours would show as ids left open. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:libhdf5"; }

static void test_round_trip_file(void **state) {
  struct world *w = *state;
  const char *path = world_path(w, "adapter.h5");
  world_write_whole(w, path);
  world_check_content(w, path, true);
  assert_int_not_equal(access(world_path(w, "adapter.h5.tmp"), F_OK), 0);
}

static void test_round_trip_step(void **state) {
  struct world *w = *state;
  for (int tp = 1; tp <= 3; tp++) {
    world_publish_step(w, tp, tp, 0);
    char path[256];
    int64_t step;
    expect_ok(checkpoint_find_latest(w->output, path, sizeof path, &step));
    assert_int_equal(step, tp);
    world_check_content(w, path, true);
  }
}

/* Owners that hold other layers, one of them none at all: the same whole arrays, and the same gathered bytes. */
static void test_stages(void **state) {
  struct world *w = *state;
  char directory[256];
  world_write_whole(w, world_path(w, "whole.h5"));
  for (int pp = 2; pp <= 3; pp++) {
    const char *step = world_path(w, "out/step-000100");
    expect_ok(checkpoint_begin(w->output, 100, directory, sizeof directory));
    world_write_stages(w, directory, 2, pp);
    expect_ok(checkpoint_publish(w->output, 100, &w->header, w->modules, N_MODULES, "lora:\n  r: 4\n", 0));
    assert_int_equal(world_count_entries(step, "shard-tp"), 2 * pp);
    world_check_content(w, step, true);
    expect_ok(checkpoint_gather(step, world_path(w, "gathered.h5"), true, DTYPE_F32));
    world_assert_same_bytes(world_path(w, "whole.h5"), world_path(w, "gathered.h5"));
  }
}

/* A stage that wrote nothing leaves its layers out; a module that none of the owners may have is no module of the job.
 */
static void test_missing_stage(void **state) {
  struct world *w = *state;
  char directory[256], file[320];
  expect_ok(checkpoint_begin(w->output, 100, directory, sizeof directory));
  world_write_stages(w, directory, 2, 2);
  for (int t = 0; t < 2; t++) {
    snprintf(file, sizeof file, "%s/shard-tp%04d-pp0001.h5", directory, t);
    assert_int_equal(unlink(file), 0);
  }
  expect_refused(checkpoint_publish(w->output, 100, &w->header, w->modules, N_MODULES, NULL, 0), STATUS_DATA,
                 "layers/2/o", "in none of the 2 shards");
  expect_ok(checkpoint_begin(w->output, 100, directory, sizeof directory));
  world_write_stages(w, directory, 2, 2);
  expect_refused(checkpoint_publish(w->output, 100, &w->header, w->modules, 1, NULL, 0), STATUS_DATA, "layers/",
                 "not a module of this job");
  assert_int_equal(world_count_entries(w->output, "step-000100"), 1); /* the .tmp */
}

/* Time stamps or caller's order in the file would break this; so would the
 * layout that a step was written in. */
static void test_equal_bytes(void **state) {
  struct world *w = *state;
  struct checkpoint_module modules[N_MODULES];
  struct checkpoint_array arrays[N_ARRAYS];
  world_write_whole(w, world_path(w, "a.h5"));
  sleep(1); /* HDF5's time stamps have seconds */
  for (int i = 0; i < N_MODULES; i++) modules[i] = w->modules[N_MODULES - 1 - i];
  for (int i = 0; i < N_ARRAYS; i++) arrays[i] = w->arrays[N_ARRAYS - 1 - i];
  expect_ok(checkpoint_write_file(world_path(w, "b.h5"), &w->header, modules, N_MODULES, "lora:\n  r: 4\n", arrays,
                                  N_ARRAYS));
  world_assert_same_bytes(world_path(w, "a.h5"), world_path(w, "b.h5"));
  world_publish_step(w, 100, 3, 0);
  expect_ok(checkpoint_gather(world_path(w, "out/step-000100"), world_path(w, "c.h5"), true, DTYPE_F32));
  world_assert_same_bytes(world_path(w, "a.h5"), world_path(w, "c.h5"));
  expect_ok(checkpoint_gather(world_path(w, "a.h5"), world_path(w, "d.h5"), true, DTYPE_F32));
  world_assert_same_bytes(world_path(w, "a.h5"), world_path(w, "d.h5"));
}

static void test_gather_weights_only(void **state) {
  struct world *w = *state;
  world_publish_step(w, 100, 2, 0);
  expect_ok(checkpoint_gather(world_path(w, "out/step-000100"), world_path(w, "weights.h5"), false, DTYPE_F32));
  world_check_content(w, world_path(w, "weights.h5"), false);
  expect_refused(checkpoint_gather(world_path(w, "out/step-000100"), world_path(w, "out/step-000100/adapter.h5"), false,
                                   DTYPE_F32),
                 STATUS_USAGE, "step directory", NULL);
}

static void test_moved_step(void **state) {
  struct world *w = *state;
  world_publish_step(w, 100, 2, 0);
  assert_int_equal(rename(world_path(w, "out/step-000100"), world_path(w, "elsewhere")), 0);
  assert_int_equal(rmdir(world_path(w, "out")) == 0 || errno == ENOTEMPTY, 1);
  world_check_content(w, world_path(w, "elsewhere"), true);
  world_check_content(w, world_path(w, "elsewhere/adapter.h5"), true);
}

/* Any HDF5 program sees whole arrays: read with plain HDF5, from another
 * working directory than the files'. */
static void test_plain_hdf5_reads(void **state) {
  struct world *w = *state;
  world_publish_step(w, 100, 3, 0);
  hid_t file = H5Fopen(world_path(w, "out/step-000100/adapter.h5"), H5F_ACC_RDONLY, H5P_DEFAULT);
  assert_true(file >= 0);
  hid_t dataset = H5Dopen2(file, "layers/0/q/B", H5P_DEFAULT);
  assert_true(dataset >= 0);
  float *data = calloc((size_t)(world_outs[0] * world_ranks[0]), sizeof(float));
  assert_true(H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
  assert_memory_equal(data, w->arrays[1].data, (size_t)(world_outs[0] * world_ranks[0]) * sizeof(float));
  free(data);
  hid_t type = H5Dget_type(dataset);
  assert_true(H5Tequal(type, H5T_IEEE_F32LE) > 0);
  H5Tclose(type);
  H5Dclose(dataset);
  H5Fclose(file);
}

/* In a step the manifest's digest finds any changed byte; the previous step is
 * used then. */
static void test_corrupt_step(void **state) {
  struct world *w = *state;
  char path[256];
  int64_t step;
  struct checkpoint *checkpoint = NULL;
  world_publish_step(w, 100, 2, 0);
  world_publish_step(w, 200, 2, 0);
  const char *shard = world_path(w, "out/step-000200/shard-00001.h5");
  world_patch(shard, world_file_size(shard) / 2, 1);
  expect_refused(checkpoint_open(world_path(w, "out/step-000200"), &checkpoint), STATUS_DATA, "shard-00001.h5",
                 "digest");
  assert_null(checkpoint);
  expect_ok(checkpoint_find_latest(w->output, path, sizeof path, &step));
  assert_int_equal(step, 100);
}

/* In a single file there is no manifest: Fletcher32 finds a changed byte of the
 * data, HDF5's own checksums one of the structure. Every 997th byte is tried;
 * none may be read as something else. */
static void test_corrupt_file(void **state) {
  struct world *w = *state;
  const char *path = world_path(w, "adapter.h5");
  w->modules[2].in = 600; /* a small file: each byte costs an open */
  for (int i = 8; i < 12; i += 2) w->arrays[i].cols = w->arrays[i].part_cols = 600;
  world_write_whole(w, path);
  off_t size = world_file_size(path);
  int noticed = 0, unnoticed = 0;
  for (off_t at = 0; at < size; at += 97) {
    world_patch(path, at, 0x10);
    struct checkpoint *checkpoint = NULL;
    bool bad = checkpoint_open(path, &checkpoint) != STATUS_OK;
    for (int i = 0; !bad && i < N_ARRAYS; i++) {
      struct checkpoint_array read = w->arrays[i];
      size_t bytes = (size_t)(read.rows * read.cols) * sizeof(float);
      read.data = malloc(bytes);
      bad = checkpoint_read(checkpoint, &read) != STATUS_OK;
      if (!bad && memcmp(read.data, w->arrays[i].data, bytes) != 0) fail_msg("byte %ld: wrong data read", (long)at);
      free(read.data);
    }
    if (!bad && memcmp(checkpoint_header(checkpoint), &w->header, sizeof w->header) != 0)
      fail_msg("byte %ld: wrong header read", (long)at);
    noticed += bad;
    unnoticed += !bad;
    checkpoint_close(&checkpoint);
    world_patch(path, at, 0x10);
  }
  world_check_content(w, path, true);
  /* Unnoticed bytes are unused space and heap padding between objects. */
  assert_true(noticed > 2 * unnoticed);
}

static void test_truncated(void **state) {
  struct world *w = *state;
  char path[256];
  int64_t step;
  struct checkpoint *checkpoint = NULL;
  world_write_whole(w, world_path(w, "adapter.h5"));
  off_t size = world_file_size(world_path(w, "adapter.h5"));
  assert_int_equal(truncate(world_path(w, "adapter.h5"), size - 1), 0);
  expect_refused(checkpoint_open(world_path(w, "adapter.h5"), &checkpoint), STATUS_DATA, "adapter.h5", "truncated");
  assert_int_equal(truncate(world_path(w, "adapter.h5"), 4), 0);
  expect_refused(checkpoint_open(world_path(w, "adapter.h5"), &checkpoint), STATUS_DATA, "adapter.h5",
                 "not an HDF5 file");
  world_publish_step(w, 100, 2, 0);
  const char *shard = world_path(w, "out/step-000100/shard-00000.h5");
  assert_int_equal(truncate(shard, world_file_size(shard) - 1), 0);
  expect_refused(checkpoint_open(world_path(w, "out/step-000100"), &checkpoint), STATUS_DATA, "shard-00000.h5",
                 "bytes");
  /* The file alone, past the manifest, is no way around. */
  expect_refused(checkpoint_open(world_path(w, "out/step-000100/adapter.h5"), &checkpoint), STATUS_DATA,
                 "shard-00000.h5", "truncated");
  expect_ok(checkpoint_find_latest(w->output, path, sizeof path, &step));
  assert_int_equal(step, -1);
}

static void test_missing_shard(void **state) {
  struct world *w = *state;
  struct checkpoint *checkpoint = NULL;
  world_publish_step(w, 100, 2, 0);
  assert_int_equal(unlink(world_path(w, "out/step-000100/shard-00001.h5")), 0);
  expect_refused(checkpoint_open(world_path(w, "out/step-000100"), &checkpoint), STATUS_DATA, "shard-00001.h5",
                 "manifest");
  /* HDF5 itself would fill in zeros here. */
  expect_refused(checkpoint_open(world_path(w, "out/step-000100/adapter.h5"), &checkpoint), STATUS_DATA,
                 "shard-00001.h5", NULL);
  /* A shard of another step, put in its place. */
  world_publish_step(w, 200, 2, 0);
  assert_int_equal(
      rename(world_path(w, "out/step-000200/shard-00001.h5"), world_path(w, "out/step-000100/shard-00001.h5")), 0);
  expect_refused(checkpoint_open(world_path(w, "out/step-000100/adapter.h5"), &checkpoint), STATUS_DATA,
                 "shard-00001.h5", "does not hold");
}

static void test_latest_points_nowhere(void **state) {
  struct world *w = *state;
  char path[256];
  int64_t step = 5;
  log_setup(1, 2, LOG_ERROR);                                             /* warnings are expected here */
  expect_ok(checkpoint_find_latest(w->output, path, sizeof path, &step)); /* no output directory at all */
  assert_int_equal(step, -1);
  world_publish_step(w, 100, 1, 0);
  FILE *latest = fopen(world_path(w, "out/latest"), "w");
  fputs("step-000900\n", latest);
  fclose(latest);
  expect_ok(checkpoint_find_latest(w->output, path, sizeof path, &step));
  assert_int_equal(step, 100);
  assert_string_equal(path, world_path(w, "out/step-000100"));
  assert_int_equal(unlink(world_path(w, "out/step-000100/manifest.json")), 0);
  expect_ok(checkpoint_find_latest(w->output, path, sizeof path, &step));
  assert_int_equal(step, -1);
}

static void test_stale_tmp_and_prune(void **state) {
  struct world *w = *state;
  char directory[256], path[256];
  int64_t step;
  expect_ok(checkpoint_begin(w->output, 50, directory, sizeof directory));
  assert_string_equal(directory, world_path(w, "out/step-000050.tmp"));
  world_write_shards(w, directory, 1); /* killed here */
  expect_ok(checkpoint_find_latest(w->output, path, sizeof path, &step));
  assert_int_equal(step, -1); /* a .tmp is no step */
  for (int64_t s = 100; s <= 500; s += 100) world_publish_step(w, s, 1, 2);
  assert_int_equal(world_count_entries(w->output, ".tmp"), 0);
  assert_int_equal(world_count_entries(w->output, "step-"), 2);
  world_check_content(w, world_path(w, "out/step-000500"), true);
  assert_int_equal(access(world_path(w, "out/step-000400/manifest.json"), F_OK), 0);
  /* The same step again replaces; one far behind the others is kept if new. */
  w->arrays[0].data[0] = 42;
  world_publish_step(w, 500, 2, 2);
  world_check_content(w, world_path(w, "out/step-000500"), true);
  world_publish_step(w, 7, 1, 2);
  world_check_content(w, world_path(w, "out/step-000007"), true);
  size_t size;
  char *text = world_slurp(world_path(w, "out/latest"), &size);
  assert_int_equal(size, 12);
  assert_memory_equal(text, "step-000007\n", 12);
  free(text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_round_trip_file, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_round_trip_step, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_stages, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_missing_stage, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_equal_bytes, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_gather_weights_only, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_moved_step, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_plain_hdf5_reads, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_corrupt_step, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_corrupt_file, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_truncated, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_missing_shard, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_latest_points_nowhere, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_stale_tmp_and_prune, world_setup, world_teardown),
  };
  log_setup(0, 1, LOG_ERROR); /* warnings about broken steps are expected */
  return cmocka_run_group_tests(tests, NULL, NULL);
}
