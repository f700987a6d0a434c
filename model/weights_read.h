/*
 * weights_read.h: the list of slices that a rank reads from its base, for
 * model/weights.c. What is quantised on the way (int8, nf4) goes through
 * weights_quantise.c.
 */
#ifndef LORASHARD_MODEL_WEIGHTS_READ_H
#define LORASHARD_MODEL_WEIGHTS_READ_H

#include <stdbool.h>

#include "dist/comm.h"
#include "io/tensor_source.h"
#include "model/device.h"
#include "model/shard.h"

/* Output rows of a matrix: n_pieces runs of `piece` rows, `stride` apart. */
struct row_pick {
  int64_t first, piece, stride, n_pieces;
};
static inline struct row_pick row_pick_span(int64_t first, int64_t n) { return (struct row_pick){first, n, n, 1}; }
static inline int64_t row_pick_count(const struct row_pick *pick) { return pick->piece * pick->n_pieces; }

/* How a read is quantised, if `as` is DTYPE_INT8 or DTYPE_NF4. */
struct read_quantise {
  enum dtype as;
  struct row_pick whole; /* all rows of the whole matrix, of which this rank has `rows` */
  struct span rows;
  int64_t n_rows, n_columns; /* of the whole matrix */
  bool columns_cut;          /* over tp: other ranks have other columns of the same rows */
  struct weight *weight;     /* planes to fill; nf4 that is cut within tiles is expanded again to its dtype */
};

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
  struct read_quantise quantise;
};

#define READ_TURN_LINES   32 /* of stored rows turned at a time: a cache line or more, and a block of f8 */
#define READ_BUFFER_BYTES ((size_t)4 << 20) /* of a piece on its way through conversion */

struct read_list {
  struct read_item *items;
  int n, capacity;
};

enum status read_list_add(struct read_list *list, struct read_item item);
void read_list_free(struct read_list *list);

/* Where reads come from and go to, and buffers for them. */
struct reader {
  struct tensor_source *source;
  struct device *device;
  struct comm *tp; /* NULL: one rank */
  char *buffer;
  float *wide;
  struct quantiser *quantiser; /* NULL but where something is quantised */
};

/* Buffers for these reads. reader_close takes a half-open one, too. STATUS_SYSTEM. */
enum status reader_open(const struct read_list *list, struct tensor_source *source, struct device *device,
                        struct comm *tp, struct reader *reader);
void reader_close(struct reader *reader);

/* Do all reads. Slots hold device memory: what is not the host's is written through
 * the device's staging buffers, one being read while the other travels. Rows whose
 * columns are cut get their int8 scales by one message over tp a matrix: all ranks
 * of tp call, and one that fails goes on with its part of the messages.
 * STATUS_DATA, STATUS_SYSTEM, STATUS_DEVICE, STATUS_PEER. */
enum status read_list_run(const struct read_list *list, struct reader *reader);

/* weights_quantise.c: the same for one item that is quantised. `before` is the status so
 * far: unless it is good, the item's messages are all that is done. */
enum status quantiser_open(const struct read_list *list, struct quantiser **quantiser_p);
void quantiser_close(struct quantiser **quantiser_p);
enum status quantise_item(const struct read_item *item, struct reader *reader, enum status before);

/* STATUS_DATA unless the tensor is [rows, cols], or a vector [n]. */
enum status read_check_shape(const struct tensor_info *info, int64_t rows, int64_t cols);
enum status read_check_vector(const struct tensor_info *info, int64_t n);

#endif
