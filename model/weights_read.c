#include "model/weights_read.h"

#include <stdlib.h>
#include <string.h>

#include "io/quant.h"

enum status read_list_add(struct read_list *list, struct read_item item) {
  if (list->n == list->capacity) {
    int capacity = list->capacity ? 2 * list->capacity : 64;
    struct read_item *items = realloc(list->items, (size_t)capacity * sizeof *items);
    if (!items) return status_set(STATUS_SYSTEM, "out of memory for the list of weights");
    list->items = items;
    list->capacity = capacity;
  }
  list->items[list->n++] = item;
  return STATUS_OK;
}

void read_list_free(struct read_list *list) {
  free(list->items);
  memset(list, 0, sizeof *list);
}

enum status read_check_shape(const struct tensor_info *info, int64_t rows, int64_t cols) {
  if (info->n_dims == 2 && info->shape[0] == rows && info->shape[1] == cols) return STATUS_OK;
  return status_set(STATUS_DATA,
                    "%s: tensor '%s' has shape [%lld, %lld] (%d dimensions), but config.json says [%lld, %lld]: the "
                    "download is damaged or config.json is another model's",
                    info->file, info->name, (long long)info->shape[0],
                    info->n_dims > 1 ? (long long)info->shape[1] : 0LL, info->n_dims, (long long)rows, (long long)cols);
}

enum status read_check_vector(const struct tensor_info *info, int64_t n) {
  if (info->n_dims == 1 && info->shape[0] == n) return STATUS_OK;
  return status_set(STATUS_DATA,
                    "%s: tensor '%s' has %d dimensions, the first of %lld, but config.json says [%lld]: the download "
                    "is damaged or config.json is another model's",
                    info->file, info->name, info->n_dims, (long long)info->shape[0], (long long)n);
}

/* The columns to read so that both ends fall on a block. */
static struct span covering(enum dtype dtype, struct span columns) {
  int64_t block = dtype_block(dtype);
  int64_t first = columns.first / block * block;
  int64_t end = (columns.first + columns.n + block - 1) / block * block;
  return (struct span){first, end - first};
}

/* n values of dtype `from` at src, of which [skip, skip + keep) go to dst as dtype `to`. */
static void convert_row(enum dtype from, const void *src, int64_t n, int64_t skip, int64_t keep, enum dtype to,
                        void *dst, float *wide) {
  if (from == to) {
    memcpy(dst, (const char *)src + dtype_bytes(from, skip), dtype_bytes(from, keep));
    return;
  }
  quant_expand_f32(from, src, n, wide);
  if (to == DTYPE_F32)
    memcpy(dst, wide + skip, (size_t)keep * sizeof(float));
  else if (to == DTYPE_F8)
    quant_pack_f8(wide + skip, keep, dst);
  else
    for (int64_t i = 0; i < keep; i++) ((uint16_t *)dst)[i] = f32_to_bf16(wide[skip + i]);
}

/* Rows as stored: each picked row lies along the file's rows. */
static enum status read_rows(const struct read_item *item, struct tensor_source *source, int64_t row, int64_t n,
                             char *dst, char *buffer, float *wide) {
  enum dtype from = item->info->dtype;
  struct span cover = covering(from, item->columns);
  size_t from_row = dtype_bytes(from, cover.n), to_row = dtype_bytes(item->dtype, item->columns.n);
  if (from == item->dtype && cover.n == item->columns.n)
    return source->read(source, item->info, row, n, cover.first, cover.n, dst, to_row);
  int64_t batch = (int64_t)(READ_BUFFER_BYTES / from_row);
  if (batch < 1) batch = 1;
  for (int64_t done = 0; done < n; done += batch) {
    int64_t now = n - done < batch ? n - done : batch;
    TRY(source->read(source, item->info, row + done, now, cover.first, cover.n, buffer, from_row));
    for (int64_t i = 0; i < now; i++)
      convert_row(from, buffer + (size_t)i * from_row, cover.n, item->columns.first - cover.first, item->columns.n,
                  item->dtype, dst + (size_t)(done + i) * to_row, wide);
  }
  return STATUS_OK;
}

static void store_one(enum dtype dtype, void *dst, int64_t at, float value) {
  if (dtype == DTYPE_F32)
    ((float *)dst)[at] = value;
  else
    ((uint16_t *)dst)[at] = dtype == DTYPE_F16 ? f32_to_f16(value) : f32_to_bf16(value);
}

/* Columns [column, column + n_lines) of dst [n, n_columns] from as many lines of n values. */
static void store_turned(enum dtype dtype, const float *lines, int64_t n_lines, int64_t n, void *dst, int64_t n_columns,
                         int64_t column) {
  for (int64_t r = 0; r < n; r++)
    for (int64_t k = 0; k < n_lines; k++) store_one(dtype, dst, r * n_columns + column + k, lines[k * n + r]);
}

/* The same for f8, of which READ_TURN_LINES columns are a block. */
static void pack_turned(const float *lines, int64_t n, char *dst, int64_t n_columns, int64_t column) {
  for (int64_t r = 0; r < n; r++) {
    float block[READ_TURN_LINES];
    for (int64_t k = 0; k < READ_TURN_LINES; k++) block[k] = lines[k * n + r];
    quant_pack_f8(block, READ_TURN_LINES, dst + dtype_bytes(DTYPE_F8, r * n_columns + column));
  }
}

/* Stored [in, out]: read runs of input rows and turn them, READ_TURN_LINES at a time.
 * The buffer holds as many at least. dst row length is item->columns.n elements. */
