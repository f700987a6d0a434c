/*
 * quant.c: stored weights to f32 or bf16 in memory.
 */
#include "model/cpu/quant_lanes.h"

#include "model/cpu/cpu_internal.h"

enum { PIECE = 1024 }; /* weights of a row that are expanded at a time; a multiple of every block */

/* n weights of a format that the compiler knows. */
VF_INLINE void expand(enum dtype dtype, const uint8_t *restrict src, int64_t n, float *restrict dst) {
  int block = quant_block(dtype), bytes = quant_block_bytes(dtype);
  for (; n >= block; n -= block, src += bytes, dst += block) {
#pragma GCC unroll 8
    for (int group = 0; group < block / QUANT_GROUP; group++) {
#pragma GCC unroll 8
      for (int v = 0; v < QUANT_VECTORS; v++) {
        vf_store(dst + group * QUANT_GROUP + v * VF_LANES, quant_vector(dtype, src, (vf){0}, group, v));
      }
    }
  }
  if (dtype != DTYPE_F16) return; /* the others end with a block */
  for (int64_t i = 0; i < n; i++) dst[i] = quant_half(src + 2 * i);
}

static void expand_f32(enum dtype dtype, const void *restrict src, int64_t n, float *restrict dst) {
  switch (dtype) {
    case DTYPE_F32:
    case DTYPE_BF16:
      cpu_load(dtype, src, n, dst);
      break;
    case DTYPE_F16:
      expand(DTYPE_F16, src, n, dst);
      break;
    case DTYPE_Q4_0:
      expand(DTYPE_Q4_0, src, n, dst);
      break;
    case DTYPE_Q4_1:
      expand(DTYPE_Q4_1, src, n, dst);
      break;
    case DTYPE_Q5_0:
      expand(DTYPE_Q5_0, src, n, dst);
      break;
    case DTYPE_Q5_1:
      expand(DTYPE_Q5_1, src, n, dst);
      break;
    case DTYPE_Q8_0:
      expand(DTYPE_Q8_0, src, n, dst);
      break;
    case DTYPE_Q4_K:
      expand(DTYPE_Q4_K, src, n, dst);
      break;
    case DTYPE_Q6_K:
      expand(DTYPE_Q6_K, src, n, dst);
      break;
    case DTYPE_F8:
      expand(DTYPE_F8, src, n, dst);
      break;
    case DTYPE_INT8: /* expand_planes */
    case DTYPE_NF4:
    case DTYPE_COUNT:
      break;
  }
}

void cpu_expand(enum dtype dtype, const void *restrict src, int64_t n, enum dtype dst_dtype, void *restrict dst) {
  if (dst_dtype == DTYPE_F32) {
    expand_f32(dtype, src, n, dst);
  } else if (dtype == DTYPE_BF16) {
    memcpy(dst, src, (size_t)n * sizeof(uint16_t));
  } else if (dtype == DTYPE_F32) {
    cpu_store(DTYPE_BF16, src, n, dst);
  } else {
    float piece[PIECE];
    for (int64_t i = 0; i < n; i += PIECE) {
      int64_t size = n - i < PIECE ? n - i : PIECE;
      expand_f32(dtype, (const char *)src + dtype_bytes(dtype, i), size, piece);
      cpu_store(DTYPE_BF16, piece, size, (uint16_t *)dst + i);
    }
  }
}

/* n weights of a row from a column on (a multiple of the block), of a format in planes. */
VF_INLINE void expand_row(enum dtype dtype, const struct weight *W, int64_t row, int64_t column, int64_t n,
                          float *restrict dst) {
  int block = quant_block(dtype), bytes = quant_block_bytes(dtype);
  const uint8_t *src = (const uint8_t *)W->data + dtype_bytes(dtype, row * W->n_in + column);
  for (int64_t b = column / block; n >= block; n -= block, src += bytes, dst += block, b++) {
    vf scale = quant_plane_scale(dtype, W, row, b);
#pragma GCC unroll 2
    for (int group = 0; group < block / QUANT_GROUP; group++) {
#pragma GCC unroll 8
      for (int v = 0; v < QUANT_VECTORS; v++) {
        vf_store(dst + group * QUANT_GROUP + v * VF_LANES, quant_vector(dtype, src, scale, group, v));
      }
    }
  }
  if (dtype == DTYPE_INT8) quant_expand_int8((const int8_t *)src, n, W->scales[row], dst); /* nf4 ends with a block */
}

static void expand_planes(const struct weight *W, int64_t row, int64_t column, int64_t n, float *restrict dst) {
  if (W->dtype == DTYPE_INT8) {
    expand_row(DTYPE_INT8, W, row, column, n, dst);
  } else {
    expand_row(DTYPE_NF4, W, row, column, n, dst);
  }
}

void cpu_expand_row(const struct weight *W, int64_t row, int64_t column, int64_t n, enum dtype dst_dtype,
                    void *restrict dst) {
  if (!dtype_in_planes(W->dtype)) {
    const char *src = (const char *)W->data + (size_t)row * dtype_bytes(W->dtype, W->n_in);
    cpu_expand(W->dtype, src + dtype_bytes(W->dtype, column), n, dst_dtype, dst);
  } else if (dst_dtype == DTYPE_F32) {
    expand_planes(W, row, column, n, dst);
  } else {
    float piece[PIECE];
    for (int64_t i = 0; i < n; i += PIECE) {
      int64_t size = n - i < PIECE ? n - i : PIECE;
      expand_planes(W, row, column + i, size, piece);
      cpu_store(DTYPE_BF16, piece, size, (uint16_t *)dst + i);
    }
  }
}

void cpu_expand_tile(const struct device *d, const struct weight *W, int64_t row, int64_t n_rows, int64_t column,
                     int64_t n_columns, enum dtype dst_dtype, void *dst) {
  size_t dst_bytes = (size_t)n_columns * cpu_element_bytes(dst_dtype);
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (n_rows > 1)
  for (int64_t r = 0; r < n_rows; r++) {
    cpu_expand_row(W, row + r, column, n_columns, dst_dtype, (char *)dst + (size_t)r * dst_bytes);
  }
}
