/*
 * Device memory over MPI: out of the device into pinned host memory, through
 * MPI, and back, a piece at a time. For ranks that share an accelerator and for
 * builds without NCCL, which do without speed: pieces do not overlap.
 */
#include "dist/comm_internal.h"

/* The buffer's limit, of all ranks' parts together. A multiple of every datatype. */
#define PIECE ((size_t)16 << 20)

static enum status take_buffer(struct comm_transport *transport, size_t bytes) {
  const struct comm_device *device = &transport->device;
  if (bytes <= transport->buffer_bytes) return STATUS_OK;
  comm_staged_close(transport);
  /* Powers of two, so that growing ends soon. */
  size_t grown = 4096;
  while (grown < bytes) grown *= 2;
  void *memory;
  TRY(device->host_alloc(device->context, grown, &memory));
  transport->buffer = memory;
  transport->buffer_bytes = grown;
  return STATUS_OK;
}

void comm_staged_close(struct comm_transport *transport) {
  if (transport->buffer) transport->device.host_free(transport->device.context, transport->buffer);
  transport->buffer = NULL;
  transport->buffer_bytes = 0;
}

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

static enum status all_reduce_f32(struct comm *comm, float *data, int64_t n, enum reduce_op op) {
  struct comm_transport *transport = comm->transport;
  const struct comm_device *device = &transport->device;
  const size_t bytes = (size_t)n * sizeof *data;
  TRY(take_buffer(transport, least(bytes, PIECE)));
  for (size_t done = 0; done < bytes; done += PIECE) {
    size_t piece = least(bytes - done, PIECE);
    char *part = (char *)data + done;
    TRY(device->copy_out(device->context, transport->buffer, part, piece));
    TRY(comm_mpi_all_reduce(comm, transport->buffer, (int64_t)(piece / sizeof *data), sizeof *data, MPI_FLOAT, op));
    TRY(device->copy_in(device->context, part, transport->buffer, piece));
  }
  return STATUS_OK;
}

static enum status all_gather(struct comm *comm, const void *data, size_t bytes, void *gathered) {
  struct comm_transport *transport = comm->transport;
  const struct comm_device *device = &transport->device;
  const size_t size = (size_t)comm->size, limit = PIECE / size ? PIECE / size : 1;
  const bool in_place = data == (const char *)gathered + (size_t)comm->rank * bytes;
  TRY(take_buffer(transport, size * least(bytes, limit)));
  for (size_t done = 0; done < bytes; done += limit) {
    size_t piece = least(bytes - done, limit);
    char *buffer = transport->buffer; /* [size][piece] */
    TRY(device->copy_out(device->context, buffer + (size_t)comm->rank * piece, (const char *)data + done, piece));
    TRY(comm_check(MPI_Allgather(MPI_IN_PLACE, 0, MPI_BYTE, buffer, (int)piece, MPI_BYTE, comm->mpi), "MPI_Allgather"));
    for (size_t r = 0; r < size; r++)
      if (!in_place || (int)r != comm->rank)
        TRY(device->copy_in(device->context, (char *)gathered + r * bytes + done, buffer + r * piece, piece));
  }
  return STATUS_OK;
}

static enum status reduce_scatter_f32(struct comm *comm, float *data, int64_t n, float *own) {
  struct comm_transport *transport = comm->transport;
  const struct comm_device *device = &transport->device;
  const int64_t limit = (int64_t)(PIECE / sizeof *data) / comm->size;
  TRY(take_buffer(transport, (size_t)comm->size * (size_t)(n < limit ? n : limit) * sizeof *data));
  for (int64_t done = 0; done < n; done += limit) {
    const int64_t piece = n - done < limit ? n - done : limit;
    const size_t bytes = (size_t)piece * sizeof *data;
    float *buffer = (float *)transport->buffer; /* [size][piece] */
    for (int r = 0; r < comm->size; r++)
      TRY(device->copy_out(device->context, buffer + r * piece, data + r * n + done, bytes));
    TRY(comm_mpi_reduce_scatter(comm, buffer, piece, buffer + comm->rank * piece));
    TRY(device->copy_in(device->context, own + done, buffer + comm->rank * piece, bytes));
  }
  return STATUS_OK;
}

/* Both ends cut a message alike, whatever else they send. */
static enum status exchange_f32(struct comm *comm, const float *send, int64_t n_send, int to, float *recv,
                                int64_t n_recv, int from) {
  struct comm_transport *transport = comm->transport;
  const struct comm_device *device = &transport->device;
  const int64_t limit = (int64_t)(PIECE / sizeof *send / 2);
  if (to < 0) n_send = 0;
  if (from < 0) n_recv = 0;
  const int64_t out = n_send < limit ? n_send : limit, in = n_recv < limit ? n_recv : limit;
  TRY(take_buffer(transport, (size_t)(out + in) * sizeof *send));
  float *sent = (float *)transport->buffer, *received = sent + out;
  for (int64_t done = 0; done < n_send || done < n_recv; done += limit) {
    const int64_t n_out = done >= n_send ? 0 : n_send - done < limit ? n_send - done : limit;
    const int64_t n_in = done >= n_recv ? 0 : n_recv - done < limit ? n_recv - done : limit;
    if (n_out) TRY(device->copy_out(device->context, sent, send + done, (size_t)n_out * sizeof *send));
    TRY(comm_mpi_exchange(comm, sent, n_out, n_out ? to : -1, received, n_in, n_in ? from : -1));
    if (n_in) TRY(device->copy_in(device->context, recv + done, received, (size_t)n_in * sizeof *recv));
  }
  return STATUS_OK;
}

static enum status copy(struct comm *comm, void *dst, const void *src, size_t bytes) {
  struct comm_transport *transport = comm->transport;
  const struct comm_device *device = &transport->device;
  TRY(take_buffer(transport, least(bytes, PIECE)));
  for (size_t done = 0; done < bytes; done += PIECE) {
    size_t piece = least(bytes - done, PIECE);
    TRY(device->copy_out(device->context, transport->buffer, (const char *)src + done, piece));
    TRY(device->copy_in(device->context, (char *)dst + done, transport->buffer, piece));
  }
  return STATUS_OK;
}

const struct comm_ops comm_staged_ops = {
    .all_reduce_f32 = all_reduce_f32,
    .all_gather = all_gather,
    .reduce_scatter_f32 = reduce_scatter_f32,
    .exchange_f32 = exchange_f32,
    .copy = copy,
    .group_begin = comm_nothing,
    .group_end = comm_nothing,
    .check = comm_nothing,
    .close = comm_close_nothing,
};
