/*
 * weights_quantise.c: base weights to int8 and nf4 as they are read, each rank its
 * own slice, so that the numbers are those of the whole matrix: some rows at a time
 * are widened to f32, quantised, and their planes copied to the device.
 *
 * int8 needs the largest magnitude of whole rows. Where tp cuts the columns, each
 * rank reads its part once for its own largest and, unless it is small, once more
 * for the numbers. A slice of nf4 that is cut within tiles is quantised with the
 * rest of them, and kept as the values that gives.
 */
#include <stdlib.h>
#include <string.h>

#include "io/quant.h"
#include "model/weights_read.h"

/* Widened at a time, but 32 rows at least: what stays in cache, or makes runs of a line long enough to read. */
#define CHUNK_WEIGHTS ((int64_t)64 << 10)
#define CHUNK_TURNED  ((int64_t)4 << 20)

struct quantiser {
  float *wide;     /* rows of a chunk */
  float *lines;    /* stored lines of it on their way to be turned */
  char *stored;    /* as the file has them */
  char *narrow;    /* the chunk's numbers */
  uint8_t *codes;  /* nf4 */
  float *scales;   /* int8: of the chunk's rows; nf4: of its tiles */
  double *largest; /* int8: of all rows of the slice */
};

/* The part of the whole matrix that is read: nf4's whole tiles. */
struct region {
  struct span rows, columns;
};

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

static struct span whole_units(struct span part, int64_t unit, int64_t end) {
  int64_t first = part.first / unit * unit;
  return (struct span){first, min64((part.first + part.n + unit - 1) / unit * unit, end) - first};
}

static struct region region_of(const struct read_item *item) {
  const struct read_quantise *q = &item->quantise;
  if (q->as == DTYPE_INT8) return (struct region){q->rows, item->columns};
  return (struct region){whole_units(q->rows, QUANT_NF4_TILE, q->n_rows),
                         whole_units(item->columns, QUANT_NF4_BLOCK, q->n_columns)};
}

static int64_t chunk_rows(const struct read_item *item, const struct region *region) {
  int64_t weights = item->transposed ? CHUNK_TURNED : CHUNK_WEIGHTS;
  return max64(weights / max64(region->columns.n, 1) / QUANT_NF4_TILE * QUANT_NF4_TILE, QUANT_NF4_TILE);
}

enum status quantiser_open(const struct read_list *list, struct quantiser **quantiser_p) {
  int64_t weights = 0, rows = 0, all_rows = 0, longest = 0;
  *quantiser_p = NULL;
  for (int i = 0; i < list->n; i++) {
    const struct read_item *item = &list->items[i];
    if (!item->quantise.as) continue;
    struct region region = region_of(item);
    int64_t n = min64(chunk_rows(item, &region), region.rows.n);
    weights = max64(weights, n * region.columns.n);
    rows = max64(rows, n);
    all_rows = max64(all_rows, region.rows.n);
    longest = max64(longest, max64(n, region.columns.n));
  }
  if (weights == 0) return STATUS_OK;
  struct quantiser *q = calloc(1, sizeof *q);
  if (q) {
    *quantiser_p = q;
    size_t stored = (size_t)longest * READ_TURN_LINES * sizeof(float);
    q->wide = malloc((size_t)weights * sizeof *q->wide);
    q->lines = malloc((size_t)longest * READ_TURN_LINES * sizeof *q->lines);
    q->stored = malloc(stored > READ_BUFFER_BYTES ? stored : READ_BUFFER_BYTES);
    q->narrow = malloc((size_t)weights);
    q->codes = malloc((size_t)(weights / QUANT_NF4_BLOCK + 1));
    q->scales = malloc((size_t)(weights / 16 + rows) * sizeof *q->scales); /* 2 a tile, which has one row at least */
    q->largest = malloc((size_t)all_rows * sizeof *q->largest);
  }
  if (q && q->wide && q->lines && q->stored && q->narrow && q->codes && q->scales && q->largest) return STATUS_OK;
  return status_set(STATUS_SYSTEM, "out of memory for quantising %lld weights at a time", (long long)weights);
}

void quantiser_close(struct quantiser **quantiser_p) {
  struct quantiser *q = *quantiser_p;
  if (!q) return;
  free(q->wide);
  free(q->lines);
  free(q->stored);
  free(q->narrow);
  free(q->codes);
  free(q->scales);
  free(q->largest);
  free(q);
  *quantiser_p = NULL;
}

