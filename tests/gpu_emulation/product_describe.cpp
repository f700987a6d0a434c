/* product_describe.cpp: cuBLASLt's descriptors: making them, setting attributes; and the names of its errors. */
#include <string.h>

#include "product.h"

using namespace emulation;

namespace {

template <typename T>
cublasStatus_t set(T *field, const void *value, size_t bytes) {
  if (!value || bytes != sizeof *field) return CUBLAS_STATUS_INVALID_VALUE;
  memcpy(field, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

template <typename T>
cublasStatus_t set_ignored(const void *value, size_t bytes) {
  T field;
  return set(&field, value, bytes);
}

/* One that the emulation has no way to honour. */
template <typename T>
cublasStatus_t set_only(T supported, const void *value, size_t bytes) {
  T field;
  cublasStatus_t status = set(&field, value, bytes);
  return status == CUBLAS_STATUS_SUCCESS && field != supported ? CUBLAS_STATUS_NOT_SUPPORTED : status;
}

const struct {
  cublasStatus_t status;
  const char *name, *text;
} STATUSES[] = {
    {CUBLAS_STATUS_SUCCESS, "CUBLAS_STATUS_SUCCESS", "success"},
    {CUBLAS_STATUS_NOT_INITIALIZED, "CUBLAS_STATUS_NOT_INITIALIZED", "the library was not initialized"},
    {CUBLAS_STATUS_ALLOC_FAILED, "CUBLAS_STATUS_ALLOC_FAILED", "the resource allocation failed"},
    {CUBLAS_STATUS_INVALID_VALUE, "CUBLAS_STATUS_INVALID_VALUE", "an unsupported value or parameter was passed"},
    {CUBLAS_STATUS_ARCH_MISMATCH, "CUBLAS_STATUS_ARCH_MISMATCH", "the device lacks a feature"},
    {CUBLAS_STATUS_MAPPING_ERROR, "CUBLAS_STATUS_MAPPING_ERROR", "an access to GPU memory space failed"},
    {CUBLAS_STATUS_EXECUTION_FAILED, "CUBLAS_STATUS_EXECUTION_FAILED", "the GPU program failed to execute"},
    {CUBLAS_STATUS_INTERNAL_ERROR, "CUBLAS_STATUS_INTERNAL_ERROR", "an internal operation failed"},
    {CUBLAS_STATUS_NOT_SUPPORTED, "CUBLAS_STATUS_NOT_SUPPORTED", "the functionality requested is not supported"},
    {CUBLAS_STATUS_LICENSE_ERROR, "CUBLAS_STATUS_LICENSE_ERROR", "the license was not accepted"},
};

}  // namespace

extern "C" {

const char *cublasLtGetStatusName(cublasStatus_t status) {
  for (const auto &s : STATUSES) {
    if (s.status == status) return s.name;
  }
  return "unknown";
}
const char *cublasLtGetStatusString(cublasStatus_t status) {
  for (const auto &s : STATUSES) {
    if (s.status == status) return s.text;
  }
  return "unknown";
}
const char *cublasGetStatusName(cublasStatus_t status) { return cublasLtGetStatusName(status); }
const char *cublasGetStatusString(cublasStatus_t status) { return cublasLtGetStatusString(status); }

/* --- layouts --- */

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t matLayout, size_t size, cudaDataType type,
                                                 uint64_t rows, uint64_t cols, int64_t ld) {
  if (size < sizeof *matLayout) return CUBLAS_STATUS_ALLOC_FAILED;
  memset(matLayout, 0, sizeof *matLayout);
  *(matrix_layout *)matLayout = {type, CUBLASLT_ORDER_COL, rows, cols, ld, 1};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *matLayout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld) {
  *matLayout = new cublasLtMatrixLayoutOpaque_t;
  return cublasLtMatrixLayoutInit_internal(*matLayout, sizeof **matLayout, type, rows, cols, ld);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t matLayout) {
  delete matLayout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t matLayout, cublasLtMatrixLayoutAttribute_t attr,
                                                const void *buf, size_t bytes) {
  matrix_layout *layout = (matrix_layout *)matLayout;
  switch (attr) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
      return set(&layout->type, buf, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      return set_only<int32_t>(CUBLASLT_ORDER_COL, buf, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      return set(&layout->rows, buf, bytes);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      return set(&layout->columns, buf, bytes);
    case CUBLASLT_MATRIX_LAYOUT_LD:
      return set(&layout->ld, buf, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return set_only<int32_t>(1, buf, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return set_ignored<int64_t>(buf, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

/* --- products --- */

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t matmulDesc, size_t size,
                                               cublasComputeType_t computeType, cudaDataType_t scaleType) {
  if (size < sizeof *matmulDesc) return CUBLAS_STATUS_ALLOC_FAILED;
  memset(matmulDesc, 0, sizeof *matmulDesc);
  matmul_description what = {};
  what.compute_type = computeType;
  what.scale_type = scaleType;
  what.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  what.bias_type = what.aux_type = -1;
  *(matmul_description *)matmulDesc = what;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *matmulDesc, cublasComputeType_t computeType,
                                        cudaDataType_t scaleType) {
  *matmulDesc = new cublasLtMatmulDescOpaque_t;
  return cublasLtMatmulDescInit_internal(*matmulDesc, sizeof **matmulDesc, computeType, scaleType);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t matmulDesc) {
  delete matmulDesc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t matmulDesc, cublasLtMatmulDescAttributes_t attr,
                                              const void *buf, size_t bytes) {
  matmul_description *what = (matmul_description *)matmulDesc;
  switch (attr) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
      return set(&what->compute_type, buf, bytes);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
      return set(&what->scale_type, buf, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      return set(&what->pointer_mode, buf, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set(&what->transposed_a, buf, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return set(&what->transposed_b, buf, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSC:
      return set_only<int32_t>(CUBLAS_OP_N, buf, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return set(&what->epilogue, buf, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return set(&what->bias, buf, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return set(&what->aux, buf, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return set(&what->aux_ld, buf, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
      return set(&what->aux_type, buf, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return set(&what->bias_type, buf, bytes);
    case CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET:
      return set_ignored<int32_t>(buf, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE:
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE:
      return set_ignored<int64_t>(buf, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

/* --- limits of the choice --- */

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t pref, size_t size) {
  if (size < sizeof *pref) return CUBLAS_STATUS_ALLOC_FAILED;
  memset(pref, 0, sizeof *pref);
  *(matmul_preference *)pref = {0, {256, 256, 256, 256}};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *pref) {
  *pref = new cublasLtMatmulPreferenceOpaque_t;
  return cublasLtMatmulPreferenceInit_internal(*pref, sizeof **pref);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t pref) {
  delete pref;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t pref,
                                                    cublasLtMatmulPreferenceAttributes_t attr, const void *buf,
                                                    size_t bytes) {
  matmul_preference *limits = (matmul_preference *)pref;
  switch (attr) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return set(&limits->workspace_bytes, buf, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return set(&limits->alignment[0], buf, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return set(&limits->alignment[1], buf, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return set(&limits->alignment[2], buf, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return set(&limits->alignment[3], buf, bytes);
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE:
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return set_ignored<uint32_t>(buf, bytes);
    case CUBLASLT_MATMUL_PREF_MAX_WAVES_COUNT:
      return set_ignored<float>(buf, bytes);
    case CUBLASLT_MATMUL_PREF_IMPL_MASK:
      return set_ignored<uint64_t>(buf, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

}  // extern "C"
