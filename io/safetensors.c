#include "io/safetensors.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/file_read.h"

#define HEADER_MAX 100000000u /* the reference reader's own limit */

static const struct {
  const char *name;
  int bits;
  int dtype; /* -1: cannot be a weight here */
} file_types[] = {
    {"F32", 32, DTYPE_F32}, {"F16", 16, DTYPE_F16}, {"BF16", 16, DTYPE_BF16}, {"BOOL", 8, -1},
    {"I8", 8, -1},          {"U8", 8, -1},          {"F8_E4M3", 8, -1},       {"F8_E5M2", 8, -1},
    {"F8_E8M0", 8, -1},     {"F8_E4M3FNUZ", 8, -1}, {"F8_E5M2FNUZ", 8, -1},   {"I16", 16, -1},
    {"U16", 16, -1},        {"I32", 32, -1},        {"U32", 32, -1},          {"I64", 64, -1},
    {"U64", 64, -1},        {"F64", 64, -1},        {"C64", 64, -1},          {"F4", 4, -1},
    {"F6_E2M3", 6, -1},     {"F6_E3M2", 6, -1},
};
#define N_FILE_TYPES (sizeof file_types / sizeof file_types[0])

/* STATUS_DATA with the file in front and the usual remedy behind. */
static enum status bad(const struct safetensors *file, const char *name, const char *fault) {
  if (!name) return status_set(STATUS_DATA, "%s: %s; copy or download the file again", file->path, fault);
  return status_set(STATUS_DATA, "%s: tensor %.200s: %s; copy or download the file again", file->path, name, fault);
}

/* Shape of an entry: number of elements, and the axes if they are few enough. */
static enum status parse_shape(const struct safetensors *file, const json_t *shape, struct safetensors_tensor *tensor,
                               uint64_t *n_elements) {
  if (!json_is_array(shape)) return bad(file, tensor->name, "shape is not a list");
  size_t n_dims = json_array_size(shape);
  uint64_t product = 1;
  bool overflow = false;
  if (n_dims > TENSOR_MAX_DIMS) tensor->readable = false;
  for (size_t i = 0; i < n_dims; i++) {
    const json_t *axis = json_array_get(shape, i);
    if (!json_is_integer(axis) || json_integer_value(axis) < 0)
      return bad(file, tensor->name, "shape holds something other than sizes");
    int64_t size = json_integer_value(axis);
    overflow |= __builtin_mul_overflow(product, (uint64_t)size, &product);
    if (i < TENSOR_MAX_DIMS) tensor->shape[i] = size;
  }
  if (overflow) return bad(file, tensor->name, "shape is too large to be a tensor");
  tensor->n_dims = n_dims > TENSOR_MAX_DIMS ? TENSOR_MAX_DIMS : (int)n_dims;
  *n_elements = product;
  return STATUS_OK;
}

/* One entry of the header. tensor->name is set; offset stays relative. */
static enum status parse_entry(const struct safetensors *file, const json_t *entry, struct safetensors_tensor *tensor) {
  if (!json_is_object(entry)) return bad(file, tensor->name, "its header entry is not an object");
  const char *type = json_string_value(json_object_get(entry, "dtype"));
  if (!type) return bad(file, tensor->name, "no dtype");
  size_t t = 0;
  while (t < N_FILE_TYPES && strcmp(type, file_types[t].name) != 0) t++;
  if (t == N_FILE_TYPES) return bad(file, tensor->name, "a dtype that the format does not know");
  tensor->file_type = file_types[t].name;
  tensor->readable = file_types[t].dtype >= 0;
  if (tensor->readable) tensor->dtype = (enum dtype)file_types[t].dtype;

  uint64_t n_elements = 0, n_bits = 0;
  TRY(parse_shape(file, json_object_get(entry, "shape"), tensor, &n_elements));
  if (__builtin_mul_overflow(n_elements, (uint64_t)file_types[t].bits, &n_bits))
    return bad(file, tensor->name, "shape is too large to be a tensor");
  if (n_bits % 8) return bad(file, tensor->name, "does not fill whole bytes");

  const json_t *offsets = json_object_get(entry, "data_offsets");
  const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
  if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
      json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin))
    return bad(file, tensor->name, "data_offsets is not a range");
  tensor->offset = (uint64_t)json_integer_value(begin);
  tensor->bytes = (uint64_t)json_integer_value(end) - tensor->offset;
  if (tensor->bytes != n_bits / 8) return bad(file, tensor->name, "data_offsets do not fit its shape and dtype");
  return STATUS_OK;
}

static enum status check_metadata(const struct safetensors *file, const json_t *metadata) {
  if (!metadata) return STATUS_OK;
  if (!json_is_object(metadata)) return bad(file, NULL, "__metadata__ is not an object");
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)metadata, key, value) {
    if (!json_is_string(value)) return bad(file, NULL, "__metadata__ holds something other than strings");
  }
  return STATUS_OK;
}

static int by_offset(const void *a, const void *b) {
  const struct safetensors_tensor *x = a, *y = b;
  if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
  if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
  return strcmp(x->name, y->name);
}

/* Tensors must tile [0, data_bytes) without gap or overlap; offsets become
 * positions in the file. */
