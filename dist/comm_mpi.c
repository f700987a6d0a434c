/* Host memory over MPI. */
#include <limits.h>
#include <string.h>

#include "dist/comm_internal.h"

/* MPI counts are int, and some algorithms multiply them by the number of ranks in an int. */
int64_t comm_mpi_piece = (int64_t)1 << 28;

enum status comm_check(int mpi_error, const char *call) {
  if (mpi_error == MPI_SUCCESS) return STATUS_OK;
  char reason[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  MPI_Error_string(mpi_error, reason, &length);
  return status_set(STATUS_PEER, "%s failed: %s", call, reason);
}

static MPI_Op mpi_op(enum reduce_op op) { return op == REDUCE_SUM ? MPI_SUM : op == REDUCE_MAX ? MPI_MAX : MPI_MIN; }

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

enum status comm_mpi_all_reduce(struct comm *comm, void *data, int64_t n, size_t size, MPI_Datatype type,
                                enum reduce_op op) {
  int error = MPI_SUCCESS;
  for (int64_t i = 0; i < n && error == MPI_SUCCESS; i += comm_mpi_piece) {
    int64_t piece = least(n - i, comm_mpi_piece);
    error = MPI_Allreduce(MPI_IN_PLACE, (char *)data + (size_t)i * size, (int)piece, type, mpi_op(op), comm->mpi);
  }
  return comm_check(error, "MPI_Allreduce");
}

static enum status all_reduce_f32(struct comm *comm, float *data, int64_t n, enum reduce_op op) {
  return comm_mpi_all_reduce(comm, data, n, sizeof *data, MPI_FLOAT, op);
}

static enum status all_gather(struct comm *comm, const void *data, size_t bytes, void *gathered) {
  if (bytes > INT_MAX)
    return status_set(STATUS_USAGE, "MPI_Allgather over group %s: %zu bytes are more than one call takes", comm->name,
                      bytes);
  const bool in_place = data == (const char *)gathered + (size_t)comm->rank * bytes;
  return comm_check(
      MPI_Allgather(in_place ? MPI_IN_PLACE : data, (int)bytes, MPI_BYTE, gathered, (int)bytes, MPI_BYTE, comm->mpi),
      "MPI_Allgather");
}

/* More than one call takes: the parts one after the other, each to its rank. */
static enum status reduce_scatter_parts(struct comm *comm, float *data, int64_t n, float *own) {
  for (int r = 0; r < comm->size; r++)
    for (int64_t i = 0; i < n; i += comm_mpi_piece) {
      const int piece = (int)least(n - i, comm_mpi_piece);
      float *part = data + (int64_t)r * n + i;
      TRY(comm_check(MPI_Reduce(r == comm->rank ? MPI_IN_PLACE : part, part, piece, MPI_FLOAT, MPI_SUM, r, comm->mpi),
                     "MPI_Reduce"));
    }
  const float *sum = data + (int64_t)comm->rank * n;
  if (own != sum) memcpy(own, sum, (size_t)n * sizeof *own);
  return STATUS_OK;
}

enum status comm_mpi_reduce_scatter(struct comm *comm, float *data, int64_t n, float *own) {
  if (n > comm_mpi_piece / comm->size) return reduce_scatter_parts(comm, data, n, own);
  const bool in_place = own >= data && own < data + n * comm->size;
  if (!in_place)
    return comm_check(MPI_Reduce_scatter_block(data, own, (int)n, MPI_FLOAT, MPI_SUM, comm->mpi),
                      "MPI_Reduce_scatter_block");
  /* MPI's own idea of in place: the result lies where the data begins, whichever part it is. */
  TRY(comm_check(MPI_Reduce_scatter_block(MPI_IN_PLACE, data, (int)n, MPI_FLOAT, MPI_SUM, comm->mpi),
                 "MPI_Reduce_scatter_block"));
  if (own != data) memcpy(own, data, (size_t)n * sizeof *own);
  return STATUS_OK;
}

enum status comm_mpi_exchange(struct comm *comm, const float *send, int64_t n_send, int to, float *recv, int64_t n_recv,
                              int from) {
  enum { TAG = 0 };
  if (to < 0) n_send = 0;
  if (from < 0) n_recv = 0;
  for (int64_t i = 0; i < n_send || i < n_recv; i += comm_mpi_piece) {
    const int sent = i < n_send ? (int)least(n_send - i, comm_mpi_piece) : 0;
    const int received = i < n_recv ? (int)least(n_recv - i, comm_mpi_piece) : 0;
    int got = 0;
    MPI_Status status;
    /* An address is given only where something is there. */
    TRY(comm_check(MPI_Sendrecv(sent ? send + i : NULL, sent, MPI_FLOAT, sent ? to : MPI_PROC_NULL, TAG,
                                received ? recv + i : NULL, received, MPI_FLOAT, received ? from : MPI_PROC_NULL, TAG,
                                comm->mpi, &status),
                   "MPI_Sendrecv"));
    MPI_Get_count(&status, MPI_FLOAT, &got);
    if (received && got != received)
      return status_set(STATUS_PEER, "MPI_Sendrecv over group %s: rank %d of the group sent %d values, not %d",
                        comm->name, from, got, received);
  }
  return STATUS_OK;
}

enum status comm_mpi_broadcast(struct comm *comm, void *data, size_t bytes, int root) {
  const size_t limit = (size_t)comm_mpi_piece;
  for (size_t i = 0; i < bytes; i += limit) {
    const int piece = (int)(bytes - i < limit ? bytes - i : limit);
    TRY(comm_check(MPI_Bcast((char *)data + i, piece, MPI_BYTE, root, comm->mpi), "MPI_Bcast"));
  }
  return STATUS_OK;
}

static enum status copy(struct comm *comm, void *dst, const void *src, size_t bytes) {
  (void)comm;
  memcpy(dst, src, bytes);
  return STATUS_OK;
}

const struct comm_ops comm_mpi_ops = {
    .all_reduce_f32 = all_reduce_f32,
    .all_gather = all_gather,
    .reduce_scatter_f32 = comm_mpi_reduce_scatter,
    .exchange_f32 = comm_mpi_exchange,
    .copy = copy,
    .group_begin = comm_nothing,
    .group_end = comm_nothing,
    .check = comm_nothing,
    .close = comm_close_nothing,
};
