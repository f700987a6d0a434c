/*
 * comm_device.h: a rank's accelerator as dist sees it. launch fills it from
 * model/device.h, so that dist needs nothing of ops.
 */
#ifndef LORASHARD_DIST_COMM_DEVICE_H
#define LORASHARD_DIST_COMM_DEVICE_H

#include <stddef.h>

#include "io/status.h"

struct comm_device {
  void *context; /* of the functions below */
  void *stream;  /* where the work that makes and reads the data is queued: a CUDA stream */
  /* dst (host) = src (device), waiting for the stream; dst (device) = src (host), queued on it, src free on return. */
  enum status (*copy_out)(void *context, void *dst, const void *src, size_t bytes);
  enum status (*copy_in)(void *context, void *dst, const void *src, size_t bytes);
  /* Pinned host memory. */
  enum status (*host_alloc)(void *context, size_t bytes, void **memory_p);
  void (*host_free)(void *context, void *memory);
  /* Drop recorded work, which NCCL waits for when its groups are closed (a communicator outlives the graphs
   * that it is in). NULL: this device records nothing. */
  void (*drop_records)(void *context);
};

/* How device memory travels. */
enum comm_path {
  COMM_PATH_AUTO, /* NCCL if this build has it, it loads, and every rank has a GPU of its own; else MPI */
  COMM_PATH_NCCL, /* NCCL or an error */
  COMM_PATH_MPI,  /* MPI over pinned host buffers */
};

#endif
