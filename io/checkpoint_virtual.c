/*
 * checkpoint_virtual.c: the mappings of virtual datasets over shard files, made
 * and read. Source names are plain names of files beside adapter.h5: HDF5 looks
 * there first, so a step directory can be moved. Reading does not leave the
 * search to HDF5 (which follows environment variables and fills in zeros for a
 * source that is missing): the mappings are checked here and the sources are
 * opened by checkpoint_read.c.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/checkpoint_internal.h"

static enum status map_piece(hid_t list, hid_t space, const char *path, const char *file, const char *dataset,
                             const struct piece *piece) {
  enum status status = STATUS_OK;
  hsize_t start[2] = {(hsize_t)piece->row, (hsize_t)piece->col};
  hsize_t count[2] = {(hsize_t)piece->rows, (hsize_t)piece->cols};
  hid_t source = -1;
  H5_TRY_OUT(STATUS_SYSTEM, path, H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL));
  H5_TRY_OUT(STATUS_SYSTEM, path, source = H5Screate_simple(2, count, NULL));
  H5_TRY_OUT(STATUS_SYSTEM, path, H5Pset_virtual(list, space, file, dataset, source));
out:
  hdf5_release(source);
  return status;
}

static enum status write_virtual(hid_t file, const char *path, const struct shard_set *set, int index) {
  enum status status = STATUS_OK;
  struct checkpoint_array array = set->arrays[index];
  hsize_t size[2] = {(hsize_t)array.rows, (hsize_t)array.cols};
  char name[2 * CHECKPOINT_NAME + 1];
  hid_t list = -1, space = -1, selection = -1, dataset = -1;
  array.row = array.col = 0;
  snprintf(name, sizeof name, "/%s/%s", array.group, array.name);
  H5_TRY_OUT(STATUS_SYSTEM, path, list = hdf5_untimed(H5P_DATASET_CREATE));
  H5_TRY_OUT(STATUS_SYSTEM, path, space = H5Screate_simple(2, size, NULL));
  H5_TRY_OUT(STATUS_SYSTEM, path, selection = H5Screate_simple(2, size, NULL));
  for (int p = set->first_piece[index]; p < set->first_piece[index + 1]; p++)
    TRY_OUT(map_piece(list, selection, path, set->files[set->pieces[p].source], name, &set->pieces[p]));
  H5_TRY_OUT(STATUS_SYSTEM, path,
             dataset = H5Dcreate2(file, name, H5T_IEEE_F32LE, space, H5P_DEFAULT, list, H5P_DEFAULT));
  TRY_OUT(write_extent(dataset, path, &array));
  hid_t written = dataset;
  dataset = -1;
  H5_TRY_OUT(STATUS_SYSTEM, path, H5Dclose(written));
out:
  hdf5_release(dataset);
  hdf5_release(selection);
  hdf5_release(space);
  hdf5_release(list);
  return status;
}

enum status shard_set_publish(const struct shard_set *set, const char *directory,
                              const struct checkpoint_header *header, const struct checkpoint_module *modules,
                              int n_modules, const char *config_text) {
  char path[DURABLE_PATH];
  struct hdf5_output output;
  TRY(durable_path(path, sizeof path, "%s/adapter.h5", directory));
  TRY(hdf5_create(path, 0, &output));
  enum status status = write_skeleton(output.file, output.temporary, header, modules, n_modules);
  if (status == STATUS_OK && config_text) status = config_write(output.file, output.temporary, config_text);
  for (int i = 0; status == STATUS_OK && i < set->n_arrays; i++) {
    status = write_virtual(output.file, output.temporary, set, i);
    if (status == STATUS_OK) status = hdf5_check(&output);
  }
  return hdf5_finish(&output, status);
}

/* The solid rectangle that a selection of a matrix is; false for any other. */
static bool solid_block(hid_t space, hsize_t start[2], hsize_t count[2]) {
  hsize_t end[2];
  if (H5Sget_simple_extent_ndims(space) != 2 || H5Sget_select_type(space) != H5S_SEL_HYPERSLABS ||
      H5Sget_select_bounds(space, start, end) < 0)
    return false;
  count[0] = end[0] - start[0] + 1;
  count[1] = end[1] - start[1] + 1;
  hssize_t points = H5Sget_select_npoints(space);
  return points > 0 && count[0] <= INT32_MAX && count[1] <= INT32_MAX && count[0] * count[1] == (hsize_t)points;
}

/* Where a mapping lies in the array. Its source selection is "all" (the file
 * does not say of what size: the source itself will be compared) or the
 * rectangle of the same size at the source's beginning. */