/* Stored rows [row, row + n) x columns to dst. */
static enum status widen_rows(const struct read_item *item, struct reader *reader, int64_t row, int64_t n,
                              struct span columns, float *dst) {
  const struct tensor_info *info = item->info;
  size_t row_bytes = dtype_bytes(info->dtype, columns.n);
  int64_t batch = max64((int64_t)(READ_BUFFER_BYTES / row_bytes), 1);
  for (int64_t done = 0; done < n; done += batch) {
    int64_t now = min64(batch, n - done);
    char *stored = reader->quantiser->stored;
    TRY(reader->source->read(reader->source, info, row + done, now, columns.first, columns.n, stored, row_bytes));
    quant_expand_f32(info->dtype, stored, now * columns.n, dst + done * columns.n);
  }
  return STATUS_OK;
}

/* The same where the matrix is stored transposed. */
static enum status widen_turned(const struct read_item *item, struct reader *reader, int64_t row, int64_t n,
                                struct span columns, float *dst) {
  const struct tensor_info *info = item->info;
  struct quantiser *q = reader->quantiser;
  size_t line_bytes = dtype_bytes(info->dtype, n);
  for (int64_t done = 0; done < columns.n; done += READ_TURN_LINES) {
    int64_t now = min64(READ_TURN_LINES, columns.n - done);
    TRY(reader->source->read(reader->source, info, columns.first + done, now, row, n, q->stored, line_bytes));
    quant_expand_f32(info->dtype, q->stored, now * n, q->lines);
    for (int64_t r = 0; r < n; r++)
      for (int64_t k = 0; k < now; k++) dst[r * columns.n + done + k] = q->lines[k * n + r];
  }
  return STATUS_OK;
}

/* Rows [row, row + n) of the whole matrix, wherever they are stored, to q->wide [n, columns.n]. */
static enum status widen(const struct read_item *item, struct reader *reader, int64_t row, int64_t n,
                         struct span columns) {
  const struct row_pick *whole = &item->quantise.whole;
  for (int64_t done = 0; done < n;) {
    int64_t in_piece = (row + done) % whole->piece, piece = (row + done) / whole->piece;
    int64_t now = min64(whole->piece - in_piece, n - done), stored = whole->first + piece * whole->stride + in_piece;
    float *dst = reader->quantiser->wide + done * columns.n;
    if (item->transposed)
      TRY(widen_turned(item, reader, stored, now, columns, dst));
    else
      TRY(widen_rows(item, reader, stored, now, columns, dst));
    done += now;
  }
  return STATUS_OK;
}

/* --- int8 --------------------------------------------------------------------------- */

static void find_largest(const struct read_item *item, struct reader *reader, int64_t first, int64_t n) {
  const struct quantiser *q = reader->quantiser;
  for (int64_t r = 0; r < n; r++)
    q->largest[first + r] = (double)quant_largest(q->wide + r * item->columns.n, item->columns.n);
}

static enum status pack_int8(const struct read_item *item, struct reader *reader, int64_t first, int64_t n) {
  struct quantiser *q = reader->quantiser;
  const struct weight *weight = item->quantise.weight;
  int64_t columns = item->columns.n;
  for (int64_t r = 0; r < n; r++) {
    q->scales[r] = quant_int8_scale((float)q->largest[first + r]);
    quant_pack_int8(q->wide + r * columns, columns, q->scales[r], (int8_t *)q->narrow + r * columns);
  }
  TRY(device_copy_in(reader->device, (char *)weight->data + first * columns, q->narrow, (size_t)(n * columns)));
  return device_copy_in(reader->device, (float *)weight->scales + first, q->scales, (size_t)n * sizeof(float));
}

/* All chunks of the slice: their largest magnitudes, their numbers, or both. *held_p: q->wide holds the only chunk. */
static enum status int8_pass(const struct read_item *item, struct reader *reader, bool find, bool pack, bool *held_p) {
  struct region region = region_of(item);
  int64_t most = chunk_rows(item, &region);
  for (int64_t first = 0; first < region.rows.n; first += most) {
    int64_t n = min64(most, region.rows.n - first);
    if (!*held_p) TRY(widen(item, reader, region.rows.first + first, n, region.columns));
    if (find) find_largest(item, reader, first, n);
    if (pack) TRY(pack_int8(item, reader, first, n));
  }
  *held_p = region.rows.n <= most;
  return STATUS_OK;
}

