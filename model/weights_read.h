/*
 * weights_read.h: the list of slices that a rank reads from its base, for
 * model/weights.c.
 */
#ifndef LORASHARD_MODEL_WEIGHTS_READ_H
#define LORASHARD_MODEL_WEIGHTS_READ_H

#include <stdbool.h>

#include "io/tensor_source.h"
#include "model/device.h"
#include "model/shard.h"

/* Output rows of a matrix: n_pieces runs of `piece` rows, `stride` apart. */
struct row_pick {
  int64_t first, piece, stride, n_pieces;
};
static inline struct row_pick row_pick_span(int64_t first, int64_t n) { return (struct row_pick){first, n, n, 1}; }
static inline int64_t row_pick_count(const struct row_pick *pick) { return pick->piece * pick->n_pieces; }

/* One read: picked rows x columns of a tensor [rows, cols] (stored [cols, rows]
 * when transposed; a vector counts as one column of n rows) to *slot as `dtype`,
 * rows contiguous. */
struct read_item {
  const struct tensor_info *info;
  struct row_pick rows;
  struct span columns;
  bool transposed;
  enum dtype dtype;
  void **slot;
};

struct read_list {
  struct read_item *items;
  int n, capacity;
};

enum status read_list_add(struct read_list *list, struct read_item item);
void read_list_free(struct read_list *list);

/* Do all reads. Slots hold device memory: what is not the host's is written through
 * the device's staging buffers, one being read while the other travels.
 * STATUS_DATA, STATUS_SYSTEM, STATUS_DEVICE. */
enum status read_list_run(const struct read_list *list, struct tensor_source *source, struct device *device);

/* Bytes the reads take from the files (whole blocks where a cut falls inside one). */
uint64_t read_list_bytes(const struct read_list *list);

/* STATUS_DATA unless the tensor is [rows, cols], or a vector [n]. */
enum status read_check_shape(const struct tensor_info *info, int64_t rows, int64_t cols);
enum status read_check_vector(const struct tensor_info *info, int64_t n);

#endif
