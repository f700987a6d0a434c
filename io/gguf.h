/*
 * gguf.h: reading GGUF files (version 2 and 3, little-endian, one part):
 * keys and tensor infos; weights are read from their offsets by base_model.
 *
 * gguf_open checks every count, length, type and offset against the file's size
 * before using it; getters only look into the checked header, which stays in
 * memory until gguf_close. Source: gguf.md of the GGML project.
 */
#ifndef LORASHARD_IO_GGUF_H
#define LORASHARD_IO_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/dtype.h"
#include "io/status.h"
#include "io/tensor_source.h"

struct gguf;

/* A piece of the header's text: UTF-8 as the file has it, NOT zero-terminated. */
struct gguf_string {
  const char *text;
  size_t length;
};

struct gguf_tensor {
  const char *name; /* zero-terminated, owned by the gguf; the file's own name: "blk.0.attn_q.weight" */
  enum dtype dtype;
  int n_dims;
  int64_t shape[TENSOR_MAX_DIMS]; /* row-major as Hugging Face writes it: [out, in] */
  uint64_t offset;                /* of the first byte, from the start of the file */
  uint64_t bytes;
};

/* Open and check a file. On success *gguf_p is the caller's. Errors:
 * STATUS_USAGE (no such file, version 1, big-endian, split file, a tensor type
 * this program cannot read: named), STATUS_DATA (malformed), STATUS_SYSTEM. */
enum status gguf_open(const char *path, struct gguf **gguf_p);

/* NULL is fine; sets the pointer to NULL. */
void gguf_close(struct gguf **gguf_p);

const char *gguf_path(const struct gguf *gguf);
int gguf_fd(const struct gguf *gguf); /* open for reading until gguf_close */

/* Number of tensors and the i-th, in file order. */
int64_t gguf_n_tensors(const struct gguf *gguf);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *gguf, int64_t i);

/* True if the key is there, whatever its type. */
bool gguf_has(const struct gguf *gguf, const char *key);

/* Values of keys. A key that is absent or of another type is STATUS_DATA with
 * file and key named; the output is then untouched. Integers of any width are
 * widened and must fit; f32 takes f64 and integers too. */
enum status gguf_get_string(const struct gguf *gguf, const char *key, struct gguf_string *value);
enum status gguf_get_i64(const struct gguf *gguf, const char *key, int64_t *value);
enum status gguf_get_f32(const struct gguf *gguf, const char *key, float *value);
enum status gguf_get_bool(const struct gguf *gguf, const char *key, bool *value);

/* Arrays, malloc'ed for the caller (free); the text of strings still points
 * into the gguf. An empty array gives *n_p = 0 and a pointer that may be
 * freed. */
enum status gguf_get_strings(const struct gguf *gguf, const char *key, struct gguf_string **values_p, int64_t *n_p);
enum status gguf_get_f32s(const struct gguf *gguf, const char *key, float **values_p, int64_t *n_p);
enum status gguf_get_i32s(const struct gguf *gguf, const char *key, int32_t **values_p, int64_t *n_p);

#endif
