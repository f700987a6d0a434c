/*
 * checkpoint_read.c: an adapter file or a step directory, open for reading
 * parts of its arrays.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/checkpoint_internal.h"

#define MAX_OPEN_SOURCES 64

/* Shards are opened when needed, and some closed again when many are open. */
struct sources {
  struct source_list list;
  hid_t *files; /* [list.n]; -1 = closed */
  int n_open, next_victim;
};

struct checkpoint {
  char path[DURABLE_PATH];      /* of the HDF5 file */
  char directory[DURABLE_PATH]; /* of its shards */
  hid_t file;
  struct checkpoint_header header;
  char *config;
  struct checkpoint_module *modules;
  int n_modules;
  struct checkpoint_array *arrays; /* whole; data NULL; in canonical order */
  int n_arrays;
  struct piece *pieces; /* source -1: the file itself */
  int *first_piece;     /* [n_arrays + 1] */
  struct sources *sources;
};

static enum status open_source(const struct checkpoint *checkpoint, int index, hid_t *file_p) {
  struct sources *sources = checkpoint->sources;
  if (sources->files[index] < 0) {
    char path[DURABLE_PATH];
    int64_t size;
    while (sources->n_open >= MAX_OPEN_SOURCES) {
      int victim = sources->next_victim;
      sources->next_victim = (victim + 1) % sources->list.n;
      if (sources->files[victim] < 0) continue;
      H5Fclose(sources->files[victim]);
      sources->files[victim] = -1;
      sources->n_open--;
    }
    TRY(durable_path(path, sizeof path, "%s/%s", checkpoint->directory, sources->list.files[index]));
    TRY(hdf5_open(path, &sources->files[index], &size));
    sources->n_open++;
  }
  *file_p = sources->files[index];
  return STATUS_OK;
}

static int find_array(const struct checkpoint_array *arrays, size_t stride, int n, const char *group,
                      const char *name) {
  int low = 0, high = n;
  while (low < high) {
    int middle = low + (high - low) / 2;
    const struct checkpoint_array *array = (const void *)((const char *)arrays + (size_t)middle * stride);
    int order = array_order(array->group, array->name, group, name);
    if (order == 0) return middle;
    if (order < 0)
      low = middle + 1;
    else
      high = middle;
  }
  return -1;
}

/* A shard must hold exactly the piece that the mapping says. */
static enum status check_source(const struct checkpoint *checkpoint, int source) {
  const char *name = checkpoint->sources->list.files[source];
  char path[DURABLE_PATH];
  struct scan scan;
  hid_t file;
  int64_t size;
  TRY(durable_path(path, sizeof path, "%s/%s", checkpoint->directory, name));
  TRY(hdf5_open(path, &file, &size));
  enum status status = scan_file(file, path, size, &scan);
  H5Fclose(file);
  TRY(status);
  for (int a = 0; status == STATUS_OK && a < checkpoint->n_arrays; a++) {
    const struct checkpoint_array *whole = &checkpoint->arrays[a];
    for (int p = checkpoint->first_piece[a]; p < checkpoint->first_piece[a + 1]; p++) {
      const struct piece *piece = &checkpoint->pieces[p];
      if (piece->source != source) continue;
      int at = scan.n_arrays
                   ? find_array(&scan.arrays[0].array, sizeof *scan.arrays, scan.n_arrays, whole->group, whole->name)
                   : -1;
      const struct checkpoint_array *part = at < 0 ? NULL : &scan.arrays[at].array;
      if (!part || scan.arrays[at].is_virtual || part->rows != whole->rows || part->cols != whole->cols ||
          part->row != piece->row || part->col != piece->col || part->part_rows != piece->rows ||
          part->part_cols != piece->cols || scan.header.step != checkpoint->header.step) {
        status = status_set(STATUS_DATA, "%s: does not hold the part of %s/%s that %s maps to it", path, whole->group,
                            whole->name, checkpoint->path);
        break;
      }
    }
  }
  scan_free(&scan);
  return status;
}

static enum status add_pieces(struct checkpoint *checkpoint, int *capacity, const struct piece *pieces, int n,
                              int n_before) {
  if (n_before + n > *capacity) {
    *capacity = 2 * (n_before + n);
    void *larger = realloc(checkpoint->pieces, (size_t)*capacity * sizeof *checkpoint->pieces);
    if (!larger) return status_set(STATUS_SYSTEM, "%s: out of memory for %d pieces", checkpoint->path, *capacity);
    checkpoint->pieces = larger;
  }
  memcpy(checkpoint->pieces + n_before, pieces, (size_t)n * sizeof *pieces);
  return STATUS_OK;
}

