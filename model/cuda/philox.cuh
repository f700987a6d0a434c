/* philox.cuh: the random numbers of dist/rng.h in kernels. Target: its bits. */
#ifndef LORASHARD_MODEL_CUDA_PHILOX_CUH
#define LORASHARD_MODEL_CUDA_PHILOX_CUH

#include "model/cuda/kernel.cuh"

/* philox4x32: four words out of a counter and a key. */
__device__ __forceinline__ void philox(const uint32_t counter[4], uint64_t seed, uint32_t out[4]) {
  uint32_t x0 = counter[0], x1 = counter[1], x2 = counter[2], x3 = counter[3];
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    uint32_t high0 = __umulhi(0xD2511F53u, x0), low0 = 0xD2511F53u * x0;
    uint32_t high1 = __umulhi(0xCD9E8D57u, x2), low1 = 0xCD9E8D57u * x2;
    x0 = high1 ^ x1 ^ k0;
    x1 = low1;
    x2 = high0 ^ x3 ^ k1;
    x3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = x0, out[1] = x1, out[2] = x2, out[3] = x3;
}

#endif