static bool mapped_block(hid_t space, hid_t source, const struct checkpoint_array *array, struct piece *piece) {
  hsize_t start[2], count[2], source_start[2], source_count[2];
  if (!solid_block(space, start, count)) return false;
  if (H5Sget_select_type(source) != H5S_SEL_ALL &&
      (!solid_block(source, source_start, source_count) || source_start[0] || source_start[1] ||
       source_count[0] != count[0] || source_count[1] != count[1]))
    return false;
  if (start[0] + count[0] > (hsize_t)array->rows || start[1] + count[1] > (hsize_t)array->cols) return false;
  piece->row = (int64_t)start[0];
  piece->col = (int64_t)start[1];
  piece->rows = (int64_t)count[0];
  piece->cols = (int64_t)count[1];
  return true;
}

static enum status source_index(struct source_list *sources, const char *path, const char *name, int *index_p) {
  size_t length = strlen(name);
  if (strncmp(name, "shard-", 6) != 0 || strchr(name, '/') || strstr(name, "..") || length < 4 ||
      length >= CHECKPOINT_NAME || strcmp(name + length - 3, ".h5") != 0)
    return status_set(STATUS_DATA, "%s: virtual source \"%.100s\" is refused: not a shard file beside it", path, name);
  /* Arrays come shard by shard in the same order: look at the last ones first. */
  for (int i = sources->n - 1; i >= 0; i--)
    if (strcmp(sources->files[i], name) == 0) {
      *index_p = i;
      return STATUS_OK;
    }
  if (sources->n == CHECKPOINT_MAX_SHARDS)
    return status_set(STATUS_DATA, "%s: more than %d shards", path, CHECKPOINT_MAX_SHARDS);
  if (sources->n == sources->capacity) {
    int capacity = sources->capacity ? 2 * sources->capacity : 16;
    void *larger = realloc(sources->files, (size_t)capacity * sizeof *sources->files);
    if (!larger) return status_set(STATUS_SYSTEM, "%s: out of memory for %d shard names", path, capacity);
    sources->files = larger;
    sources->capacity = capacity;
  }
  memcpy(sources->files[sources->n], name, length + 1);
  *index_p = sources->n++;
  return STATUS_OK;
}

/* Mapping i of a virtual dataset as a piece. */
static enum status read_mapping(hid_t list, size_t i, const char *path, const struct checkpoint_array *array,
                                struct source_list *sources, struct piece *piece) {
  enum status status = STATUS_OK;
  char file[512] = "", dataset[512] = "", expected[2 * CHECKPOINT_NAME + 1];
  hid_t space = -1, source = -1;
  snprintf(expected, sizeof expected, "/%s/%s", array->group, array->name);
  H5_TRY_OUT(STATUS_DATA, path, H5Pget_virtual_filename(list, i, file, sizeof file));
  H5_TRY_OUT(STATUS_DATA, path, H5Pget_virtual_dsetname(list, i, dataset, sizeof dataset));
  H5_TRY_OUT(STATUS_DATA, path, space = H5Pget_virtual_vspace(list, i));
  H5_TRY_OUT(STATUS_DATA, path, source = H5Pget_virtual_srcspace(list, i));
  TRY_OUT(source_index(sources, path, file, &piece->source));
  if (strcmp(dataset, expected) != 0) {
    status =
        status_set(STATUS_DATA, "%s: %s: virtual source dataset \"%.100s\" is another one", path, expected, dataset);
    goto out;
  }
  if (!mapped_block(space, source, array, piece))
    status = status_set(STATUS_DATA, "%s: %s: virtual mapping %zu is not one rectangle", path, expected, i);
out:
  hdf5_release(space);
  hdf5_release(source);
  return status;
}

enum status virtual_pieces(hid_t file, const char *path, const struct checkpoint_array *array,
                           struct source_list *sources, struct piece **pieces_p, int *n_pieces_p) {
  enum status status = STATUS_OK;
  char name[2 * CHECKPOINT_NAME];
  size_t n = 0;
  struct piece *pieces = NULL;
  hid_t dataset = -1, list = -1;
  snprintf(name, sizeof name, "%s/%s", array->group, array->name);
  H5_TRY_OUT(STATUS_DATA, path, dataset = H5Dopen2(file, name, H5P_DEFAULT));
  H5_TRY_OUT(STATUS_DATA, path, list = H5Dget_create_plist(dataset));
  H5_TRY_OUT(STATUS_DATA, path, H5Pget_virtual_count(list, &n));
  if (n < 1 || n > CHECKPOINT_MAX_SHARDS) {
    status = status_set(STATUS_DATA, "%s: %s: %zu virtual mappings", path, name, n);
    goto out;
  }
  if (!(pieces = malloc(n * sizeof *pieces))) {
    status = status_set(STATUS_SYSTEM, "%s: out of memory for %zu pieces", path, n);
    goto out;
  }
  for (size_t i = 0; i < n; i++) TRY_OUT(read_mapping(list, i, path, array, sources, &pieces[i]));
  *pieces_p = pieces;
  *n_pieces_p = (int)n;
  pieces = NULL;
out:
  free(pieces);
  hdf5_release(list);
  hdf5_release(dataset);
  return status;
}
