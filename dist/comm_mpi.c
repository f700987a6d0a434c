/* Host memory over MPI. */
#include "dist/comm.h"

#include <string.h>

#include "dist/comm_internal.h"
#include "dist/watchdog.h"

/* MPI counts are int: larger buffers go in pieces of this many elements. */
#define PIECE ((int64_t)1 << 28)

int comm_size(const struct comm *comm) { return comm->size; }
int comm_rank(const struct comm *comm) { return comm->rank; }
const char *comm_name(const struct comm *comm) { return comm->name; }
struct comm_counts comm_counts(const struct comm *comm) {
  return comm->counts;
}
void comm_reset_counts(struct comm *comm) { comm->counts = (struct comm_counts){0, 0}; }

enum status comm_check(int mpi_error, const char *call) {
  if (mpi_error == MPI_SUCCESS) return STATUS_OK;
  char reason[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  MPI_Error_string(mpi_error, reason, &length);
  return status_set(STATUS_PEER, "%s failed: %s", call, reason);
}

static MPI_Op mpi_op(enum reduce_op op) { return op == REDUCE_SUM ? MPI_SUM : op == REDUCE_MAX ? MPI_MAX : MPI_MIN; }

static void count(struct comm *comm, size_t bytes) {
  comm->counts.calls++;
  comm->counts.bytes += bytes;
}

static enum status all_reduce(struct comm *comm, void *data, int64_t n, size_t size, MPI_Datatype type,
                              enum reduce_op op) {
  if (comm->size == 1 || n == 0) return STATUS_OK;
  count(comm, (size_t)n * size);
  watchdog_enter("all-reduce", comm->name);
  int error = MPI_SUCCESS;
  for (int64_t i = 0; i < n && error == MPI_SUCCESS; i += PIECE) {
    int64_t piece = n - i < PIECE ? n - i : PIECE;
    error = MPI_Allreduce(MPI_IN_PLACE, (char *)data + (size_t)i * size, (int)piece, type, mpi_op(op), comm->mpi);
  }
  watchdog_leave();
  return comm_check(error, "MPI_Allreduce");
}

enum status comm_all_reduce_f32(struct comm *comm, float *data, int64_t n, enum reduce_op op) {
  return all_reduce(comm, data, n, sizeof *data, MPI_FLOAT, op);
}

enum status comm_all_reduce_f64(struct comm *comm, double *data, int64_t n, enum reduce_op op) {
  return all_reduce(comm, data, n, sizeof *data, MPI_DOUBLE, op);
}

enum status comm_all_gather(struct comm *comm, const void *data, size_t bytes, void *gathered) {
  if (comm->size == 1) {
    memcpy(gathered, data, bytes);
    return STATUS_OK;
  }
  count(comm, bytes);
  watchdog_enter("all-gather", comm->name);
  int error = MPI_Allgather(data, (int)bytes, MPI_BYTE, gathered, (int)bytes, MPI_BYTE, comm->mpi);
  watchdog_leave();
  return comm_check(error, "MPI_Allgather");
}

enum status comm_broadcast(struct comm *comm, void *data, size_t bytes, int root) {
  if (comm->size == 1) return STATUS_OK;
  count(comm, bytes);
  watchdog_enter("broadcast", comm->name);
  int error = MPI_Bcast(data, (int)bytes, MPI_BYTE, root, comm->mpi);
  watchdog_leave();
  return comm_check(error, "MPI_Bcast");
}

enum status comm_barrier(struct comm *comm) {
  if (comm->size == 1) return STATUS_OK;
  count(comm, 0);
  watchdog_enter("barrier", comm->name);
  int error = MPI_Barrier(comm->mpi);
  watchdog_leave();
  return comm_check(error, "MPI_Barrier");
}
