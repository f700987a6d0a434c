#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/durable.h"
#include "io/safetensors.h"

#define WRITE_MAX ((size_t)1 << 30) /* one call never asks for more: Linux caps a write near 2 GiB anyway */

struct safetensors_writer {
  char *path, *temporary;
  int fd;             /* -1 once closed; the temporary file exists while it is open */
  uint64_t remaining; /* data bytes still to come */
};

static const char *type_name(enum dtype dtype) {
  if (dtype == DTYPE_F32) return "F32";
  if (dtype == DTYPE_F16) return "F16";
  return dtype == DTYPE_BF16 ? "BF16" : NULL;
}

/* The JSON entry of a tensor whose data begins at *offset; moves it on. */
static enum status make_entry(const char *path, const struct safetensors_entry *entry, uint64_t *offset,
                              json_t **json_p) {
  const char *type = type_name(entry->dtype);
  if (!type)
    return status_set(STATUS_USAGE, "%s: tensor %.200s: %s cannot be stored in safetensors; choose f32, f16 or bf16",
                      path, entry->name, dtype_name(entry->dtype));
  uint64_t bytes = dtype_block_bytes(entry->dtype), end = 0;
  json_t *shape = json_array();
  bool overflow = false, failed = !shape;
  for (int d = 0; d < entry->n_dims; d++) {
    overflow |= __builtin_mul_overflow(bytes, (uint64_t)entry->shape[d], &bytes);
    failed |= json_array_append_new(shape, json_integer(entry->shape[d])) != 0;
  }
  overflow |= __builtin_add_overflow(*offset, bytes, &end) || end > INT64_MAX;
  if (overflow) {
    json_decref(shape);
    return status_set(STATUS_USAGE, "%s: tensor %.200s is too large for a file", path, entry->name);
  }
  json_t *json = failed ? NULL
                        : json_pack("{s:s, s:O, s:[I, I]}", "dtype", type, "shape", shape, "data_offsets",
                                    (json_int_t)*offset, (json_int_t)end);
  json_decref(shape);
  if (!json) return status_set(STATUS_SYSTEM, "%s: no memory for the header", path);
  *offset = end;
  *json_p = json;
  return STATUS_OK;
}

/* The header's text, malloc'ed, and the bytes of data that it promises. */
static enum status make_header(const char *path, const struct safetensors_entry *entries, int64_t n, char **text_p,
                               uint64_t *data_bytes) {
  json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
  enum status status = STATUS_OK;
  uint64_t offset = 0;
  for (int64_t i = 0; root && i < n; i++) {
    json_t *json = NULL;
    if (json_object_get(root, entries[i].name)) {
      status = status_set(STATUS_USAGE, "%s: tensor %.200s is listed twice", path, entries[i].name);
      goto out;
    }
    TRY_OUT(make_entry(path, &entries[i], &offset, &json));
    if (json_object_set_new(root, entries[i].name, json) != 0) {
      status = status_set(STATUS_USAGE, "%s: tensor %.200s cannot be put into the header (its name is not UTF-8?)",
                          path, entries[i].name);
      goto out;
    }
  }
  char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
  if (!text) {
    status = status_set(STATUS_SYSTEM, "%s: no memory for the header", path);
    goto out;
  }
  *text_p = text;
  *data_bytes = offset;
out:
  json_decref(root);
  return status;
}

static enum status write_all(struct safetensors_writer *writer, const void *data, size_t bytes) {
  const char *at = data;
  while (bytes > 0) {
    ssize_t done = write(writer->fd, at, bytes < WRITE_MAX ? bytes : WRITE_MAX);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return status_set(STATUS_SYSTEM, "%s: cannot write: %s", writer->temporary, strerror(errno));
    at += done;
    bytes -= (size_t)done;
  }
  return STATUS_OK;
}

/* Length, text, and spaces so that data begins on a multiple of 8 bytes. */
static enum status write_header(struct safetensors_writer *writer, const char *text) {
  size_t length = strlen(text), padded = (length + 7) / 8 * 8;
  uint8_t prefix[8];
  for (int i = 0; i < 8; i++) prefix[i] = (uint8_t)((uint64_t)padded >> (8 * i));
  TRY(write_all(writer, prefix, sizeof prefix));
  TRY(write_all(writer, text, length));
  return write_all(writer, "        ", padded - length);
}

enum status safetensors_writer_create(const char *path, const struct safetensors_entry *entries, int64_t n,
                                      struct safetensors_writer **writer_p) {
  struct safetensors_writer *writer = calloc(1, sizeof *writer);
  char *header = NULL;
  enum status status = STATUS_OK;
  if (writer) {
    writer->fd = -1;
    writer->path = strdup(path);
    writer->temporary = malloc(strlen(path) + sizeof ".tmp");
  }
  if (!writer || !writer->path || !writer->temporary) {
    status = status_set(STATUS_SYSTEM, "%s: no memory to write it", path);
    goto out;
  }
  strcat(strcpy(writer->temporary, path), ".tmp");
  TRY_OUT(make_header(path, entries, n, &header, &writer->remaining));
  unlink(writer->temporary); /* what an ended run left, or a link to somewhere else */
  writer->fd = open(writer->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (writer->fd < 0) {
    status = status_set(STATUS_SYSTEM, "%s: cannot create: %s", writer->temporary, strerror(errno));
    goto out;
  }
  TRY_OUT(write_header(writer, header));
  *writer_p = writer;
out:
  free(header);
  if (status != STATUS_OK) safetensors_writer_destroy(&writer);
  return status;
}

enum status safetensors_writer_append(struct safetensors_writer *writer, const void *data, size_t bytes) {
  if (bytes > writer->remaining)
    return status_set(STATUS_USAGE, "%s: %zu bytes of data where the header leaves %" PRIu64, writer->path, bytes,
                      writer->remaining);
  TRY(write_all(writer, data, bytes));
  writer->remaining -= bytes;
  return STATUS_OK;
}

enum status safetensors_writer_finish(struct safetensors_writer **writer_p) {
  struct safetensors_writer *writer = *writer_p;
  enum status status = STATUS_OK;
  if (writer->remaining > 0) {
    status = status_set(STATUS_USAGE, "%s: %" PRIu64 " bytes of data are missing", writer->path, writer->remaining);
    goto out;
  }
  if (fsync(writer->fd) != 0) {
    status = status_set(STATUS_SYSTEM, "%s: cannot write: %s", writer->temporary, strerror(errno));
    goto out;
  }
  int closed = close(writer->fd);
  writer->fd = -1;
  if (closed != 0) {
    status = status_set(STATUS_SYSTEM, "%s: cannot write: %s", writer->temporary, strerror(errno));
    unlink(writer->temporary);
    goto out;
  }
  status = durable_rename(writer->temporary, writer->path);
out:
  safetensors_writer_destroy(writer_p);
  return status;
}

void safetensors_writer_destroy(struct safetensors_writer **writer_p) {
  struct safetensors_writer *writer = *writer_p;
  *writer_p = NULL;
  if (!writer) return;
  if (writer->fd >= 0) {
    close(writer->fd);
    unlink(writer->temporary);
  }
  free(writer->temporary);
  free(writer->path);
  free(writer);
}
