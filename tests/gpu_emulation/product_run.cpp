/*
 * product_run.cpp: a product in f32 by oneDNN, whatever the types of the operands,
 * and the epilogues.
 */
#include <dnnl.h>
#include <math.h>
#include <string.h>

#include "emulation.h"
#include "product.h"

namespace emulation {

static float bf16_to_f32(uint16_t bits) {
  uint32_t word = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

static uint16_t f32_to_bf16(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  if ((word & 0x7fffffff) > 0x7f800000) return (uint16_t)(word >> 16 | 0x40);
  return (uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

/* 10 bits of fraction, to nearest even. */
static float f32_to_tf32(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  if ((word & 0x7f800000) == 0x7f800000) return value;
  word = (word + 0xfff + (word >> 13 & 1)) & ~0x1fffu;
  memcpy(&value, &word, sizeof value);
  return value;
}

static float load(const void *p, int64_t i, int32_t type) {
  return type == CUDA_R_16BF ? bf16_to_f32(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

static void store(void *p, int64_t i, int32_t type, float value) {
  if (type == CUDA_R_16BF) {
    ((uint16_t *)p)[i] = f32_to_bf16(value);
  } else {
    ((float *)p)[i] = value;
  }
}

/* A copy of the operand in f32. Never itself: device memory may be open to this thread only, not to oneDNN's. */
static std::vector<float> widen(const void *data, const matrix_layout &layout, bool tf32) {
  std::vector<float> storage(layout.rows * layout.columns);
  for (uint64_t j = 0; j < layout.columns; j++) {
    for (uint64_t i = 0; i < layout.rows; i++) {
      float value = load(data, (int64_t)(j * (uint64_t)layout.ld + i), layout.type);
      storage[j * layout.rows + i] = tf32 ? f32_to_tf32(value) : value;
    }
  }
  return storage;
}

static float gelu_tanh(float x) { return 0.5f * x * (1 + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x))); }

static void finish(const matmul &p, const float *sums) {
  int32_t d_type = p.d_layout.type;
  int32_t bias_type = p.what.bias_type < 0 ? d_type : p.what.bias_type;
  int32_t aux_type = p.what.aux_type < 0 ? d_type : p.what.aux_type;
  bool bias = p.what.epilogue & CUBLASLT_EPILOGUE_BIAS, gelu = p.what.epilogue & CUBLASLT_EPILOGUE_GELU;
  bool aux = p.what.epilogue & 128;
  for (int64_t j = 0; j < p.n; j++) {
    for (int64_t i = 0; i < p.m; i++) {
      float value = p.alpha * sums[j * p.m + i];
      if (p.beta != 0) value += p.beta * load(p.c, j * p.c_layout.ld + i, p.c_layout.type);
      if (bias) value += load(p.what.bias, i, bias_type);
      if (aux) store(p.what.aux, j * p.what.aux_ld + i, aux_type, value);
      if (gelu) value = gelu_tanh(value);
      if (p.what.epilogue == CUBLASLT_EPILOGUE_RELU && value < 0) value = 0;
      store(p.d, j * p.d_layout.ld + i, d_type, value);
    }
  }
}

void product_run(const matmul &p) {
  if (p.m == 0 || p.n == 0) return;
  bool tf32 = p.what.compute_type == CUBLAS_COMPUTE_32F_FAST_TF32;
  std::vector<float> a = widen(p.a, p.a_layout, tf32), b = widen(p.b, p.b_layout, tf32), sums((size_t)(p.m * p.n));
  /* A matrix by columns is its transpose by rows: D' = op(B)' op(A)'. */
  dnnl_status_t status =
      dnnl_sgemm(p.what.transposed_b ? 'T' : 'N', p.what.transposed_a ? 'T' : 'N', p.n, p.m, p.k, 1, b.data(),
                 (int64_t)p.b_layout.rows, a.data(), (int64_t)p.a_layout.rows, 0, sums.data(), p.m);
  if (status != dnnl_success) fail("oneDNN refuses a product of %ld x %ld x %ld", (long)p.m, (long)p.n, (long)p.k);
  finish(p, sums.data());
}

}  // namespace emulation
