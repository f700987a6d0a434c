/*
 * norm.cu: LayerNorm and RMSNorm over rows, and RMSNorm over heads.
 *
 * Rows of up to NORM_NARROW elements belong to a group of 1 to 32 lanes of a
 * warp, wider ones to a block. A thread keeps its part of the row, NORM_KEPT
 * elements or twice as many, in registers, so that memory is read once; rows
 * wider than NORM_WIDEST, and those that are not whole aligned vectors, are read
 * again from the cache for every pass. norm_apply has no sums and works vector by
 * vector; a head is a group of lanes.
 */
#include "model/cuda/rows.cuh"

enum {
  NORM_KEPT = 16,
  NORM_NARROW = CUDA_WARP * NORM_KEPT,
  NORM_MAX_THREADS = 512,
  NORM_WIDE = NORM_MAX_THREADS * NORM_KEPT,
  NORM_WIDEST = 2 * NORM_WIDE,
  NORM_BATCH = 4, /* vectors in NORM_KEPT elements */
  HEAD_KEPT = 8,
};

/* Vectors of N elements that a thread keeps, of `elements`. */
template <int N, int elements>
constexpr int kept_vectors = N > 1 ? elements / N : 0;

/* --- sums over a row ------------------------------------------------------------ */

/* Over each group of 2^log_lanes neighbouring threads of a warp, all of whose threads call it. */
__device__ __forceinline__ float lanes_sum(float x, int log_lanes) {
  for (int step = (1 << log_lanes) >> 1; step > 0; step >>= 1) x += __shfl_xor_sync(CUDA_FULL, x, step);
  return x;
}

/* body(i, column) for each vector of a row that falls to a thread: columns first, first + step, .. below n. With
 * KEEP, n <= KEEP step: the loop is unrolled, so that i may number registers; with 0 any n, and i is 0. */
template <int KEEP, typename F>
__device__ __forceinline__ void each_vector(int n, int first, int step, F body) {
  if constexpr (KEEP > 0) {
#pragma unroll
    for (int i = 0; i < KEEP; i++) {
      if (first + i * step < n) body(i, first + i * step);
    }
  } else {
#pragma unroll 4
    for (int column = first; column < n; column += step) body(0, column);
  }
}

struct norm_args {
  int64_t M;
  int n;
  struct tensor_view x, y, dy, dx;
  const float *w, *b;
  float *stats; /* [M, 2] */
  float eps, inverse_n;
  bool center;   /* LayerNorm */
  int log_lanes; /* threads of a narrow row */
};

/* The part of a row that a thread works on. */
template <bool WIDE>
struct row_part {
  int64_t m;
  int n;           /* 0 behind the last row */
  int first, step; /* in elements */
  int log_lanes;

  __device__ __forceinline__ row_part(const struct norm_args &args, int vector) {
    log_lanes = args.log_lanes;
    if (WIDE) {
      m = blockIdx.x;
      first = (int)threadIdx.x * vector;
      step = (int)blockDim.x * vector;
    } else {
      int lanes = 1 << log_lanes;
      m = (int64_t)blockIdx.x * (ROWS_THREADS >> log_lanes) + (threadIdx.x >> log_lanes);
      first = ((int)threadIdx.x & (lanes - 1)) * vector;
      step = lanes * vector;
    }
    n = m < args.M ? args.n : 0;
  }

  __device__ __forceinline__ float sum(float x, float *shared) const {
    return WIDE ? block_sum(x, shared) : lanes_sum(x, log_lanes);
  }
};

/* --- forward ------------------------------------------------------------------ */

/* Spelled out to the rounding, so that norm_apply gives norm_forward's bits. */
template <int N>
__device__ __forceinline__ values<N> normalise(values<N> x, float mean, float rstd, values<N> w, const float *b,
                                               int64_t column) {
  values<N> y;
#pragma unroll
  for (int j = 0; j < N; j++) y.v[j] = (x.v[j] - mean) * rstd;
  if (b) {
    values<N> bias = get_values<N>(b + column);
#pragma unroll
    for (int j = 0; j < N; j++) y.v[j] = fmaf(y.v[j], w.v[j], bias.v[j]);
  } else {
#pragma unroll
    for (int j = 0; j < N; j++) y.v[j] *= w.v[j];
  }
  return y;
}

