/*
 * safetensors.h: reading and writing one safetensors file. Source: the format's
 * own description; every refusal of the reference reader is here too.
 */
#ifndef LORASHARD_IO_SAFETENSORS_H
#define LORASHARD_IO_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/dtype.h"
#include "io/status.h"
#include "io/tensor_source.h"

struct safetensors_tensor {
  const char *name;      /* owned by the file */
  const char *file_type; /* the file's own word: "F32", "I64"; static */
  bool readable;         /* F32, F16 or BF16 with at most TENSOR_MAX_DIMS axes; else the next two are not set */
  enum dtype dtype;
  int64_t shape[TENSOR_MAX_DIMS]; /* row-major; last axis contiguous */
  int n_dims;
  uint64_t offset; /* of the first byte, from the start of the file; not aligned in general */
  uint64_t bytes;
};

struct safetensors {
  char *path;
  int fd;
  int64_t n_tensors;
  struct safetensors_tensor *tensors; /* by offset */
};

/* Open a file and check its header against its size; no weight is read. On
 * success *file_p is the caller's. Errors: STATUS_USAGE (no such file),
 * STATUS_DATA (malformed: file, tensor and fault named), STATUS_SYSTEM. */
enum status safetensors_open(const char *path, struct safetensors **file_p);

/* NULL is fine; sets the pointer to NULL. */
void safetensors_close(struct safetensors **file_p);

/* The tensor of that name, or NULL. Looks at every one. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name);

/* Copy n bytes from `start` (relative to the tensor's first byte) to dst.
 * Errors: STATUS_DATA (range outside the tensor, file cut since it was
 * opened). */
enum status safetensors_read(const struct safetensors *file, const struct safetensors_tensor *tensor, uint64_t start,
                             size_t n, void *dst);

/* --- writing --- */

/* A tensor to be written; dtype f32, f16 or bf16. */
struct safetensors_entry {
  const char *name;
  enum dtype dtype;
  int n_dims;
  int64_t shape[TENSOR_MAX_DIMS];
};

struct safetensors_writer;

/* Begin a file: the header for all n entries in the given order, with
 * `"__metadata__": {"format": "pt"}` (transformers refuses a file without it),
 * padded so that data begins on 8 bytes. Entries of falling dtype size keep
 * every tensor aligned. Written to "PATH.tmp" until finished. Errors:
 * STATUS_USAGE (an entry of another dtype, a repeated name), STATUS_SYSTEM. */
enum status safetensors_writer_create(const char *path, const struct safetensors_entry *entries, int64_t n,
                                      struct safetensors_writer **writer_p);

/* Append bytes of the tensors' data, little-endian, in entry order, in pieces
 * of any size. Errors: STATUS_SYSTEM (disk full: nothing is left behind). */
enum status safetensors_writer_append(struct safetensors_writer *writer, const void *data, size_t bytes);

/* All data must have been appended. fsync, rename to PATH, fsync the folder;
 * frees the writer either way and sets the pointer to NULL. */
enum status safetensors_writer_finish(struct safetensors_writer **writer_p);

/* Give up: removes the temporary file. NULL is fine; sets the pointer to
 * NULL. */
void safetensors_writer_destroy(struct safetensors_writer **writer_p);

#endif
