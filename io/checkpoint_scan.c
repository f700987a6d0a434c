/*
 * checkpoint_scan.c: walks a file that nobody vouches for. Nothing is allocated
 * from a size that the file claims before it is compared with the file's own
 * size; only what this program writes is let through.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/checkpoint_internal.h"

#define MAX_LINKS    (1 << 18)
#define MAX_DEPTH    8
#define MAX_ELEMENTS (INT64_C(1) << 40)

struct walk {
  const char *path;
  int64_t file_size;
  int depth, n_links;
  char group[CHECKPOINT_NAME];
  bool group_has_module; /* the group's attributes were read already */
  struct scan *scan;
  enum status status;
};

static enum status check_layout(hid_t dataset, hid_t list, const char *path, const char *where, int64_t file_size,
                                bool *is_virtual_p) {
  H5D_layout_t layout = H5Pget_layout(list);
  if (layout == H5D_VIRTUAL && is_virtual_p) {
    *is_virtual_p = true;
    return STATUS_OK;
  }
  if (layout != H5D_CHUNKED && layout != H5D_CONTIGUOUS)
    return status_set(STATUS_DATA, "%s: %s: storage layout %d is not supported", path, where, (int)layout);
  if (layout == H5D_CHUNKED) {
    hsize_t chunk[2] = {0, 1};
    int rank = H5Pget_chunk(list, 2, chunk);
    hid_t type = H5Dget_type(dataset);
    hsize_t size = type < 0 ? 0 : H5Tget_size(type);
    hdf5_release(type);
    if (rank < 1 || rank > 2 || size < 1 || size > (hsize_t)file_size || chunk[0] < 1 || chunk[1] < 1 ||
        chunk[0] > (hsize_t)file_size || chunk[1] > (hsize_t)file_size / size ||
        chunk[0] > (hsize_t)file_size / size / chunk[1])
      return status_set(STATUS_DATA, "%s: %s: its chunks are larger than the file", path, where);
  }
  return STATUS_OK;
}

enum status dataset_check_storage(hid_t dataset, const char *path, const char *where, int64_t file_size,
                                  bool *is_virtual_p) {
  enum status status = STATUS_OK;
  hid_t list = -1;
  if (is_virtual_p) *is_virtual_p = false;
  H5_TRY_OUT(STATUS_DATA, path, list = H5Dget_create_plist(dataset));
  if (H5Pget_external_count(list) != 0) {
    status = status_set(STATUS_DATA, "%s: %s: external storage is refused", path, where);
    goto out;
  }
  TRY_OUT(check_layout(dataset, list, path, where, file_size, is_virtual_p));
  int n_filters;
  H5_TRY_OUT(STATUS_DATA, path, n_filters = H5Pget_nfilters(list));
  for (int i = 0; i < n_filters; i++) {
    unsigned flags, configuration;
    size_t n_values = 0;
    H5Z_filter_t filter = H5Pget_filter2(list, (unsigned)i, &flags, &n_values, NULL, 0, NULL, &configuration);
    if (filter == H5Z_FILTER_FLETCHER32) continue;
    status = status_set(STATUS_DATA, "%s: %s: filter %d is not supported; remove it with h5repack -f NONE", path, where,
                        (int)filter);
    goto out;
  }
out:
  hdf5_release(list);
  return status;
}

static enum status grow(void **items, int n, int *capacity, size_t size) {
  if (n < *capacity) return STATUS_OK;
  int wanted = *capacity ? 2 * *capacity : 64;
  void *larger = realloc(*items, (size_t)wanted * size);
  if (!larger) return status_set(STATUS_SYSTEM, "out of memory for %d entries", wanted);
  *items = larger;
  *capacity = wanted;
  return STATUS_OK;
}

