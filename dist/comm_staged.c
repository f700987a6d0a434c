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
  TRY(take_buffer(transport, size * least(bytes, limit)));
  for (size_t done = 0; done < bytes; done += limit) {
    size_t piece = least(bytes - done, limit);
    char *buffer = transport->buffer; /* [size][piece] */
    TRY(device->copy_out(device->context, buffer + (size_t)comm->rank * piece, (const char *)data + done, piece));
    TRY(comm_check(MPI_Allgather(MPI_IN_PLACE, 0, MPI_BYTE, buffer, (int)piece, MPI_BYTE, comm->mpi), "MPI_Allgather"));
    for (size_t r = 0; r < size; r++)
      TRY(device->copy_in(device->context, (char *)gathered + r * bytes + done, buffer + r * piece, piece));
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
    .copy = copy,
    .group_begin = comm_nothing,
    .group_end = comm_nothing,
    .check = comm_nothing,
    .close = comm_close_nothing,
};
