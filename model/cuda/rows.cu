/*
 * rows.cu: rows that are looked up, moved or converted. One vector of a row per
 * thread and turn.
 */
#include "model/cuda/quant.cuh"

/* --- embedding ----------------------------------------------------------------- */

struct embedding_args {
  int64_t M;
  const int32_t *ids;
  int64_t first;
  struct quant_source W;
  int64_t n_out, n_in;
  struct tensor_view x;
};

template <enum dtype D, int N>
__global__ void __launch_bounds__(ROWS_THREADS) embedding_kernel(struct embedding_args args, int log_width) {
  const int64_t column = rows_vector(log_width) * N, left = args.n_in - column;
  if (left <= 0) return;
  for (int64_t m = rows_first(log_width); m < args.M; m += rows_step(log_width)) {
    const int64_t row = args.ids[m] - args.first;
    values<N> x = {};
    if (row >= 0 && row < args.n_out) {
      x = quant_source_values<D, N>(args.W, row, column, args.n_in);
    }
    put_values<N>(row_of<float>(args.x, m) + column, left, x);
  }
}

template <enum dtype D, int N>
static enum status launch_embedding(struct device *d, const struct weight *W, struct embedding_args args) {
  struct rows_layout layout = rows_layout(args.M, cuda_div_up(args.n_in, N), 0);
  args.W = quant_source_of<D>(W);
  CUDA_LAUNCH(d, (embedding_kernel<D, N>), layout.grid, ROWS_THREADS, 0, args, layout.log_width);
  return STATUS_OK;
}

extern "C" enum status cuda_embedding(struct device *d, int64_t M, const int32_t *ids, int64_t first,
                                      const struct weight *W, struct tensor_view x) {
  if (M == 0 || W->n_in == 0) return STATUS_OK;
  struct embedding_args args = {};
  args.M = M, args.ids = ids, args.first = first;
  args.n_out = W->n_out, args.n_in = W->n_in, args.x = x;
  bool wide = cuda_vector_weight(W, 0, 4) && cuda_vector_view(x, 4);
  CUDA_WITH_DTYPE(W->dtype, D, CUDA_WITH_VECTOR(wide, 4, N, return (launch_embedding<D, N>(d, W, args))));
  return STATUS_OK;
}

/* --- cast, gather, scatter ------------------------------------------------------- */

struct move_args {
  int64_t M, n;
  struct tensor_view x, y;
  const int32_t *from, *to; /* [M] rows of x and of y; NULL: row m */
};

/* One type: the bits, so that a NaN keeps its own. */
template <typename T>
__device__ __forceinline__ void move_one(const T *from, T *to) {
  *to = *from;
}
template <typename T, typename U>
__device__ __forceinline__ void move_one(const T *from, U *to) {
  put(to, get(from));
}

template <int N, typename T, typename U>
__device__ __forceinline__ void move_vector(const T *from, U *to, int64_t left) {
  if (N == 1 || left < N) {
#pragma unroll
    for (int i = 0; i < N; i++) {
      if (i < left) move_one(from + i, to + i);
    }
  } else if constexpr (sizeof(T) == sizeof(U)) {
    *(uint4 *)to = *(const uint4 *)from;
  } else {
    put_values<N>(to, get_values<N>(from));
  }
}

template <int N, typename T, typename U>
__global__ void __launch_bounds__(ROWS_THREADS) move_kernel(struct move_args args, int log_width) {
  const int64_t column = rows_vector(log_width) * N, left = args.n - column;
  if (left <= 0) return;
  for (int64_t m = rows_first(log_width); m < args.M; m += rows_step(log_width)) {
    const T *from = row_of<const T>(args.x, args.from ? args.from[m] : m) + column;
    move_vector<N>(from, row_of<U>(args.y, args.to ? args.to[m] : m) + column, left);
  }
}

template <int N, typename T, typename U>
static enum status launch_move(struct device *d, struct move_args args) {
  struct rows_layout layout = rows_layout(args.M, cuda_div_up(args.n, N), 0);
  CUDA_LAUNCH(d, (move_kernel<N, T, U>), layout.grid, ROWS_THREADS, 0, args, layout.log_width);
  return STATUS_OK;
}

template <typename T, typename U>
static enum status launch_move_types(struct device *d, struct move_args args) {
  constexpr int N = widest_of_both<T, U>;
  bool wide = cuda_vector_view(args.x, N) && cuda_vector_view(args.y, N);
  return wide ? launch_move<N, T, U>(d, args) : launch_move<1, T, U>(d, args);
}

static enum status move(struct device *d, struct move_args args) {
  if (args.M == 0 || args.n == 0) return STATUS_OK;
  CUDA_WITH_TYPE(args.x.dtype, T, CUDA_WITH_TYPE(args.y.dtype, U, return (launch_move_types<T, U>(d, args))));
}

extern "C" enum status cuda_cast(struct device *d, int64_t M, int64_t n, struct tensor_view x, struct tensor_view y) {
  return move(d, {M, n, x, y, NULL, NULL});
}

extern "C" enum status cuda_gather_rows(struct device *d, int64_t M, int64_t n, const int32_t *rows,
                                        struct tensor_view x, struct tensor_view y) {
  return move(d, {M, n, x, y, rows, NULL});
}

extern "C" enum status cuda_scatter_rows(struct device *d, int64_t M, int64_t n, const int32_t *rows,
                                         struct tensor_view x, struct tensor_view y) {
  return move(d, {M, n, x, y, NULL, rows});
}

/* --- zero -------------------------------------------------------------------------- */

/* 0 has the same bits in all types: a vector is 16 bytes, or one element of T. */
template <typename T>
__device__ __forceinline__ T zero_of() {
  if constexpr (sizeof(T) == 16) {
    return make_uint4(0, 0, 0, 0);
  } else {
    return 0;
  }
}

template <typename T>
__global__ void __launch_bounds__(ROWS_THREADS)
    zero_kernel(int64_t M, int64_t vectors, T *x, int64_t ld, int log_width) {
  const int64_t vector = rows_vector(log_width);
  if (vector >= vectors) return;
  for (int64_t m = rows_first(log_width); m < M; m += rows_step(log_width)) x[m * ld + vector] = zero_of<T>();
}

template <typename T>
static enum status launch_zero(struct device *d, int64_t M, int64_t vectors, void *x, int64_t ld) {
  struct rows_layout layout = rows_layout(M, vectors, 0);
  CUDA_LAUNCH(d, (zero_kernel<T>), layout.grid, ROWS_THREADS, 0, M, vectors, (T *)x, ld, layout.log_width);
  return STATUS_OK;
}

extern "C" enum status cuda_zero(struct device *d, int64_t M, int64_t n, struct tensor_view x) {
  if (M == 0 || n == 0) return STATUS_OK;
  const int64_t size = x.dtype == DTYPE_BF16 ? 2 : 4, in_vector = 16 / size;
  if (x.ld == n || M == 1) {
    CUDA_TRY(cudaMemsetAsync(x.data, 0, (size_t)(M * n * size), cuda_stream(d)));
    return STATUS_OK;
  }
  if (n % in_vector == 0 && cuda_vector_view(x, (int)in_vector)) {
    return launch_zero<uint4>(d, M, n / in_vector, x.data, x.ld / in_vector);
  }
  CUDA_WITH_TYPE(x.dtype, T, return launch_zero<T>(d, M, n, x.data, x.ld));
}
