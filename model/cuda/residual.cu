/*
 * residual.cu: additions to the residual stream, which is f32. One vector of a
 * row per thread and turn.
 */
#include "model/cuda/rows.cuh"

/* x += y + bias; either may be NULL. */
template <int N, typename T>
__global__ void __launch_bounds__(ROWS_THREADS)
    add_kernel(int64_t M, int64_t n, struct tensor_view y, const float *bias, struct tensor_view x, int log_width) {
  const int64_t column = rows_vector(log_width) * N, left = n - column;
  if (left <= 0) return;
  for (int64_t m = rows_first(log_width); m < M; m += rows_step(log_width)) {
    float *at = row_of<float>(x, m) + column;
    values<N> sum = get_values<N>(at, left);
    if (y.data) {
      values<N> more = get_values<N>(row_of<const T>(y, m) + column, left);
#pragma unroll
      for (int i = 0; i < N; i++) sum.v[i] += more.v[i];
    }
    if (bias) {
      values<N> more = get_values<N>(bias + column, left);
#pragma unroll
      for (int i = 0; i < N; i++) sum.v[i] += more.v[i];
    }
    put_values<N>(at, left, sum);
  }
}

template <int N>
__global__ void __launch_bounds__(ROWS_THREADS)
    add_rows_kernel(int64_t M, int64_t n, const int32_t *rows, int64_t offset, const float *table, struct tensor_view x,
                    int log_width) {
  const int64_t column = rows_vector(log_width) * N, left = n - column;
  if (left <= 0) return;
  for (int64_t m = rows_first(log_width); m < M; m += rows_step(log_width)) {
    float *at = row_of<float>(x, m) + column;
    values<N> sum = get_values<N>(at, left), more = get_values<N>(table + (rows[m] + offset) * n + column, left);
#pragma unroll
    for (int i = 0; i < N; i++) sum.v[i] += more.v[i];
    put_values<N>(at, left, sum);
  }
}

template <int N, typename T>
static enum status launch_add(struct device *d, int64_t M, int64_t n, struct tensor_view y, const float *bias,
                              struct tensor_view x) {
  struct rows_layout layout = rows_layout(M, cuda_div_up(n, N), 0);
  CUDA_LAUNCH(d, (add_kernel<N, T>), layout.grid, ROWS_THREADS, 0, M, n, y, bias, x, layout.log_width);
  return STATUS_OK;
}

extern "C" enum status cuda_add(struct device *d, int64_t M, int64_t n, struct tensor_view y, const float *bias,
                                struct tensor_view x) {
  if (M == 0 || n == 0 || (!y.data && !bias)) return STATUS_OK;
  bool wide = cuda_vector_view(y, 4) && cuda_vector_view(x, 4) && cuda_vector_pointer(bias, sizeof(float), 4);
  CUDA_WITH_TYPE(y.dtype, T, CUDA_WITH_VECTOR(wide, 4, N, return (launch_add<N, T>(d, M, n, y, bias, x))));
}

template <int N>
static enum status launch_add_rows(struct device *d, int64_t M, int64_t n, const int32_t *rows, int64_t offset,
                                   const float *table, struct tensor_view x) {
  struct rows_layout layout = rows_layout(M, cuda_div_up(n, N), 0);
  CUDA_LAUNCH(d, (add_rows_kernel<N>), layout.grid, ROWS_THREADS, 0, M, n, rows, offset, table, x, layout.log_width);
  return STATUS_OK;
}

extern "C" enum status cuda_add_rows(struct device *d, int64_t M, int64_t n, const int32_t *rows, int64_t offset,
                                     const float *table, struct tensor_view x) {
  if (M == 0 || n == 0) return STATUS_OK;
  bool wide = n % 4 == 0 && cuda_vector_pointer(table, sizeof(float), 4) && cuda_vector_view(x, 4);
  CUDA_WITH_VECTOR(wide, 4, N, return launch_add_rows<N>(d, M, n, rows, offset, table, x));
}
