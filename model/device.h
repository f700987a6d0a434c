/*
 * device.h: where a rank computes: its operation table, its memory, and the way
 * between that and the host's memory.
 *
 * A device has one queue of work: operations and copies act in the order of the
 * calls. On a device whose memory is the host's (the CPU) every call has
 * finished when it returns.
 */
#ifndef LORASHARD_MODEL_DEVICE_H
#define LORASHARD_MODEL_DEVICE_H

#include "model/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

struct device_functions; /* model/device_backend.h */

struct device {
  const struct ops *ops;
  const struct device_functions *functions;
  void *state;          /* the implementation's */
  int n_threads;        /* cpu: OpenMP threads of this rank */
  bool host_memory;     /* device memory is host memory */
  uint64_t allocations; /* calls of device_alloc and internal growth of scratch so far */
  uint64_t allocated;   /* bytes held now */
};

struct device_options {
  const char *name; /* "cpu", "cuda", or "auto": cuda if this build has it and a GPU is visible, else cpu */
  int n_threads;    /* cpu: 0 for as many as the cores this rank may use */
  int node_rank;    /* cuda: the GPU is this one of the visible ones, modulo their number */
  bool tf32;        /* cuda: f32 products may round their inputs to TF32 */
  bool graphs;      /* cuda: repeat equal steps as CUDA graphs */
};

/* STATUS_USAGE: no such device in this build; STATUS_DEVICE: it cannot be used,
 * with the reason. On success the device is the caller's. */
enum status device_open(const struct device_options *options, struct device **device_p);
void device_close(struct device **device_p);

/* Zeroed device memory, aligned to 64 bytes at least (cuda: 256; cpu: huge pages
 * advised when large); counted. `what` names it in the message when there is none. */
enum status device_alloc(struct device *device, size_t bytes, const char *what, void **memory_p);
void device_free(struct device *device, void *memory, size_t bytes);

/* Host memory that the device reaches fast (cuda: pinned); not zeroed, not counted. */
enum status device_host_alloc(struct device *device, size_t bytes, const char *what, void **memory_p);
void device_host_free(struct device *device, void *memory);

/* dst (device) [bytes] = src (host). src may be reused on return. */
enum status device_copy_in(struct device *device, void *dst, const void *src, size_t bytes);

/* dst (host) [bytes] = src (device). Waits for the queue before; the bytes are there on return. */
enum status device_copy_out(struct device *device, void *dst, const void *src, size_t bytes);

/* p (device) [bytes] = 0. */
enum status device_zero(struct device *device, void *p, size_t bytes);

/* Writing device memory without a copy in between: take a buffer of up to
 * DEVICE_STAGE_BYTES, fill it, send it. One buffer travels while the next is
 * filled; a taken buffer is sent before the next is taken. */
#define DEVICE_STAGE_BYTES ((size_t)8 << 20)
enum status device_stage_take(struct device *device, void **buffer_p);
enum status device_stage_send(struct device *device, void *dst, size_t bytes);

/* Wait for all queued work. STATUS_DEVICE if any of it failed, or what `watch` says (device_set_watch). */
enum status device_synchronize(struct device *device);

/* Called several times a second while this rank waits for its device: a failure ends the wait. NULL: none. */
typedef enum status device_watch_func_t(void *context);
void device_set_watch(struct device *device, device_watch_func_t *watch, void *context);

/* The queue, for who puts work on it from outside (NCCL): a CUDA stream; NULL on the cpu. */
void *device_stream(const struct device *device);

/* Repeating work. Between begin and end the caller queues work that depends on
 * nothing but the key and the content of device memory; it allocates nothing and
 * waits for nothing. Once a key has come often enough the work is recorded; from
 * then on begin repeats the record: *slot_p is its number (below
 * DEVICE_GRAPHS), *repeated_p true, and the caller must not queue the work
 * itself. slot -1: neither recorded nor repeated. Without options.graphs and on
 * the cpu always so. */
#define DEVICE_GRAPHS 8
enum status device_graph_begin(struct device *device, const void *key, size_t key_bytes, int *slot_p, bool *repeated_p);
enum status device_graph_end(struct device *device);
/* Wait, and forget all records: who has work in them (NCCL) is about to close. */
enum status device_graph_drop(struct device *device);

/* GPUs that this process may use, 0 if none; *reason says why there are none. */
int device_gpu_count(char *reason, size_t size);

/* What tells this device from others of its machine: a GPU's PCI bus id; "" for the cpu. */
#define DEVICE_IDENTITY 32
void device_identity(const struct device *device, char identity[DEVICE_IDENTITY]);

/* Bytes of memory that the device has: a GPU's own; of the cpu, what this machine has or its control group grants. All
 * of it, whoever else uses some. 0: not known. */
uint64_t device_memory(const struct device *device);

/* One line for the start-up table: processor, libraries and their versions; threads
 * or PCI bus id; which attention kernels. */
void device_describe(const struct device *device, char *text, size_t size);

#ifdef __cplusplus
}
#endif

#endif
