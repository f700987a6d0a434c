/*
 * mma.cuh: tensor cores and asynchronous copies, one small function per
 * instruction of the GPU, each with a portable body that does the same with warp
 * shuffles and plain copies. PLAIN chooses the portable body on a GPU too, for
 * tests; where there is no such instruction it is the only one.
 *
 * A matrix product is made of steps of one warp, D[16, 8] += A[16, 16] B[16, 8].
 * With g = lane / 4 and t = lane % 4 a lane holds
 *   a[0], a[1]: rows g, g + 8, columns 2t, 2t + 1;  a[2], a[3]: the same, columns + 8
 *   b0, b1:     rows 2t, 2t + 1 (+ 8 in b1), column g
 *   d[0], d[1]: row g, columns 2t, 2t + 1;          d[2], d[3]: row g + 8
 * so that D, rounded to pairs, is the A of a product that follows.
 */
#ifndef LORASHARD_MODEL_CUDA_MMA_CUH
#define LORASHARD_MODEL_CUDA_MMA_CUH

#include "model/cuda/kernel.cuh"

#if defined(__CUDA_ARCH__)
#if __CUDA_ARCH__ >= 800
#define CUDA_HAS_MMA 1
#endif
#endif

/* --- portable bodies: out of line, since they are long and speed is no concern --- */

__device__ __attribute__((noinline)) static void ldmatrix4_plain(uint32_t *r, const unsigned char *base,
                                                                 uint32_t offset) {
  int lane = threadIdx.x % CUDA_WARP;
  for (int i = 0; i < 4; i++) {
    uint32_t row = __shfl_sync(CUDA_FULL, offset, 8 * i + lane / 4);
    r[i] = *(const uint32_t *)(base + row + 4 * (lane % 4));
  }
}

__device__ __attribute__((noinline)) static void ldmatrix4_transposed_plain(uint32_t *r, const unsigned char *base,
                                                                            uint32_t offset) {
  int lane = threadIdx.x % CUDA_WARP, column = lane / 4;
  for (int i = 0; i < 4; i++) {
    uint32_t low = __shfl_sync(CUDA_FULL, offset, 8 * i + 2 * (lane % 4));
    uint32_t high = __shfl_sync(CUDA_FULL, offset, 8 * i + 2 * (lane % 4) + 1);
    r[i] = (uint32_t) * (const uint16_t *)(base + low + 2 * column) |
           (uint32_t) * (const uint16_t *)(base + high + 2 * column) << 16;
  }
}

/* Two words of another lane, in one exchange. */
__device__ __forceinline__ uint2 shuffle_words(uint32_t x, uint32_t y, int lane) {
  uint2 words = make_uint2(x, y);
  double both;
  memcpy(&both, &words, sizeof both);
  both = __shfl_sync(CUDA_FULL, both, lane);
  memcpy(&words, &both, sizeof words);
  return words;
}

/* sum += the product of two pairs */
__device__ __forceinline__ float add_pair(float sum, uint32_t a, uint32_t b) {
  sum = fmaf(bf16_value((uint16_t)a), bf16_value((uint16_t)b), sum);
  return fmaf(bf16_value((uint16_t)(a >> 16)), bf16_value((uint16_t)(b >> 16)), sum);
}

__device__ __attribute__((noinline)) static void mma_bf16_plain(float *d, const uint32_t *a, uint32_t b0, uint32_t b1) {
  int lane = threadIdx.x % CUDA_WARP, row = lane / 4, column = 2 * (lane % 4);
  for (int t = 0; t < 4; t++) { /* depth 2t, 2t + 1 and the same + 8 */
    uint2 left = shuffle_words(a[0], a[1], 4 * row + t), left_far = shuffle_words(a[2], a[3], 4 * row + t);
    uint2 even = shuffle_words(b0, b1, 4 * column + t), odd = shuffle_words(b0, b1, 4 * (column + 1) + t);
    d[0] = add_pair(add_pair(d[0], left.x, even.x), left_far.x, even.y);
    d[1] = add_pair(add_pair(d[1], left.x, odd.x), left_far.x, odd.y);
    d[2] = add_pair(add_pair(d[2], left.y, even.x), left_far.y, even.y);
    d[3] = add_pair(add_pair(d[3], left.y, odd.x), left_far.y, odd.y);
  }
}

/* --- the instructions ------------------------------------------------------ */

/* Four 8 x 8 matrices of 16-bit values from shared memory: lane l says where row l % 8 of matrix l / 8 is (offset from
 * base, 16-byte aligned); r[i] is a lane's part of matrix i: row lane / 4, columns 2 (lane % 4) and the next. */
template <bool PLAIN>
__device__ __forceinline__ void ldmatrix4(uint32_t r[4], const unsigned char *base, uint32_t offset) {
#ifdef CUDA_HAS_MMA
  if (!PLAIN) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(base) + offset));
    return;
  }
#endif
  ldmatrix4_plain(r, base, offset);
}

/* The same of the transposed matrices. */
template <bool PLAIN>
__device__ __forceinline__ void ldmatrix4_transposed(uint32_t r[4], const unsigned char *base, uint32_t offset) {
#ifdef CUDA_HAS_MMA
  if (!PLAIN) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(base) + offset));
    return;
  }
#endif
  ldmatrix4_transposed_plain(r, base, offset);
}

/* D += A B, inputs bf16, sums f32. */
template <bool PLAIN>
__device__ __forceinline__ void mma_bf16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
#ifdef CUDA_HAS_MMA
  if (!PLAIN) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    return;
  }
#endif
  mma_bf16_plain(d, a, b0, b1);
}

/* Start copying 16 bytes to shared memory, or 16 zeros without `wanted` (src is not read then). Both aligned to 16. */
template <bool PLAIN>
__device__ __forceinline__ void copy16_start(unsigned char *dst, const void *src, bool wanted) {
#ifdef CUDA_HAS_MMA
  if (!PLAIN) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(dst)), "l"(__cvta_generic_to_global(src)),
                   "r"(wanted ? 16 : 0)
                 : "memory");
    return;
  }
#endif
  *(uint4 *)dst = wanted ? *(const uint4 *)src : make_uint4(0, 0, 0, 0);
}

/* Wait for all copies that this thread has started; a barrier makes them visible to the others. */
template <bool PLAIN>
__device__ __forceinline__ void copies_wait() {
#ifdef CUDA_HAS_MMA
  if (!PLAIN) asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/* x. What depends on it is computed where it is used, not kept in registers over a loop. */
__device__ __forceinline__ unsigned in_place(unsigned x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

/* 2^x; results below 2^-126 are 0. */
__device__ __forceinline__ float exp2_fast(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

#endif
