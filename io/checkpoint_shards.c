/*
 * checkpoint_shards.c: what the shards of a step hold together. A step is only
 * published if every array is there exactly once.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/checkpoint_internal.h"

/* A part of an array and the shard that holds it. */
struct part {
  struct checkpoint_array array;
  int source;
};

struct part_list {
  struct part *items;
  int n, capacity;
};

static int by_name(const void *a, const void *b) { return strcmp(a, b); }

static int by_part(const void *a, const void *b) {
  const struct part *x = a, *y = b;
  int order = array_order(x->array.group, x->array.name, y->array.group, y->array.name);
  return order ? order : x->source - y->source;
}

static enum status add_file(const char *directory, const char *name, struct shard_set *set, int *capacity) {
  size_t length = strlen(name);
  if (length > 4 && strcmp(name + length - 4, ".tmp") == 0)
    return status_set(STATUS_DATA, "%s/%s: an unfinished shard; the step is not published", directory, name);
  if (length < 4 || strcmp(name + length - 3, ".h5") != 0) return STATUS_OK;
  if (length >= CHECKPOINT_NAME || set->n_files == CHECKPOINT_MAX_SHARDS)
    return status_set(STATUS_USAGE, "%s/%s: shard names have at most %d bytes, and a step %d shards", directory, name,
                      CHECKPOINT_NAME - 1, CHECKPOINT_MAX_SHARDS);
  if (set->n_files == *capacity) {
    *capacity = *capacity ? 2 * *capacity : 16;
    void *larger = realloc(set->files, (size_t)*capacity * sizeof *set->files);
    if (!larger) return status_set(STATUS_SYSTEM, "%s: out of memory for %d shard names", directory, *capacity);
    set->files = larger;
  }
  memcpy(set->files[set->n_files++], name, length + 1);
  return STATUS_OK;
}

static enum status list_files(const char *directory, struct shard_set *set) {
  int capacity = 0;
  DIR *stream = opendir(directory);
  if (!stream) return status_set(STATUS_SYSTEM, "%s: cannot list: %s", directory, strerror(errno));
  enum status status = STATUS_OK;
  for (struct dirent *entry; status == STATUS_OK && (entry = readdir(stream));)
    if (strncmp(entry->d_name, "shard-", 6) == 0) status = add_file(directory, entry->d_name, set, &capacity);
  closedir(stream);
  if (status == STATUS_OK && set->n_files == 0) status = status_set(STATUS_DATA, "%s: no shard-*.h5 in it", directory);
  if (status == STATUS_OK) qsort(set->files, (size_t)set->n_files, sizeof *set->files, by_name);
  return status;
}

static const struct checkpoint_module *find_module(const struct checkpoint_module *modules, int n_modules,
                                                   const char *group) {
  for (int i = 0; i < n_modules; i++)
    if (strcmp(modules[i].group, group) == 0) return &modules[i];
  return NULL;
}

/* The shard must be of this step and know the modules as the caller does. */
static enum status check_shard(const char *path, const struct scan *scan, const struct checkpoint_header *header,
                               const struct checkpoint_module *modules, int n_modules) {
  if (scan->header.step != header->step)
    return status_set(STATUS_DATA, "%s: is of step %lld, not %lld", path, (long long)scan->header.step,
                      (long long)header->step);
  for (int i = 0; i < scan->n_modules; i++) {
    const struct checkpoint_module *a = &scan->modules[i];
    const struct checkpoint_module *b = find_module(modules, n_modules, a->group);
    if (!b) return status_set(STATUS_DATA, "%s: %s is not a module of this job", path, a->group);
    if (a->r != b->r || a->in != b->in || a->out != b->out || a->alpha != b->alpha || a->rslora != b->rslora)
      return status_set(STATUS_DATA, "%s: %s: r, alpha or sizes differ from the job's", path, a->group);
  }
  for (int i = 0; i < scan->n_arrays; i++)
    if (scan->arrays[i].is_virtual)
      return status_set(STATUS_DATA, "%s: %s/%s is virtual", path, scan->arrays[i].array.group,
                        scan->arrays[i].array.name);
  return STATUS_OK;
}

static enum status add_parts(struct part_list *parts, const char *path, const struct scan *scan, int source) {
  if (parts->n + scan->n_arrays > parts->capacity) {
    int capacity = 2 * (parts->n + scan->n_arrays);
    void *larger = realloc(parts->items, (size_t)capacity * sizeof *parts->items);
    if (!larger) return status_set(STATUS_SYSTEM, "%s: out of memory for %d parts", path, capacity);
    parts->items = larger;
    parts->capacity = capacity;
  }
  for (int i = 0; i < scan->n_arrays; i++) parts->items[parts->n++] = (struct part){scan->arrays[i].array, source};
  return STATUS_OK;
}

static enum status scan_shard(const char *directory, const char *name, int source,
                              const struct checkpoint_header *header, const struct checkpoint_module *modules,
                              int n_modules, struct part_list *parts) {
  char path[DURABLE_PATH];
  hid_t file;
  int64_t size;
  struct scan scan;
  TRY(durable_path(path, sizeof path, "%s/%s", directory, name));
  TRY(hdf5_open(path, &file, &size));
  enum status status = scan_file(file, path, size, &scan);
  H5Fclose(file);
  TRY(status);
  status = check_shard(path, &scan, header, modules, n_modules);
  if (status == STATUS_OK) status = add_parts(parts, path, &scan, source);
  scan_free(&scan);
  return status;
}

