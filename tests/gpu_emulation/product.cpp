/*
 * product.cpp: cuBLASLt: descriptors, the choice of an algorithm, and queueing a
 * product. An algorithm remembers for which product it was chosen, and what was
 * promised about alignment; a product that breaks the promise ends the process.
 */
#include "product.h"

#include <stdlib.h>
#include <string.h>

#include "emulation.h"

namespace emulation {

static const uint64_t ALGORITHM = 0x6c6f726173686172;
static const uint64_t WORKSPACE_BYTES = 64 * 1024; /* that an algorithm asks for, if it may */

static_assert(sizeof(matrix_layout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "");
static_assert(sizeof(matmul_description) <= sizeof(cublasLtMatmulDescOpaque_t), "");
static_assert(sizeof(matmul_preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t), "");

/* What an algorithm remembers; data[8] of cublasLtMatmulAlgo_t. */
struct algorithm {
  uint64_t magic, product; /* a hash of everything but addresses */
  uint64_t workspace_bytes;
  uint32_t alignment[4];
};
static_assert(sizeof(algorithm) <= sizeof(cublasLtMatmulAlgo_t), "");

static size_t type_bytes(int32_t type) { return type == CUDA_R_16BF ? 2 : 4; }

static bool has_bias(const matmul_description &what) { return what.epilogue & CUBLASLT_EPILOGUE_BIAS; }
static bool has_aux(const matmul_description &what) { return what.epilogue & 128; }

static bool sizes_fit(const matmul_description &what, const matrix_layout &a, const matrix_layout &b,
                      const matrix_layout &c, const matrix_layout &d) {
  uint64_t m = what.transposed_a ? a.columns : a.rows, k = what.transposed_a ? a.rows : a.columns;
  uint64_t n = what.transposed_b ? b.rows : b.columns, k_b = what.transposed_b ? b.columns : b.rows;
  for (const matrix_layout *layout : {&a, &b, &c, &d}) {
    if (layout->rows == 0 || layout->columns == 0 || layout->ld < (int64_t)layout->rows) return false;
  }
  return k == k_b && c.rows == m && c.columns == n && d.rows == m && d.columns == n;
}

static bool types_fit(const matmul_description &what, const matrix_layout &a, const matrix_layout &b,
                      const matrix_layout &c, const matrix_layout &d) {
  bool compute = what.compute_type == CUBLAS_COMPUTE_32F || what.compute_type == CUBLAS_COMPUTE_32F_PEDANTIC ||
                 (what.compute_type == CUBLAS_COMPUTE_32F_FAST_TF32 && a.type == CUDA_R_32F);
  bool operands = (a.type == CUDA_R_32F || a.type == CUDA_R_16BF) && a.type == b.type;
  bool result = d.type == c.type && (d.type == CUDA_R_32F || (d.type == CUDA_R_16BF && a.type == CUDA_R_16BF));
  return compute && operands && result && what.scale_type == CUDA_R_32F;
}

/* EMULATED_CUBLASLT_STRICT=1: only rows and columns that begin at multiples of 16 bytes, as the fast kernels want. */
static bool alignment_fits(const matrix_layout &layout, uint32_t alignment) {
  size_t bytes = type_bytes(layout.type);
  const char *strict = getenv("EMULATED_CUBLASLT_STRICT");
  if (strict && *strict == '1' && (alignment < 16 || (size_t)layout.ld * bytes % 16 != 0)) return false;
  return alignment >= bytes;
}

static bool epilogue_fits(const matmul_description &what, const matrix_layout &d) {
  switch (what.epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
    case CUBLASLT_EPILOGUE_RELU:
    case CUBLASLT_EPILOGUE_GELU:
      break;
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_GELU_BIAS:
    case CUBLASLT_EPILOGUE_GELU_AUX:
    case CUBLASLT_EPILOGUE_GELU_AUX_BIAS:
      break;
    default:
      return false;
  }
  if (has_bias(what) && what.bias_type >= 0 && what.bias_type != d.type) return false;
  if (!has_aux(what)) return true;
  if (what.aux_type >= 0 && what.aux_type != d.type) return false;
  return what.aux_ld >= (int64_t)d.rows && what.aux_ld % 8 == 0 && (uintptr_t)what.aux % 16 == 0;
}

static uint64_t product_hash(const matmul_description &what, const matrix_layout &a, const matrix_layout &b,
                             const matrix_layout &c, const matrix_layout &d) {
  uint64_t hash = 0;
  auto add = [&](uint64_t word) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  };
  for (const matrix_layout *layout : {&a, &b, &c, &d}) {
    add((uint64_t)layout->type);
    add(layout->rows);
    add(layout->columns);
    add((uint64_t)layout->ld);
  }
  add((uint64_t)what.compute_type << 32 | what.epilogue);
  add((uint64_t)(what.transposed_a * 2 + what.transposed_b));
  add((uint64_t)what.aux_ld);
  return hash;
}

/* --- queueing ---------------------------------------------------------------------------- */

static void add_access(operation &operation, const char *what, const void *data, size_t bytes, bool write) {
  if (memory_find((uintptr_t)data) == MEMORY_HOST) {
    fail("%s: %s, %p, is no device memory", operation.name.c_str(), what, data);
  }
  operation.accesses.push_back({(uintptr_t)data, (uintptr_t)data + bytes, write});
  memory_check_extent(operation.name + ", " + what, operation.accesses.back());
}

static size_t matrix_bytes(const matrix_layout &layout) {
  return ((layout.columns - 1) * (size_t)layout.ld + layout.rows) * type_bytes(layout.type);
}

static void check_algorithm(const operation &operation, const matmul &p, const cublasLtMatmulAlgo_t *algo,
                            size_t workspace_bytes) {
  algorithm chosen;
  memcpy(&chosen, algo, sizeof chosen);
  if (chosen.magic != ALGORITHM ||
      chosen.product != product_hash(p.what, p.a_layout, p.b_layout, p.c_layout, p.d_layout)) {
    fail("%s: with an algorithm that was chosen for another product", operation.name.c_str());
  }
  const void *matrices[4] = {p.a, p.b, p.c, p.d};
  for (int i = 0; i < 4; i++) {
    if ((uintptr_t)matrices[i] % chosen.alignment[i] != 0) {
      fail("%s: matrix %c lies at %p, but %u bytes of alignment were promised when the algorithm was chosen",
           operation.name.c_str(), "ABCD"[i], matrices[i], chosen.alignment[i]);
    }
  }
  if (workspace_bytes < chosen.workspace_bytes) {
    fail("%s: a workspace of %zu bytes, but the algorithm needs %zu", operation.name.c_str(), workspace_bytes,
         (size_t)chosen.workspace_bytes);
  }
}

static cublasStatus_t queue(const matmul &p, const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                            cudaStream_t handle) {
  std::shared_ptr<stream> stream = stream_find(handle);
  if (!stream || stream->device != current_device()) return CUBLAS_STATUS_INVALID_VALUE;
  auto operation = std::make_shared<struct operation>();
  operation->name =
      "cublasLtMatmul of " + std::to_string(p.m) + " x " + std::to_string(p.n) + " x " + std::to_string(p.k);
  add_access(*operation, "matrix A", p.a, matrix_bytes(p.a_layout), false);
  add_access(*operation, "matrix B", p.b, matrix_bytes(p.b_layout), false);
  if (p.beta != 0) add_access(*operation, "matrix C", p.c, matrix_bytes(p.c_layout), false);
  add_access(*operation, "matrix D", p.d, matrix_bytes(p.d_layout), true);
  if (has_bias(p.what)) {
    size_t bytes = (size_t)p.m * type_bytes(p.what.bias_type < 0 ? p.d_layout.type : p.what.bias_type);
    add_access(*operation, "the bias", p.what.bias, bytes, false);
  }
  if (has_aux(p.what)) {
    size_t elements = (size_t)((p.n - 1) * p.what.aux_ld + p.m);
    add_access(*operation, "the auxiliary matrix", p.what.aux, elements * type_bytes(p.d_layout.type), true);
  }
  if (algo) check_algorithm(*operation, p, algo, workspace_bytes);
  size_t scratch = algo ? (size_t)((const algorithm *)algo)->workspace_bytes : 0;
  if (scratch) add_access(*operation, "the workspace", workspace, scratch, true);
  operation->run = [=]() {
    if (scratch) memset(workspace, 0xff, scratch);
    product_run(p);
    return true;
  };
  stream_queue(*stream, operation);
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace emulation

using namespace emulation;

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *lightHandle) {
  *lightHandle = (cublasLtHandle_t)malloc(1);
  return *lightHandle ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t lightHandle) {
  free(lightHandle);
  return CUBLAS_STATUS_SUCCESS;
}
size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }
size_t cublasLtGetCudartVersion(void) { return CUDART_VERSION; }

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t operationDesc,
                                              cublasLtMatrixLayout_t Adesc, cublasLtMatrixLayout_t Bdesc,
                                              cublasLtMatrixLayout_t Cdesc, cublasLtMatrixLayout_t Ddesc,
                                              cublasLtMatmulPreference_t preference, int requestedAlgoCount,
                                              cublasLtMatmulHeuristicResult_t heuristicResultsArray[],
                                              int *returnAlgoCount) {
  entry entry;
  if (requestedAlgoCount < 1) return CUBLAS_STATUS_INVALID_VALUE;
  const matmul_description &what = description_of(operationDesc);
  const matrix_layout &a = layout_of(Adesc), &b = layout_of(Bdesc), &c = layout_of(Cdesc), &d = layout_of(Ddesc);
  const matmul_preference &limits = preference_of(preference);
  const matrix_layout *layouts[4] = {&a, &b, &c, &d};
  *returnAlgoCount = 0;
  if (!sizes_fit(what, a, b, c, d)) return CUBLAS_STATUS_INVALID_VALUE;
  bool fits = types_fit(what, a, b, c, d) && epilogue_fits(what, d);
  for (int i = 0; i < 4; i++) fits = fits && alignment_fits(*layouts[i], limits.alignment[i]);
  if (!fits) return CUBLAS_STATUS_NOT_SUPPORTED;
  cublasLtMatmulHeuristicResult_t &result = heuristicResultsArray[0];
  memset(&result, 0, sizeof result);
  algorithm chosen = {ALGORITHM, product_hash(what, a, b, c, d), 0, {}};
  chosen.workspace_bytes = limits.workspace_bytes < WORKSPACE_BYTES ? 0 : WORKSPACE_BYTES;
  memcpy(chosen.alignment, limits.alignment, sizeof chosen.alignment);
  memcpy(&result.algo, &chosen, sizeof chosen);
  result.workspaceSize = chosen.workspace_bytes;
  result.state = CUBLAS_STATUS_SUCCESS;
  result.wavesCount = 1;
  *returnAlgoCount = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t computeDesc, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t Adesc, const void *B, cublasLtMatrixLayout_t Bdesc,
                              const void *beta, const void *C, cublasLtMatrixLayout_t Cdesc, void *D,
                              cublasLtMatrixLayout_t Ddesc, const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspaceSizeInBytes, cudaStream_t stream) {
  entry entry;
  matmul p = {};
  p.what = description_of(computeDesc);
  p.a_layout = layout_of(Adesc);
  p.b_layout = layout_of(Bdesc);
  p.c_layout = layout_of(Cdesc);
  p.d_layout = layout_of(Ddesc);
  if (!sizes_fit(p.what, p.a_layout, p.b_layout, p.c_layout, p.d_layout)) return CUBLAS_STATUS_INVALID_VALUE;
  if (!types_fit(p.what, p.a_layout, p.b_layout, p.c_layout, p.d_layout) || !epilogue_fits(p.what, p.d_layout)) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (p.what.pointer_mode != CUBLASLT_POINTER_MODE_HOST) return CUBLAS_STATUS_NOT_SUPPORTED;
  p.alpha = *(const float *)alpha;
  p.beta = *(const float *)beta;
  p.a = A;
  p.b = B;
  p.c = C;
  p.d = D;
  p.m = (int64_t)p.d_layout.rows;
  p.n = (int64_t)p.d_layout.columns;
  p.k = (int64_t)(p.what.transposed_a ? p.a_layout.rows : p.a_layout.columns);
  return queue(p, algo, workspace, workspaceSizeInBytes, stream);
}

}  // extern "C"
