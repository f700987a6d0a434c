/*
 * kernel.cuh: what every kernel file uses: launching, dynamic shared memory,
 * number formats, vector access, sums over a warp and a block.
 *
 * The same sources are compiled by the host compiler for tests/gpu_emulation;
 * LORASHARD_GPU_EMULATION is defined there. Differences live in this file and in
 * mma.cuh and nowhere else.
 */
#ifndef LORASHARD_MODEL_CUDA_KERNEL_CUH
#define LORASHARD_MODEL_CUDA_KERNEL_CUH

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "model/cuda/cuda_internal.h"

/* Queue a kernel and return its launch error from the calling function, if any.
 * The kernel's name stands in parentheses: CUDA_LAUNCH(d, (name<int, 3>), grid, block, shared_bytes, arguments...). */
#ifdef LORASHARD_GPU_EMULATION
#define CUDA_LAUNCH(d, kernel, grid, block, shared, ...)                                 \
  do {                                                                                   \
    emulation_launch(#kernel, kernel, grid, block, shared, cuda_stream(d), __VA_ARGS__); \
    TRY(cuda_launched(#kernel, __FILE__, __LINE__));                                     \
  } while (0)
#else
#define CUDA_LAUNCH(d, kernel, grid, block, shared, ...)                       \
  do {                                                                         \
    auto cuda_launch_kernel_ = kernel;                                         \
    cuda_launch_kernel_<<<grid, block, shared, cuda_stream(d)>>>(__VA_ARGS__); \
    TRY(cuda_launched(#kernel, __FILE__, __LINE__));                           \
  } while (0)
#endif

/* Allow a kernel more than 48 KB of dynamic shared memory; once per kernel is enough, more is harmless. */
#define CUDA_ALLOW_SHARED(kernel, bytes) \
  CUDA_TRY(cudaFuncSetAttribute((const void *)(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes)))

/* In a kernel: `type *name` is the block's dynamic shared memory, 16-byte aligned. One per kernel. */
#ifdef LORASHARD_GPU_EMULATION
#define CUDA_DYNAMIC_SHARED(type, name) type *name = (type *)emulation_dynamic_shared()
#else
#define CUDA_DYNAMIC_SHARED(type, name)                         \
  extern __shared__ __align__(16) unsigned char cuda_shared_[]; \
  type *name = (type *)cuda_shared_
#endif

#define CUDA_WARP 32
#define CUDA_FULL 0xffffffffu /* all lanes of a warp */

/* ceil(a / b) */
static inline int64_t cuda_div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* --- number formats ------------------------------------------------------ */

__device__ __forceinline__ float bf16_value(uint16_t bits) {
  uint32_t word = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

/* Round to nearest even; NaN stays NaN. */
__device__ __forceinline__ uint16_t bf16_bits(float value) {
#if defined(__CUDA_ARCH__)
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  uint32_t rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  return (uint16_t)((word & 0x7fffffff) > 0x7f800000 ? (word >> 16) | 0x40 : rounded);
#endif
}

/* Two values packed as bf16, the first in the lower half. */
__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return (uint32_t)bf16_bits(low) | (uint32_t)bf16_bits(high) << 16;
#endif
}

/* IEEE half to f32, exact. */
__device__ __forceinline__ float f16_value(uint16_t bits) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, fraction = bits & 1023, word;
  float value;
  if (exponent == 0) {
    value = (float)fraction * 0x1p-24f;
    memcpy(&word, &value, sizeof word);
    word |= sign;
  } else {
    word = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
  }
  memcpy(&value, &word, sizeof value);
  return value;
#endif
}

/* Elements of f32 or bf16 memory, by C type: float or uint16_t (bf16 bits). */
__device__ __forceinline__ float get(const float *p) { return *p; }
__device__ __forceinline__ float get(const uint16_t *p) { return bf16_value(*p); }
__device__ __forceinline__ void put(float *p, float value) { *p = value; }
__device__ __forceinline__ void put(uint16_t *p, float value) { *p = bf16_bits(value); }

/* Four neighbours at once; p is aligned to four elements (16 or 8 bytes). */
struct four {
  float v[4];
};
__device__ __forceinline__ struct four get4(const float *p) {
  float4 x = *(const float4 *)p;
  return {{x.x, x.y, x.z, x.w}};
}
__device__ __forceinline__ struct four get4(const uint16_t *p) {
  uint2 x = *(const uint2 *)p;
  return {{bf16_value((uint16_t)x.x), bf16_value((uint16_t)(x.x >> 16)), bf16_value((uint16_t)x.y),
           bf16_value((uint16_t)(x.y >> 16))}};
}
__device__ __forceinline__ void put4(float *p, struct four x) {
  *(float4 *)p = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
}
__device__ __forceinline__ void put4(uint16_t *p, struct four x) {
  *(uint2 *)p = make_uint2(bf16_pair(x.v[0], x.v[1]), bf16_pair(x.v[2], x.v[3]));
}

/* True if rows of this view start at addresses that get4/put4 may use (for host code). */
static inline bool cuda_aligned4(struct tensor_view x) {
  size_t size = x.dtype == DTYPE_BF16 ? 8 : 16;
  return x.ld % 4 == 0 && (uintptr_t)x.data % size == 0;
}

/* Run `statement` with T standing for the C type of a view's elements: CUDA_WITH_TYPE(x.dtype, T, f<T>(...)). */
#define CUDA_WITH_TYPE(dtype_, T, ...) \
  do {                                 \
    if ((dtype_) == DTYPE_BF16) {      \
      typedef uint16_t T;              \
      __VA_ARGS__;                     \
    } else {                           \
      typedef float T;                 \
      __VA_ARGS__;                     \
    }                                  \
  } while (0)

/* --- sums, in a fixed order --------------------------------------------------- */

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(CUDA_FULL, x, step);
  return x;
}
__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(CUDA_FULL, x, step);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(CUDA_FULL, x, step));
  return x;
}

/* Over all threads of a block (a multiple of 32, one dimension); every thread gets the result. `shared` has 32
 * places and may be used again after the call. */
template <typename T>
__device__ __forceinline__ T block_sum(T x, T *shared) {
  int lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x / CUDA_WARP, n_warps = blockDim.x / CUDA_WARP;
  x = warp_sum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = warp_sum(lane < n_warps ? shared[lane] : (T)0);
  __syncthreads();
  return x;
}
__device__ __forceinline__ float block_max(float x, float *shared) {
  int lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x / CUDA_WARP, n_warps = blockDim.x / CUDA_WARP;
  x = warp_max(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = warp_max(lane < n_warps ? shared[lane] : -INFINITY);
  __syncthreads();
  return x;
}

#endif
