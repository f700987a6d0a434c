/*
 * xent.cu: cross-entropy over this rank's part of the vocabulary.
 *
 * A row is cut into pieces of PIECE columns, one block for each, so that few
 * rows fill the GPU; a second kernel joins the pieces of a row in their order.
 * xent_backward works vector by vector.
 */
#include "model/cuda/rows.cuh"

enum { PIECE = 8192, THREADS = 256 };

static inline int64_t pieces_of(int64_t V) { return cuda_div_up(V, PIECE); }

/* Grid of the kernels over pieces: x pieces, y rows. */
static inline dim3 pieces_grid(int64_t M, int64_t V) {
  return dim3((unsigned)pieces_of(V), M < ROWS_GRID_Y ? (unsigned)M : (unsigned)ROWS_GRID_Y);
}

/* body(logit) for the elements of a piece of n that fall to a thread. Several vectors are read before the first is
 * used, so that the memory is kept busy. */
template <int N, typename F>
__device__ __forceinline__ void each_logit(const float *x, int n, F body) {
  constexpr int step = THREADS * N, batch = N > 1 ? 4 : 8;
  int i = (int)threadIdx.x * N;
  for (; i + (batch - 1) * step + N <= n; i += batch * step) {
    values<N> value[batch];
#pragma unroll
    for (int b = 0; b < batch; b++) value[b] = get_values<N>(x + i + b * step);
#pragma unroll
    for (int b = 0; b < batch; b++) {
#pragma unroll
      for (int j = 0; j < N; j++) body(value[b].v[j]);
    }
  }
#pragma unroll 1
  for (; i < n; i += step) {
    values<N> value = get_values<N>(x + i, n - i);
#pragma unroll
    for (int j = 0; j < N; j++) {
      if (i + j < n) body(value.v[j]);
    }
  }
}

/* part[m, piece] = the largest logit of a piece. */
template <int N>
__global__ void __launch_bounds__(THREADS)
    xent_max_kernel(int64_t M, int64_t V, struct tensor_view logits, float *part) {
  __shared__ float shared[CUDA_WARP];
  const int64_t begin = (int64_t)blockIdx.x * PIECE;
  const int n = V - begin < PIECE ? (int)(V - begin) : PIECE;
  for (int64_t m = blockIdx.y; m < M; m += gridDim.y) {
    const float *x = row_of<const float>(logits, m) + begin;
    float top = -INFINITY;
    each_logit<N>(x, n, [&](float logit) { top = fmaxf(top, logit); });
    top = block_max(top, shared);
    if (threadIdx.x == 0) part[m * gridDim.x + blockIdx.x] = top;
  }
}

__global__ void __launch_bounds__(THREADS)
    xent_max_join_kernel(int64_t M, int64_t n_pieces, const float *part, float *max) {
  const int64_t m = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  if (m >= M) return;
  float top = -INFINITY;
  for (int64_t piece = 0; piece < n_pieces; piece++) top = fmaxf(top, part[m * n_pieces + piece]);
  max[m] = top;
}

/* part[m, piece] = sum of e^(logit - max). */
template <int N>
__global__ void __launch_bounds__(THREADS)
    xent_sum_kernel(int64_t M, int64_t V, struct tensor_view logits, const float *max, float *part) {
  __shared__ float shared[CUDA_WARP];
  const int64_t begin = (int64_t)blockIdx.x * PIECE;
  const int n = V - begin < PIECE ? (int)(V - begin) : PIECE;
  for (int64_t m = blockIdx.y; m < M; m += gridDim.y) {
    const float *x = row_of<const float>(logits, m) + begin;
    const float top = max[m];
    float sum = 0;
    each_logit<N>(x, n, [&](float logit) { sum += expf(logit - top); });
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) part[m * gridDim.x + blockIdx.x] = sum;
  }
}

/* The sums of the pieces are added in f64. */
__global__ void __launch_bounds__(THREADS)
    xent_sum_join_kernel(int64_t M, int64_t V, int64_t n_pieces, const float *part, struct tensor_view logits,
                         const float *max, const int32_t *targets, int64_t first, float *sum, float *target) {
  const int64_t m = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  if (m >= M) return;
  double total = 0;
  for (int64_t piece = 0; piece < n_pieces; piece++) total += (double)part[m * n_pieces + piece];
  sum[m] = (float)total;
  const int64_t column = targets[m] - first;
  const bool here = targets[m] >= 0 && column >= 0 && column < V;
  target[m] = here ? row_of<const float>(logits, m)[column] - max[m] : 0.0f;
}

