/*
 * comm.h: collectives over a group of ranks, counted.
 *
 * Every call on a group of more than one rank adds one to the group's calls and
 * the size of the reduced buffer to its bytes; a group of one does nothing and
 * counts nothing. Ranks of a group call the same operations in the same order.
 * Errors: STATUS_PEER with the operation's name.
 *
 * A group works on host memory over MPI until mesh_use_device gives it a device:
 * from then on the f32 calls and comm_all_gather take device memory. They
 * are queued behind the device's work and need not have finished on return; what
 * the device does next sees their results. The f64, broadcast and barrier calls
 * always take host memory and have finished on return.
 */
#ifndef LORASHARD_DIST_COMM_H
#define LORASHARD_DIST_COMM_H

#include <stddef.h>
#include <stdint.h>

#include "io/status.h"

struct comm; /* one group; created by mesh_create */

enum reduce_op { REDUCE_SUM, REDUCE_MAX, REDUCE_MIN };

struct comm_counts {
  uint64_t calls;
  uint64_t bytes;
};

int comm_size(const struct comm *comm);
int comm_rank(const struct comm *comm);

/* "tp", "dp", "stage", "pp" or "control". */
const char *comm_name(const struct comm *comm);

/* In place on data [n]; = on every rank, to the same bits. */
enum status comm_all_reduce_f32(struct comm *comm, float *data, int64_t n, enum reduce_op op);
enum status comm_all_reduce_f64(struct comm *comm, double *data, int64_t n, enum reduce_op op);

/* gathered[size][bytes] = every rank's data, in rank order. data may be this
 * rank's own place in gathered. */
enum status comm_all_gather(struct comm *comm, const void *data, size_t bytes, void *gathered);

/* own[n] = the sum over the ranks of part `rank` of data[size][n]. own may be that
 * part of data; the other parts are left undefined. Counts the whole data. */
enum status comm_reduce_scatter_f32(struct comm *comm, float *data, int64_t n, float *own);

/* Send send[n_send] to rank `to` and receive recv[n_recv] from rank `from`, both at
 * once; a rank of -1 or a size of 0 leaves that half out, both halves the call. Counts one
 * call with the bytes sent, or none where nothing is sent. The two ends agree on the
 * sizes. */
enum status comm_exchange_f32(struct comm *comm, const float *send, int64_t n_send, int to, float *recv, int64_t n_recv,
                              int from);

/* data [bytes] of `root` on every rank. */
enum status comm_broadcast(struct comm *comm, void *data, size_t bytes, int root);

enum status comm_barrier(struct comm *comm);

/* Calls between begin and end may travel as one (NCCL groups); their results are
 * there after end. Groups do not nest. */
enum status comm_group_begin(void);
enum status comm_group_end(void);

/* Counts since the last reset. */
struct comm_counts comm_counts(const struct comm *comm);
void comm_reset_counts(struct comm *comm);
/* Count what a recorded graph repeats without calling. */
void comm_add_counts(struct comm *comm, struct comm_counts counts);

#endif