static enum status report_fault(const char *directory, const struct shard_set *set,
                                const struct checkpoint_array *array, const struct piece *pieces, int n,
                                const struct cover_fault *fault) {
  if (fault->kind == COVER_OVERLAP)
    return status_set(STATUS_DATA, "%s: %s/%s: %s and %s hold the same elements", directory, array->group, array->name,
                      set->files[fault->first], set->files[fault->second]);
  char others[32] = "";
  if (n > 1) snprintf(others, sizeof others, " and %d others", n - 1);
  return status_set(STATUS_DATA, "%s: %s/%s: %lld of %lld elements are in no shard (%s%s hold the rest)", directory,
                    array->group, array->name, (long long)fault->missing, (long long)(array->rows * array->cols),
                    set->files[pieces[0].source], others);
}

/* Turn the sorted parts into arrays with pieces. */
static enum status merge_parts(const char *directory, struct part_list *parts, struct shard_set *set) {
  qsort(parts->items, (size_t)parts->n, sizeof *parts->items, by_part);
  for (int i = 0; i < parts->n;) {
    struct checkpoint_array whole = parts->items[i].array;
    int first = i;
    for (; i < parts->n; i++) {
      const struct part *part = &parts->items[i];
      if (array_order(whole.group, whole.name, part->array.group, part->array.name) != 0) break;
      if (part->array.rows != whole.rows || part->array.cols != whole.cols)
        return status_set(STATUS_DATA, "%s: %s/%s: %s and %s disagree on its size", directory, whole.group, whole.name,
                          set->files[parts->items[first].source], set->files[part->source]);
      set->pieces[i] =
          (struct piece){part->array.row, part->array.col, part->array.part_rows, part->array.part_cols, part->source};
    }
    struct cover_fault fault;
    cover_check(set->pieces + first, i - first, whole.rows, whole.cols, &fault);
    if (fault.kind != COVER_WHOLE) return report_fault(directory, set, &whole, set->pieces + first, i - first, &fault);
    set->first_piece[set->n_arrays] = first;
    set->arrays[set->n_arrays++] = whole;
  }
  set->first_piece[set->n_arrays] = parts->n;
  return STATUS_OK;
}

static bool set_has(const struct shard_set *set, const char *group, const char *name) {
  int low = 0, high = set->n_arrays;
  while (low < high) {
    int middle = low + (high - low) / 2;
    int order = array_order(set->arrays[middle].group, set->arrays[middle].name, group, name);
    if (order == 0) return true;
    if (order < 0)
      low = middle + 1;
    else
      high = middle;
  }
  return false;
}

/* An array that no shard holds at all is noticed by the modules that have it:
 * every module has the arrays that the first one has. */
static enum status check_complete(const char *directory, const struct checkpoint_module *modules, int n_modules,
                                  const struct shard_set *set) {
  for (int a = 0; a < set->n_arrays && strcmp(set->arrays[a].group, set->arrays[0].group) == 0; a++)
    for (int m = 0; m < n_modules; m++)
      if (!set_has(set, modules[m].group, set->arrays[a].name))
        return status_set(STATUS_DATA, "%s: %s/%s is in none of the %d shards (%s .. %s)", directory, modules[m].group,
                          set->arrays[a].name, set->n_files, set->files[0], set->files[set->n_files - 1]);
  for (int a = 0; a < set->n_arrays; a++)
    if (!set_has(set, set->arrays[0].group, set->arrays[a].name))
      return status_set(STATUS_DATA, "%s: %s/%s is in none of the %d shards (%s .. %s)", directory,
                        set->arrays[0].group, set->arrays[a].name, set->n_files, set->files[0],
                        set->files[set->n_files - 1]);
  return STATUS_OK;
}

enum status shard_set_read(const char *directory, const struct checkpoint_header *header,
                           const struct checkpoint_module *modules, int n_modules, struct shard_set *set) {
  enum status status = STATUS_OK;
  struct part_list parts = {0};
  memset(set, 0, sizeof *set);
  TRY_OUT(list_files(directory, set));
  for (int i = 0; i < set->n_files; i++)
    TRY_OUT(scan_shard(directory, set->files[i], i, header, modules, n_modules, &parts));
  if (parts.n == 0 && n_modules > 0) {
    status = status_set(STATUS_DATA, "%s: %s holds no array of %s", directory, set->files[0], modules[0].group);
    goto out;
  }
  set->arrays = malloc(((size_t)parts.n + 1) * sizeof *set->arrays);
  set->pieces = malloc(((size_t)parts.n + 1) * sizeof *set->pieces);
  set->first_piece = malloc(((size_t)parts.n + 1) * sizeof *set->first_piece);
  if (!set->arrays || !set->pieces || !set->first_piece) {
    status = status_set(STATUS_SYSTEM, "%s: out of memory for %d parts", directory, parts.n);
    goto out;
  }
  TRY_OUT(merge_parts(directory, &parts, set));
  TRY_OUT(check_complete(directory, modules, n_modules, set));
out:
  free(parts.items);
  if (status != STATUS_OK) shard_set_free(set);
  return status;
}

void shard_set_free(struct shard_set *set) {
  free(set->files);
  free(set->arrays);
  free(set->pieces);
  free(set->first_piece);
  memset(set, 0, sizeof *set);
}