/* One array: its only piece in this file, or the pieces of its mappings. */
static enum status add_array(struct checkpoint *checkpoint, const struct scan_array *scanned, int *capacity) {
  const struct checkpoint_array *array = &scanned->array;
  struct piece own = {0, 0, array->rows, array->cols, -1}, *mapped = NULL;
  int n = 1, first = checkpoint->first_piece[checkpoint->n_arrays];
  if (array->part_rows != array->rows || array->part_cols != array->cols)
    return status_set(STATUS_DATA, "%s: holds only a part of %s/%s; give the step directory", checkpoint->path,
                      array->group, array->name);
  if (scanned->is_virtual)
    TRY(virtual_pieces(checkpoint->file, checkpoint->path, array, &checkpoint->sources->list, &mapped, &n));
  struct cover_fault fault;
  enum status status = STATUS_OK;
  if (mapped) {
    cover_check(mapped, n, array->rows, array->cols, &fault);
    if (fault.kind != COVER_WHOLE)
      status = status_set(STATUS_DATA, "%s: %s/%s: its virtual mappings have %s", checkpoint->path, array->group,
                          array->name, fault.kind == COVER_GAP ? "a gap" : "an overlap");
  }
  if (status == STATUS_OK) status = add_pieces(checkpoint, capacity, mapped ? mapped : &own, n, first);
  free(mapped);
  TRY(status);
  checkpoint->arrays[checkpoint->n_arrays++] = *array;
  checkpoint->first_piece[checkpoint->n_arrays] = first + n;
  return STATUS_OK;
}

static enum status add_arrays(struct checkpoint *checkpoint, const struct scan *scan) {
  int capacity = 0;
  checkpoint->arrays = malloc(((size_t)scan->n_arrays + 1) * sizeof *checkpoint->arrays);
  checkpoint->first_piece = calloc((size_t)scan->n_arrays + 1, sizeof *checkpoint->first_piece);
  checkpoint->sources = calloc(1, sizeof *checkpoint->sources);
  if (!checkpoint->arrays || !checkpoint->first_piece || !checkpoint->sources)
    return status_set(STATUS_SYSTEM, "%s: out of memory for %d arrays", checkpoint->path, scan->n_arrays);
  for (int i = 0; i < scan->n_arrays; i++) TRY(add_array(checkpoint, &scan->arrays[i], &capacity));
  struct sources *sources = checkpoint->sources;
  sources->files = malloc(((size_t)sources->list.n + 1) * sizeof *sources->files);
  if (!sources->files) return status_set(STATUS_SYSTEM, "%s: out of memory", checkpoint->path);
  for (int i = 0; i < sources->list.n; i++) sources->files[i] = -1;
  for (int i = 0; i < sources->list.n; i++) TRY(check_source(checkpoint, i));
  return STATUS_OK;
}

/* PATH is a step directory (checked against its manifest) or a file. */
static enum status resolve(const char *path, struct checkpoint *checkpoint, int64_t *step_p) {
  struct stat info;
  *step_p = -1;
  if (stat(path, &info) != 0)
    return status_set(STATUS_USAGE, "%s: no such adapter; name an adapter.h5, a checkpoint directory or a PEFT folder",
                      path);
  if (S_ISDIR(info.st_mode)) {
    TRY(manifest_check(path, step_p));
    TRY(durable_path(checkpoint->directory, sizeof checkpoint->directory, "%s", path));
    return durable_path(checkpoint->path, sizeof checkpoint->path, "%s/adapter.h5", path);
  }
  TRY(durable_path(checkpoint->path, sizeof checkpoint->path, "%s", path));
  TRY(durable_path(checkpoint->directory, sizeof checkpoint->directory, "%s", path));
  char *slash = strrchr(checkpoint->directory, '/');
  if (slash)
    slash[slash == checkpoint->directory] = 0;
  else
    strcpy(checkpoint->directory, ".");
  return STATUS_OK;
}

static enum status open_checkpoint(const char *path, struct checkpoint *checkpoint) {
  int64_t step, size;
  struct scan scan;
  TRY(resolve(path, checkpoint, &step));
  TRY(hdf5_open(checkpoint->path, &checkpoint->file, &size));
  TRY(scan_file(checkpoint->file, checkpoint->path, size, &scan));
  checkpoint->header = scan.header;
  enum status status = STATUS_OK;
  if (step >= 0 && step != scan.header.step)
    status = status_set(STATUS_DATA, "%s: is of step %lld, its manifest of %lld", checkpoint->path,
                        (long long)scan.header.step, (long long)step);
  if (status == STATUS_OK) status = config_read_text(checkpoint->file, checkpoint->path, size, &checkpoint->config);
  if (status == STATUS_OK) status = add_arrays(checkpoint, &scan);
  checkpoint->modules = scan.modules;
  checkpoint->n_modules = scan.n_modules;
  scan.modules = NULL;
  scan_free(&scan);
  return status;
}

enum status checkpoint_open(const char *path, struct checkpoint **checkpoint_p) {
  struct checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
  if (!checkpoint) return status_set(STATUS_SYSTEM, "%s: out of memory", path);
  checkpoint->file = -1;
  hdf5_enter();
  enum status status = open_checkpoint(path, checkpoint);
  hdf5_leave();
  if (status == STATUS_OK)
    *checkpoint_p = checkpoint;
  else
    checkpoint_close(&checkpoint);
  return status;
}