/* The squares are taken of what is left after the mean, so that a large mean costs no accuracy. */
template <bool WIDE, int KEEP, int N, typename T>
__global__ void __launch_bounds__(WIDE ? NORM_MAX_THREADS : ROWS_THREADS) norm_forward_kernel(struct norm_args args) {
  __shared__ float shared[CUDA_WARP];
  row_part<WIDE> part(args, N);
  const int n = part.n;
  const float *x = row_of<const float>(args.x, part.m);
  values<N> kept[KEEP > 0 ? KEEP : 1], w[KEEP > 0 ? KEEP : 1];
  auto read = [&](int i, int column) { kept[i] = get_values<N>(x + column); };
  auto read_w = [&](int i, int column) { w[i] = get_values<N>(args.w + column); };
  if (KEEP > 0) {
    each_vector<KEEP>(n, part.first, part.step, read);
    each_vector<KEEP>(n, part.first, part.step, read_w);
  }

  float total = 0;
  each_vector<KEEP>(n, part.first, part.step, [&](int i, int column) {
    if (KEEP == 0) read(i, column);
#pragma unroll
    for (int j = 0; j < N; j++) total += kept[i].v[j];
  });
  float mean = args.center ? part.sum(total, shared) * args.inverse_n : 0.0f;

  float squares = 0;
  each_vector<KEEP>(n, part.first, part.step, [&](int i, int column) {
    if (KEEP == 0) read(i, column);
#pragma unroll
    for (int j = 0; j < N; j++) {
      float rest = kept[i].v[j] - mean;
      squares += rest * rest;
    }
  });
  float rstd = rsqrtf(part.sum(squares, shared) * args.inverse_n + args.eps);

  if (n > 0 && part.first == 0) {
    args.stats[2 * part.m] = mean;
    args.stats[2 * part.m + 1] = rstd;
  }
  T *y = row_of<T>(args.y, part.m);
  each_vector<KEEP>(n, part.first, part.step, [&](int i, int column) {
    if (KEEP == 0) {
      read(i, column);
      read_w(i, column);
    }
    put_values<N>(y + column, normalise<N>(kept[i], mean, rstd, w[i], args.b, column));
  });
}

template <int N, typename T>
__global__ void __launch_bounds__(ROWS_THREADS) norm_apply_kernel(struct norm_args args, int log_width) {
  const int64_t column = rows_vector(log_width) * N;
  if (column >= args.n) return;
  const values<N> w = get_values<N>(args.w + column);
  for (int64_t m = rows_first(log_width); m < args.M; m += rows_step(log_width)) {
    values<N> x = get_values<N>(row_of<const float>(args.x, m) + column);
    values<N> y = normalise<N>(x, args.stats[2 * m], args.stats[2 * m + 1], w, args.b, column);
    put_values<N>(row_of<T>(args.y, m) + column, y);
  }
}

/* --- backward ----------------------------------------------------------------- */

