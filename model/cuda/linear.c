/*
 * linear.c: products with a frozen weight.
 *
 * The product is computed in the input's type. A weight of that type is used
 * where it lies; any other is expanded a tile at a time into one scratch block
 * right before its product. Tiles cut the output's columns, never a sum, so that
 * the result is rounded once.
 */
#include "model/cuda/cuda_internal.h"

enum { TILE_BYTES = 64 << 20, ROWS_UNIT = 128, LARGEST_BLOCK = 256 };

static int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }
static int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Rows or columns of a tile: at most TILE_BYTES, in whole units, all tiles about
 * the same, since a narrow last one would leave most of the GPU idle. */
static int64_t tile_size(int64_t total, int64_t other, int64_t unit, enum dtype dtype) {
  int64_t largest = TILE_BYTES / (int64_t)dtype_bytes(dtype, other) / unit * unit;
  if (largest < unit) largest = unit;
  return at_most(div_up(div_up(total, div_up(total, largest)), unit) * unit, total);
}

/* y = x W' + bias, or +=. With h.data also h = gelu(y) by tanh where the library
 * does that together; *fused_p says whether it did everywhere. */
static enum status forward(struct device *d, int64_t M, struct tensor_view x, const struct weight *W, const float *bias,
                           struct tensor_view y, bool accumulate, struct tensor_view h, bool *fused_p) {
  bool in_place = W->dtype == x.dtype || W->n_in == 0, fused = h.data != NULL;
  int64_t rows = in_place ? W->n_out : tile_size(W->n_out, W->n_in, ROWS_UNIT, x.dtype);
  void *tile = NULL;
  if (!in_place) TRY(cuda_scratch(d, CUDA_SCRATCH_WEIGHT, dtype_bytes(x.dtype, rows * W->n_in), &tile));
  for (int64_t row = 0; row < W->n_out; row += rows) {
    int64_t n = at_most(rows, W->n_out - row);
    if (!in_place) TRY(cuda_expand_tile(d, W, row, n, 0, W->n_in, x.dtype, tile));
    struct cuda_product product = {
        .m = M,
        .n = n,
        .k = W->n_in,
        .a = x.data,
        .lda = x.ld,
        .b = in_place ? W->data : tile,
        .ldb = W->n_in,
        .b_transposed = true,
        .c = tensor_view_columns(y, row).data,
        .ldc = y.ld,
        .ab_dtype = x.dtype,
        .c_dtype = y.dtype,
        .accumulate = accumulate,
        .alpha = 1,
        .epilogue = bias ? CUDA_EPILOGUE_BIAS : CUDA_EPILOGUE_NONE,
        .bias = bias ? bias + row : NULL,
    };
    if (fused) {
      struct cuda_product with_gelu = product;
      with_gelu.epilogue = CUDA_EPILOGUE_GELU_AUX;
      with_gelu.aux = product.c;
      with_gelu.ldaux = product.ldc;
      with_gelu.c = tensor_view_columns(h, row).data;
      with_gelu.ldc = h.ld;
      TRY(cuda_gemm(d, &with_gelu, &fused));
      if (fused) continue;
    }
    TRY(cuda_gemm(d, &product, NULL));
  }
  *fused_p = fused;
  return STATUS_OK;
}

enum status cuda_linear_forward(struct device *d, int64_t M, struct tensor_view x, const struct weight *W,
                                const float *bias, struct tensor_view y, bool accumulate) {
  const struct tensor_view none = {NULL, 0, y.dtype};
  bool fused;
  if (M == 0 || W->n_out == 0) return STATUS_OK;
  return forward(d, M, x, W, bias, y, accumulate, none, &fused);
}

enum status cuda_linear_backward(struct device *d, int64_t M, struct tensor_view dy, const struct weight *W,
                                 struct tensor_view dx, bool accumulate) {
  if (M == 0 || W->n_in == 0) return STATUS_OK;
  bool in_place = W->dtype == dy.dtype || W->n_out == 0;
  int64_t columns = in_place ? W->n_in : tile_size(W->n_in, W->n_out, LARGEST_BLOCK, dy.dtype);
  void *tile = NULL;
  if (!in_place) TRY(cuda_scratch(d, CUDA_SCRATCH_WEIGHT, dtype_bytes(dy.dtype, W->n_out * columns), &tile));
  for (int64_t column = 0; column < W->n_in; column += columns) {
    int64_t n = at_most(columns, W->n_in - column);
    if (!in_place) TRY(cuda_expand_tile(d, W, 0, W->n_out, column, n, dy.dtype, tile));
    struct cuda_product product = {
        .m = M,
        .n = n,
        .k = W->n_out,
        .a = dy.data,
        .lda = dy.ld,
        .b = in_place ? W->data : tile,
        .ldb = n,
        .c = tensor_view_columns(dx, column).data,
        .ldc = dx.ld,
        .ab_dtype = dy.dtype,
        .c_dtype = dx.dtype,
        .accumulate = accumulate,
        .alpha = 1,
    };
    TRY(cuda_gemm(d, &product, NULL));
  }
  return STATUS_OK;
}

enum status cuda_linear_activation_forward(struct device *d, enum activation kind, int64_t M, struct tensor_view x,
                                           const struct weight *W, const float *bias, struct tensor_view pre,
                                           struct tensor_view h) {
  const struct tensor_view none = {NULL, 0, pre.dtype};
  bool fused = false;
  /* The library's tanh is an approximation, good enough for 8 bits of bf16 and not for f32. */
  const bool may_fuse = kind == ACTIVATION_GELU_TANH && pre.dtype == DTYPE_BF16 && h.dtype == DTYPE_BF16;
  if (M == 0 || W->n_out == 0) return STATUS_OK;
  TRY(forward(d, M, x, W, bias, pre, false, may_fuse ? h : none, &fused));
  return fused ? STATUS_OK : cuda_activation_forward(d, kind, M, W->n_out, none, pre, h);
}
