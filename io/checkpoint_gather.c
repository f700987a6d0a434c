/*
 * checkpoint_gather.c: one self-contained file out of a step, an array at a
 * time.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/checkpoint_internal.h"

/* Optimizer state is named after its array: "A.m", "B.v". */
static bool is_state(const struct checkpoint_array *array) { return strchr(array->name, '.') != NULL; }

/* The second moments are squares of gradients: too small for 16 bits. */
static enum dtype stored_dtype(const struct checkpoint_array *array, enum dtype dtype) {
  return is_state(array) ? DTYPE_F32 : dtype;
}

/* Writing into the step directory itself would break its manifest. */
static enum status check_target(const char *from, const char *to) {
  char step[PATH_MAX], parent[DURABLE_PATH], target[PATH_MAX];
  TRY(durable_path(parent, sizeof parent, "%s", to));
  char *slash = strrchr(parent, '/');
  if (slash)
    slash[slash == parent] = 0;
  else
    strcpy(parent, ".");
  if (!realpath(from, step) || !realpath(parent, target)) return STATUS_OK;
  if (strcmp(step, target) == 0)
    return status_set(STATUS_USAGE, "%s: lies in the step directory that is gathered; choose another place", to);
  return STATUS_OK;
}

static enum status copy_array(const struct checkpoint *checkpoint, const struct checkpoint_array *stored, hid_t file,
                              const char *path, enum dtype dtype) {
  struct checkpoint_array array = *stored;
  array.row = array.col = 0;
  array.part_rows = array.rows;
  array.part_cols = array.cols;
  array.data = malloc((size_t)array.rows * (size_t)array.cols * sizeof(float));
  if (!array.data)
    return status_set(STATUS_SYSTEM, "%s: out of memory for %s/%s [%lld, %lld]", path, array.group, array.name,
                      (long long)array.rows, (long long)array.cols);
  enum status status = checkpoint_read(checkpoint, &array);
  if (status == STATUS_OK) status = write_array(file, path, &array, stored_dtype(stored, dtype));
  free(array.data);
  return status;
}

static enum status gather(const struct checkpoint *checkpoint, const char *to, bool with_optimizer, enum dtype dtype) {
  const struct checkpoint_module *modules;
  const struct checkpoint_array *arrays;
  int n_modules = checkpoint_modules(checkpoint, &modules), n_arrays = checkpoint_arrays(checkpoint, &arrays);
  const char *config = checkpoint_config(checkpoint);
  struct hdf5_output output;
  int64_t bytes = 0;
  for (int i = 0; i < n_arrays; i++)
    if (with_optimizer || !is_state(&arrays[i]))
      bytes += arrays[i].rows * arrays[i].cols * (int64_t)dtype_bytes(stored_dtype(&arrays[i], dtype), 1);
  TRY(hdf5_create(to, bytes, &output));
  enum status status = write_skeleton(output.file, output.temporary, checkpoint_header(checkpoint), modules, n_modules);
  if (status == STATUS_OK && config[0]) status = config_write(output.file, output.temporary, config);
  for (int i = 0; status == STATUS_OK && i < n_arrays; i++) {
    if (!with_optimizer && is_state(&arrays[i])) continue;
    status = copy_array(checkpoint, &arrays[i], output.file, output.temporary, dtype);
    if (status == STATUS_OK) status = hdf5_check(&output);
  }
  return hdf5_finish(&output, status);
}

enum status checkpoint_gather(const char *from, const char *to, bool with_optimizer, enum dtype dtype) {
  struct checkpoint *checkpoint = NULL;
  TRY(check_target(from, to));
  TRY(checkpoint_open(from, &checkpoint));
  hdf5_enter();
  enum status status = gather(checkpoint, to, with_optimizer, dtype);
  hdf5_leave();
  checkpoint_close(&checkpoint);
  return status;
}
