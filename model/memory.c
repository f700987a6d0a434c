#include "model/memory.h"

#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64

enum status memory_add(struct memory_table *table, const char *name, size_t bytes, void **slot) {
  *slot = NULL;
  if (bytes == 0) return STATUS_OK;
  if (table->n == table->capacity) {
    int capacity = table->capacity ? 2 * table->capacity : 64;
    struct memory_entry *entries = realloc(table->entries, (size_t)capacity * sizeof *entries);
    if (!entries) return status_set(STATUS_SYSTEM, "out of memory for the table of %s", table->kind);
    table->entries = entries;
    table->capacity = capacity;
  }
  table->entries[table->n++] = (struct memory_entry){name, bytes, table->total, slot};
  table->total += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  return STATUS_OK;
}

enum status memory_commit(struct memory_table *table, struct device *device) {
  if (table->total == 0) return STATUS_OK;
  TRY(device_alloc(device, table->total, table->kind, &table->arena));
  for (int i = 0; i < table->n; i++) *table->entries[i].slot = (char *)table->arena + table->entries[i].offset;
  return STATUS_OK;
}

void memory_release(struct memory_table *table, struct device *device) {
  if (table->arena) device_free(device, table->arena, table->total);
  free(table->entries);
  memset(table, 0, sizeof *table);
}
