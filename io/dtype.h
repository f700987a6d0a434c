/*
 * dtype.h: the number formats that base weights are stored in.
 *
 * Quantised formats are blocks along a tensor's last axis; layouts are GGML's,
 * but for three that no file has:
 *
 * f8: a block of 32 weights is an f32 scale and 32 OCP e4m3 numbers (no infinity,
 * largest 448), value = scale * number.
 *
 * int8, nf4: the numbers alone. Scales lie in planes of their own (struct weight
 * of model/ops.h) and belong to a place in the whole matrix: io/quant.h.
 */
#ifndef LORASHARD_IO_DTYPE_H
#define LORASHARD_IO_DTYPE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus /* the kernels of model/cuda are CUDA C */
extern "C" {
#endif

enum dtype {
  DTYPE_F32,
  DTYPE_F16,
  DTYPE_BF16,
  DTYPE_Q4_0,
  DTYPE_Q4_1,
  DTYPE_Q5_0,
  DTYPE_Q5_1,
  DTYPE_Q8_0,
  DTYPE_Q4_K,
  DTYPE_Q6_K,
  DTYPE_F8,
  DTYPE_INT8,
  DTYPE_NF4,
  DTYPE_COUNT,
};

/* Lower-case name: "f32", "q4_1". */
const char *dtype_name(enum dtype dtype);

/* Weights in one block (1 for plain formats) and the bytes it takes. */
int64_t dtype_block(enum dtype dtype);
size_t dtype_block_bytes(enum dtype dtype);

/* Bytes of n weights; n must be a multiple of dtype_block. */
size_t dtype_bytes(enum dtype dtype, int64_t n);

/* True for all but plain floating-point numbers. */
static inline int dtype_quantised(enum dtype dtype) { return dtype >= DTYPE_Q4_0; }

/* True where the scales are in planes of their own. */
static inline int dtype_in_planes(enum dtype dtype) { return dtype >= DTYPE_INT8; }

#ifdef __cplusplus
}
#endif

#endif
