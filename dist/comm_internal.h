/* comm_internal.h: what comm_*.c and mesh*.c share: a group of ranks and the ways its data travels. */
#ifndef LORASHARD_DIST_COMM_INTERNAL_H
#define LORASHARD_DIST_COMM_INTERNAL_H

#include <mpi.h>
#include <stdbool.h>

#include "dist/comm.h"
#include "dist/comm_backend.h"
#include "dist/comm_device.h"
#include "dist/mesh.h"

/* What the groups of one mesh share for device memory. */
struct comm_transport {
  struct comm_device device;
  /* comm_staged.c: pinned, [buffer_bytes] */
  char *buffer;
  size_t buffer_bytes;
  /* comm_queued.c; NULL without */
  const struct comm_backend *backend;
  struct comm_backend_state *state;
};

/* How a group's f32 calls and all-gather travel. comm.c counts, and calls
 * the collectives only for more than one rank and at least one byte. */
struct comm_ops {
  bool queued; /* collectives need not have finished on return */
  enum status (*all_reduce_f32)(struct comm *comm, float *data, int64_t n, enum reduce_op op);
  enum status (*all_gather)(struct comm *comm, const void *data, size_t bytes, void *gathered);
  enum status (*reduce_scatter_f32)(struct comm *comm, float *data, int64_t n, float *own);
  /* One half at least has something in it; the other's rank is -1 if it has not. */
  enum status (*exchange_f32)(struct comm *comm, const float *send, int64_t n_send, int to, float *recv, int64_t n_recv,
                              int from);
  /* dst = src: the all-gather and reduce-scatter of a group of one. */
  enum status (*copy)(struct comm *comm, void *dst, const void *src, size_t bytes);
  /* Around collectives of this group and others of its mesh. */
  enum status (*group_begin)(struct comm *comm);
  enum status (*group_end)(struct comm *comm);
  /* Failures since the collectives were queued. */
  enum status (*check)(struct comm *comm);
  /* Free what this way of travelling put into *comm. */
  void (*close)(struct comm *comm);
};

struct comm {
  MPI_Comm mpi; /* MPI_COMM_NULL when MPI does not run */
  const char *name;
  int size, rank;
  struct comm_counts counts;
  const struct comm_ops *ops;
  struct comm_transport *transport; /* the mesh's; NULL for host memory */
  struct comm_link *link;           /* comm_queued.c; NULL in a group of one */
};

/* comm_mpi.c: host memory over MPI. */
extern const struct comm_ops comm_mpi_ops;
/* comm_staged.c: device memory over MPI, through pinned host memory. */
extern const struct comm_ops comm_staged_ops;
/* comm_queued.c: device memory over a backend. */
extern const struct comm_ops comm_queued_ops;

/* Border to MPI: STATUS_PEER with the call's name and MPI's reason. */
enum status comm_check(int mpi_error, const char *call);

/* Host memory, uncounted, size > 1; `type` is of `size` bytes. comm_mpi.c */
enum status comm_mpi_all_reduce(struct comm *comm, void *data, int64_t n, size_t size, MPI_Datatype type,
                                enum reduce_op op);
enum status comm_mpi_reduce_scatter(struct comm *comm, float *data, int64_t n, float *own);
enum status comm_mpi_exchange(struct comm *comm, const float *send, int64_t n_send, int to, float *recv, int64_t n_recv,
                              int from);
enum status comm_mpi_broadcast(struct comm *comm, void *data, size_t bytes, int root);
/* Elements that one call of MPI takes at most, the same on all ranks; tests make it small. */
extern int64_t comm_mpi_piece;

/* mesh.c: MPI runs, so there may be more than one rank. */
bool mesh_speaks_mpi(void);
/* mesh_device.c: every group of the mesh back to host memory. NULL is fine. */
void mesh_device_close(struct mesh *mesh);

/* Close the group's way of travelling and go back to host memory. */
void comm_close(struct comm *comm);

/* Free the staging buffer. comm_staged.c */
void comm_staged_close(struct comm_transport *transport);

/* The NCCL plug-in. STATUS_USAGE: this build has none; STATUS_DEVICE: it cannot
 * be used, with the reason. `text`: the library and its version. comm_queued.c */
enum status comm_queued_find(const struct comm_backend **backend_p, char *text, size_t size);
/* Collective over the group, in two steps between which the ranks agree: the
 * first rank makes the identifier; it is spread and the group joined. */
enum status comm_queued_make_id(struct comm *comm, const struct comm_transport *transport, char id[COMM_BACKEND_ID]);
enum status comm_queued_join(struct comm *comm, struct comm_transport *transport, char id[COMM_BACKEND_ID]);

/* For slots in which a kind of communicator has nothing to do. */
enum status comm_nothing(struct comm *comm);
void comm_close_nothing(struct comm *comm);

#endif
