#include "model/batch.h"

#include <string.h>

/* Offsets of the arrays within a side of the buffers: rising, each a multiple of 8. */
struct batch_layout {
  size_t row_ids, segments, ids, positions, target_rows, targets, end;
};

static struct batch_layout layout_of(int64_t max_tokens) {
  size_t n = (size_t)(max_tokens + 1) / 2 * 2; /* even, so that 4-byte arrays keep the alignment */
  struct batch_layout l = {0};
  l.segments = l.row_ids + n * sizeof(int64_t);
  l.ids = l.segments + n * sizeof(struct segment);
  l.positions = l.ids + n * sizeof(int32_t);
  l.target_rows = l.positions + n * sizeof(int32_t);
  l.targets = l.target_rows + n * sizeof(int32_t);
  l.end = l.targets + n * sizeof(int32_t);
  return l;
}

size_t batch_bytes(int64_t max_tokens) { return layout_of(max_tokens).end; }

static int64_t collect_targets(const struct batch *b, int32_t *rows, int32_t *targets) {
  int64_t n = 0;
  if (b->wanted) memcpy(rows, b->wanted, (size_t)b->n_wanted * sizeof *rows);
  if (b->wanted) return b->n_wanted;
  for (int64_t t = 0; b->labels && t < b->M; t++)
    if (b->labels[t] >= 0) {
      rows[n] = (int32_t)t;
      targets[n++] = b->labels[t];
    }
  return n;
}

static void stage(char *at, const void *src, size_t bytes) {
  if (src && bytes) memcpy(at, src, bytes);
}

enum status batch_place(struct device *device, struct batch_buffers *buffers, const struct batch *batch,
                        struct batch *placed) {
  if (batch->M > buffers->max_tokens)
    return status_set(STATUS_USAGE, "a micro-batch of %lld tokens is larger than the %lld prepared for",
                      (long long)batch->M, (long long)buffers->max_tokens);
  struct batch_layout l = layout_of(buffers->max_tokens);
  char *host = buffers->host;
  *placed = *batch;
  placed->rows_host = (const int32_t *)(host + l.target_rows);
  placed->n_targets = collect_targets(batch, (int32_t *)(host + l.target_rows), (int32_t *)(host + l.targets));
  placed->n_used = 0;
  if (batch->n_segments) {
    const struct segment *last = &batch->segments[batch->n_segments - 1];
    placed->n_used = last->q + last->n_q;
  }
  size_t M = (size_t)batch->M;
  stage(host + l.row_ids, batch->row_ids, M * sizeof *batch->row_ids);
  stage(host + l.segments, batch->segments, (size_t)batch->n_segments * sizeof *batch->segments);
  stage(host + l.ids, batch->ids, M * sizeof *batch->ids);
  stage(host + l.positions, batch->positions, M * sizeof *batch->positions);
  if (!device->host_memory) TRY(device_copy_in(device, buffers->device, host, l.end));
  const char *at = device->host_memory ? host : buffers->device;
  placed->row_ids = batch->row_ids ? (const int64_t *)(at + l.row_ids) : NULL;
  placed->segments = (const struct segment *)(at + l.segments);
  placed->ids = (const int32_t *)(at + l.ids);
  placed->positions = (const int32_t *)(at + l.positions);
  placed->target_rows = (const int32_t *)(at + l.target_rows);
  placed->targets = (const int32_t *)(at + l.targets);
  placed->labels = NULL; /* the caller's; nothing reads it from here on */
  return STATUS_OK;
}