static enum status read_extent(hid_t dataset, const char *path, const char *where, struct checkpoint_array *array,
                               enum dtype *dtype_p) {
  enum status status = STATUS_OK;
  hid_t space = -1, type = -1;
  hsize_t size[2], largest[2];
  H5_TRY_OUT(STATUS_DATA, path, space = H5Dget_space(dataset));
  H5_TRY_OUT(STATUS_DATA, path, type = H5Dget_type(dataset));
  if (!hdf5_float_dtype(type, dtype_p)) {
    status = status_set(STATUS_DATA, "%s: %s: type is neither little-endian IEEE of 32 or 16 bits nor bfloat16", path,
                        where);
    goto out;
  }
  if (H5Sis_simple(space) <= 0 || H5Sget_simple_extent_ndims(space) != 2 ||
      H5Sget_simple_extent_dims(space, size, largest) != 2) {
    status = status_set(STATUS_DATA, "%s: %s: not a matrix", path, where);
    goto out;
  }
  TRY_OUT(hdf5_get_int(dataset, path, where, "rows", &array->rows));
  TRY_OUT(hdf5_get_int(dataset, path, where, "cols", &array->cols));
  TRY_OUT(hdf5_get_int(dataset, path, where, "row", &array->row));
  TRY_OUT(hdf5_get_int(dataset, path, where, "col", &array->col));
  bool whole_fits = array->rows > 0 && array->cols > 0 && array->rows <= MAX_ELEMENTS / array->cols;
  if (!whole_fits || size[0] < 1 || size[1] < 1 || array->row < 0 || array->col < 0 || size[0] > (hsize_t)array->rows ||
      array->row > array->rows - (int64_t)size[0] || size[1] > (hsize_t)array->cols ||
      array->col > array->cols - (int64_t)size[1]) {
    status = status_set(STATUS_DATA, "%s: %s: extent and attributes row, col, rows, cols contradict each other", path,
                        where);
    goto out;
  }
  array->part_rows = (int64_t)size[0];
  array->part_cols = (int64_t)size[1];
out:
  hdf5_release(type);
  hdf5_release(space);
  return status;
}

static enum status add_module(struct walk *walk, hid_t group) {
  struct scan *scan = walk->scan;
  if (walk->group_has_module) return STATUS_OK;
  TRY(grow((void **)&scan->modules, scan->n_modules, &scan->modules_capacity, sizeof *scan->modules));
  struct checkpoint_module *module = &scan->modules[scan->n_modules];
  memset(module, 0, sizeof *module);
  snprintf(module->group, sizeof module->group, "%s", walk->group);
  TRY(module_read(group, walk->path, module));
  scan->n_modules++;
  walk->group_has_module = true;
  return STATUS_OK;
}

static enum status add_array(struct walk *walk, hid_t group, const char *name, hid_t dataset) {
  struct scan *scan = walk->scan;
  char where[2 * CHECKPOINT_NAME];
  snprintf(where, sizeof where, "%s/%s", walk->group, name);
  TRY(add_module(walk, group));
  struct checkpoint_array array = {.data = NULL};
  snprintf(array.group, sizeof array.group, "%s", walk->group);
  snprintf(array.name, sizeof array.name, "%s", name);
  enum dtype dtype;
  TRY(read_extent(dataset, walk->path, where, &array, &dtype));
  bool is_virtual;
  TRY(dataset_check_storage(dataset, walk->path, where, walk->file_size, &is_virtual));
  int64_t bytes = array.part_rows * array.part_cols * (int64_t)dtype_bytes(dtype, 1);
  if (!is_virtual) {
    scan->stored_bytes += bytes;
    if (H5Dget_storage_size(dataset) < (hsize_t)bytes || scan->stored_bytes > walk->file_size)
      return status_set(STATUS_DATA, "%s: %s: claims %lld bytes that the file does not hold", walk->path, where,
                        (long long)bytes);
  }
  TRY(grow((void **)&scan->arrays, scan->n_arrays, &scan->arrays_capacity, sizeof *scan->arrays));
  scan->arrays[scan->n_arrays++] = (struct scan_array){array, is_virtual};
  return STATUS_OK;
}

