/*
 * device.h: where a rank computes: its operation table, threads, memory.
 */
#ifndef LORASHARD_MODEL_DEVICE_H
#define LORASHARD_MODEL_DEVICE_H

#include "model/ops.h"

struct device {
  const struct ops *ops;
  void *state;          /* the implementation's */
  int n_threads;        /* cpu: OpenMP threads of this rank */
  uint64_t allocations; /* calls of device_alloc and internal growth of scratch so far */
  uint64_t allocated;   /* bytes held now */
};

/* `name`: "auto" or "cpu". n_threads 0: as many as the cores this rank may use. */
enum status device_open(const char *name, int n_threads, struct device **device_p);
void device_close(struct device **device_p);

/* Zeroed memory, 64-byte aligned, huge pages advised when large; counted.
 * `what` names it in the message when there is none. */
enum status device_alloc(struct device *device, size_t bytes, const char *what, void **memory_p);
void device_free(struct device *device, void *memory, size_t bytes);

/* One line for the start-up table: processor, instruction set of the matrix
 * library, its version, threads. */
void device_describe(const struct device *device, char *text, size_t size);

#endif
