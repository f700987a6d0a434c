/*
 * tensor_source.h: reading slices of a base model's tensors, whatever holds
 * them (Hugging Face folder, GGUF file, synthetic weights).
 *
 * A source presents Hugging Face tensor names and Hugging Face row order: a
 * GGUF source renames its tensors and undoes the q/k row permutation. Reads are
 * positioned and touch no byte outside the slice; each is counted.
 */
#ifndef LORASHARD_IO_TENSOR_SOURCE_H
#define LORASHARD_IO_TENSOR_SOURCE_H

#include <stddef.h>
#include <stdint.h>

#include "io/dtype.h"
#include "io/model_facts.h"
#include "io/status.h"

#define TENSOR_MAX_DIMS 4

struct tensor_info {
  const char *name; /* owned by the source */
  enum dtype dtype;
  int n_dims;
  int64_t shape[TENSOR_MAX_DIMS]; /* row-major; last axis contiguous */
  const char *file;               /* path of the file that holds it, for messages */
  int64_t index;                  /* the source's own */
};

struct tensor_source {
  void *state;      /* the implementation's */
  const char *path; /* as the user gave it */
  struct model_facts facts;
  uint64_t variant;    /* tells sources of equal facts and shapes apart: the seed of synthetic weights, else 0 */
  uint64_t bytes_read; /* weight bytes that reads asked for so far; headers not counted */

  /* Number of tensors and the i-th, in name order. */
  int64_t n_tensors;
  const struct tensor_info *(*at)(const struct tensor_source *source, int64_t i);

  /* The tensor of that name, or NULL. */
  const struct tensor_info *(*find)(const struct tensor_source *source, const char *name);

  /* Copy rows [row, row + n_rows) x columns [col, col + n_cols) of a 1- or
   * 2-dimensional tensor to dst, whose rows are dst_stride bytes apart, in the
   * tensor's own dtype. A vector [n] is one row of n columns. col and n_cols
   * are multiples of the dtype's block. Errors: STATUS_DATA (short file). */
  enum status (*read)(struct tensor_source *source, const struct tensor_info *info, int64_t row, int64_t n_rows,
                      int64_t col, int64_t n_cols, void *dst, size_t dst_stride);

  void (*close)(struct tensor_source *source); /* frees state, not the struct */
};

#endif
