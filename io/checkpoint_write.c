/*
 * checkpoint_write.c: modules and arrays into one HDF5 file, in an order that
 * does not depend on the caller's, so that equal content is equal bytes.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/checkpoint_internal.h"

#define CHUNK_FLOATS 262144 /* 1 MiB: a checksum each, and small enough to read a slice */

hid_t hdf5_untimed(hid_t class_id) {
  hid_t list = H5Pcreate(class_id);
  if (list < 0 || H5Pset_obj_track_times(list, 0) >= 0) return list;
  H5Pclose(list);
  return -1;
}

/* Create the groups of "layers/12/q" that do not exist yet, one by one: HDF5's
 * own creation of intermediate groups would stamp them with the time. */
static enum status make_group(hid_t file, const char *path, const char *group, hid_t *group_p) {
  enum status status = STATUS_OK;
  char name[CHECKPOINT_NAME];
  hid_t list = -1, current = -1;
  snprintf(name, sizeof name, "%s", group);
  H5_TRY_OUT(STATUS_SYSTEM, path, list = hdf5_untimed(H5P_GROUP_CREATE));
  for (char *slash = name; slash;) {
    slash = strchr(slash + 1, '/');
    if (slash) *slash = 0;
    htri_t exists;
    H5_TRY_OUT(STATUS_SYSTEM, path, exists = H5Lexists(file, name, H5P_DEFAULT));
    hdf5_release(current);
    current = -1;
    H5_TRY_OUT(
        STATUS_SYSTEM, path,
        current = exists ? H5Gopen2(file, name, H5P_DEFAULT) : H5Gcreate2(file, name, H5P_DEFAULT, list, H5P_DEFAULT));
    if (slash) *slash = '/';
  }
  *group_p = current;
  current = -1;
out:
  hdf5_release(current);
  hdf5_release(list);
  return status;
}

static int by_group(const void *a, const void *b) {
  const struct checkpoint_module *const *x = a, *const *y = b;
  return strverscmp((*x)->group, (*y)->group);
}

static int by_array(const void *a, const void *b) {
  const struct checkpoint_array *const *x = a, *const *y = b;
  return array_order((*x)->group, (*x)->name, (*y)->group, (*y)->name);
}

enum status write_skeleton(hid_t file, const char *path, const struct checkpoint_header *header,
                           const struct checkpoint_module *modules, int n_modules) {
  TRY(header_write(file, path, header));
  enum status status = STATUS_OK;
  const struct checkpoint_module **order = malloc(((size_t)n_modules + 1) * sizeof *order);
  if (!order) return status_set(STATUS_SYSTEM, "%s: out of memory for %d modules", path, n_modules);
  for (int i = 0; i < n_modules; i++) order[i] = &modules[i];
  qsort(order, (size_t)n_modules, sizeof *order, by_group);
  for (int i = 0; status == STATUS_OK && i < n_modules; i++) {
    hid_t group = -1;
    status = make_group(file, path, order[i]->group, &group);
    if (status != STATUS_OK) break;
    status = module_write(group, path, order[i]);
    hdf5_release(group);
  }
  free(order);
  return status;
}

enum status write_extent(hid_t dataset, const char *path, const struct checkpoint_array *array) {
  TRY(hdf5_put_int(dataset, path, "rows", array->rows));
  TRY(hdf5_put_int(dataset, path, "cols", array->cols));
  TRY(hdf5_put_int(dataset, path, "row", array->row));
  return hdf5_put_int(dataset, path, "col", array->col);
}

/* Whole rows up to the chunk size, in chunks of even height so that the last one
 * is padded little. */
static void choose_chunk(int64_t rows, int64_t cols, hsize_t chunk[2]) {
  int64_t width = cols < CHUNK_FLOATS ? cols : CHUNK_FLOATS;
  int64_t height = CHUNK_FLOATS / width;
  if (height > rows) height = rows;
  int64_t n = (rows + height - 1) / height;
  chunk[0] = (hsize_t)((rows + n - 1) / n);
  chunk[1] = (hsize_t)width;
}