/* A vector is read before the same elements are written: `out` may be the logits. */
template <int N, typename T>
__global__ void __launch_bounds__(ROWS_THREADS)
    xent_backward_kernel(int64_t M, int64_t V, struct tensor_view logits, const float *max, const float *sum,
                         const int32_t *targets, int64_t first, float g, struct tensor_view out, int log_width) {
  const int64_t column = rows_vector(log_width) * N, left = V - column;
  if (left <= 0) return;
  for (int64_t m = rows_first(log_width); m < M; m += rows_step(log_width)) {
    values<N> slope = {};
    if (targets[m] >= 0) {
      const float top = max[m], total = sum[m], factor = g / total;
      const int64_t target = targets[m] - first - column; /* in [0, N): here */
      values<N> x = get_values<N>(row_of<const float>(logits, m) + column, left);
#pragma unroll
      for (int i = 0; i < N; i++) {
        float power = expf(x.v[i] - top);
        slope.v[i] = i == target ? (power / total - 1.0f) * g : power * factor;
      }
    }
    put_values<N>(row_of<T>(out, m) + column, left, slope);
  }
}

/* --- slots ---------------------------------------------------------------------------- */

static enum status part_scratch(struct device *d, int64_t M, int64_t V, float **part_p) {
  void *memory = NULL;
  TRY(cuda_scratch(d, CUDA_SCRATCH_WORK, (size_t)(M * pieces_of(V)) * sizeof(float), &memory));
  *part_p = (float *)memory;
  return STATUS_OK;
}

template <int N>
static enum status launch_max(struct device *d, int64_t M, int64_t V, struct tensor_view logits, float *part) {
  CUDA_LAUNCH(d, (xent_max_kernel<N>), pieces_grid(M, V), THREADS, 0, M, V, logits, part);
  return STATUS_OK;
}

template <int N>
static enum status launch_sum(struct device *d, int64_t M, int64_t V, struct tensor_view logits, const float *max,
                              float *part) {
  CUDA_LAUNCH(d, (xent_sum_kernel<N>), pieces_grid(M, V), THREADS, 0, M, V, logits, max, part);
  return STATUS_OK;
}

template <int N, typename T>
static enum status launch_backward(struct device *d, int64_t M, int64_t V, struct tensor_view logits, const float *max,
                                   const float *sum, const int32_t *targets, int64_t first, float g,
                                   struct tensor_view out) {
  struct rows_layout layout = rows_layout(M, cuda_div_up(V, N), 0);
  CUDA_LAUNCH(d, (xent_backward_kernel<N, T>), layout.grid, ROWS_THREADS, 0, M, V, logits, max, sum, targets, first, g,
              out, layout.log_width);
  return STATUS_OK;
}

extern "C" enum status cuda_xent_max(struct device *d, int64_t M, int64_t V, struct tensor_view logits, float *max) {
  if (M == 0) return STATUS_OK;
  float *part = NULL;
  if (V > 0) {
    TRY(part_scratch(d, M, V, &part));
    TRY(cuda_vector_view(logits, 4) ? launch_max<4>(d, M, V, logits, part) : launch_max<1>(d, M, V, logits, part));
  }
  CUDA_LAUNCH(d, (xent_max_join_kernel), (unsigned)cuda_div_up(M, THREADS), THREADS, 0, M, pieces_of(V),
              (const float *)part, max);
  return STATUS_OK;
}

extern "C" enum status cuda_xent_sum(struct device *d, int64_t M, int64_t V, struct tensor_view logits,
                                     const float *max, const int32_t *targets, int64_t first, float *sum,
                                     float *target) {
  if (M == 0) return STATUS_OK;
  float *part = NULL;
  if (V > 0) {
    TRY(part_scratch(d, M, V, &part));
    TRY(cuda_vector_view(logits, 4) ? launch_sum<4>(d, M, V, logits, max, part)
                                    : launch_sum<1>(d, M, V, logits, max, part));
  }
  CUDA_LAUNCH(d, (xent_sum_join_kernel), (unsigned)cuda_div_up(M, THREADS), THREADS, 0, M, V, pieces_of(V),
              (const float *)part, logits, max, targets, first, sum, target);
  return STATUS_OK;
}

extern "C" enum status cuda_xent_backward(struct device *d, int64_t M, int64_t V, struct tensor_view logits,
                                          const float *max, const float *sum, const int32_t *targets, int64_t first,
                                          float g, struct tensor_view out) {
  if (M == 0 || V == 0) return STATUS_OK;
  bool wide = cuda_vector_view(logits, 4) && cuda_vector_view(out, 4);
  CUDA_WITH_TYPE(
      out.dtype, T,
      CUDA_WITH_VECTOR(wide, 4, N, return (launch_backward<N, T>(d, M, V, logits, max, sum, targets, first, g, out))));
}
