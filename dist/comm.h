/*
 * comm.h: collectives over a group of ranks, counted.
 *
 * Every call on a group of more than one rank adds one to the group's calls and
 * the size of the reduced buffer to its bytes; a group of one does nothing and
 * counts nothing. Ranks of a group call the same operations in the same order.
 * Errors: STATUS_PEER with the operation's name.
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

/* gathered[size][bytes] = every rank's data, in rank order. */
enum status comm_all_gather(struct comm *comm, const void *data, size_t bytes, void *gathered);

/* data [bytes] of `root` on every rank. */
enum status comm_broadcast(struct comm *comm, void *data, size_t bytes, int root);

enum status comm_barrier(struct comm *comm);

/* Counts since the last reset. */
struct comm_counts comm_counts(const struct comm *comm);
void comm_reset_counts(struct comm *comm);

#endif
