/*
 * optim.cu: AdamW (Loshchilov and Hutter, arXiv 1711.05101) and the sum of
 * squares for clipping. An element's update depends on its own values alone,
 * not on where it lies: every product and sum is spelled out, so that vectors
 * and single elements go through the same roundings.
 */
#include "model/adamw_step.h"
#include "model/cuda/rows.cuh"

enum { THREADS = 256, PIECE = 16384, JOIN_THREADS = 1024 };

/* --- AdamW ------------------------------------------------------------------------ */

__device__ __forceinline__ void update(const struct adamw_step &step, float g, float eps, float *w, float *m,
                                       float *v) {
  *m = fmaf(g, step.take_m, *m * step.keep_m);
  *v = fmaf(g * g, step.take_v, *v * step.keep_v);
  float change = step.rate * *m / fmaf(sqrtf(*v), step.spread, eps);
  *w -= fmaf(step.decay, *w, change);
}

template <int N>
__global__ void __launch_bounds__(THREADS) adamw_kernel(struct adamw_args args, struct adamw_step step) {
  const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N, left = args.n - i;
  if (left <= 0) return;
  values<N> g = get_values<N>(args.g + i, left), w = get_values<N>(args.w + i, left);
  values<N> m = get_values<N>(args.m + i, left), v = get_values<N>(args.v + i, left);
#pragma unroll
  for (int k = 0; k < N; k++) update(step, g.v[k] * args.g_scale, args.eps, &w.v[k], &m.v[k], &v.v[k]);
  put_values<N>(args.m + i, left, m);
  put_values<N>(args.v + i, left, v);
  put_values<N>(args.w + i, left, w);
}

template <int N>
static enum status launch_adamw(struct device *d, const struct adamw_args *args) {
  CUDA_LAUNCH(d, (adamw_kernel<N>), (unsigned)cuda_div_up(args->n, THREADS * N), THREADS, 0, *args,
              adamw_step_of(args));
  return STATUS_OK;
}

extern "C" enum status cuda_adamw(struct device *d, const struct adamw_args *args) {
  if (args->n == 0) return STATUS_OK;
  const size_t size = sizeof(float);
  bool wide = cuda_vector_pointer(args->w, size, 4) && cuda_vector_pointer(args->m, size, 4) &&
              cuda_vector_pointer(args->v, size, 4) && cuda_vector_pointer(args->g, size, 4);
  return wide ? launch_adamw<4>(d, args) : launch_adamw<1>(d, args);
}

/* --- sum of squares ----------------------------------------------------------------- */

/* part[block] = sum over a piece, in f64: the square of an f32 is exact. Aligned or not, a thread has the same groups
 * of four elements. */
template <bool ALIGNED>
__global__ void __launch_bounds__(THREADS) sum_squares_kernel(const float *x, int64_t n, double *part) {
  __shared__ double shared[CUDA_WARP];
  const int64_t begin = (int64_t)blockIdx.x * PIECE, end = n - begin < PIECE ? n : begin + PIECE;
  double sum = 0;
  int64_t i = begin + (int64_t)threadIdx.x * 4;
#pragma unroll 4
  for (; i + 4 <= end; i += THREADS * 4) {
    values<4> value;
    if (ALIGNED) {
      value = get_values<4>(x + i);
    } else {
#pragma unroll
      for (int k = 0; k < 4; k++) value.v[k] = x[i + k];
    }
#pragma unroll
    for (int k = 0; k < 4; k++) sum += (double)value.v[k] * (double)value.v[k];
  }
  for (; i < end; i++) sum += (double)x[i] * (double)x[i]; /* of one thread: the others are behind the end */
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

/* One block; part[n_parts] = their sum. */
__global__ void __launch_bounds__(JOIN_THREADS) sum_join_kernel(int64_t n_parts, double *part) {
  __shared__ double shared[CUDA_WARP];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n_parts; i += JOIN_THREADS) sum += part[i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) part[n_parts] = sum;
}

extern "C" enum status cuda_sum_squares(struct device *d, const float *x, int64_t n, double *sum) {
  const int64_t n_parts = cuda_div_up(n, PIECE);
  if (n == 0) {
    *sum = 0;
    return STATUS_OK;
  }
  void *memory = NULL;
  TRY(cuda_scratch(d, CUDA_SCRATCH_WORK, (size_t)(n_parts + 1) * sizeof(double), &memory));
  double *part = (double *)memory;
  if (cuda_vector_pointer(x, sizeof(float), 4)) {
    CUDA_LAUNCH(d, (sum_squares_kernel<true>), (unsigned)n_parts, THREADS, 0, x, n, part);
  } else {
    CUDA_LAUNCH(d, (sum_squares_kernel<false>), (unsigned)n_parts, THREADS, 0, x, n, part);
  }
  CUDA_LAUNCH(d, (sum_join_kernel), 1, JOIN_THREADS, 0, n_parts, part);
  return device_copy_out(d, sum, part + n_parts, sizeof *sum);
}
