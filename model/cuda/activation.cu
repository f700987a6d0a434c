/*
 * activation.cu: GELU (erf and tanh forms), ReLU and SiLU, plain or gated. One
 * vector of a row per thread and turn; the formulas are those of
 * model/cpu/activation.c and model/cpu/vmath.h.
 */
#include "model/cuda/rows.cuh"

#define GELU_SLOPE 1.5957691216f /* 2 sqrt(2/pi): (1 + tanh u) / 2 is sigmoid(2u) */
#define GELU_CUBIC 0.044715f

/* The normal distribution: *density = e^(-x^2/2) / sqrt(2 pi); returns Phi(x). log2 of the upper tail is -x^2/2 log2 e
 * plus a polynomial; absolute error below 1e-7, and the lower tail keeps its relative accuracy, which erf does not. */
__device__ __forceinline__ float normal(float x, float *density) {
  float t = fabsf(x), c = fminf(t, 6.0f);
  float square = x * x * -0.72134752f;
  float p = fmaf(c, 2.3531783e-07f, -5.4738707e-06f);
  p = fmaf(p, c, 5.0796953e-05f);
  p = fmaf(p, c, -0.00021012432f);
  p = fmaf(p, c, -0.000112574184f);
  p = fmaf(p, c, 0.0070546404f);
  p = fmaf(p, c, -0.05249912f);
  p = fmaf(p, c, 0.26214215f);
  p = fmaf(p, c, -1.1511058f);
  p = fmaf(p, c, -1.0f);
  *density = exp2f(square) * 0.39894228f;
  float tail = exp2f(square + p);
  return x < 0.0f ? tail : 1.0f - tail;
}

/* act(x), and its derivative. */
struct curve {
  float value, slope;
};

template <enum activation KIND>
__device__ __forceinline__ struct curve curve_at(float x) {
  if constexpr (KIND == ACTIVATION_RELU) {
    return {x > 0.0f || x != x ? x : 0.0f, x > 0.0f ? 1.0f : 0.0f};
  } else if constexpr (KIND == ACTIVATION_GELU) {
    float density, below = normal(x, &density);
    return {x * below, below + x * density};
  } else {
    /* x sigmoid(u), where u_slope is the derivative of u; written with e^-|u|, which cannot overflow */
    float square = x * x, u = x, u_slope = 1.0f;
    if constexpr (KIND == ACTIVATION_GELU_TANH) {
      u = GELU_SLOPE * x * (1.0f + GELU_CUBIC * square);
      u_slope = GELU_SLOPE * (1.0f + 3 * GELU_CUBIC * square);
    }
    float small = expf(-fabsf(u)), large_part = __fdividef(1.0f, 1.0f + small), small_part = small * large_part;
    float gate = u < 0.0f ? small_part : large_part;
    return {x * gate, gate + x * u_slope * (small_part * large_part)};
  }
}

struct activation_args {
  int64_t M, n;
  struct tensor_view gate, up, h, dh, dgate, dup; /* gate, dgate: gated only */
};

template <enum activation KIND, bool GATED, int N, typename T>
__global__ void __launch_bounds__(ROWS_THREADS) activation_forward_kernel(struct activation_args args, int log_width) {
  const int64_t column = rows_vector(log_width) * N, left = args.n - column;
  if (left <= 0) return;
  for (int64_t m = rows_first(log_width); m < args.M; m += rows_step(log_width)) {
    values<N> up = get_values<N>(row_of<const T>(args.up, m) + column, left), h;
    if constexpr (GATED) {
      values<N> gate = get_values<N>(row_of<const T>(args.gate, m) + column, left);
#pragma unroll
      for (int i = 0; i < N; i++) h.v[i] = curve_at<KIND>(gate.v[i]).value * up.v[i];
    } else {
#pragma unroll
      for (int i = 0; i < N; i++) h.v[i] = curve_at<KIND>(up.v[i]).value;
    }
    put_values<N>(row_of<T>(args.h, m) + column, left, h);
  }
}