/* With g = dy w and z = (x - mean) rstd:  dx += rstd (g - mean(g) - z mean(g z)), where RMSNorm has no mean(g). */
template <bool WIDE, int KEEP, int N>
__global__ void __launch_bounds__(WIDE ? NORM_MAX_THREADS : ROWS_THREADS) norm_backward_kernel(struct norm_args args) {
  __shared__ float shared[CUDA_WARP];
  row_part<WIDE> part(args, N);
  const int n = part.n;
  const float *x = row_of<const float>(args.x, part.m), *dy = row_of<const float>(args.dy, part.m);
  const float mean = n > 0 ? args.stats[2 * part.m] : 0.0f, rstd = n > 0 ? args.stats[2 * part.m + 1] : 0.0f;
  values<N> g[KEEP > 0 ? KEEP : 1], z[KEEP > 0 ? KEEP : 1];
  auto read = [&](int i, int column) {
    g[i] = get_values<N>(dy + column);
    z[i] = get_values<N>(x + column);
  };
  auto convert = [&](int i, int column) {
    values<N> weight = get_values<N>(args.w + column);
#pragma unroll
    for (int j = 0; j < N; j++) {
      g[i].v[j] *= weight.v[j];
      z[i].v[j] = (z[i].v[j] - mean) * rstd;
    }
  };
  if (KEEP > 0) each_vector<KEEP>(n, part.first, part.step, read);

  float sum = 0, product = 0;
  each_vector<KEEP>(n, part.first, part.step, [&](int i, int column) {
    if (KEEP == 0) read(i, column);
    convert(i, column);
#pragma unroll
    for (int j = 0; j < N; j++) {
      sum += g[i].v[j];
      product += g[i].v[j] * z[i].v[j];
    }
  });
  float g_mean = args.center ? part.sum(sum, shared) * args.inverse_n : 0.0f;
  float slope = part.sum(product, shared) * args.inverse_n;

  float *dx = row_of<float>(args.dx, part.m);
  auto add = [&](int i, values<N> out) {
#pragma unroll
    for (int j = 0; j < N; j++) out.v[j] += rstd * (g[i].v[j] - g_mean - z[i].v[j] * slope);
    return out;
  };
  if constexpr (KEEP == 0) {
    each_vector<0>(n, part.first, part.step, [&](int i, int column) {
      read(i, column);
      convert(i, column);
      put_values<N>(dx + column, add(i, get_values<N>(dx + column)));
    });
  } else {
    values<N> out[NORM_BATCH]; /* read before the first is written, but not all: there are not that many registers */
#pragma unroll
    for (int at = 0; at < KEEP; at += NORM_BATCH) {
      const int first = part.first + at * part.step;
      each_vector<NORM_BATCH>(n, first, part.step, [&](int i, int column) { out[i] = get_values<N>(dx + column); });
      each_vector<NORM_BATCH>(n, first, part.step,
                              [&](int i, int column) { put_values<N>(dx + column, add(at + i, out[i])); });
    }
  }
}

/* --- launching -------------------------------------------------------------------- */

/* Threads and blocks of the kernels above for vectors of N elements; sets args->log_lanes. */
struct norm_shape {
  bool wide;
  unsigned grid, threads;
};
static struct norm_shape norm_shape(struct norm_args *args, int N) {
  int64_t vectors = cuda_div_up(args->n, N);
  struct norm_shape shape = {args->n > NORM_NARROW, 0, 0};
  args->log_lanes = 0;
  if (shape.wide) {
    int64_t warps = cuda_div_up(args->n, NORM_KEPT * CUDA_WARP);
    shape.threads = warps * CUDA_WARP < NORM_MAX_THREADS ? (unsigned)warps * CUDA_WARP : (unsigned)NORM_MAX_THREADS;
    shape.grid = (unsigned)args->M;
  } else {
    while ((1 << args->log_lanes) < CUDA_WARP && (1 << args->log_lanes) < vectors) args->log_lanes++;
    shape.threads = ROWS_THREADS;
    shape.grid = (unsigned)cuda_div_up(args->M, ROWS_THREADS >> args->log_lanes);
  }
  return shape;
}

template <int N, typename T>
static enum status launch_forward(struct device *d, struct norm_args args) {
  struct norm_shape shape = norm_shape(&args, N);
  if (!shape.wide) {
    CUDA_LAUNCH(d, (norm_forward_kernel<false, kept_vectors<N, NORM_KEPT>, N, T>), shape.grid, shape.threads, 0, args);
  } else if (args.n <= NORM_WIDE) {
    CUDA_LAUNCH(d, (norm_forward_kernel<true, kept_vectors<N, NORM_KEPT>, N, T>), shape.grid, shape.threads, 0, args);
  } else if (args.n <= NORM_WIDEST) {
    CUDA_LAUNCH(d, (norm_forward_kernel<true, kept_vectors<N, 2 * NORM_KEPT>, N, T>), shape.grid, shape.threads, 0,
                args);
  } else {
    CUDA_LAUNCH(d, (norm_forward_kernel<true, 0, N, T>), shape.grid, shape.threads, 0, args);
  }
  return STATUS_OK;
}

