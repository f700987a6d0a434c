/* What all ways of travelling have in common: counts, the watchdog, groups of one. */
#include "dist/comm.h"

#include <assert.h>

#include "dist/comm_internal.h"
#include "dist/watchdog.h"

/* Between comm_group_begin and comm_group_end. */
static struct {
  bool open;
  struct comm *first; /* the first queued collective's, whose transport collects them; NULL before */
} group;

int comm_size(const struct comm *comm) { return comm->size; }
int comm_rank(const struct comm *comm) { return comm->rank; }
const char *comm_name(const struct comm *comm) { return comm->name; }
struct comm_counts comm_counts(const struct comm *comm) {
  return comm->counts;
}
void comm_reset_counts(struct comm *comm) { comm->counts = (struct comm_counts){0, 0}; }

static void count(struct comm *comm, size_t bytes) {
  comm->counts.calls++;
  comm->counts.bytes += bytes;
}

void comm_add_counts(struct comm *comm, struct comm_counts counts) {
  comm->counts.calls += counts.calls;
  comm->counts.bytes += counts.bytes;
  /* A record that is repeated queues its collectives without passing here. */
  if (comm->ops->queued && counts.calls) watchdog_repeated(comm->name, counts.calls);
}

/* The first queued collective of a group opens it. */
static enum status join_group(struct comm *comm) {
  if (!comm->ops->queued || !group.open) return STATUS_OK;
  if (!group.first) {
    TRY(comm->ops->group_begin(comm));
    group.first = comm;
  }
  assert(group.first->transport == comm->transport); /* one device's collectives make a group */
  return STATUS_OK;
}

/* Around the collectives on what may be device memory. A queued one's time goes
 * on after its call. */
static enum status enter(struct comm *comm, const char *operation) {
  (comm->ops->queued ? watchdog_queued : watchdog_enter)(operation, comm->name);
  return join_group(comm);
}

static void leave(const struct comm *comm) {
  if (!comm->ops->queued) watchdog_leave();
}

enum status comm_all_reduce_f32(struct comm *comm, float *data, int64_t n, enum reduce_op op) {
  if (comm->size == 1 || n == 0) return STATUS_OK;
  count(comm, (size_t)n * sizeof *data);
  TRY(enter(comm, "all-reduce"));
  enum status status = comm->ops->all_reduce_f32(comm, data, n, op);
  leave(comm);
  return status;
}

enum status comm_all_gather(struct comm *comm, const void *data, size_t bytes, void *gathered) {
  if (comm->size == 1) return bytes && gathered != data ? comm->ops->copy(comm, gathered, data, bytes) : STATUS_OK;
  count(comm, bytes);
  if (bytes == 0) return STATUS_OK;
  TRY(enter(comm, "all-gather"));
  enum status status = comm->ops->all_gather(comm, data, bytes, gathered);
  leave(comm);
  return status;
}

enum status comm_reduce_scatter_f32(struct comm *comm, float *data, int64_t n, float *own) {
  const size_t bytes = (size_t)n * sizeof *data;
  if (n == 0) return STATUS_OK;
  if (comm->size == 1) return own != data ? comm->ops->copy(comm, own, data, bytes) : STATUS_OK;
  count(comm, (size_t)comm->size * bytes);
  TRY(enter(comm, "reduce-scatter"));
  enum status status = comm->ops->reduce_scatter_f32(comm, data, n, own);
  leave(comm);
  return status;
}

enum status comm_exchange_f32(struct comm *comm, const float *send, int64_t n_send, int to, float *recv, int64_t n_recv,
                              int from) {
  if (n_send == 0) to = -1;
  if (n_recv == 0) from = -1;
  if (comm->size == 1 || (to < 0 && from < 0)) return STATUS_OK;
  if (to >= 0) count(comm, (size_t)n_send * sizeof *send);
  (comm->ops->queued ? watchdog_queued_exchange : watchdog_enter_exchange)(comm->name, to, from);
  TRY(join_group(comm));
  enum status status = comm->ops->exchange_f32(comm, send, n_send, to, recv, n_recv, from);
  leave(comm);
  return status;
}

enum status comm_all_reduce_f64(struct comm *comm, double *data, int64_t n, enum reduce_op op) {
  if (comm->size == 1 || n == 0) return STATUS_OK;
  count(comm, (size_t)n * sizeof *data);
  watchdog_enter("all-reduce", comm->name);
  enum status status = comm_mpi_all_reduce(comm, data, n, sizeof *data, MPI_DOUBLE, op);
  watchdog_leave();
  return status;
}

enum status comm_broadcast(struct comm *comm, void *data, size_t bytes, int root) {
  if (comm->size == 1) return STATUS_OK;
  count(comm, bytes);
  watchdog_enter("broadcast", comm->name);
  enum status status = comm_mpi_broadcast(comm, data, bytes, root);
  watchdog_leave();
  return status;
}

enum status comm_barrier(struct comm *comm) {
  if (comm->size == 1) return STATUS_OK;
  count(comm, 0);
  watchdog_enter("barrier", comm->name);
  int error = MPI_Barrier(comm->mpi);
  watchdog_leave();
  return comm_check(error, "MPI_Barrier");
}

enum status comm_group_begin(void) {
  assert(!group.open);
  group.open = true;
  return STATUS_OK;
}

enum status comm_group_end(void) {
  assert(group.open);
  struct comm *first = group.first;
  group.open = false;
  group.first = NULL;
  return first ? first->ops->group_end(first) : STATUS_OK;
}

void comm_close(struct comm *comm) {
  /* A collective failed inside a group that nobody ended. */
  if (!group.first || group.first->transport == comm->transport) {
    group.open = false;
    group.first = NULL;
  }
  comm->ops->close(comm);
  comm->ops = &comm_mpi_ops;
  comm->transport = NULL;
}

enum status comm_nothing(struct comm *comm) {
  (void)comm;
  return STATUS_OK;
}

void comm_close_nothing(struct comm *comm) { (void)comm; }
