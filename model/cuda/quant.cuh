/*
 * quant.cuh: stored weights to f32 in registers, some neighbours of a row at a
 * time. Layouts: io/quant.c, whose values these are bit for bit.
 *
 * They are so although the compiler may fuse d q + m: an 11-bit scale times a
 * number of at most 13 bits is exact in f32, so that fused or not there is one
 * rounding. Only q6_k, f8, int8 and nf4 round their products, and add nothing.
 */
#ifndef LORASHARD_MODEL_CUDA_QUANT_CUH
#define LORASHARD_MODEL_CUDA_QUANT_CUH

#include "io/quant.h"
#include "model/cuda/rows.cuh"

/* Weights and bytes of a block, as io/dtype.h says, for the compiler. */
template <enum dtype D>
constexpr int quant_block = D < DTYPE_Q4_0 || D == DTYPE_INT8    ? 1
                            : D == DTYPE_NF4                     ? QUANT_NF4_BLOCK
                            : D == DTYPE_Q4_K || D == DTYPE_Q6_K ? 256
                                                                 : 32;
constexpr int quant_all_bytes[DTYPE_COUNT] = {4, 2, 2, 18, 20, 22, 24, 34, 144, 210, 36, 1, 32};
static_assert(quant_all_bytes[DTYPE_COUNT - 1] > 0, "a format without a size");
template <enum dtype D>
constexpr int quant_block_bytes = quant_all_bytes[D];

/* Bytes of a row of n weights. */
template <enum dtype D>
constexpr size_t quant_row_bytes(int64_t n) {
  return (size_t)(n / quant_block<D>)*quant_block_bytes<D>;
}

/* Every block of a quantised format, and every vector of numbers in it, begins at an even address. */
__device__ __forceinline__ uint32_t quant_short(const uint8_t *p) { return *(const uint16_t *)p; }
__device__ __forceinline__ uint32_t quant_word(const uint8_t *p) { return quant_short(p) | quant_short(p + 2) << 16; }
__device__ __forceinline__ float quant_half(const uint8_t *p) { return f16_value((uint16_t)quant_short(p)); }

/* N bytes as numbers; N is 1, or p is even. */
template <int N>
struct quant_bytes {
  uint32_t words[N > 4 ? 2 : 1];
  __device__ __forceinline__ explicit quant_bytes(const uint8_t *p) {
    if constexpr (N == 1) {
      words[0] = *p;
    } else {
#pragma unroll
      for (int i = 0; i < N / 4; i++) words[i] = quant_word(p + 4 * i);
    }
  }
  __device__ __forceinline__ int at(int i) const { return (int)(words[i / 4] >> i % 4 * 8 & 255); }
};

/* Numbers i .. i + N - 1 of a 32-weight format without their fifth bits, from its 16 bytes: the low halves are
 * weights 0 .. 15, the high ones 16 .. 31. */
template <int N>
__device__ __forceinline__ void quant_nibbles(const uint8_t *q, int i, int number[N]) {
  quant_bytes<N> bytes(q + (i & 15));
#pragma unroll
  for (int k = 0; k < N; k++) number[k] = bytes.at(k) >> (i < 16 ? 0 : 4) & 15;
}

/* The fifth bits to them: bit i of the word at p is weight i's. */
template <int N>
__device__ __forceinline__ void quant_fifth_bits(const uint8_t *p, int i, int number[N]) {
  uint32_t bits = quant_word(p) >> i;
#pragma unroll
  for (int k = 0; k < N; k++) number[k] |= (int)(bits >> k & 1) << 4;
}

template <int N>
__device__ __forceinline__ values<N> quant_q4_k(const uint8_t *block, int i) {
  const uint8_t *b = block + 4;
  int j = i / 32; /* groups 2p and 2p + 1 are the low and high halves of the same 32 bytes */
  int sc = j < 4 ? b[j] & 63 : (b[j + 4] & 15) | (b[j - 4] >> 6) << 4;
  int m = j < 4 ? b[j + 4] & 63 : (b[j + 4] >> 4) | (b[j] >> 6) << 4;
  float scale = quant_half(block) * (float)sc, offset = quant_half(block + 2) * (float)m;
  quant_bytes<N> bytes(block + 16 + j / 2 * 32 + i % 32);
  values<N> x;
#pragma unroll
  for (int k = 0; k < N; k++) x.v[k] = scale * (float)(bytes.at(k) >> j % 2 * 4 & 15) - offset;
  return x;
}

/* Two halves of 128 weights; in each, the four groups of 32 share 64 bytes of low halves (groups 0 2, 1 3 in one byte)
 * and 32 bytes of two-bit tops. */
template <int N>
__device__ __forceinline__ values<N> quant_q6_k(const uint8_t *block, int i) {
  int half = i / 128, group = i % 128 / 32, first = i % 32;
  quant_bytes<N> low(block + 64 * half + group % 2 * 32 + first), high(block + 128 + 32 * half + first);
  float scale = quant_half(block + 208) * (float)(int8_t)block[192 + i / 16];
  values<N> x;
#pragma unroll
  for (int k = 0; k < N; k++) {
    int q = (low.at(k) >> group / 2 * 4 & 15) | (high.at(k) >> 2 * group & 3) << 4;
    x.v[k] = scale * (float)(q - 32);
  }
  return x;
}