void checkpoint_close(struct checkpoint **checkpoint_p) {
  struct checkpoint *checkpoint = checkpoint_p ? *checkpoint_p : NULL;
  if (!checkpoint) return;
  hdf5_enter();
  struct sources *sources = checkpoint->sources;
  if (sources && sources->files)
    for (int i = 0; i < sources->list.n; i++)
      if (sources->files[i] >= 0) H5Fclose(sources->files[i]);
  if (checkpoint->file >= 0) H5Fclose(checkpoint->file);
  hdf5_leave();
  if (sources) {
    free(sources->list.files);
    free(sources->files);
    free(sources);
  }
  free(checkpoint->config);
  free(checkpoint->modules);
  free(checkpoint->arrays);
  free(checkpoint->pieces);
  free(checkpoint->first_piece);
  free(checkpoint);
  *checkpoint_p = NULL;
}

const struct checkpoint_header *checkpoint_header(const struct checkpoint *checkpoint) { return &checkpoint->header; }

const char *checkpoint_config(const struct checkpoint *checkpoint) {
  return checkpoint->config ? checkpoint->config : "";
}

int checkpoint_modules(const struct checkpoint *checkpoint, const struct checkpoint_module **modules_p) {
  *modules_p = checkpoint->modules;
  return checkpoint->n_modules;
}

int checkpoint_arrays(const struct checkpoint *checkpoint, const struct checkpoint_array **arrays_p) {
  *arrays_p = checkpoint->arrays;
  return checkpoint->n_arrays;
}

/* Read the overlap of the wanted part and one piece. */
static enum status read_piece(const struct checkpoint *checkpoint, const struct checkpoint_array *want,
                              const struct piece *piece) {
  int64_t top = want->row > piece->row ? want->row : piece->row;
  int64_t left = want->col > piece->col ? want->col : piece->col;
  int64_t bottom = want->row + want->part_rows, right = want->col + want->part_cols;
  if (piece->row + piece->rows < bottom) bottom = piece->row + piece->rows;
  if (piece->col + piece->cols < right) right = piece->col + piece->cols;
  if (top >= bottom || left >= right) return STATUS_OK;

  enum status status = STATUS_OK;
  hid_t file = checkpoint->file, dataset = -1;
  char name[2 * CHECKPOINT_NAME];
  const char *path = piece->source < 0 ? checkpoint->path : checkpoint->sources->list.files[piece->source];
  if (piece->source >= 0) TRY(open_source(checkpoint, piece->source, &file));
  const hsize_t from[2] = {(hsize_t)(top - piece->row), (hsize_t)(left - piece->col)};
  const hsize_t count[2] = {(hsize_t)(bottom - top), (hsize_t)(right - left)};
  float *to = want->data + (top - want->row) * want->part_cols + (left - want->col);
  snprintf(name, sizeof name, "%s/%s", want->group, want->name);
  H5_TRY_OUT(STATUS_DATA, path, dataset = H5Dopen2(file, name, H5P_DEFAULT));
  status = hdf5_float_read(dataset, path, from, count, to, (hsize_t)want->part_cols);
out:
  hdf5_release(dataset);
  return status == STATUS_OK ? status : status_prefix(status, "%s", name);
}

enum status checkpoint_read(const struct checkpoint *checkpoint, const struct checkpoint_array *array) {
  int at = find_array(checkpoint->arrays, sizeof *checkpoint->arrays, checkpoint->n_arrays, array->group, array->name);
  if (at < 0) return status_set(STATUS_DATA, "%s: has no %s/%s", checkpoint->path, array->group, array->name);
  const struct checkpoint_array *stored = &checkpoint->arrays[at];
  if (stored->rows != array->rows || stored->cols != array->cols)
    return status_set(STATUS_DATA, "%s: %s/%s is [%lld, %lld], not [%lld, %lld]", checkpoint->path, array->group,
                      array->name, (long long)stored->rows, (long long)stored->cols, (long long)array->rows,
                      (long long)array->cols);
  if (array->part_rows == 0 || array->part_cols == 0) return STATUS_OK;
  if (array->row < 0 || array->col < 0 || array->part_rows < 0 || array->part_cols < 0 ||
      array->part_rows > array->rows || array->row > array->rows - array->part_rows || array->part_cols > array->cols ||
      array->col > array->cols - array->part_cols)
    return status_set(STATUS_USAGE, "%s: %s/%s: the part asked for is outside of it", checkpoint->path, array->group,
                      array->name);
  hdf5_enter();
  enum status status = STATUS_OK;
  for (int p = checkpoint->first_piece[at]; status == STATUS_OK && p < checkpoint->first_piece[at + 1]; p++)
    status = read_piece(checkpoint, array, &checkpoint->pieces[p]);
  hdf5_leave();
  return status;
}
