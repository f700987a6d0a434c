/*
 * comm_backend.h: what a library for collectives on device memory implements.
 * dist/comm_nccl.c is one, a plug-in beside the program, so that the program
 * starts where there is no NCCL. It speaks no MPI: mesh_use_device carries the
 * identifiers.
 */
#ifndef LORASHARD_DIST_COMM_BACKEND_H
#define LORASHARD_DIST_COMM_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#include "dist/comm.h"

struct comm_backend_state; /* of one rank's device: streams and events */
struct comm_link;          /* this rank's end of one group */

/* The bytes that the members of a group must have in common. */
#define COMM_BACKEND_ID 128

/* No slot is empty. Errors: STATUS_DEVICE where this rank's own library or
 * device is at fault, STATUS_PEER where another rank may be, "group NAME: LIBRARY:
 * reason". */
struct comm_backend {
  const char *version; /* LORASHARD_VERSION it was built with */

  /* "NCCL 2.28.3". STATUS_DEVICE: the library is too old. */
  enum status (*describe)(char *text, size_t size);

  /* For the current device, whose work is queued on `stream`. No wait is longer than timeout_s. */
  enum status (*open)(void *stream, double timeout_s, struct comm_backend_state **state_p);
  /* After the last leave. */
  void (*close)(struct comm_backend_state **state_p);

  /* On one member; the others get its bytes. */
  enum status (*make_id)(char id[COMM_BACKEND_ID]);
  /* Together with the group's other members. `name` is a literal. */
  enum status (*join)(struct comm_backend_state *state, const char *name, const char id[COMM_BACKEND_ID], int size,
                      int rank, struct comm_link **link_p);
  /* In good order with the other members; without them once anything of `state` has failed, or after give_up. */
  void (*leave)(struct comm_link **link_p);
  void (*give_up)(struct comm_backend_state *state);

  /* Queued behind the work of `stream`, which goes on after them. */
  enum status (*all_reduce_f32)(struct comm_link *link, float *data, int64_t n, enum reduce_op op);
  enum status (*all_gather)(struct comm_link *link, const void *data, size_t bytes, void *gathered);
  enum status (*reduce_scatter_f32)(struct comm_link *link, float *data, int64_t n, float *own);
  /* A rank of -1 leaves its half out. */
  enum status (*exchange_f32)(struct comm_link *link, const float *send, int64_t n_send, int to, float *recv,
                              int64_t n_recv, int from);
  /* dst = src, both device memory, queued on `stream`. */
  enum status (*copy)(struct comm_backend_state *state, void *dst, const void *src, size_t bytes);

  /* Collectives between them, over any links of `state`, are queued as one. */
  enum status (*group_begin)(struct comm_backend_state *state);
  enum status (*group_end)(struct comm_backend_state *state);

  /* What has gone wrong since. Waits for nothing. */
  enum status (*check)(struct comm_link *link);
};

/* The symbol and file of the NCCL plug-in. */
#define COMM_NCCL_FILE   "liblorashard_nccl.so"
#define COMM_NCCL_SYMBOL "lorashard_nccl_backend"

#endif