static enum status array_lists(const char *path, const struct checkpoint_array *array, hid_t type, hid_t *creation_p,
                               hid_t *access_p) {
  enum status status = STATUS_OK;
  hsize_t chunk[2];
  float zero = 0;
  hid_t creation = -1, access = -1;
  choose_chunk(array->part_rows, array->part_cols, chunk);
  H5_TRY_OUT(STATUS_SYSTEM, path, creation = hdf5_untimed(H5P_DATASET_CREATE));
  H5_TRY_OUT(STATUS_SYSTEM, path, H5Pset_chunk(creation, 2, chunk));
  H5_TRY_OUT(STATUS_SYSTEM, path, H5Pset_fletcher32(creation));
  /* The padding of the last chunks is part of the file's bytes. */
  H5_TRY_OUT(STATUS_SYSTEM, path, H5Pset_fill_value(creation, type, &zero));
  H5_TRY_OUT(STATUS_SYSTEM, path, access = H5Pcreate(H5P_DATASET_ACCESS));
  /* No chunk cache: a write error shows at H5Dwrite, not at some later close. */
  H5_TRY_OUT(STATUS_SYSTEM, path, H5Pset_chunk_cache(access, 1, 0, 1.0));
  *creation_p = creation;
  *access_p = access;
  return STATUS_OK;
out:
  hdf5_release(creation);
  hdf5_release(access);
  return status;
}

/* The data as it goes to the file: array's own, or packed into *bits_p (free it). */
static enum status pack(const char *path, const struct checkpoint_array *array, enum dtype dtype, uint16_t **bits_p) {
  if (dtype == DTYPE_F32) return STATUS_OK;
  uint16_t *bits = malloc((size_t)array->part_rows * (size_t)array->part_cols * sizeof *bits);
  if (!bits) return status_set(STATUS_SYSTEM, "%s: out of memory for %s/%s", path, array->group, array->name);
  enum status status = hdf5_float_pack(dtype, path, array, bits);
  if (status == STATUS_OK)
    *bits_p = bits;
  else
    free(bits);
  return status;
}

enum status write_array(hid_t file, const char *path, const struct checkpoint_array *array, enum dtype dtype) {
  enum status status = STATUS_OK;
  char name[2 * CHECKPOINT_NAME];
  hsize_t size[2] = {(hsize_t)array->part_rows, (hsize_t)array->part_cols};
  hid_t type = -1, creation = -1, access = -1, space = -1, dataset = -1;
  uint16_t *bits = NULL;
  snprintf(name, sizeof name, "%s/%s", array->group, array->name);
  TRY_OUT(pack(path, array, dtype, &bits));
  H5_TRY_OUT(STATUS_SYSTEM, path, type = hdf5_float_type(dtype));
  TRY_OUT(array_lists(path, array, type, &creation, &access));
  H5_TRY_OUT(STATUS_SYSTEM, path, space = H5Screate_simple(2, size, NULL));
  H5_TRY_OUT(STATUS_SYSTEM, path, dataset = H5Dcreate2(file, name, type, space, H5P_DEFAULT, creation, access));
  TRY_OUT(write_extent(dataset, path, array));
  H5_TRY_OUT(STATUS_SYSTEM, path,
             H5Dwrite(dataset, bits ? type : H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT,
                      bits ? (const void *)bits : array->data));
  hid_t written = dataset;
  dataset = -1;
  H5_TRY_OUT(STATUS_SYSTEM, path, H5Dclose(written));
out:
  free(bits);
  hdf5_release(dataset);
  hdf5_release(space);
  hdf5_release(access);
  hdf5_release(creation);
  hdf5_release(type);
  return status;
}

static enum status check_array(const char *path, const struct checkpoint_array *a) {
  if (a->part_rows > 0 && a->part_cols > 0 && a->row >= 0 && a->col >= 0 && a->part_rows <= a->rows &&
      a->row <= a->rows - a->part_rows && a->part_cols <= a->cols && a->col <= a->cols - a->part_cols && a->data)
    return STATUS_OK;
  return status_set(STATUS_USAGE, "%s: %s/%s: part [%lld + %lld, %lld + %lld] is not inside [%lld, %lld]", path,
                    a->group, a->name, (long long)a->row, (long long)a->part_rows, (long long)a->col,
                    (long long)a->part_cols, (long long)a->rows, (long long)a->cols);
}