template <int N>
static enum status launch_backward(struct device *d, struct norm_args args) {
  struct norm_shape shape = norm_shape(&args, N);
  if (!shape.wide) {
    CUDA_LAUNCH(d, (norm_backward_kernel<false, kept_vectors<N, NORM_KEPT>, N>), shape.grid, shape.threads, 0, args);
  } else if (args.n <= NORM_WIDE) {
    CUDA_LAUNCH(d, (norm_backward_kernel<true, kept_vectors<N, NORM_KEPT>, N>), shape.grid, shape.threads, 0, args);
  } else if (args.n <= NORM_WIDEST) {
    CUDA_LAUNCH(d, (norm_backward_kernel<true, kept_vectors<N, 2 * NORM_KEPT>, N>), shape.grid, shape.threads, 0, args);
  } else {
    CUDA_LAUNCH(d, (norm_backward_kernel<true, 0, N>), shape.grid, shape.threads, 0, args);
  }
  return STATUS_OK;
}

template <int N, typename T>
static enum status launch_apply(struct device *d, struct norm_args args) {
  struct rows_layout layout = rows_layout(args.M, cuda_div_up(args.n, N), 0);
  CUDA_LAUNCH(d, (norm_apply_kernel<N, T>), layout.grid, ROWS_THREADS, 0, args, layout.log_width);
  return STATUS_OK;
}

/* Four elements at a time? */
static bool norm_aligned(const struct norm_args *args) {
  return args->n % 4 == 0 && cuda_vector_view(args->x, 4) && cuda_vector_view(args->y, 4) &&
         cuda_vector_view(args->dy, 4) && cuda_vector_view(args->dx, 4) &&
         cuda_vector_pointer(args->w, sizeof(float), 4) && cuda_vector_pointer(args->b, sizeof(float), 4);
}

extern "C" enum status cuda_norm_forward(struct device *d, enum norm_kind kind, int64_t M, int64_t n,
                                         struct tensor_view x, const float *w, const float *b, float eps,
                                         struct tensor_view y, float *stats) {
  if (M == 0 || n == 0) return STATUS_OK;
  struct norm_args args = {};
  args.M = M, args.n = (int)n, args.x = x, args.y = y, args.w = w, args.b = b, args.stats = stats, args.eps = eps;
  args.center = kind == NORM_LAYER, args.inverse_n = 1.0f / (float)n;
  CUDA_WITH_TYPE(y.dtype, T, CUDA_WITH_VECTOR(norm_aligned(&args), 4, N, return (launch_forward<N, T>(d, args))));
}

extern "C" enum status cuda_norm_apply(struct device *d, enum norm_kind kind, int64_t M, int64_t n,
                                       struct tensor_view x, const float *w, const float *b, const float *stats,
                                       struct tensor_view y) {
  (void)kind; /* the mean in stats is 0 for RMSNorm */
  if (M == 0 || n == 0) return STATUS_OK;
  struct norm_args args = {};
  args.M = M, args.n = (int)n, args.x = x, args.y = y, args.w = w, args.b = b, args.stats = (float *)stats;
  CUDA_WITH_TYPE(y.dtype, T, CUDA_WITH_VECTOR(norm_aligned(&args), 4, N, return (launch_apply<N, T>(d, args))));
}

extern "C" enum status cuda_norm_backward(struct device *d, enum norm_kind kind, int64_t M, int64_t n,
                                          struct tensor_view x, const float *w, const float *stats,
                                          struct tensor_view dy, struct tensor_view dx) {
  if (M == 0 || n == 0) return STATUS_OK;
  struct norm_args args = {};
  args.M = M, args.n = (int)n, args.x = x, args.dy = dy, args.dx = dx, args.w = w, args.stats = (float *)stats;
  args.center = kind == NORM_LAYER, args.inverse_n = 1.0f / (float)n;
  CUDA_WITH_VECTOR(norm_aligned(&args), 4, N, return launch_backward<N>(d, args));
}

