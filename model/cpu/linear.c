/*
 * linear.c: products with a frozen weight.
 *
 * The product is computed in the input's type. A weight of that type is used
 * where it lies; any other is expanded a tile at a time into one scratch
 * block, small enough to stay in cache until its product has read it. Tiles
 * cut the output's columns, never a sum, so that the result is rounded once.
 * A few rows alone go another way, gemv.c.
 */
#include "model/cpu/cpu_internal.h"

enum { TILE_WEIGHTS = 2 << 20, LARGEST_BLOCK = 256 };

static int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }

/* Rows or columns of a tile: about TILE_WEIGHTS weights, in whole `unit`s. */
static int64_t tile_size(int64_t total, int64_t other, int64_t unit) {
  int64_t size = TILE_WEIGHTS / other / unit * unit;
  return at_most(size < unit ? unit : size, total);
}

/* A product of no terms: y = bias or 0, or += bias. Empty shards only, so plain. */
static void without_terms(const struct device *d, int64_t M, int64_t n, const float *bias, bool accumulate,
                          struct tensor_view y) {
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) {
    for (int64_t i = 0; i < n; i++) {
      float value = 0;
      if (accumulate) cpu_load(y.dtype, cpu_at(y, m, i), 1, &value);
      if (bias) value += bias[i];
      cpu_store(y.dtype, &value, 1, cpu_at(y, m, i));
    }
  }
}

enum status cpu_linear_forward(struct device *d, int64_t M, struct tensor_view x, const struct weight *W,
                               const float *bias, struct tensor_view y, bool accumulate) {
  if (M == 0 || W->n_out == 0) return STATUS_OK;
  if (W->n_in == 0) { /* an empty row-parallel shard */
    without_terms(d, M, W->n_out, bias, accumulate, y);
    return STATUS_OK;
  }
  if (M <= CPU_GEMV_ROWS) {
    cpu_gemv(d, M, x, W, bias, y, accumulate);
    return STATUS_OK;
  }
  bool in_place = W->dtype == x.dtype;
  int64_t rows = in_place ? W->n_out : tile_size(W->n_out, W->n_in, 64);
  void *tile = NULL;
  if (!in_place) {
    TRY(cpu_scratch(d, CPU_SCRATCH_WEIGHT, (size_t)(rows * W->n_in) * cpu_element_bytes(x.dtype), &tile));
  }
  for (int64_t row = 0; row < W->n_out; row += rows) {
    int64_t n = at_most(rows, W->n_out - row);
    if (!in_place) cpu_expand_tile(d, W, row, n, 0, W->n_in, x.dtype, tile);
    struct cpu_product product = {
        .m = M,
        .n = n,
        .k = W->n_in,
        .a = x.data,
        .lda = x.ld,
        .b = in_place ? W->data : tile,
        .ldb = W->n_in,
        .b_transposed = true,
        .bias = bias ? bias + row : NULL,
        .c = cpu_at(y, 0, row),
        .ldc = y.ld,
        .ab_dtype = x.dtype,
        .c_dtype = y.dtype,
        .accumulate = accumulate,
    };
    TRY(cpu_gemm(d, &product));
  }
  return STATUS_OK;
}

enum status cpu_linear_backward(struct device *d, int64_t M, struct tensor_view dy, const struct weight *W,
                                struct tensor_view dx, bool accumulate) {
  if (M == 0 || W->n_in == 0) return STATUS_OK;
  if (W->n_out == 0) { /* an empty column-parallel shard */
    without_terms(d, M, W->n_in, NULL, accumulate, dx);
    return STATUS_OK;
  }
  bool in_place = W->dtype == dy.dtype;
  int64_t columns = in_place ? W->n_in : tile_size(W->n_in, W->n_out, LARGEST_BLOCK);
  void *tile = NULL;
  if (!in_place) {
    TRY(cpu_scratch(d, CPU_SCRATCH_WEIGHT, (size_t)(W->n_out * columns) * cpu_element_bytes(dy.dtype), &tile));
  }
  for (int64_t column = 0; column < W->n_in; column += columns) {
    int64_t k = at_most(columns, W->n_in - column);
    if (!in_place) cpu_expand_tile(d, W, 0, W->n_out, column, k, dy.dtype, tile);
    struct cpu_product product = {
        .m = M,
        .n = k,
        .k = W->n_out,
        .a = dy.data,
        .lda = dy.ld,
        .b = in_place ? W->data : tile,
        .ldb = k,
        .c = cpu_at(dx, 0, column),
        .ldc = dx.ld,
        .ab_dtype = dy.dtype,
        .c_dtype = dx.dtype,
        .accumulate = accumulate,
    };
    TRY(cpu_gemm(d, &product));
  }
  return STATUS_OK;
}

enum status cpu_linear_activation_forward(struct device *d, enum activation kind, int64_t M, struct tensor_view x,
                                          const struct weight *W, const float *bias, struct tensor_view pre,
                                          struct tensor_view h) {
  const struct tensor_view none = {NULL, 0, pre.dtype};
  TRY(cpu_linear_forward(d, M, x, W, bias, pre, false));
  return cpu_activation_forward(d, kind, M, W->n_out, none, pre, h);
}
