/*
 * rotary.cu: rotation of pairs of a head's first n dims (Su et al., arXiv
 * 2104.09864), in place. Pairs are (i, i + n/2), or (2i, 2i + 1) interleaved.
 *
 * A thread has N neighbouring pairs, in which all heads turn by the same
 * angles, and does some heads of one row: the table is read once for them.
 */
#include "model/cuda/rows.cuh"

struct rotary_args {
  int64_t M;
  int heads, head_dim, n;
  int pieces;            /* vectors of pairs in a head */
  int slices, per_slice; /* heads in slices */
  const int32_t *positions;
  const float *cos_sin; /* [position][n/2][2] */
  float sign;
  struct tensor_view x;
};

/* Elements of all N pairs, first members and second members. */
template <int N>
struct pairs {
  values<N> a, b;
};

/* 2 N numbers whose pairs are neighbours, and back. */
template <int N, typename T>
__device__ __forceinline__ pairs<N> get_neighbours(const T *p) {
  pairs<N> x;
  if constexpr (N == 1) {
    x.a.v[0] = get(p), x.b.v[0] = get(p + 1);
  } else {
    values<N> low = get_values<N>(p), high = get_values<N>(p + N);
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      x.a.v[i] = low.v[2 * i], x.b.v[i] = low.v[2 * i + 1];
      x.a.v[N / 2 + i] = high.v[2 * i], x.b.v[N / 2 + i] = high.v[2 * i + 1];
    }
  }
  return x;
}
template <int N, typename T>
__device__ __forceinline__ void put_neighbours(T *p, pairs<N> x) {
  if constexpr (N == 1) {
    put(p, x.a.v[0]), put(p + 1, x.b.v[0]);
  } else {
    values<N> low, high;
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      low.v[2 * i] = x.a.v[i], low.v[2 * i + 1] = x.b.v[i];
      high.v[2 * i] = x.a.v[N / 2 + i], high.v[2 * i + 1] = x.b.v[N / 2 + i];
    }
    put_values<N>(p, low), put_values<N>(p + N, high);
  }
}

template <int N, bool INTERLEAVED, typename T>
__global__ void __launch_bounds__(ROWS_THREADS) rotary_kernel(struct rotary_args args) {
  const int64_t item = (int64_t)blockIdx.x * ROWS_THREADS + threadIdx.x;
  const int64_t rest = item / args.pieces, m = rest / args.slices;
  if (m >= args.M) return;
  const int pair = (int)(item - rest * args.pieces) * N, half = args.n / 2;
  const int first = (int)(rest - m * args.slices) * args.per_slice;
  const int end = min(first + args.per_slice, args.heads);

  pairs<N> angle = get_neighbours<N>(args.cos_sin + (int64_t)args.positions[m] * args.n + 2 * pair);
  for (int head = first; head < end; head++) {
    T *x = row_of<T>(args.x, m) + (int64_t)head * args.head_dim;
    pairs<N> from, to;
    if (INTERLEAVED) {
      from = get_neighbours<N>(x + 2 * pair);
    } else {
      from.a = get_values<N>(x + pair);
      from.b = get_values<N>(x + half + pair);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
      float cosine = angle.a.v[i], sine = args.sign * angle.b.v[i];
      to.a.v[i] = from.a.v[i] * cosine - from.b.v[i] * sine;
      to.b.v[i] = from.b.v[i] * cosine + from.a.v[i] * sine;
    }
    if (INTERLEAVED) {
      put_neighbours<N>(x + 2 * pair, to);
    } else {
      put_values<N>(x + pair, to.a);
      put_values<N>(x + half + pair, to.b);
    }
  }
}

/* Vectors of N everywhere: heads, halves and table rows begin at multiples of N. */
static bool rotary_aligned(const struct rotary_args *args, int N) {
  return args->n / 2 % N == 0 && args->head_dim % N == 0 && cuda_vector_view(args->x, N) &&
         cuda_vector_pointer(args->cos_sin, sizeof(float), N);
}

template <int N, typename T>
static enum status launch_rotary(struct device *d, struct rotary_args args, bool interleaved) {
  enum { THREADS_ENOUGH = 1 << 17, MOST_HEADS = 8 }; /* half of what a large GPU holds at once */
  args.pieces = args.n / 2 / N;
  args.per_slice = 1;
  while (args.per_slice < MOST_HEADS && args.M * args.pieces * args.heads / (2 * args.per_slice) >= THREADS_ENOUGH) {
    args.per_slice *= 2;
  }
  args.slices = (int)cuda_div_up(args.heads, args.per_slice);
  unsigned grid = (unsigned)cuda_div_up(args.M * args.pieces * args.slices, ROWS_THREADS);
  if (interleaved) {
    CUDA_LAUNCH(d, (rotary_kernel<N, true, T>), grid, ROWS_THREADS, 0, args);
  } else {
    CUDA_LAUNCH(d, (rotary_kernel<N, false, T>), grid, ROWS_THREADS, 0, args);
  }
  return STATUS_OK;
}

extern "C" enum status cuda_rotary(struct device *d, int64_t M, int heads, int head_dim, int n, bool interleaved,
                                   const int32_t *positions, const float *cos_sin, bool backward,
                                   struct tensor_view x) {
  if (M == 0 || heads == 0 || n < 2) return STATUS_OK;
  struct rotary_args args = {};
  args.M = M, args.heads = heads, args.head_dim = head_dim, args.n = n, args.x = x;
  args.positions = positions, args.cos_sin = cos_sin, args.sign = backward ? -1.0f : 1.0f;
  CUDA_WITH_TYPE(x.dtype, T,
                 CUDA_WITH_VECTOR(rotary_aligned(&args, widest<T>), widest<T>, N,
                                  return (launch_rotary<N, T>(d, args, interleaved))));
}
