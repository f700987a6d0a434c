/*
 * Gathered files whose weights are 16-bit numbers: half the size, read by
 * everything that reads f32, each value the nearest there is.
 */
#include <hdf5.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint_world.h"
#include "io/peft.h"
#include "io/quant.h"

static float rounded(enum dtype dtype, float value) {
  return dtype == DTYPE_F16    ? f16_to_f32(f32_to_f16(value))
         : dtype == DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(value))
                               : value;
}

/* The part of `array` that is in the file is what the world has, rounded; the optimizer's state is exact. */
static void check_part(const struct checkpoint *checkpoint, const struct checkpoint_array *array, enum dtype dtype,
                       int64_t row, int64_t rows, int64_t col, int64_t cols) {
  struct checkpoint_array want = world_cut(array, row, rows, col, cols), read = want;
  if (strchr(array->name, '.')) dtype = DTYPE_F32;
  read.data = malloc((size_t)(rows * cols) * sizeof(float));
  expect_ok(checkpoint_read(checkpoint, &read));
  for (int64_t i = 0; i < rows * cols; i++)
    if (read.data[i] != rounded(dtype, want.data[i]))
      fail_msg("%s/%s: %.9g for %.9g", array->group, array->name, (double)read.data[i], (double)want.data[i]);
  free(want.data);
  free(read.data);
}

static void check_content(const struct world *w, const char *path, enum dtype dtype, bool with_optimizer) {
  struct checkpoint *checkpoint = NULL;
  expect_ok(checkpoint_open(path, &checkpoint));
  for (int i = 0; i < N_ARRAYS; i++) {
    const struct checkpoint_array *array = &w->arrays[i];
    if (!with_optimizer && strchr(array->name, '.')) {
      assert_false(world_has(checkpoint, array->group, array->name));
      continue;
    }
    check_part(checkpoint, array, dtype, 0, array->rows, 0, array->cols);
    check_part(checkpoint, array, dtype, 1, array->rows - 2, 2, array->cols - 2);
    check_part(checkpoint, array, dtype, array->rows - 1, 1, 1, 1);
  }
  checkpoint_close(&checkpoint);
}

static void test_gather_16_bit(void **state) {
  struct world *w = *state;
  static const enum dtype dtypes[] = {DTYPE_F16, DTYPE_BF16};
  world_publish_step(w, 100, 3, 0);
  const char *step = world_path(w, "out/step-000100");
  expect_ok(checkpoint_gather(step, world_path(w, "whole.h5"), false, DTYPE_F32));
  off_t whole = world_file_size(world_path(w, "whole.h5"));
  for (int d = 0; d < 2; d++) {
    step = world_path(w, "out/step-000100");
    const char *path = world_path(w, "half.h5");
    expect_ok(checkpoint_gather(step, path, true, dtypes[d]));
    check_content(w, path, dtypes[d], true);
    expect_ok(checkpoint_gather(step, path, false, dtypes[d]));
    check_content(w, path, dtypes[d], false);
    assert_true(world_file_size(path) < whole / 2 + 10000); /* 12 datasets' headers do not shrink */
    /* Gathered again as it is: the same bytes. As f32: the same numbers. */
    expect_ok(checkpoint_gather(path, world_path(w, "again.h5"), false, dtypes[d]));
    world_assert_same_bytes(path, world_path(w, "again.h5"));
    expect_ok(checkpoint_gather(path, world_path(w, "wide.h5"), false, DTYPE_F32));
    check_content(w, world_path(w, "wide.h5"), dtypes[d], false);
  }
}

/* A whole adapter, as export and merge take it. */
static void test_adapter_set(void **state) {
  struct world *w = *state;
  struct adapter_set set;
  struct checkpoint_header header;
  world_publish_step(w, 100, 2, 0);
  expect_ok(checkpoint_gather(world_path(w, "out/step-000100"), world_path(w, "half.h5"), false, DTYPE_BF16));
  expect_ok(adapter_set_read(world_path(w, "half.h5"), NULL, &set, &header));
  assert_int_equal(set.n_modules, N_MODULES);
  for (int m = 0; m < N_MODULES; m++)
    for (int64_t i = 0; i < world_ranks[m] * world_ins[m]; i++)
      assert_true(set.modules[m].A[i] == rounded(DTYPE_BF16, w->arrays[4 * m].data[i]));
  adapter_set_free(&set);
}

/* Every number that the types have comes back as it was, and plain HDF5, which knows the types from the file, reads
 * the same. NaNs stay NaNs. */
static void test_every_number(void **state) {
  struct world *w = *state;
  static const enum dtype dtypes[] = {DTYPE_F16, DTYPE_BF16};
  float *all = w->arrays[8].data, *read = malloc(65536 * sizeof *read); /* 5 x 300000 */
  for (int d = 0; d < 2; d++) {
    for (uint32_t i = 0; i < 65536; i++)
      all[i] = dtypes[d] == DTYPE_F16 ? f16_to_f32((uint16_t)i) : bf16_to_f32((uint16_t)i);
    world_write_whole(w, world_path(w, "whole.h5"));
    expect_ok(checkpoint_gather(world_path(w, "whole.h5"), world_path(w, "half.h5"), false, dtypes[d]));
    struct checkpoint *checkpoint = NULL;
    struct checkpoint_array part = w->arrays[8];
    part.part_rows = 1;
    part.part_cols = 65536;
    part.data = read;
    expect_ok(checkpoint_open(world_path(w, "half.h5"), &checkpoint));
    expect_ok(checkpoint_read(checkpoint, &part));
    checkpoint_close(&checkpoint);
    for (int i = 0; i < 65536; i++)
      if (isnan(all[i]) ? !isnan(read[i]) : memcmp(&read[i], &all[i], sizeof all[i]) != 0)
        fail_msg("%.9g became %.9g", (double)all[i], (double)read[i]);
    hid_t file = H5Fopen(world_path(w, "half.h5"), H5F_ACC_RDONLY, H5P_DEFAULT);
    hid_t dataset = H5Dopen2(file, "layers/10/down/A", H5P_DEFAULT);
    float *plain = malloc((size_t)(5 * 300000) * sizeof *plain);
    assert_true(H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, plain) >= 0);
    for (int i = 0; i < 65536; i++)
      if (isfinite(all[i]) && plain[i] != all[i]) fail_msg("HDF5 reads %.9g as %.9g", (double)all[i], (double)plain[i]);
    free(plain);
    H5Dclose(dataset);
    H5Fclose(file);
  }
  free(read);
}

/* A value that would become infinite is named, and no file is left. */
static void test_overflow(void **state) {
  struct world *w = *state;
  w->arrays[5].data[7] = -70000; /* f16 ends at 65504 */
  world_write_whole(w, world_path(w, "whole.h5"));
  expect_refused(checkpoint_gather(world_path(w, "whole.h5"), world_path(w, "half.h5"), false, DTYPE_F16), STATUS_DATA,
                 "layers/2/o/B holds -70000", "bf16");
  assert_int_equal(world_count_entries(w->root, "half.h5"), 0);
  expect_ok(checkpoint_gather(world_path(w, "whole.h5"), world_path(w, "half.h5"), false, DTYPE_BF16));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_gather_16_bit, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_adapter_set, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_every_number, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_overflow, world_setup, world_teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
