/* product.h: cuBLASLt's descriptors as they lie in their opaque structs, and the product itself. */
#ifndef LORASHARD_EMULATION_PRODUCT_H
#define LORASHARD_EMULATION_PRODUCT_H

#include <cublasLt.h>

namespace emulation {

struct matrix_layout {
  int32_t type, order;
  uint64_t rows, columns;
  int64_t ld;
  int32_t batch_count;
};

struct matmul_description {
  int32_t compute_type, scale_type, pointer_mode, transposed_a, transposed_b;
  uint32_t epilogue;
  const void *bias;
  void *aux;
  int64_t aux_ld;
  int32_t bias_type, aux_type; /* -1: as D */
};

struct matmul_preference {
  uint64_t workspace_bytes;
  uint32_t alignment[4]; /* of A, B, C, D */
};

struct matmul {
  int64_t m, n, k;
  matmul_description what;
  matrix_layout a_layout, b_layout, c_layout, d_layout;
  const void *a, *b, *c;
  void *d;
  float alpha, beta;
};

static inline const matrix_layout &layout_of(const cublasLtMatrixLayoutOpaque_t *p) {
  return *(const matrix_layout *)p;
}
static inline const matmul_description &description_of(const cublasLtMatmulDescOpaque_t *p) {
  return *(const matmul_description *)p;
}
static inline const matmul_preference &preference_of(const cublasLtMatmulPreferenceOpaque_t *p) {
  return *(const matmul_preference *)p;
}

/* D = epilogue(alpha op(A) op(B) + beta C), by columns; sums in f32, on the host's memory. */
void product_run(const matmul &matmul);

}  // namespace emulation

#endif
