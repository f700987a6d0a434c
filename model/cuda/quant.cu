/*
 * quant.cu: tiles of stored weights to f32 or bf16 in memory. A thread expands
 * one vector of a row: 16 bytes of the result.
 */
#include "model/cuda/quant.cuh"

struct expand_args {
  struct quant_source W;
  int64_t row, n_rows, column, n_columns;
  void *dst; /* [n_rows, n_columns] */
};

template <enum dtype D, int N, typename T>
__global__ void __launch_bounds__(ROWS_THREADS) expand_kernel(struct expand_args args, int log_width) {
  const int64_t column = rows_vector(log_width) * N, left = args.n_columns - column;
  if (left <= 0) return;
  for (int64_t row = rows_first(log_width); row < args.n_rows; row += rows_step(log_width)) {
    values<N> x = quant_source_values<D, N>(args.W, args.row + row, args.column + column, args.column + args.n_columns);
    put_values<N>((T *)args.dst + row * args.n_columns + column, left, x);
  }
}

template <enum dtype D, int N, typename T>
static enum status launch_expand(struct device *d, struct expand_args args) {
  struct rows_layout layout = rows_layout(args.n_rows, cuda_div_up(args.n_columns, N), 0);
  CUDA_LAUNCH(d, (expand_kernel<D, N, T>), layout.grid, ROWS_THREADS, 0, args, layout.log_width);
  return STATUS_OK;
}

/* Vectors of N elements: 8 for bf16, but 4 where f32 takes part. */
template <enum dtype D, typename T>
constexpr int expand_widest = D == DTYPE_F32 ? 4 : widest<T>;

template <enum dtype D, typename T>
static enum status expand(struct device *d, const struct weight *W, struct expand_args args) {
  constexpr int widest_here = expand_widest<D, T>;
  const struct tensor_view dst = {args.dst, args.n_columns, sizeof(T) == 2 ? DTYPE_BF16 : DTYPE_F32};
  const bool wide = cuda_vector_weight(W, args.column, widest_here) && cuda_vector_view(dst, widest_here);
  args.W = quant_source_of<D>(W);
  return wide ? launch_expand<D, widest_here, T>(d, args) : launch_expand<D, 1, T>(d, args);
}

extern "C" enum status cuda_expand_tile(struct device *d, const struct weight *W, int64_t row, int64_t n_rows,
                                        int64_t column, int64_t n_columns, enum dtype dst_dtype, void *dst) {
  if (n_rows == 0 || n_columns == 0) return STATUS_OK;
  struct expand_args args = {};
  args.dst = dst;
  args.row = row, args.n_rows = n_rows, args.column = column, args.n_columns = n_columns;
  CUDA_WITH_TYPE(dst_dtype, T, CUDA_WITH_DTYPE(W->dtype, D, return (expand<D, T>(d, W, args))));
  return STATUS_OK;
}
