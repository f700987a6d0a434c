#include "model/cpu/lowrank_kernels.h"

#if defined __AVX512BF16__ && defined __AVX512F__
#include <immintrin.h>
typedef __m256bh __m256bh_u __attribute__((aligned(2)));
#endif

typedef float vec8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef float vec16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef float vec __attribute__((vector_size(4 * LOWRANK_LANES), aligned(4), may_alias));
typedef uint32_t vec_words __attribute__((vector_size(4 * LOWRANK_LANES), aligned(4), may_alias));
typedef uint16_t vec_halves __attribute__((vector_size(2 * LOWRANK_LANES), aligned(2), may_alias));

#define ALWAYS_INLINE static inline __attribute__((always_inline))

void lowrank_pack(const float *factor, int64_t row, int64_t column, int64_t K, int64_t r, int64_t first, int64_t n,
                  float *packed) {
  for (int64_t j = 0; j < r;) {
    int width = lowrank_panel_width(r, j);
    float *panel = packed + K * j;
    for (int64_t k = first; k < first + n; k++) {
      for (int i = 0; i < width; i++) panel[k * width + i] = j + i < r ? factor[k * row + (j + i) * column] : 0;
    }
    j += width;
  }
}

/* One panel. The sums stay in registers over the whole chunk: twelve of them
 * hide the latency of two multiply-adds a cycle. */
