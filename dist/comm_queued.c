/* Device memory over a backend, which queues collectives behind the device's work. */
#include <string.h>

#include "dist/comm_internal.h"
#include "io/plugin.h"

enum status comm_queued_find(const struct comm_backend **backend_p, char *text, size_t size) {
  void *symbol;
  TRY(plugin_find(COMM_NCCL_FILE, COMM_NCCL_SYMBOL, &symbol));
  const struct comm_backend *backend = symbol;
  if (strcmp(backend->version, LORASHARD_VERSION) != 0)
    return status_set(STATUS_DEVICE, "%s is of version %s, this program of %s: build both together", COMM_NCCL_FILE,
                      backend->version, LORASHARD_VERSION);
  TRY(backend->describe(text, size));
  *backend_p = backend;
  return STATUS_OK;
}

enum status comm_queued_make_id(struct comm *comm, const struct comm_transport *transport, char id[COMM_BACKEND_ID]) {
  memset(id, 0, COMM_BACKEND_ID);
  if (comm->size == 1 || comm->rank != 0) return STATUS_OK;
  enum status status = transport->backend->make_id(id);
  return status == STATUS_OK ? STATUS_OK : status_prefix(status, "group %s", comm->name);
}

enum status comm_queued_join(struct comm *comm, struct comm_transport *transport, char id[COMM_BACKEND_ID]) {
  if (comm->size > 1) {
    TRY(comm_check(MPI_Bcast(id, COMM_BACKEND_ID, MPI_BYTE, 0, comm->mpi), "MPI_Bcast"));
    TRY(transport->backend->join(transport->state, comm->name, id, comm->size, comm->rank, &comm->link));
  }
  comm->transport = transport;
  comm->ops = &comm_queued_ops;
  return STATUS_OK;
}

static enum status all_reduce_f32(struct comm *comm, float *data, int64_t n, enum reduce_op op) {
  return comm->transport->backend->all_reduce_f32(comm->link, data, n, op);
}

static enum status all_gather(struct comm *comm, const void *data, size_t bytes, void *gathered) {
  return comm->transport->backend->all_gather(comm->link, data, bytes, gathered);
}

static enum status reduce_scatter_f32(struct comm *comm, float *data, int64_t n, float *own) {
  return comm->transport->backend->reduce_scatter_f32(comm->link, data, n, own);
}

static enum status exchange_f32(struct comm *comm, const float *send, int64_t n_send, int to, float *recv,
                                int64_t n_recv, int from) {
  return comm->transport->backend->exchange_f32(comm->link, send, n_send, to, recv, n_recv, from);
}

static enum status copy(struct comm *comm, void *dst, const void *src, size_t bytes) {
  return comm->transport->backend->copy(comm->transport->state, dst, src, bytes);
}

static enum status group_begin(struct comm *comm) {
  return comm->transport->backend->group_begin(comm->transport->state);
}

static enum status group_end(struct comm *comm) { return comm->transport->backend->group_end(comm->transport->state); }

static enum status check(struct comm *comm) {
  return comm->link ? comm->transport->backend->check(comm->link) : STATUS_OK;
}

static void close_link(struct comm *comm) {
  if (comm->link) comm->transport->backend->leave(&comm->link);
}

const struct comm_ops comm_queued_ops = {
    .queued = true,
    .all_reduce_f32 = all_reduce_f32,
    .all_gather = all_gather,
    .reduce_scatter_f32 = reduce_scatter_f32,
    .exchange_f32 = exchange_f32,
    .copy = copy,
    .group_begin = group_begin,
    .group_end = group_end,
    .check = check,
    .close = close_link,
};