static enum status check_name(const struct walk *walk, const char *name) {
  size_t length = strlen(name);
  bool plain =
      length > 0 && length == strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-");
  if (!plain || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
    return status_set(STATUS_DATA, "%s: %s: object name \"%.40s\" is not plain", walk->path,
                      walk->group[0] ? walk->group : "root", name);
  if (strlen(walk->group) + 1 + length >= CHECKPOINT_NAME)
    return status_set(STATUS_DATA, "%s: %s: object name \"%.40s\" is too long", walk->path, walk->group, name);
  return STATUS_OK;
}

static enum status walk_group(struct walk *walk, hid_t group);

static enum status walk_child_group(struct walk *walk, const char *name, hid_t child) {
  size_t length = strlen(walk->group);
  bool had_module = walk->group_has_module;
  if (walk->depth >= MAX_DEPTH)
    return status_set(STATUS_DATA, "%s: %s: groups are nested too deeply", walk->path, walk->group);
  snprintf(walk->group + length, sizeof walk->group - length, "%s%s", length ? "/" : "", name);
  walk->group_has_module = false;
  walk->depth++;
  enum status status = walk_group(walk, child);
  walk->depth--;
  walk->group_has_module = had_module;
  walk->group[length] = 0;
  return status;
}

static enum status visit_object(struct walk *walk, hid_t group, const char *name, const H5L_info_t *info) {
  TRY(check_name(walk, name));
  if (++walk->n_links > MAX_LINKS) return status_set(STATUS_DATA, "%s: more than %d objects", walk->path, MAX_LINKS);
  if (info->type != H5L_TYPE_HARD)
    return status_set(STATUS_DATA, "%s: %s/%s: %s link is refused", walk->path, walk->group, name,
                      info->type == H5L_TYPE_EXTERNAL ? "an external" : "a soft");
  enum status status = STATUS_OK;
  hid_t object = -1;
  H5_TRY_OUT(STATUS_DATA, walk->path, object = H5Oopen(group, name, H5P_DEFAULT));
  H5I_type_t type = H5Iget_type(object);
  bool at_root = walk->group[0] == 0;
  if (type == H5I_GROUP) {
    status = walk_child_group(walk, name, object);
  } else if (type == H5I_DATASET && at_root && strcmp(name, "config") == 0) {
    status = STATUS_OK; /* read by config_read_text */
  } else if (type == H5I_DATASET && !at_root) {
    status = add_array(walk, group, name, object);
  } else {
    status = status_set(STATUS_DATA, "%s: %s/%s: an object that does not belong into an adapter file", walk->path,
                        walk->group, name);
  }
out:
  hdf5_release(object);
  return status;
}

static herr_t visit(hid_t group, const char *name, const H5L_info_t *info, void *walk_p) {
  struct walk *walk = walk_p;
  walk->status = visit_object(walk, group, name, info);
  return walk->status == STATUS_OK ? 0 : -1;
}

static enum status walk_group(struct walk *walk, hid_t group) {
  hsize_t position = 0;
  walk->status = STATUS_OK;
  herr_t result = H5Literate(group, H5_INDEX_NAME, H5_ITER_INC, &position, visit, walk);
  if (result >= 0) return STATUS_OK;
  if (walk->status == STATUS_OK) return hdf5_fail(STATUS_DATA, walk->path, "H5Literate", __FILE__, __LINE__);
  H5Eclear2(H5E_DEFAULT);
  return walk->status;
}

int array_order(const char *group_a, const char *name_a, const char *group_b, const char *name_b) {
  int groups = strverscmp(group_a, group_b);
  return groups ? groups : strcmp(name_a, name_b);
}

static int module_order(const void *a, const void *b) {
  const struct checkpoint_module *x = a, *y = b;
  return strverscmp(x->group, y->group);
}

static int by_array(const void *a, const void *b) {
  const struct scan_array *x = a, *y = b;
  return array_order(x->array.group, x->array.name, y->array.group, y->array.name);
}

enum status scan_file(hid_t file, const char *path, int64_t file_size, struct scan *scan) {
  enum status status = STATUS_OK;
  struct walk walk = {.path = path, .file_size = file_size, .scan = scan};
  hid_t root = -1;
  memset(scan, 0, sizeof *scan);
  TRY_OUT(header_read(file, path, &scan->header));
  H5_TRY_OUT(STATUS_DATA, path, root = H5Gopen2(file, "/", H5P_DEFAULT));
  TRY_OUT(walk_group(&walk, root));
  if (scan->n_modules) qsort(scan->modules, (size_t)scan->n_modules, sizeof *scan->modules, module_order);
  /* A stage without adapters has no arrays. */
  if (scan->n_arrays) qsort(scan->arrays, (size_t)scan->n_arrays, sizeof *scan->arrays, by_array);
out:
  hdf5_release(root);
  if (status != STATUS_OK) scan_free(scan);
  return status;
}

void scan_free(struct scan *scan) {
  free(scan->modules);
  free(scan->arrays);
  memset(scan, 0, sizeof *scan);
}
