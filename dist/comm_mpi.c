/* Host memory over MPI. */
#include <limits.h>
#include <string.h>

#include "dist/comm_internal.h"

/* MPI counts are int: larger buffers go in pieces of this many elements. */
#define PIECE ((int64_t)1 << 28)

enum status comm_check(int mpi_error, const char *call) {
  if (mpi_error == MPI_SUCCESS) return STATUS_OK;
  char reason[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  MPI_Error_string(mpi_error, reason, &length);
  return status_set(STATUS_PEER, "%s failed: %s", call, reason);
}

static MPI_Op mpi_op(enum reduce_op op) { return op == REDUCE_SUM ? MPI_SUM : op == REDUCE_MAX ? MPI_MAX : MPI_MIN; }

enum status comm_mpi_all_reduce(struct comm *comm, void *data, int64_t n, size_t size, MPI_Datatype type,
                                enum reduce_op op) {
  int error = MPI_SUCCESS;
  for (int64_t i = 0; i < n && error == MPI_SUCCESS; i += PIECE) {
    int64_t piece = n - i < PIECE ? n - i : PIECE;
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
  return comm_check(MPI_Allgather(data, (int)bytes, MPI_BYTE, gathered, (int)bytes, MPI_BYTE, comm->mpi),
                    "MPI_Allgather");
}

static enum status copy(struct comm *comm, void *dst, const void *src, size_t bytes) {
  (void)comm;
  memcpy(dst, src, bytes);
  return STATUS_OK;
}

const struct comm_ops comm_mpi_ops = {
    .all_reduce_f32 = all_reduce_f32,
    .all_gather = all_gather,
    .copy = copy,
    .group_begin = comm_nothing,
    .group_end = comm_nothing,
    .check = comm_nothing,
    .close = comm_close_nothing,
};
