/*
 * attention_tile.c: see attention_tile.h.
 */
#include "model/cpu/attention_tile.h"

/* One block with every size but depth known to the compiler, so that the sums stay in registers. */
VF_INLINE void product_block(bool pairs, int n_vectors, int depth, const float *a, int64_t row_step, int64_t depth_step,
                             const float *b, int64_t ldb, float *c, int64_t ldc, bool add) {
  vf sum[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 8
  for (int m = 0; m < TILE_ROWS; m++) {
#pragma GCC unroll 8
    for (int v = 0; v < n_vectors; v++) sum[m][v] = add ? vf_load(c + m * ldc + v * VF_LANES) : (vf){0};
  }
  for (int k = 0; k < depth; k++) {
    vf right[TILE_VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < n_vectors; v++) right[v] = vf_load(b + v * VF_LANES);
#pragma GCC unroll 8
    for (int m = 0; m < TILE_ROWS; m++) {
      vf left = pairs ? vf_set_pair(a + m * row_step) : vf_set(a[m * row_step]);
#pragma GCC unroll 8
      for (int v = 0; v < n_vectors; v++) {
        sum[m][v] = pairs ? vf_add_pairs(sum[m][v], left, right[v]) : sum[m][v] + left * right[v];
      }
    }
    a += depth_step;
    b += ldb;
  }
#pragma GCC unroll 8
  for (int m = 0; m < TILE_ROWS; m++) {
#pragma GCC unroll 8
    for (int v = 0; v < n_vectors; v++) vf_store(c + m * ldc + v * VF_LANES, sum[m][v]);
  }
}

VF_INLINE void product(bool pairs, int n_vectors, int depth, const float *a, int64_t row_step, int64_t depth_step,
                       const float *b, int64_t ldb, float *c, int64_t ldc, bool add) {
  int n_blocks = (n_vectors + TILE_VECTORS - 1) / TILE_VECTORS;
  for (int i = 0; i < n_blocks; i++) { /* blocks of nearly the same width */
    int first = i * n_vectors / n_blocks, n = (i + 1) * n_vectors / n_blocks - first;
    const float *right = b + first * VF_LANES;
    float *out = c + first * VF_LANES;
    switch (n) {
      case 1:
        product_block(pairs, 1, depth, a, row_step, depth_step, right, ldb, out, ldc, add);
        break;
      case 2:
        product_block(pairs, 2, depth, a, row_step, depth_step, right, ldb, out, ldc, add);
        break;
      case 3:
        product_block(pairs, 3, depth, a, row_step, depth_step, right, ldb, out, ldc, add);
        break;
#if TILE_VECTORS > 3
      default:
        product_block(pairs, 4, depth, a, row_step, depth_step, right, ldb, out, ldc, add);
        break;
#endif
    }
  }
}

void cpu_tile_product(int n_vectors, int depth, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                      int64_t ldc, bool add) {
  product(false, n_vectors, depth, a, lda, 1, b, ldb, c, ldc, add);
}

void cpu_tile_product_t(int n_vectors, int depth, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                        int64_t ldc, bool add) {
  product(false, n_vectors, depth, a, 1, lda, b, ldb, c, ldc, add);
}

void cpu_pair_product(int n_vectors, int depth, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                      int64_t ldc, bool add) {
  product(true, n_vectors, depth, a, lda, 1, b, ldb, c, ldc, add);
}

void cpu_pair_product_t(int n_vectors, int depth, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                        int64_t ldc, bool add) {
  product(true, n_vectors, depth, a, 1, lda, b, ldb, c, ldc, add);
}

void cpu_tile_pack(struct tensor_view x, int64_t row, int n_rows, int64_t column, int n, float *dst, int64_t ld) {
  if (x.dtype == DTYPE_BF16) {
    for (int r = 0; r < n_rows; r++) tile_pack_row(DTYPE_BF16, x, row + r, column, n, 1, dst + r * ld, ld);
  } else {
    for (int r = 0; r < n_rows; r++) tile_pack_row(DTYPE_F32, x, row + r, column, n, 1, dst + r * ld, ld);
  }
}

/* Exchange blocks of d lanes between vectors d apart; over all d this transposes a square. */
#define FROM_LOW(lane, d)  ((lane) & (d) ? VF_LANES + (lane) - (d) : (lane))
#define FROM_HIGH(lane, d) ((lane) & (d) ? VF_LANES + (lane) : (lane) + (d))
#define LANES_4(f, i, d)   f(i, d), f((i) + 1, d), f((i) + 2, d), f((i) + 3, d)
#if VF_LANES == 16
#define LANES(f, d) LANES_4(f, 0, d), LANES_4(f, 4, d), LANES_4(f, 8, d), LANES_4(f, 12, d)
#elif VF_LANES == 8
#define LANES(f, d) LANES_4(f, 0, d), LANES_4(f, 4, d)
#else
#define LANES(f, d) LANES_4(f, 0, d)
#endif
#define EXCHANGE(x, d)                                                      \
  _Pragma("GCC unroll 16") for (int i = 0; i < VF_LANES; i++) {             \
    if (i & (d)) continue;                                                  \
    vf low = (x)[i], high = (x)[i + (d)];                                   \
    (x)[i] = __builtin_shuffle(low, high, (vi){LANES(FROM_LOW, d)});        \
    (x)[i + (d)] = __builtin_shuffle(low, high, (vi){LANES(FROM_HIGH, d)}); \
  }

VF_INLINE void transpose(vf square[VF_LANES], float *dst) {
#if VF_LANES == 16
  EXCHANGE(square, 8)
#endif
#if VF_LANES >= 8
  EXCHANGE(square, 4)
#endif
  EXCHANGE(square, 2)
  EXCHANGE(square, 1)
#pragma GCC unroll 16
  for (int i = 0; i < VF_LANES; i++) vf_store(dst + i * TILE_KEYS, square[i]);
}

VF_INLINE void pack_square(enum dtype dtype, struct tensor_view x, int64_t row, int n_rows, int64_t column, int n,
                           float *dst) {
  vf square[VF_LANES];
#pragma GCC unroll 16
  for (int i = 0; i < VF_LANES; i++) {
    square[i] = i < n_rows ? vf_get_row(dtype, cpu_at(x, row + i, column), 0, n, 0) : (vf){0};
  }
  transpose(square, dst);
}

VF_INLINE void pack_transposed(enum dtype dtype, struct tensor_view x, int64_t row, int n_rows, int64_t column, int n,
                               float *dst) {
  for (int r = 0; r < n_rows; r += VF_LANES) {
    for (int i = 0; i < n; i += VF_LANES) {
      float *square = dst + i * TILE_KEYS + r;
      if (r + VF_LANES <= n_rows && i + VF_LANES <= n) {
        pack_square(dtype, x, row + r, VF_LANES, column + i, VF_LANES, square);
      } else {
        pack_square(dtype, x, row + r, n_rows - r, column + i, n - i, square);
      }
    }
  }
}

void cpu_tile_pack_transposed(struct tensor_view x, int64_t row, int n_rows, int64_t column, int n, float *dst) {
  x.dtype == DTYPE_BF16 ? pack_transposed(DTYPE_BF16, x, row, n_rows, column, n, dst)
                        : pack_transposed(DTYPE_F32, x, row, n_rows, column, n, dst);
}

/* --- pairs ----------------------------------------------------------------- */

/* n_columns <= 2 VF_LANES of bf16 as words. */
VF_INLINE vf load_words(const void *row, int n_columns) {
  vf words = {0};
  memcpy(&words, row, (size_t)n_columns * sizeof(uint16_t));
  return words;
}

VF_INLINE void pair_square(struct tensor_view x, int64_t row, int n_rows, int64_t column, int n_columns, float *dst) {
  vf square[VF_LANES];
#pragma GCC unroll 16
  for (int i = 0; i < VF_LANES; i++) {
    square[i] = i < n_rows ? load_words(cpu_at(x, row + i, column), n_columns) : (vf){0};
  }
  transpose(square, dst);
}

void cpu_pair_pack_transposed(struct tensor_view x, int64_t row, int n_rows, int64_t column, int n, float *dst) {
  for (int r = 0; r < n_rows; r += VF_LANES) {
    for (int i = 0; i < n; i += 2 * VF_LANES) {
      float *square = dst + i / 2 * TILE_KEYS + r;
      if (r + VF_LANES <= n_rows && i + 2 * VF_LANES <= n) {
        pair_square(x, row + r, VF_LANES, column + i, 2 * VF_LANES, square);
      } else {
        pair_square(x, row + r, n_rows - r, column + i, n - i < 2 * VF_LANES ? n - i : 2 * VF_LANES, square);
      }
    }
  }
}

/* Two rows of bf16 side by side, n columns and zeros up to ld. */
VF_INLINE void pair_rows(const uint16_t *first, const uint16_t *second, int n, float *dst, int64_t ld) {
  for (int i = 0; i < ld; i += VF_LANES) {
    vh low = {0}, high = {0};
    size_t bytes = (size_t)(n - i < VF_LANES ? n - i : VF_LANES) * sizeof *first;
    if (bytes == sizeof low) {
      memcpy(&low, first + i, sizeof low);
      if (second) memcpy(&high, second + i, sizeof high);
    } else {
      memcpy(&low, first + i, bytes);
      if (second) memcpy(&high, second + i, bytes);
    }
    vf_store(dst + i, vf_pair_bf16(low, high));
  }
}

void cpu_pair_pack(struct tensor_view x, int64_t row, int n_rows, int64_t column, int n, float *dst, int64_t ld) {
  for (int r = 0; r < n_rows; r += 2) {
    const uint16_t *second = r + 1 < n_rows ? cpu_at(x, row + r + 1, column) : NULL;
    pair_rows(cpu_at(x, row + r, column), second, n, dst + r / 2 * ld, ld);
  }
}

void cpu_pair_rows(const float *src, int64_t ld_pairs, int n_rows, float *dst, int64_t ld) {
  for (int r = 0; r < n_rows; r += 2, src += 2 * ld_pairs, dst += ld) {
    pair_rows((const uint16_t *)src, (const uint16_t *)(src + ld_pairs), (int)ld, dst, ld);
  }
}
