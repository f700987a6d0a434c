/*
 * attention_tile.h: the products and packings that attention is made of.
 *
 * A tile is TILE_QUERIES rows of queries (positions of one segment, with the
 * heads of a group next to each other: row = position x heads + head) against
 * TILE_KEYS keys of one KV head. Rows are padded with zeros to whole vectors.
 *
 * Tiles are f32 whatever the buffers hold, or, for bf16 buffers where the
 * processor multiplies pairs of bf16 (VF_PAIRS), made of such pairs: a float of
 * the tile is a word of two bf16 that are neighbours along the products' depth.
 */
#ifndef LORASHARD_MODEL_CPU_ATTENTION_TILE_H
#define LORASHARD_MODEL_CPU_ATTENTION_TILE_H

#include "model/cpu/cpu_internal.h"
#include "model/cpu/vmath.h"

/* A product keeps TILE_ROWS x TILE_VECTORS sums in registers (of 32, or of 16 without AVX-512). */
#ifdef __AVX512F__
#define TILE_ROWS    6
#define TILE_VECTORS 4
#else
#define TILE_ROWS    4
#define TILE_VECTORS 3
#endif
#define TILE_QUERIES 192 /* a multiple of TILE_ROWS */
#define TILE_KEYS    96  /* a multiple of TILE_ROWS and of VF_LANES */

/* c[TILE_ROWS, n_vectors VF_LANES] = a b, or += with `add`, in f32; each element's sum runs in order of depth,
 * so that cutting depth or columns differently changes no bit.
 *   cpu_tile_product:   a[TILE_ROWS, depth], rows lda apart
 *   cpu_tile_product_t: a stored as [depth, TILE_ROWS], rows lda apart */
void cpu_tile_product(int n_vectors, int depth, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                      int64_t ldc, bool add);
void cpu_tile_product_t(int n_vectors, int depth, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                        int64_t ldc, bool add);

/* The same for words of pairs; depth and lda count words. */
void cpu_pair_product(int n_vectors, int depth, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                      int64_t ldc, bool add);
void cpu_pair_product_t(int n_vectors, int depth, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                        int64_t ldc, bool add);

/* One row of a tile: dst[ld] = scale x[row, column .. column + n), zeros from n on. The rows to come are asked for
 * ahead: a buffer's rows are far apart, and the processor does not foresee them. */
VF_INLINE void tile_pack_row(enum dtype dtype, struct tensor_view x, int64_t row, int64_t column, int n, float scale,
                             float *dst, int64_t ld) {
  const char *src = cpu_at(x, row, column), *ahead = src + 8 * (size_t)x.ld * cpu_element_bytes(dtype);
  int i = 0;
  for (; i + VF_LANES <= n; i += VF_LANES) {
    __builtin_prefetch(ahead + (size_t)i * cpu_element_bytes(dtype));
    vf_store(dst + i, scale * vf_get(dtype, src, i));
  }
  if (i < ld) vf_store(dst + i, scale * vf_get_part(dtype, src, i, n - i, 0));
}

/* dst[n_rows, ld] = x[row .. row + n_rows, column .. column + n), padded with zeros to ld. */
void cpu_tile_pack(struct tensor_view x, int64_t row, int n_rows, int64_t column, int n, float *dst, int64_t ld);

/* dst[n, TILE_KEYS] = x[row .. row + n_rows, column .. column + n)', with zeros for keys from n_rows up to whole
 * vectors. dst has room for n rounded up to whole vectors. */
void cpu_tile_pack_transposed(struct tensor_view x, int64_t row, int n_rows, int64_t column, int n, float *dst);

/* Of bf16 buffers: dst[n / 2, TILE_KEYS] = pairs of columns of the transpose, and dst[n_rows / 2, ld] = pairs of rows
 * of x[row .. row + n_rows, column .. column + n); an odd one is paired with 0. Padding and room as above. */
void cpu_pair_pack_transposed(struct tensor_view x, int64_t row, int n_rows, int64_t column, int n, float *dst);
void cpu_pair_pack(struct tensor_view x, int64_t row, int n_rows, int64_t column, int n, float *dst, int64_t ld);

/* dst[n_rows / 2, ld] = pairs of rows of bf16 tile rows [n_rows, 2 ld_pairs]; n_rows is even, 2 ld_pairs >= ld. */
void cpu_pair_rows(const float *src, int64_t ld_pairs, int n_rows, float *dst, int64_t ld);

/* x[row, column .. column + n) = scale src. */
static inline void cpu_tile_unpack(const float *src, int n, float scale, struct tensor_view x, int64_t row,
                                   int64_t column) {
  void *dst = cpu_at(x, row, column);
  if (x.dtype == DTYPE_BF16) {
    for (int i = 0; i < n; i += VF_LANES) vf_put_row(DTYPE_BF16, dst, i, n, scale * vf_load(src + i));
  } else {
    for (int i = 0; i < n; i += VF_LANES) vf_put_row(DTYPE_F32, dst, i, n, scale * vf_load(src + i));
  }
}

#endif