/* The arrays with a part, in canonical order, and their bytes. */
static enum status order_arrays(const char *path, const struct checkpoint_array *arrays, int n_arrays,
                                const struct checkpoint_array **order, int *n_p, int64_t *bytes_p) {
  int n = 0;
  int64_t bytes = 0;
  for (int i = 0; i < n_arrays; i++) {
    if (arrays[i].part_rows == 0 || arrays[i].part_cols == 0) continue;
    TRY(check_array(path, &arrays[i]));
    bytes += arrays[i].part_rows * arrays[i].part_cols * (int64_t)sizeof(float);
    order[n++] = &arrays[i];
  }
  qsort(order, (size_t)n, sizeof *order, by_array);
  *n_p = n;
  *bytes_p = bytes;
  return STATUS_OK;
}

/* The modules that own one of the ordered arrays. */
static int used_modules(const struct checkpoint_module *modules, int n_modules,
                        const struct checkpoint_array *const *order, int n, struct checkpoint_module *used) {
  int n_used = 0;
  for (int m = 0; m < n_modules; m++) {
    int low = 0, high = n; /* first array whose group is not before the module's */
    while (low < high) {
      int middle = low + (high - low) / 2;
      if (strverscmp(order[middle]->group, modules[m].group) < 0)
        low = middle + 1;
      else
        high = middle;
    }
    if (low < n && strcmp(order[low]->group, modules[m].group) == 0) used[n_used++] = modules[m];
  }
  return n_used;
}

static enum status write_contents(const struct hdf5_output *output, const struct checkpoint_header *header,
                                  const struct checkpoint_module *modules, int n_modules, const char *config_text,
                                  const struct checkpoint_array *const *order, int n) {
  TRY(write_skeleton(output->file, output->temporary, header, modules, n_modules));
  if (config_text) TRY(config_write(output->file, output->temporary, config_text));
  for (int i = 0; i < n; i++) {
    TRY(write_array(output->file, output->temporary, order[i], DTYPE_F32));
    TRY(hdf5_check(output));
  }
  return STATUS_OK;
}

static enum status write_file(const char *path, const struct checkpoint_header *header,
                              const struct checkpoint_module *modules, int n_modules, const char *config_text,
                              const struct checkpoint_array *arrays, int n_arrays) {
  enum status status = STATUS_OK;
  int n = 0;
  int64_t bytes = 0;
  const struct checkpoint_array **order = malloc(((size_t)n_arrays + 1) * sizeof *order);
  struct checkpoint_module *used = malloc(((size_t)n_modules + 1) * sizeof *used);
  if (!order || !used) {
    status = status_set(STATUS_SYSTEM, "%s: out of memory for %d arrays", path, n_arrays);
    goto out;
  }
  TRY_OUT(order_arrays(path, arrays, n_arrays, order, &n, &bytes));
  int n_used = used_modules(modules, n_modules, order, n, used);
  struct hdf5_output output;
  TRY_OUT(hdf5_create(path, bytes, &output));
  status = write_contents(&output, header, used, n_used, config_text, order, n);
  status = hdf5_finish(&output, status);
out:
  free(order);
  free(used);
  return status;
}

enum status checkpoint_write_shard(const char *directory, const char *file, const struct checkpoint_header *header,
                                   const struct checkpoint_module *modules, int n_modules,
                                   const struct checkpoint_array *arrays, int n_arrays) {
  char path[DURABLE_PATH];
  TRY(durable_path(path, sizeof path, "%s/%s", directory, file));
  hdf5_enter();
  enum status status = write_file(path, header, modules, n_modules, NULL, arrays, n_arrays);
  hdf5_leave();
  return status;
}

enum status checkpoint_write_file(const char *path, const struct checkpoint_header *header,
                                  const struct checkpoint_module *modules, int n_modules, const char *config_text,
                                  const struct checkpoint_array *arrays, int n_arrays) {
  for (int i = 0; i < n_arrays; i++)
    if (arrays[i].part_rows != arrays[i].rows || arrays[i].part_cols != arrays[i].cols)
      return status_set(STATUS_USAGE, "%s: %s/%s is not whole", path, arrays[i].group, arrays[i].name);
  hdf5_enter();
  enum status status = write_file(path, header, modules, n_modules, config_text, arrays, n_arrays);
  hdf5_leave();
  return status;
}
