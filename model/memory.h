/*
 * memory.h: a table of named buffers, filled before anything is allocated; then
 * one arena holds them all.
 */
#ifndef LORASHARD_MODEL_MEMORY_H
#define LORASHARD_MODEL_MEMORY_H

#include <stddef.h>

#include "io/status.h"
#include "model/device.h"

struct memory_entry {
  const char *name; /* literal; several entries may share one (per layer) */
  size_t bytes, offset;
  void **slot; /* where the buffer's address goes */
};

struct memory_table {
  const char *kind; /* "weights", "activations", ...: literal */
  struct memory_entry *entries;
  int n, capacity;
  size_t total; /* bytes of the arena */
  void *arena;
};

/* Add a buffer; *slot is set to NULL now and to the buffer by memory_commit (it
 * stays NULL when bytes is 0, so that a wrong use crashes). The slot's address
 * must stay valid until then. STATUS_SYSTEM when out of memory. */
enum status memory_add(struct memory_table *table, const char *name, size_t bytes, void **slot);

/* Allocate the arena, zeroed, and deal the buffers out of it. */
enum status memory_commit(struct memory_table *table, struct device *device);

/* Free arena and table; fine on a zeroed table. */
void memory_release(struct memory_table *table, struct device *device);

#endif
