/*
 * quant.c: stored weights to f32 or bf16, written so that the compiler
 * vectorises it. Layouts: io/quant.c, which also is the reference.
 *
 * The values are the reference's bit for bit although the compiler may fuse
 * d q + m: a 11-bit scale times a number of at most 13 bits is exact in f32,
 * so that fused or not there is one rounding. Only q6_k rounds its product,
 * and adds nothing.
 */
#include "io/quant.h"

#include "model/cpu/cpu_internal.h"
#ifdef __F16C__
#include <immintrin.h>
#endif

enum { PIECE = 1024 }; /* weights of a row that are expanded at a time; a multiple of every block */

static inline uint16_t half_bits(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static inline float half_at(const uint8_t *p) {
#ifdef __F16C__
  return _cvtsh_ss(half_bits(p));
#else
  return f16_to_f32(half_bits(p));
#endif
}

static void expand_f16(const uint8_t *src, int64_t n, float *restrict dst) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(src + 2 * i))));
  }
#endif
  for (; i < n; i++) dst[i] = half_at(src + 2 * i);
}

static void expand_q4_0(const uint8_t *block, int64_t n, float *restrict dst) {
  for (; n > 0; n -= 32, block += 18, dst += 32) {
    float d = half_at(block);
    for (int j = 0; j < 16; j++) dst[j] = d * (float)((block[2 + j] & 15) - 8);
    for (int j = 0; j < 16; j++) dst[j + 16] = d * (float)((block[2 + j] >> 4) - 8);
  }
}

static void expand_q4_1(const uint8_t *block, int64_t n, float *restrict dst) {
  for (; n > 0; n -= 32, block += 20, dst += 32) {
    float d = half_at(block), m = half_at(block + 2);
    for (int j = 0; j < 16; j++) dst[j] = d * (float)(block[4 + j] & 15) + m;
    for (int j = 0; j < 16; j++) dst[j + 16] = d * (float)(block[4 + j] >> 4) + m;
  }
}

static void expand_q5_0(const uint8_t *block, int64_t n, float *restrict dst) {
  for (; n > 0; n -= 32, block += 22, dst += 32) {
    float d = half_at(block);
    uint32_t high = half_bits(block + 2) | (uint32_t)half_bits(block + 4) << 16;
    const uint8_t *q = block + 6;
    for (int j = 0; j < 16; j++) dst[j] = d * (float)((int)((q[j] & 15) | (high >> j & 1) << 4) - 16);
    for (int j = 0; j < 16; j++) dst[j + 16] = d * (float)((int)((q[j] >> 4) | (high >> (j + 16) & 1) << 4) - 16);
  }
}

static void expand_q5_1(const uint8_t *block, int64_t n, float *restrict dst) {
  for (; n > 0; n -= 32, block += 24, dst += 32) {
    float d = half_at(block), m = half_at(block + 2);
    uint32_t high = half_bits(block + 4) | (uint32_t)half_bits(block + 6) << 16;
    const uint8_t *q = block + 8;
    for (int j = 0; j < 16; j++) dst[j] = d * (float)(int)((q[j] & 15) | (high >> j & 1) << 4) + m;
    for (int j = 0; j < 16; j++) dst[j + 16] = d * (float)(int)((q[j] >> 4) | (high >> (j + 16) & 1) << 4) + m;
  }
}

static void expand_q8_0(const uint8_t *block, int64_t n, float *restrict dst) {
  for (; n > 0; n -= 32, block += 34, dst += 32) {
    float d = half_at(block);
    for (int j = 0; j < 32; j++) dst[j] = d * (float)(int8_t)block[2 + j];
  }
}

static void expand_q4_k(const uint8_t *block, int64_t n, float *restrict dst) {
  for (; n > 0; n -= 256, block += 144, dst += 256) {
    float d = half_at(block), dmin = half_at(block + 2);
    const uint8_t *b = block + 4, *q = block + 16;
    for (int j = 0; j < 8; j++) {
      int sc = j < 4 ? b[j] & 63 : (b[j + 4] & 15) | (b[j - 4] >> 6) << 4;
      int m = j < 4 ? b[j + 4] & 63 : (b[j + 4] >> 4) | (b[j] >> 6) << 4;
      float scale = d * (float)sc, offset = dmin * (float)m;
      const uint8_t *pair = q + 32 * (j / 2);
      int shift = j % 2 * 4;
      for (int k = 0; k < 32; k++) dst[32 * j + k] = scale * (float)(pair[k] >> shift & 15) - offset;
    }
  }
}

static void expand_q6_k(const uint8_t *block, int64_t n, float *restrict dst) {
  for (; n > 0; n -= 256, block += 210, dst += 256) {
    float d = half_at(block + 208);
    for (int g = 0; g < 16; g++) { /* groups of 16 weights with one scale */
      int half = g / 8, group = g % 8 / 2, first = g % 2 * 16;
      const uint8_t *low = block + 64 * half + 32 * (group % 2) + first, *high = block + 128 + 32 * half + first;
      float scale = d * (float)(int8_t)block[192 + g];
      int low_shift = group / 2 * 4, high_shift = 2 * group;
      for (int k = 0; k < 16; k++) {
        int q = (low[k] >> low_shift & 15) | (high[k] >> high_shift & 3) << 4;
        dst[16 * g + k] = scale * (float)(q - 32);
      }
    }
  }
}

static void expand_f32(enum dtype dtype, const void *restrict src, int64_t n, float *restrict dst) {
  switch (dtype) {
    case DTYPE_F32:
    case DTYPE_BF16:
      cpu_load(dtype, src, n, dst);
      break;
    case DTYPE_F16:
      expand_f16(src, n, dst);
      break;
    case DTYPE_Q4_0:
      expand_q4_0(src, n, dst);
      break;
    case DTYPE_Q4_1:
      expand_q4_1(src, n, dst);
      break;
    case DTYPE_Q5_0:
      expand_q5_0(src, n, dst);
      break;
    case DTYPE_Q5_1:
      expand_q5_1(src, n, dst);
      break;
    case DTYPE_Q8_0:
      expand_q8_0(src, n, dst);
      break;
    case DTYPE_Q4_K:
      expand_q4_k(src, n, dst);
      break;
    case DTYPE_Q6_K:
      expand_q6_k(src, n, dst);
      break;
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

void cpu_expand_tile(const struct device *d, const struct weight *W, int64_t row, int64_t n_rows, int64_t column,
                     int64_t n_columns, enum dtype dst_dtype, void *dst) {
  size_t row_bytes = dtype_bytes(W->dtype, W->n_in), dst_bytes = (size_t)n_columns * cpu_element_bytes(dst_dtype);
  const char *first = (const char *)W->data + (size_t)row * row_bytes + dtype_bytes(W->dtype, column);
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (n_rows > 1)
  for (int64_t r = 0; r < n_rows; r++) {
    cpu_expand(W->dtype, first + (size_t)r * row_bytes, n_columns, dst_dtype, (char *)dst + (size_t)r * dst_bytes);
  }
}