/* --- heads ------------------------------------------------------------------------
 * The vectors of a row are counted by lanes: head h has those from h 2^log_lanes on.
 * A warp lies in one row, so its threads stay together. */

struct head_args {
  int64_t M;
  int heads, head_dim, log_lanes, log_width;
  struct tensor_view x, y, dy, dx;
  const float *w;
  float *stats; /* [M, heads] */
  float eps, inverse_n;
};

/* The head, its number of elements (0 behind the last head) and the first element of this thread. */
struct head_part {
  int head, n, first, step;
  int64_t column; /* of the head's first element */
};
__device__ __forceinline__ struct head_part head_part(const struct head_args &args, int vector) {
  int lane = (int)rows_vector(args.log_width), lanes = 1 << args.log_lanes;
  struct head_part part;
  part.head = lane >> args.log_lanes;
  part.n = part.head < args.heads ? args.head_dim : 0;
  part.first = (lane & (lanes - 1)) * vector;
  part.step = lanes * vector;
  part.column = (int64_t)part.head * args.head_dim;
  return part;
}

template <int KEEP, int N, typename T>
__global__ void __launch_bounds__(ROWS_THREADS) head_norm_forward_kernel(struct head_args args) {
  const struct head_part part = head_part(args, N);
  const int n = part.n;
  for (int64_t m = rows_first(args.log_width); m < args.M; m += rows_step(args.log_width)) {
    const T *x = row_of<const T>(args.x, m) + part.column;
    values<N> kept[KEEP > 0 ? KEEP : 1];
    auto read = [&](int i, int column) { kept[i] = get_values<N>(x + column); };
    if (KEEP > 0) each_vector<KEEP>(n, part.first, part.step, read);
    float squares = 0;
    each_vector<KEEP>(n, part.first, part.step, [&](int i, int column) {
      if (KEEP == 0) read(i, column);
#pragma unroll
      for (int j = 0; j < N; j++) squares += kept[i].v[j] * kept[i].v[j];
    });
    float rstd = rsqrtf(lanes_sum(squares, args.log_lanes) * args.inverse_n + args.eps);
    if (n > 0 && part.first == 0) args.stats[m * args.heads + part.head] = rstd;
    T *y = row_of<T>(args.y, m) + part.column;
    each_vector<KEEP>(n, part.first, part.step, [&](int i, int column) {
      if (KEEP == 0) read(i, column);
      values<N> weight = get_values<N>(args.w + column), value;
#pragma unroll
      for (int j = 0; j < N; j++) value.v[j] = kept[i].v[j] * rstd * weight.v[j];
      put_values<N>(y + column, value);
    });
  }
}

/* An element of dy is read by the thread that writes it to dx, and before: dx may be dy. */
template <int KEEP, int N, typename T>
__global__ void __launch_bounds__(ROWS_THREADS) head_norm_backward_kernel(struct head_args args) {
  const struct head_part part = head_part(args, N);
  const int n = part.n;
  for (int64_t m = rows_first(args.log_width); m < args.M; m += rows_step(args.log_width)) {
    const T *x = row_of<const T>(args.x, m) + part.column, *dy = row_of<const T>(args.dy, m) + part.column;
    const float rstd = n > 0 ? args.stats[m * args.heads + part.head] : 0.0f;
    values<N> kept[KEEP > 0 ? KEEP : 1], g[KEEP > 0 ? KEEP : 1];
    auto read = [&](int i, int column) {
      g[i] = get_values<N>(dy + column);
      kept[i] = get_values<N>(x + column);
    };
    auto weigh = [&](int i, int column) {
      values<N> weight = get_values<N>(args.w + column);
#pragma unroll
      for (int j = 0; j < N; j++) g[i].v[j] *= weight.v[j];
    };
    if (KEEP > 0) each_vector<KEEP>(n, part.first, part.step, read);
    float product = 0;
    each_vector<KEEP>(n, part.first, part.step, [&](int i, int column) {
      if (KEEP == 0) read(i, column);
      weigh(i, column);
#pragma unroll
      for (int j = 0; j < N; j++) product += g[i].v[j] * kept[i].v[j];
    });
    float slope = lanes_sum(product, args.log_lanes) * args.inverse_n * rstd * rstd;
    T *dx = row_of<T>(args.dx, m) + part.column;
    each_vector<KEEP>(n, part.first, part.step, [&](int i, int column) {
      if (KEEP == 0) {
        read(i, column);
        weigh(i, column);
      }
      values<N> value;
#pragma unroll
      for (int j = 0; j < N; j++) value.v[j] = rstd * (g[i].v[j] - kept[i].v[j] * slope);
      put_values<N>(dx + column, value);
    });
  }
}