/* An e4m3 number without its scale. The exponent and mantissa of a normal number go to f32's places with another bias;
 * a subnormal one is a multiple of 2^-9. */
__device__ __forceinline__ float quant_e4m3(int code) {
  const uint32_t magnitude = (uint32_t)code & 0x7f, sign = (uint32_t)(code & 0x80) << 24;
  uint32_t word = magnitude < 8 ? __float_as_uint((float)magnitude * 0x1p-9f) : (magnitude << 20) + 0x3c000000;
  if (magnitude == 0x7f) word = 0x7fc00000;
  return __uint_as_float(word | sign);
}

/* Weights i .. i + N - 1 of an f8 block. From compute capability 8.9 on the device converts pairs of numbers. */
template <int N>
__device__ __forceinline__ values<N> quant_f8(const uint8_t *block, int i) {
  float scale = __uint_as_float(quant_word(block));
  quant_bytes<N> bytes(block + 4 + i);
  values<N> x;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#pragma unroll
  for (int k = 0; k < N; k += 2) {
    uint16_t codes = (uint16_t)(bytes.words[k / 4] >> k % 4 * 8);
    uint32_t halves; /* every e4m3 number is an f16 */
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(codes));
    x.v[k] = scale * f16_value((uint16_t)halves);
    if (k + 1 < N) x.v[k + 1] = scale * f16_value((uint16_t)(halves >> 16));
  }
#else
#pragma unroll
  for (int k = 0; k < N; k++) x.v[k] = scale * quant_e4m3(bytes.at(k));
#endif
  return x;
}

/* Weights i .. i + N - 1 of a quantised block; i is a multiple of N, which is 1, 4 or 8. */
template <enum dtype D, int N>
__device__ __forceinline__ values<N> quant_block_values(const uint8_t *block, int i) {
  if constexpr (D == DTYPE_Q4_K) {
    return quant_q4_k<N>(block, i);
  } else if constexpr (D == DTYPE_Q6_K) {
    return quant_q6_k<N>(block, i);
  } else if constexpr (D == DTYPE_Q8_0) {
    float d = quant_half(block);
    quant_bytes<N> bytes(block + 2 + i);
    values<N> x;
#pragma unroll
    for (int k = 0; k < N; k++) x.v[k] = d * (float)(int8_t)bytes.at(k);
    return x;
  } else if constexpr (D == DTYPE_F8) {
    return quant_f8<N>(block, i);
  } else {
    constexpr bool offset = D == DTYPE_Q4_1 || D == DTYPE_Q5_1, fifth = D == DTYPE_Q5_0 || D == DTYPE_Q5_1;
    constexpr int head = offset ? 4 : 2, zero = offset ? 0 : fifth ? 16 : 8;
    int number[N];
    quant_nibbles<N>(block + head + (fifth ? 4 : 0), i, number);
    if constexpr (fifth) quant_fifth_bits<N>(block + head, i, number);
    float d = quant_half(block);
    values<N> x;
#pragma unroll
    for (int k = 0; k < N; k++) x.v[k] = d * (float)(number[k] - zero);
    if constexpr (offset) {
      float m = quant_half(block + 2);
#pragma unroll
      for (int k = 0; k < N; k++) x.v[k] += m;
    }
    return x;
  }
}

/* Weights i .. i + N - 1 of a row of n, any dtype; what lies behind the row reads as 0. i is a multiple of N, which is
 * 1, 4 or 8. The row is aligned to N elements (or 16 bytes) if its dtype is plain, else even. */
template <enum dtype D, int N>
__device__ __forceinline__ values<N> quant_values(const uint8_t *row, int64_t i, int64_t n) {
  if constexpr (D == DTYPE_F32) {
    return get_values<N>((const float *)row + i, n - i);
  } else if constexpr (D == DTYPE_BF16) {
    return get_values<N>((const uint16_t *)row + i, n - i);
  } else if constexpr (D == DTYPE_F16) {
    values<N> x;
    if (N == 1 || n - i < N) {
#pragma unroll
      for (int k = 0; k < N; k++) x.v[k] = k < n - i ? f16_value(((const uint16_t *)row)[i + k]) : 0.0f;
      return x;
    }
    uint32_t words[N > 1 ? N / 2 : 1] = {};
    if constexpr (N == 4) {
      uint2 both = *(const uint2 *)(row + 2 * i);
      words[0] = both.x, words[1] = both.y;
    } else if constexpr (N == 8) {
      uint4 all = *(const uint4 *)(row + 2 * i);
      words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
    }
#pragma unroll
    for (int k = 0; k < N; k++) x.v[k] = f16_value((uint16_t)(words[k / 2] >> k % 2 * 16));
    return x;
  } else {
    int64_t block = i / quant_block<D>;
    return quant_block_values<D, N>(row + block * quant_block_bytes<D>, (int)(i - block * quant_block<D>));
  }
}