static enum status read_turned(const struct read_item *item, struct tensor_source *source, int64_t row, int64_t n,
                               char *dst, char *buffer, float *wide) {
  enum dtype from = item->info->dtype;
  size_t from_row = dtype_bytes(from, n);
  int64_t batch = (int64_t)(READ_BUFFER_BYTES / from_row) / READ_TURN_LINES * READ_TURN_LINES;
  if (batch < READ_TURN_LINES) batch = READ_TURN_LINES;
  for (int64_t done = 0; done < item->columns.n; done += batch) {
    int64_t now = item->columns.n - done < batch ? item->columns.n - done : batch;
    TRY(source->read(source, item->info, item->columns.first + done, now, row, n, buffer, from_row));
    for (int64_t c = 0; c < now; c += READ_TURN_LINES) {
      int64_t lines = now - c < READ_TURN_LINES ? now - c : READ_TURN_LINES;
      quant_expand_f32(from, buffer + (size_t)c * from_row, lines * n, wide);
      if (item->dtype == DTYPE_F8)
        pack_turned(wide, n, dst, item->columns.n, done + c);
      else
        store_turned(item->dtype, wide, lines, n, dst, item->columns.n, done + c);
    }
  }
  return STATUS_OK;
}

/* A vector: each run of entries is a run of columns of the one stored row. */
static enum status read_vector(const struct read_item *item, struct tensor_source *source, int64_t first, int64_t n,
                               char *dst, char *buffer) {
  enum dtype from = item->info->dtype;
  if (dtype_quantised(from))
    return status_set(STATUS_DATA, "%s: tensor '%s': a quantised vector (%s) is not supported", item->info->file,
                      item->info->name, dtype_name(from));
  TRY(source->read(source, item->info, 0, 1, first, n, buffer, dtype_bytes(from, n)));
  quant_expand_f32(from, buffer, n, (float *)dst);
  return STATUS_OK;
}

/* Largest row, as stored, that the buffers must hold. */
static int64_t longest_row(const struct read_list *list) {
  int64_t longest = 1;
  for (int i = 0; i < list->n; i++) {
    const struct read_item *item = &list->items[i];
    int64_t n =
        item->transposed || item->info->n_dims == 1 ? item->rows.piece : covering(item->info->dtype, item->columns).n;
    if (n > longest) longest = n;
  }
  return longest;
}

/* Rows [row, row + n) of an item, as read_item describes them, to host memory. */
static enum status read_piece(const struct read_item *item, struct tensor_source *source, int64_t row, int64_t n,
                              char *dst, char *buffer, float *wide) {
  if (item->info->n_dims == 1) return read_vector(item, source, row, n, dst, buffer);
  if (item->transposed) return read_turned(item, source, row, n, dst, buffer, wide);
  return read_rows(item, source, row, n, dst, buffer, wide);
}

/* The same to device memory: as many rows at a time as a staging buffer takes. */
static enum status send_piece(const struct read_item *item, struct tensor_source *source, struct device *device,
                              int64_t row, int64_t n, char *dst, char *buffer, float *wide) {
  size_t row_bytes = dtype_bytes(item->dtype, item->columns.n);
  int64_t most = (int64_t)(DEVICE_STAGE_BYTES / row_bytes);
  if (most < 1)
    return status_set(STATUS_DATA, "%s: tensor '%s': a row of %zu MB is not supported on this device", item->info->file,
                      item->info->name, row_bytes >> 20);
  for (int64_t done = 0; done < n; done += most) {
    int64_t now = n - done < most ? n - done : most;
    void *stage;
    TRY(device_stage_take(device, &stage));
    TRY(read_piece(item, source, row + done, now, stage, buffer, wide));
    TRY(device_stage_send(device, dst + (size_t)done * row_bytes, (size_t)now * row_bytes));
  }
  return STATUS_OK;
}

static enum status read_item_run(const struct read_item *item, struct tensor_source *source, struct device *device,
                                 char *buffer, float *wide) {
  size_t piece_bytes = dtype_bytes(item->dtype, item->columns.n) * (size_t)item->rows.piece;
  for (int64_t p = 0; p < item->rows.n_pieces; p++) {
    int64_t row = item->rows.first + p * item->rows.stride;
    char *dst = (char *)*item->slot + (size_t)p * piece_bytes;
    if (device->host_memory)
      TRY(read_piece(item, source, row, item->rows.piece, dst, buffer, wide));
    else
      TRY(send_piece(item, source, device, row, item->rows.piece, dst, buffer, wide));
  }
  return STATUS_OK;
}

enum status reader_open(const struct read_list *list, struct tensor_source *source, struct device *device,
                        struct comm *tp, struct reader *reader) {
  *reader = (struct reader){.source = source, .device = device, .tp = tp};
  int64_t longest = longest_row(list);
  size_t buffer_bytes = (size_t)longest * READ_TURN_LINES * sizeof(float);
  if (buffer_bytes < READ_BUFFER_BYTES) buffer_bytes = READ_BUFFER_BYTES;
  reader->buffer = malloc(buffer_bytes);
  reader->wide = malloc((size_t)longest * READ_TURN_LINES * sizeof(float));
  if (!reader->buffer || !reader->wide)
    return status_set(STATUS_SYSTEM, "out of memory for a read buffer of %zu bytes", buffer_bytes);
  return quantiser_open(list, &reader->quantiser);
}

void reader_close(struct reader *reader) {
  free(reader->buffer);
  free(reader->wide);
  quantiser_close(&reader->quantiser);
  memset(reader, 0, sizeof *reader);
}

enum status read_list_run(const struct read_list *list, struct reader *reader) {
  enum status status = STATUS_OK;
  for (int i = 0; i < list->n; i++) {
    const struct read_item *item = &list->items[i];
    if (item->quantise.as)
      status = quantise_item(item, reader, status);
    else if (status == STATUS_OK && *item->slot)
      status = read_item_run(item, reader->source, reader->device, reader->buffer, reader->wide);
  }
  return status;
}