static enum status check_tiling(struct safetensors *file, uint64_t data_start, uint64_t data_bytes) {
  if (file->n_tensors > 0) qsort(file->tensors, (size_t)file->n_tensors, sizeof *file->tensors, by_offset);
  uint64_t next = 0;
  for (int64_t i = 0; i < file->n_tensors; i++) {
    struct safetensors_tensor *tensor = &file->tensors[i];
    if (tensor->offset != next) return bad(file, tensor->name, "data begins before or after the end of its neighbour");
    next += tensor->bytes; /* no overflow: both are below 2^63 */
    if (next > data_bytes) return bad(file, tensor->name, "data lies past the end of the file (truncated?)");
    tensor->offset += data_start;
  }
  if (next != data_bytes) return bad(file, NULL, "longer than its tensors need");
  return STATUS_OK;
}

static enum status parse_header(struct safetensors *file, const char *text, size_t length) {
  if (length == 0 || text[0] != '{') return bad(file, NULL, "not a safetensors file (header does not begin with {)");
  json_error_t error;
  json_t *root = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
  if (!root)
    return status_set(STATUS_DATA, "%s: header is not valid JSON: %s; copy or download the file again", file->path,
                      error.text);
  enum status status = STATUS_OK;
  if (!json_is_object(root)) {
    status = bad(file, NULL, "header is not a JSON object");
    goto out;
  }
  TRY_OUT(check_metadata(file, json_object_get(root, "__metadata__")));
  file->tensors = calloc(json_object_size(root) + 1, sizeof *file->tensors);
  if (!file->tensors) {
    status = status_set(STATUS_SYSTEM, "%s: no memory for %zu tensor entries", file->path, json_object_size(root));
    goto out;
  }
  const char *name;
  json_t *entry;
  json_object_foreach(root, name, entry) {
    if (strcmp(name, "__metadata__") == 0) continue;
    struct safetensors_tensor *tensor = &file->tensors[file->n_tensors];
    tensor->name = strdup(name);
    if (!tensor->name) {
      status = status_set(STATUS_SYSTEM, "%s: no memory for tensor names", file->path);
      goto out;
    }
    file->n_tensors++;
    TRY_OUT(parse_entry(file, entry, tensor));
  }
out:
  json_decref(root);
  return status;
}

static enum status read_header(struct safetensors *file, uint64_t size) {
  uint8_t prefix[8];
  if (size < sizeof prefix) return bad(file, NULL, "shorter than 8 bytes: not a safetensors file");
  TRY(file_read_at(file->fd, file->path, 0, prefix, sizeof prefix));
  uint64_t length = 0;
  for (int i = 7; i >= 0; i--) length = length << 8 | prefix[i];
  if (length > HEADER_MAX) return bad(file, NULL, "header claims more than 100 MB: not a safetensors file");
  if (length > size - sizeof prefix) return bad(file, NULL, "header lies past the end of the file (truncated?)");
  char *text = malloc((size_t)length + 1);
  if (!text)
    return status_set(STATUS_SYSTEM, "%s: no memory for a header of %llu bytes", file->path,
                      (unsigned long long)length);
  enum status status = file_read_at(file->fd, file->path, sizeof prefix, text, (size_t)length);
  if (status == STATUS_OK) status = parse_header(file, text, (size_t)length);
  if (status == STATUS_OK) status = check_tiling(file, sizeof prefix + length, size - sizeof prefix - length);
  free(text);
  return status;
}

enum status safetensors_open(const char *path, struct safetensors **file_p) {
  struct safetensors *file = calloc(1, sizeof *file);
  if (!file) return status_set(STATUS_SYSTEM, "%s: no memory to open it", path);
  file->fd = -1;
  enum status status;
  uint64_t size = 0;
  file->path = strdup(path);
  if (!file->path) {
    status = status_set(STATUS_SYSTEM, "%s: no memory to open it", path);
    goto out;
  }
  TRY_OUT(file_open_read(path, &file->fd, &size));
  TRY_OUT(read_header(file, size));
  *file_p = file;
  return STATUS_OK;
out:
  safetensors_close(&file);
  return status;
}

void safetensors_close(struct safetensors **file_p) {
  struct safetensors *file = *file_p;
  *file_p = NULL;
  if (!file) return;
  if (file->fd >= 0) close(file->fd);
  for (int64_t i = 0; i < file->n_tensors; i++) free((char *)file->tensors[i].name);
  free(file->tensors);
  free(file->path);
  free(file);
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name) {
  for (int64_t i = 0; i < file->n_tensors; i++)
    if (strcmp(file->tensors[i].name, name) == 0) return &file->tensors[i];
  return NULL;
}

enum status safetensors_read(const struct safetensors *file, const struct safetensors_tensor *tensor, uint64_t start,
                             size_t n, void *dst) {
  if (start > tensor->bytes || n > tensor->bytes - start)
    return status_set(STATUS_DATA, "%s: tensor %.200s: bytes %llu + %zu asked for, it has %llu", file->path,
                      tensor->name, (unsigned long long)start, n, (unsigned long long)tensor->bytes);
  enum status status = file_read_at(file->fd, file->path, tensor->offset + start, dst, n);
  return status == STATUS_OK ? status : status_prefix(status, "tensor %.200s", tensor->name);
}
