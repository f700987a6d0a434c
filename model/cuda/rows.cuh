/*
 * rows.cuh: rows of matrices over threads: vectors of several elements, the
 * layout of kernels that work on single elements.
 *
 * A vector is 16 bytes where all operands allow it, else one element; a row's
 * last vector may be shorter. Nothing outside of a row is touched.
 */
#ifndef LORASHARD_MODEL_CUDA_ROWS_CUH
#define LORASHARD_MODEL_CUDA_ROWS_CUH

#include "model/cuda/kernel.cuh"

/* --- vectors ----------------------------------------------------------------- */

template <int N>
struct values {
  float v[N];
};

/* N neighbours: 1, 4 or 8. p is aligned to N elements, or to 16 bytes if they are more. */
template <int N>
__device__ __forceinline__ values<N> get_values(const float *p) {
  values<N> x;
  if constexpr (N == 1) {
    x.v[0] = *p;
  } else {
#pragma unroll
    for (int part = 0; part < N; part += 4) {
      float4 four = *(const float4 *)(p + part);
      x.v[part] = four.x, x.v[part + 1] = four.y, x.v[part + 2] = four.z, x.v[part + 3] = four.w;
    }
  }
  return x;
}

/* The two bf16 of a word, the first in its lower half. */
__device__ __forceinline__ void bf16_unpair(uint32_t word, float *low, float *high) {
  *low = __uint_as_float(word << 16);
  *high = __uint_as_float(word & 0xffff0000u);
}

template <int N>
__device__ __forceinline__ values<N> get_values(const uint16_t *p) {
  values<N> x;
  if constexpr (N == 1) {
    x.v[0] = bf16_value(*p);
  } else if constexpr (N == 4) {
    uint2 words = *(const uint2 *)p;
    bf16_unpair(words.x, &x.v[0], &x.v[1]);
    bf16_unpair(words.y, &x.v[2], &x.v[3]);
  } else {
    uint4 words = *(const uint4 *)p;
    bf16_unpair(words.x, &x.v[0], &x.v[1]);
    bf16_unpair(words.y, &x.v[2], &x.v[3]);
    bf16_unpair(words.z, &x.v[4], &x.v[5]);
    bf16_unpair(words.w, &x.v[6], &x.v[7]);
  }
  return x;
}

template <int N>
__device__ __forceinline__ void put_values(float *p, values<N> x) {
  if constexpr (N == 1) {
    *p = x.v[0];
  } else {
#pragma unroll
    for (int part = 0; part < N; part += 4) {
      *(float4 *)(p + part) = make_float4(x.v[part], x.v[part + 1], x.v[part + 2], x.v[part + 3]);
    }
  }
}

template <int N>
__device__ __forceinline__ void put_values(uint16_t *p, values<N> x) {
  if constexpr (N == 1) {
    *p = bf16_bits(x.v[0]);
  } else if constexpr (N == 4) {
    *(uint2 *)p = make_uint2(bf16_pair(x.v[0], x.v[1]), bf16_pair(x.v[2], x.v[3]));
  } else {
    *(uint4 *)p = make_uint4(bf16_pair(x.v[0], x.v[1]), bf16_pair(x.v[2], x.v[3]), bf16_pair(x.v[4], x.v[5]),
                             bf16_pair(x.v[6], x.v[7]));
  }
}

/* The same for a vector with `left` >= 1 elements to the end of its row; what lies behind reads as 0. */
template <int N, typename T>
__device__ __forceinline__ values<N> get_values(const T *p, int64_t left) {
  if constexpr (N > 1) {
    if (left < N) {
      values<N> x;
#pragma unroll
      for (int i = 0; i < N; i++) x.v[i] = i < left ? get(p + i) : 0.0f;
      return x;
    }
  }
  return get_values<N>(p);
}
template <int N, typename T>
__device__ __forceinline__ void put_values(T *p, int64_t left, values<N> x) {
  if constexpr (N > 1) {
    if (left < N) {
#pragma unroll
      for (int i = 0; i < N; i++) {
        if (i < left) put(p + i, x.v[i]);
      }
      return;
    }
  }
  put_values<N>(p, x);
}

/* A row of a view. */
template <typename T>
__device__ __forceinline__ T *row_of(struct tensor_view x, int64_t m) {
  return (T *)x.data + m * x.ld;
}

/* Elements of T in 16 bytes. */
template <typename T>
constexpr int widest = 16 / (int)sizeof(T);

/* Elements of a vector when both types take part: the wider one decides. */
template <typename T, typename U>
constexpr int widest_of_both = widest<T> < widest<U> ? widest<T> : widest<U>;

/* --- may vectors of N elements be used? (host) ------------------------------------ */

/* NULL is an operand that is not there. */
static inline bool cuda_vector_pointer(const void *p, size_t element_bytes, int N) {
  size_t bytes = element_bytes * (size_t)N;
  return (uintptr_t)p % (bytes < 16 ? bytes : 16) == 0;
}
static inline bool cuda_vector_view(struct tensor_view x, int N) {
  return !x.data || (x.ld % N == 0 && cuda_vector_pointer(x.data, x.dtype == DTYPE_BF16 ? 2 : 4, N));
}

/* Run the statement with N standing for WIDEST if `wide`, else for 1. */
#define CUDA_WITH_VECTOR(wide, WIDEST, N, ...) \
  do {                                         \
    if (wide) {                                \
      constexpr int N = (WIDEST);              \
      __VA_ARGS__;                             \
    } else {                                   \
      constexpr int N = 1;                     \
      __VA_ARGS__;                             \
    }                                          \
  } while (0)

/* --- one vector of a row per thread and turn ---------------------------------------
 * A block of ROWS_THREADS threads is a tile of 2^log_width neighbouring vectors by
 * as many rows as that leaves: wide rows have a block of their own, narrow ones
 * share it. Blocks along x go over a row, blocks along y over the rows. */

enum { ROWS_THREADS = 256, ROWS_GRID_Y = 65535 };

struct rows_layout {
  dim3 grid;
  int log_width;
};

/* M, vectors >= 1. The width is 2^log_least at least. */
static inline struct rows_layout rows_layout(int64_t M, int64_t vectors, int log_least) {
  struct rows_layout layout = {dim3(1, 1, 1), log_least};
  while ((1 << layout.log_width) < ROWS_THREADS && (1 << layout.log_width) < vectors) layout.log_width++;
  int64_t groups = cuda_div_up(M, ROWS_THREADS >> layout.log_width);
  layout.grid.x = (unsigned)cuda_div_up(vectors, (int64_t)1 << layout.log_width);
  layout.grid.y = groups < ROWS_GRID_Y ? (unsigned)groups : (unsigned)ROWS_GRID_Y;
  return layout;
}

/* This thread's first row, the distance to its next one, and its vector. */
__device__ __forceinline__ int64_t rows_first(int log_width) {
  return (int64_t)blockIdx.y * (ROWS_THREADS >> log_width) + (threadIdx.x >> log_width);
}
__device__ __forceinline__ int64_t rows_step(int log_width) { return (int64_t)gridDim.y * (ROWS_THREADS >> log_width); }
__device__ __forceinline__ int64_t rows_vector(int log_width) {
  return ((int64_t)blockIdx.x << log_width) + (threadIdx.x & ((1u << log_width) - 1));
}

#endif