/* A thread reads its elements before it writes the same ones: dgate and dup may be gate and up. */
template <enum activation KIND, bool GATED, int N, typename T>
__global__ void __launch_bounds__(ROWS_THREADS) activation_backward_kernel(struct activation_args args, int log_width) {
  const int64_t column = rows_vector(log_width) * N, left = args.n - column;
  if (left <= 0) return;
  for (int64_t m = rows_first(log_width); m < args.M; m += rows_step(log_width)) {
    values<N> dh = get_values<N>(row_of<const T>(args.dh, m) + column, left);
    values<N> up = get_values<N>(row_of<const T>(args.up, m) + column, left), dup;
    if constexpr (GATED) {
      values<N> gate = get_values<N>(row_of<const T>(args.gate, m) + column, left), dgate;
#pragma unroll
      for (int i = 0; i < N; i++) {
        struct curve curve = curve_at<KIND>(gate.v[i]);
        dgate.v[i] = dh.v[i] * up.v[i] * curve.slope;
        dup.v[i] = dh.v[i] * curve.value;
      }
      put_values<N>(row_of<T>(args.dgate, m) + column, left, dgate);
    } else {
#pragma unroll
      for (int i = 0; i < N; i++) dup.v[i] = dh.v[i] * curve_at<KIND>(up.v[i]).slope;
    }
    put_values<N>(row_of<T>(args.dup, m) + column, left, dup);
  }
}

/* --- launching ----------------------------------------------------------------------- */

template <enum activation KIND, bool GATED, int N, typename T>
static enum status launch(struct device *d, bool backward, struct activation_args args) {
  struct rows_layout layout = rows_layout(args.M, cuda_div_up(args.n, N), 0);
  if (backward) {
    CUDA_LAUNCH(d, (activation_backward_kernel<KIND, GATED, N, T>), layout.grid, ROWS_THREADS, 0, args,
                layout.log_width);
  } else {
    CUDA_LAUNCH(d, (activation_forward_kernel<KIND, GATED, N, T>), layout.grid, ROWS_THREADS, 0, args,
                layout.log_width);
  }
  return STATUS_OK;
}

template <enum activation KIND, bool GATED>
static enum status launch_gated(struct device *d, bool backward, struct activation_args args) {
  int N = args.up.dtype == DTYPE_BF16 ? 8 : 4;
  bool wide = cuda_vector_view(args.gate, N) && cuda_vector_view(args.up, N) && cuda_vector_view(args.h, N) &&
              cuda_vector_view(args.dh, N) && cuda_vector_view(args.dgate, N) && cuda_vector_view(args.dup, N);
  CUDA_WITH_TYPE(args.up.dtype, T,
                 CUDA_WITH_VECTOR(wide, widest<T>, VECTOR, return (launch<KIND, GATED, VECTOR, T>(d, backward, args))));
}

template <enum activation KIND>
static enum status launch_kind(struct device *d, bool backward, struct activation_args args) {
  return args.gate.data ? launch_gated<KIND, true>(d, backward, args) : launch_gated<KIND, false>(d, backward, args);
}

static enum status launch_any(struct device *d, enum activation kind, bool backward, struct activation_args args) {
  if (args.M == 0 || args.n == 0) return STATUS_OK;
  switch (kind) {
    case ACTIVATION_GELU:
      return launch_kind<ACTIVATION_GELU>(d, backward, args);
    case ACTIVATION_GELU_TANH:
      return launch_kind<ACTIVATION_GELU_TANH>(d, backward, args);
    case ACTIVATION_RELU:
      return launch_kind<ACTIVATION_RELU>(d, backward, args);
    case ACTIVATION_SILU:
      return launch_kind<ACTIVATION_SILU>(d, backward, args);
  }
  return STATUS_OK;
}

extern "C" enum status cuda_activation_forward(struct device *d, enum activation kind, int64_t M, int64_t n,
                                               struct tensor_view gate, struct tensor_view up, struct tensor_view h) {
  struct activation_args args = {};
  args.M = M, args.n = n, args.gate = gate, args.up = up, args.h = h;
  return launch_any(d, kind, false, args);
}

extern "C" enum status cuda_activation_backward(struct device *d, enum activation kind, int64_t M, int64_t n,
                                                struct tensor_view gate, struct tensor_view up, struct tensor_view dh,
                                                struct tensor_view dgate, struct tensor_view dup) {
  struct activation_args args = {};
  args.M = M, args.n = n, args.gate = gate, args.up = up, args.dh = dh, args.dup = dup;
  if (gate.data) args.dgate = dgate;
  return launch_any(d, kind, true, args);
}
