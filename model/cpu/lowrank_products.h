/*
 * lowrank_products.h: the products of lowrank_kernels.h over all rows of a
 * call, dealt out to threads, with the dropout of their inputs.
 *
 * Splits over threads: rows for products along the width, column panels for
 * sums over tokens; a sum over tokens is one chain in token order.
 */
#ifndef LORASHARD_MODEL_CPU_LOWRANK_PRODUCTS_H
#define LORASHARD_MODEL_CPU_LOWRANK_PRODUCTS_H

#include "model/cpu/lowrank_kernels.h"

/* packed = a factor of K inputs, F[k][j] = factor[k row + j column], as lowrank_pack
 * lays it out; [lowrank_packed_size(K, r)]. */
void lowrank_products_pack(const struct device *d, const float *factor, int64_t row, int64_t column, int64_t K,
                           int64_t r, float *packed);

/* G [r, N] = B'. */
void lowrank_products_transpose(const struct device *d, const float *B, int64_t N, int64_t r, float *G);

/* to [M, padded] = from [M, r], with zeros behind. */
void lowrank_products_pad(const struct device *d, int64_t M, int64_t r, int64_t padded, const float *from, float *to);

/* mask [M, K] of the dropout's rows: 1 keeps. */
void lowrank_products_mask(const struct device *d, int64_t M, int64_t K, const struct lowrank_dropout *dropout,
                           uint8_t *mask);
/* What is kept is multiplied with this. */
float lowrank_products_keep_scale(const struct lowrank_dropout *dropout);

/* out = scale drop(x) F. */
struct lowrank_projection {
  struct tensor_view x; /* [M, K] */
  int64_t M, K, r;
  const float *packed;
  const struct lowrank_dropout *dropout; /* NULL: none */
  float scale;
  float *out; /* [M, columns], distance columns; columns >= r, the rest = 0 */
  int64_t columns;
};
void lowrank_products_project(const struct device *d, const struct lowrank_projection *p);

/* y += mask (scale c G). */
struct lowrank_spreading {
  struct tensor_view y; /* [M, N] */
  int64_t M, N, r;
  const float *c; /* [M, r], distance ldc */
  int64_t ldc;
  float scale;
  const float *G;      /* [r, N] */
  const uint8_t *mask; /* [M, N] or NULL; only dx, which is f32, is masked */
  float mask_scale;
};
void lowrank_products_spread(const struct device *d, const struct lowrank_spreading *s);

/* sums = c' mask(x), of which gradient takes rows up to r. */
struct lowrank_token_sums {
  struct tensor_view x; /* [M, n] */
  int64_t M, n;
  const float *c; /* [M, padded] */
  int64_t r, padded;
  float *sums;         /* [padded, n] */
  const uint8_t *mask; /* [M, n] or NULL */
  float mask_scale;
};
/* gradient[j row + i column] += scale sums[j, i], after the sums themselves. */
void lowrank_products_token_sums(const struct device *d, const struct lowrank_token_sums *t, float scale,
                                 float *gradient, int64_t row, int64_t column);

#endif