static enum status quantise_int8(const struct read_item *item, struct reader *reader, enum status before) {
  const struct read_quantise *quantise = &item->quantise;
  struct quantiser *q = reader->quantiser;
  enum status status = before;
  bool held = false;
  if (!quantise->columns_cut || !reader->tp || comm_size(reader->tp) == 1)
    return before == STATUS_OK ? int8_pass(item, reader, true, true, &held) : before;
  if (status == STATUS_OK) status = int8_pass(item, reader, true, false, &held);
  if (status != STATUS_OK) memset(q->largest, 0, (size_t)quantise->rows.n * sizeof *q->largest);
  enum status sent = comm_all_reduce_f64(reader->tp, q->largest, quantise->rows.n, REDUCE_MAX);
  if (status == STATUS_OK) status = sent;
  return status == STATUS_OK ? int8_pass(item, reader, false, true, &held) : status;
}

/* --- nf4 ------------------------------------------------------------------------------ */

/* The chunk's planes to the slice's, from its row `first` on. */
static enum status send_nf4(const struct read_item *item, struct reader *reader, const struct quant_nf4 *planes,
                            int64_t first, int64_t n) {
  const struct weight *weight = item->quantise.weight;
  int64_t blocks = weight->n_in / QUANT_NF4_BLOCK, tiles = (n + QUANT_NF4_TILE - 1) / QUANT_NF4_TILE;
  char *numbers = (char *)weight->data + dtype_bytes(DTYPE_NF4, first * weight->n_in);
  TRY(device_copy_in(reader->device, numbers, planes->numbers, dtype_bytes(DTYPE_NF4, n * weight->n_in)));
  TRY(device_copy_in(reader->device, (uint8_t *)weight->codes + first * blocks, planes->codes, (size_t)(n * blocks)));
  return device_copy_in(reader->device, (float *)weight->scales + 2 * (first / QUANT_NF4_TILE * blocks), planes->tiles,
                        (size_t)(2 * tiles * blocks) * sizeof(float));
}

/* The values of the chunk's planes that belong to the slice, in its own type. The chunk is rows [row, row + n) of the
 * whole matrix. */
static enum status send_expanded(const struct read_item *item, struct reader *reader, const struct quant_nf4 *planes,
                                 const struct region *region, int64_t row, int64_t n) {
  struct quantiser *q = reader->quantiser;
  const struct span *rows = &item->quantise.rows;
  int64_t first = max64(row, rows->first), end = min64(row + n, rows->first + rows->n), columns = item->columns.n;
  if (first >= end) return STATUS_OK;
  size_t row_bytes = dtype_bytes(item->dtype, columns);
  char *values = (char *)q->wide; /* not needed any more, and wide enough */
  float *line = q->lines;
  for (int64_t r = first; r < end; r++) {
    quant_expand_nf4(planes, region->columns.n, r - row, 0, region->columns.n, line);
    const float *from = line + item->columns.first - region->columns.first;
    char *to = values + (size_t)(r - first) * row_bytes;
    if (item->dtype == DTYPE_F32)
      memcpy(to, from, row_bytes);
    else
      for (int64_t k = 0; k < columns; k++) ((uint16_t *)to)[k] = f32_to_bf16(from[k]);
  }
  char *dst = (char *)item->quantise.weight->data + (size_t)(first - rows->first) * row_bytes;
  return device_copy_in(reader->device, dst, values, (size_t)(end - first) * row_bytes);
}

static enum status quantise_nf4(const struct read_item *item, struct reader *reader) {
  struct quantiser *q = reader->quantiser;
  struct region region = region_of(item);
  struct quant_nf4 planes = {(uint8_t *)q->narrow, q->codes, q->scales};
  int64_t most = chunk_rows(item, &region);
  for (int64_t done = 0; done < region.rows.n; done += most) {
    int64_t n = min64(most, region.rows.n - done), row = region.rows.first + done;
    TRY(widen(item, reader, row, n, region.columns));
    quant_pack_nf4(q->wide, n, region.columns.n, &planes);
    if (item->dtype == DTYPE_NF4)
      TRY(send_nf4(item, reader, &planes, done, n));
    else
      TRY(send_expanded(item, reader, &planes, &region, row, n));
  }
  return STATUS_OK;
}

enum status quantise_item(const struct read_item *item, struct reader *reader, enum status before) {
  if (item->quantise.as == DTYPE_INT8) return quantise_int8(item, reader, before);
  return before == STATUS_OK ? quantise_nf4(item, reader) : before;
}