/* A weight as a kernel takes it. */
struct quant_source {
  const uint8_t *data, *codes;
  const float *scales;
  size_t row_bytes;
  int64_t n_in;
};

static __device__ const float quant_values_of_nf4[16] = {QUANT_NF4_VALUES};
static __device__ const float quant_steps_of_nf4[129] = {QUANT_NF4_STEPS};

/* Weights i .. i + N - 1 of a row, any dtype; what lies behind end reads as 0 or is not looked at. i is a multiple of
 * N, which is 1, 4 or 8; see cuda_vector_weight. */
template <enum dtype D, int N>
__device__ __forceinline__ values<N> quant_source_values(const quant_source &W, int64_t row, int64_t i, int64_t end) {
  const uint8_t *numbers = W.data + (size_t)row * W.row_bytes;
  if constexpr (D == DTYPE_INT8) {
    quant_bytes<N> bytes(numbers + i);
    const float scale = W.scales[row];
    values<N> x;
#pragma unroll
    for (int k = 0; k < N; k++) x.v[k] = scale * (float)(int8_t)bytes.at(k);
    return x;
  } else if constexpr (D == DTYPE_NF4) {
    const int64_t blocks = W.n_in / QUANT_NF4_BLOCK, block = i / QUANT_NF4_BLOCK;
    const int in_block = (int)(i - block * QUANT_NF4_BLOCK), code = W.codes[row * blocks + block] - 127;
    const float *tile = W.scales + 2 * (row / QUANT_NF4_TILE * blocks + block);
    const float step = quant_steps_of_nf4[code < 0 ? -code : code];
    const float scale = fmaf(code < 0 ? -step : step, tile[0], tile[1]);
    int number[N];
    quant_nibbles<N>(numbers + block * (QUANT_NF4_BLOCK / 2) + in_block / 32 * 16, in_block % 32, number);
    values<N> x;
#pragma unroll
    for (int k = 0; k < N; k++) x.v[k] = quant_values_of_nf4[number[k]] * scale;
    return x;
  } else {
    return quant_values<D, N>(numbers, i, end);
  }
}

/* --- for host code -------------------------------------------------------------------- */

template <enum dtype D>
static inline struct quant_source quant_source_of(const struct weight *W) {
  return {(const uint8_t *)W->data, W->codes, W->scales, quant_row_bytes<D>(W->n_in), W->n_in};
}

/* May vectors of N elements be read from the rows of W, from column on? */
static inline bool cuda_vector_weight(const struct weight *W, int64_t column, int N) {
  if (dtype_quantised(W->dtype) && W->dtype != DTYPE_INT8) return true;
  size_t bytes = W->dtype == DTYPE_INT8 ? 1 : W->dtype == DTYPE_F32 ? 4 : 2;
  return W->n_in % N == 0 && column % N == 0 && cuda_vector_pointer(W->data, bytes, N);
}

/* Run `statement` with D standing for the dtype as a constant. */
#define CUDA_WITH_DTYPE_CASE(VALUE, D, ...) \
  case VALUE: {                             \
    constexpr enum dtype D = VALUE;         \
    __VA_ARGS__;                            \
    break;                                  \
  }
#define CUDA_WITH_DTYPE(dtype_, D, ...)              \
  switch (dtype_) {                                  \
    CUDA_WITH_DTYPE_CASE(DTYPE_F32, D, __VA_ARGS__)  \
    CUDA_WITH_DTYPE_CASE(DTYPE_F16, D, __VA_ARGS__)  \
    CUDA_WITH_DTYPE_CASE(DTYPE_BF16, D, __VA_ARGS__) \
    CUDA_WITH_DTYPE_CASE(DTYPE_Q4_0, D, __VA_ARGS__) \
    CUDA_WITH_DTYPE_CASE(DTYPE_Q4_1, D, __VA_ARGS__) \
    CUDA_WITH_DTYPE_CASE(DTYPE_Q5_0, D, __VA_ARGS__) \
    CUDA_WITH_DTYPE_CASE(DTYPE_Q5_1, D, __VA_ARGS__) \
    CUDA_WITH_DTYPE_CASE(DTYPE_Q8_0, D, __VA_ARGS__) \
    CUDA_WITH_DTYPE_CASE(DTYPE_Q4_K, D, __VA_ARGS__) \
    CUDA_WITH_DTYPE_CASE(DTYPE_Q6_K, D, __VA_ARGS__) \
    CUDA_WITH_DTYPE_CASE(DTYPE_F8, D, __VA_ARGS__)   \
    CUDA_WITH_DTYPE_CASE(DTYPE_INT8, D, __VA_ARGS__) \
    CUDA_WITH_DTYPE_CASE(DTYPE_NF4, D, __VA_ARGS__)  \
    case DTYPE_COUNT:                                \
      break;                                         \
  }

#endif