#define PROJECT_PANEL(width)                                                                                       \
  static void project_panel_##width(const float *restrict x, int64_t ldx, int64_t n, const float *restrict factor, \
                                    float *restrict sums) {                                                        \
    vec##width sum[LOWRANK_ROWS];                                                                                  \
    const float *row[LOWRANK_ROWS];                                                                                \
    for (int i = 0; i < LOWRANK_ROWS; i++) row[i] = x + i * ldx;                                                   \
    for (int i = 0; i < LOWRANK_ROWS; i++) sum[i] = *(const vec##width *)(sums + width * i);                       \
    for (int64_t k = 0; k < n; k++) {                                                                              \
      vec##width f = *(const vec##width *)(factor + width * k);                                                    \
      for (int i = 0; i < LOWRANK_ROWS; i++) sum[i] += row[i][k] * f;                                              \
    }                                                                                                              \
    for (int i = 0; i < LOWRANK_ROWS; i++) *(vec##width *)(sums + width * i) = sum[i];                             \
  }
PROJECT_PANEL(8)
PROJECT_PANEL(16)

void lowrank_project(const float *x, int64_t ldx, int64_t first, int64_t n, const float *packed, int64_t K, int64_t r,
                     float *sums) {
  for (int64_t j = 0; j < r;) {
    int width = lowrank_panel_width(r, j);
    const float *factor = packed + K * j + first * width;
    if (width == 16) {
      project_panel_16(x, ldx, n, factor, sums + LOWRANK_ROWS * j);
    } else {
      project_panel_8(x, ldx, n, factor, sums + LOWRANK_ROWS * j);
    }
    j += width;
  }
}

ALWAYS_INLINE vec load_vec(enum dtype dtype, const void *p) {
  if (dtype == DTYPE_F32) return *(const vec *)p;
  return (vec)(__builtin_convertvector(*(const vec_halves *)p, vec_words) << 16);
}

/* cpu_bf16_bits, a vector at a time; the instruction also takes denormals for 0. */
ALWAYS_INLINE void store_vec(enum dtype dtype, void *p, vec value) {
  if (dtype == DTYPE_F32) {
    *(vec *)p = value;
    return;
  }
#if defined __AVX512BF16__ && defined __AVX512F__
  *(__m256bh_u *)p = (__m256bh_u)_mm512_cvtneps_pbh((__m512)value);
#else
  vec_words word = (vec_words)value;
  vec_words rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  vec_words is_nan = (vec_words)((word & 0x7fffffff) > 0x7f800000);
  *(vec_halves *)p = __builtin_convertvector((is_nan & ((word >> 16) | 0x40)) | (~is_nan & rounded), vec_halves);
#endif
}

/* `rows` rows by `vectors` vectors of y, in registers. */
ALWAYS_INLINE void spread_block(enum dtype dtype, int rows, int vectors, char *y, size_t y_row, const float *c,
                                int64_t r, const float *G, int64_t ldg) {
  vec sum[LOWRANK_SPREAD_ROWS][3];
  size_t step = LOWRANK_LANES * cpu_element_bytes(dtype);
  for (int i = 0; i < rows; i++) {
    for (int v = 0; v < vectors; v++) sum[i][v] = load_vec(dtype, y + (size_t)i * y_row + (size_t)v * step);
  }
  for (int64_t j = 0; j < r; j++, c += LOWRANK_SPREAD_ROWS, G += ldg) {
    vec g[3];
    for (int v = 0; v < vectors; v++) g[v] = *(const vec *)(G + v * LOWRANK_LANES);
    for (int i = 0; i < rows; i++) {
      for (int v = 0; v < vectors; v++) sum[i][v] += c[i] * g[v];
    }
  }
  for (int i = 0; i < rows; i++) {
    for (int v = 0; v < vectors; v++) store_vec(dtype, y + (size_t)i * y_row + (size_t)v * step, sum[i][v]);
  }
}

ALWAYS_INLINE void spread_rows(enum dtype dtype, int rows, char *y, size_t y_row, int64_t n, const float *c, int64_t r,
                               const float *G, int64_t ldg) {
  size_t size = cpu_element_bytes(dtype);
  int64_t i = 0;
  for (; i + LOWRANK_PANEL <= n; i += LOWRANK_PANEL) {
    spread_block(dtype, rows, 3, y + (size_t)i * size, y_row, c, r, G + i, ldg);
  }
  for (; i + LOWRANK_LANES <= n; i += LOWRANK_LANES) {
    spread_block(dtype, rows, 1, y + (size_t)i * size, y_row, c, r, G + i, ldg);
  }
  for (; i < n; i++) {
    for (int row = 0; row < rows; row++) {
      char *at = y + (size_t)row * y_row + (size_t)i * size;
      float sum;
      cpu_load(dtype, at, 1, &sum);
      for (int64_t j = 0; j < r; j++) sum += c[LOWRANK_SPREAD_ROWS * j + row] * G[j * ldg + i];
      cpu_store(dtype, &sum, 1, at);
    }
  }
}

ALWAYS_INLINE void spread(enum dtype dtype, int64_t n_rows, struct tensor_view y, int64_t n, const float *c, int64_t r,
                          const float *G, int64_t ldg) {
  size_t y_row = (size_t)y.ld * cpu_element_bytes(dtype);
  if (n_rows == LOWRANK_SPREAD_ROWS) {
    spread_rows(dtype, LOWRANK_SPREAD_ROWS, y.data, y_row, n, c, r, G, ldg);
  } else {
    for (int64_t i = 0; i < n_rows; i++) spread_rows(dtype, 1, cpu_at(y, i, 0), y_row, n, c + i, r, G, ldg);
  }
}

void lowrank_spread(int64_t n_rows, struct tensor_view y, int64_t n, const float *c, int64_t r, const float *G,
                    int64_t ldg) {
  if (y.dtype == DTYPE_F32) {
    spread(DTYPE_F32, n_rows, y, n, c, r, G, ldg);
  } else {
    spread(DTYPE_BF16, n_rows, y, n, c, r, G, ldg);
  }
}

/* `rank` rows of s by `vectors` vectors, in registers over all tokens. */
ALWAYS_INLINE void token_sum_block(enum dtype dtype, int rank, int vectors, int64_t n_rows, const char *x, size_t x_row,
                                   const float *c, int64_t ldc, float *s, int64_t lds) {
  vec sum[8][3];
  size_t step = LOWRANK_LANES * cpu_element_bytes(dtype);
  for (int j = 0; j < rank; j++) {
    for (int v = 0; v < vectors; v++) sum[j][v] = *(vec *)(s + j * lds + v * LOWRANK_LANES);
  }
  for (int64_t i = 0; i < n_rows; i++, x += x_row, c += ldc) {
    vec in[3];
    for (int v = 0; v < vectors; v++) in[v] = load_vec(dtype, x + (size_t)v * step);
    for (int j = 0; j < rank; j++) {
      for (int v = 0; v < vectors; v++) sum[j][v] += c[j] * in[v];
    }
  }
  for (int j = 0; j < rank; j++) {
    for (int v = 0; v < vectors; v++) *(vec *)(s + j * lds + v * LOWRANK_LANES) = sum[j][v];
  }
}

ALWAYS_INLINE void token_sum_rank(enum dtype dtype, int rank, int64_t n_rows, struct tensor_view x, int64_t n,
                                  const float *c, int64_t ldc, float *s, int64_t lds) {
  size_t x_row = (size_t)x.ld * cpu_element_bytes(dtype);
  int64_t i = 0;
  for (; i + LOWRANK_PANEL <= n; i += LOWRANK_PANEL) {
    token_sum_block(dtype, rank, 3, n_rows, cpu_at(x, 0, i), x_row, c, ldc, s + i, lds);
  }
  for (; i + LOWRANK_LANES <= n; i += LOWRANK_LANES) {
    token_sum_block(dtype, rank, 1, n_rows, cpu_at(x, 0, i), x_row, c, ldc, s + i, lds);
  }
  for (; i < n; i++) {
    for (int64_t row = 0; row < n_rows; row++) {
      float in;
      cpu_load(dtype, cpu_at(x, row, i), 1, &in);
      for (int j = 0; j < rank; j++) s[j * lds + i] += c[row * ldc + j] * in;
    }
  }
}

/* 8 of the rank at a time: 24 sums on a machine of 32 vector registers; 4 on
 * one of 16. */
ALWAYS_INLINE void token_sum(enum dtype dtype, int64_t n_rows, struct tensor_view x, int64_t n, const float *c,
                             int64_t ldc, int64_t r, float *s, int64_t lds) {
  int64_t j = 0;
#ifdef __AVX512F__
  for (; j + 8 <= r; j += 8) token_sum_rank(dtype, 8, n_rows, x, n, c + j, ldc, s + j * lds, lds);
#endif
  for (; j + 4 <= r; j += 4) token_sum_rank(dtype, 4, n_rows, x, n, c + j, ldc, s + j * lds, lds);
}

void lowrank_token_sum(int64_t n_rows, struct tensor_view x, int64_t n, const float *c, int64_t ldc, int64_t r,
                       float *s, int64_t lds) {
  if (x.dtype == DTYPE_F32) {
    token_sum(DTYPE_F32, n_rows, x, n, c, ldc, r, s, lds);
  } else {
    token_sum(DTYPE_BF16, n_rows, x, n, c, ldc, r, s, lds);
  }
}