static struct rows_layout head_layout(struct head_args *args, int N) {
  int64_t vectors = cuda_div_up(args->head_dim, N);
  args->log_lanes = 0;
  while ((1 << args->log_lanes) < CUDA_WARP && (1 << args->log_lanes) < vectors) args->log_lanes++;
  struct rows_layout layout = rows_layout(args->M, (int64_t)args->heads << args->log_lanes, 5);
  args->log_width = layout.log_width;
  return layout;
}

template <int N, typename T>
static enum status launch_head_forward(struct device *d, struct head_args args) {
  struct rows_layout layout = head_layout(&args, N);
  if (args.head_dim <= CUDA_WARP * HEAD_KEPT) {
    CUDA_LAUNCH(d, (head_norm_forward_kernel<kept_vectors<N, HEAD_KEPT>, N, T>), layout.grid, ROWS_THREADS, 0, args);
  } else {
    CUDA_LAUNCH(d, (head_norm_forward_kernel<0, N, T>), layout.grid, ROWS_THREADS, 0, args);
  }
  return STATUS_OK;
}

template <int N, typename T>
static enum status launch_head_backward(struct device *d, struct head_args args) {
  struct rows_layout layout = head_layout(&args, N);
  if (args.head_dim <= CUDA_WARP * HEAD_KEPT) {
    CUDA_LAUNCH(d, (head_norm_backward_kernel<kept_vectors<N, HEAD_KEPT>, N, T>), layout.grid, ROWS_THREADS, 0, args);
  } else {
    CUDA_LAUNCH(d, (head_norm_backward_kernel<0, N, T>), layout.grid, ROWS_THREADS, 0, args);
  }
  return STATUS_OK;
}

static bool head_aligned(const struct head_args *args, int N) {
  return args->head_dim % N == 0 && cuda_vector_view(args->x, N) && cuda_vector_view(args->y, N) &&
         cuda_vector_view(args->dy, N) && cuda_vector_view(args->dx, N) &&
         cuda_vector_pointer(args->w, sizeof(float), N);
}

extern "C" enum status cuda_head_norm_forward(struct device *d, int64_t M, int heads, int head_dim,
                                              struct tensor_view x, const float *w, float eps, struct tensor_view y,
                                              float *stats) {
  if (M == 0 || heads == 0 || head_dim == 0) return STATUS_OK;
  struct head_args args = {};
  args.M = M, args.heads = heads, args.head_dim = head_dim, args.x = x, args.y = y, args.w = w, args.stats = stats;
  args.eps = eps, args.inverse_n = 1.0f / (float)head_dim;
  CUDA_WITH_TYPE(
      x.dtype, T,
      CUDA_WITH_VECTOR(head_aligned(&args, widest<T>), widest<T>, N, return (launch_head_forward<N, T>(d, args))));
}

extern "C" enum status cuda_head_norm_backward(struct device *d, int64_t M, int heads, int head_dim,
                                               struct tensor_view x, const float *w, const float *stats,
                                               struct tensor_view dy, struct tensor_view dx) {
  if (M == 0 || heads == 0 || head_dim == 0) return STATUS_OK;
  struct head_args args = {};
  args.M = M, args.heads = heads, args.head_dim = head_dim, args.x = x, args.dy = dy, args.dx = dx, args.w = w;
  args.stats = (float *)stats, args.inverse_n = 1.0f / (float)head_dim;
  CUDA_WITH_TYPE(
      x.dtype, T,
      CUDA_WITH_VECTOR(head_aligned(&args, widest<T>), widest<T>, N, return (launch_head_backward<N, T>(d, args))));
}
