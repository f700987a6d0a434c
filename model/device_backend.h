/*
 * device_backend.h: what a kind of device implements besides its operations.
 * model/cpu is linked in; model/cuda is a plug-in library beside the program,
 * so that the program starts where there is neither driver nor CUDA.
 */
#ifndef LORASHARD_MODEL_DEVICE_BACKEND_H
#define LORASHARD_MODEL_DEVICE_BACKEND_H

#include "model/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The functions of device.h, with its contracts; no slot is empty. `alloc` and
 * `free` keep the device's counters. */
struct device_functions {
  void (*close)(struct device *device); /* frees state; the struct itself is the caller's */
  enum status (*alloc)(struct device *device, size_t bytes, const char *what, void **memory_p);
  void (*free)(struct device *device, void *memory, size_t bytes);
  enum status (*host_alloc)(struct device *device, size_t bytes, const char *what, void **memory_p);
  void (*host_free)(struct device *device, void *memory);
  enum status (*copy_out)(struct device *device, void *dst, const void *src, size_t bytes);
  enum status (*zero)(struct device *device, void *p, size_t bytes);
  enum status (*stage_take)(struct device *device, void **buffer_p);
  enum status (*stage_send)(struct device *device, void *dst, size_t bytes);
  enum status (*synchronize)(struct device *device);
  void (*set_watch)(struct device *device, device_watch_func_t *watch, void *context);
  void *(*stream)(const struct device *device);
  enum status (*graph_begin)(struct device *device, const void *key, size_t key_bytes, int *slot_p, bool *repeated_p);
  enum status (*graph_end)(struct device *device);
  enum status (*graph_drop)(struct device *device);
  void (*identity)(const struct device *device, char identity[DEVICE_IDENTITY]);
  uint64_t (*memory)(const struct device *device);
  void (*describe)(const struct device *device, char *text, size_t size);
};

struct device_backend {
  const char *version; /* LORASHARD_VERSION it was built with */
  /* GPUs that this process may use; *reason says why there are none. */
  int (*count)(const char **reason);
  /* Fill a zeroed *device. On failure what was opened is closed again. */
  enum status (*open)(const struct device_options *options, struct device *device);
};

/* How to get along with less of what device_alloc calls `what`: the end of its message when there is no memory. */
const char *device_memory_remedy(const char *what);

enum status cpu_device_open(const struct device_options *options, struct device *device);

/* The symbol and file of the CUDA plug-in. */
#define DEVICE_CUDA_FILE   "liblorashard_cuda.so"
#define DEVICE_CUDA_SYMBOL "lorashard_cuda_backend"

#ifdef __cplusplus
}
#endif

#endif
