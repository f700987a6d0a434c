#include "lora/param.h"

#include <stdlib.h>
#include <string.h>

enum status param_list_add(struct param_list *list, const struct param *param) {
  if (list->n == list->capacity) {
    int capacity = list->capacity ? 2 * list->capacity : 64;
    struct param *items = realloc(list->items, (size_t)capacity * sizeof *items);
    if (!items) return status_set(STATUS_SYSTEM, "out of memory for the list of parameters");
    list->items = items;
    list->capacity = capacity;
  }
  struct param *added = &list->items[list->n++];
  *added = *param;
  struct param_bucket *bucket = &list->buckets[added->group];
  added->offset = bucket->n;
  bucket->n += added->part_rows * added->part_cols;
  return STATUS_OK;
}

size_t param_list_bytes(const struct param_list *list) {
  int64_t total = 0;
  for (int g = 0; g < PARAM_GROUPS; g++) total += list->buckets[g].n;
  return (size_t)total * 4 * sizeof(float);
}

enum status param_list_allocate(struct param_list *list, struct device *device) {
  list->memory_bytes = param_list_bytes(list);
  if (list->memory_bytes == 0) return STATUS_OK;
  TRY(device_alloc(device, list->memory_bytes, "adapters, gradients and moments", &list->memory));
  list->host = list->memory;
  if (!device->host_memory)
    TRY(device_host_alloc(device, list->memory_bytes, "adapters, gradients and moments", &list->host));
  float *next = list->memory;
  for (int g = 0; g < PARAM_GROUPS; g++) {
    struct param_bucket *bucket = &list->buckets[g];
    bucket->w = next;
    bucket->g = next + bucket->n;
    bucket->m = next + 2 * bucket->n;
    bucket->v = next + 3 * bucket->n;
    next += 4 * bucket->n;
  }
  for (int i = 0; i < list->n; i++) {
    struct param *p = &list->items[i];
    struct param_bucket *bucket = &list->buckets[p->group];
    p->w = bucket->w + p->offset;
    p->g = bucket->g + p->offset;
    p->m = bucket->m + p->offset;
    p->v = bucket->v + p->offset;
  }
  return STATUS_OK;
}

void param_list_free(struct param_list *list, struct device *device) {
  if (list->host != list->memory) device_host_free(device, list->host);
  device_free(device, list->memory, list->memory_bytes);
  free(list->items);
  memset(list, 0, sizeof *list);
}

bool param_is_written(const struct param *param, const struct mesh *mesh) {
  return mesh->dp_rank == 0 && (mesh->tp_rank == 0 || param->group == PARAM_DP) &&
         param->part_rows * param->part_cols > 0;
}

enum status param_list_zero_gradients(struct param_list *list, struct device *device) {
  for (int g = 0; g < PARAM_GROUPS; g++)
    TRY(device_zero(device, list->buckets[g].g, (size_t)list->buckets[g].n * sizeof(float)));
  return STATUS_OK;
}

enum status param_list_fetch(struct param_list *list, struct device *device) {
  return list->host == list->memory ? STATUS_OK : device_copy_out(device, list->host, list->memory, list->memory_bytes);
}

enum status param_list_send(struct param_list *list, struct device *device) {
  return list->host == list->memory ? STATUS_OK : device_copy_in(device, list->memory, list->host, list->memory_bytes);
}

enum status param_set_from_whole(const struct param *param, struct device *device, const float *whole) {
  const size_t row_bytes = (size_t)param->part_cols * sizeof(float);
  if (param->part_cols == param->cols)
    return device_copy_in(device, param->w, whole + param->row * param->cols, param_bytes(param));
  float *part = malloc(param_bytes(param) + 1);
  if (!part) return status_set(STATUS_SYSTEM, "out of memory for a part of %s/%s", param->group_name, param->name);
  for (int64_t row = 0; row < param->part_rows; row++)
    memcpy((char *)part + (size_t)row * row_bytes, whole + (param->row + row) * param->cols + param->col, row_bytes);
  enum status status = device_copy_in(device, param->w, part, param_bytes(param));
  free(part);
  return status;
}
