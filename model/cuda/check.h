/* check.h: the border to CUDA and cuBLAS: errors become a status with call, place and reason. */
#ifndef LORASHARD_MODEL_CUDA_CHECK_H
#define LORASHARD_MODEL_CUDA_CHECK_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "io/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* STATUS_DEVICE with "call failed at file:line: reason"; clears CUDA's own record
 * of the error, so that the next caller is not blamed. device.c. */
enum status cuda_check_(cudaError_t error, const char *call, const char *file, int line);
enum status cublas_check_(cublasStatus_t error, const char *call, const char *file, int line);

#ifdef __cplusplus
}
#endif

#define CUDA_CHECK(call)   cuda_check_((call), #call, __FILE__, __LINE__)
#define CUDA_TRY(call)     TRY(CUDA_CHECK(call))
#define CUBLAS_CHECK(call) cublas_check_((call), #call, __FILE__, __LINE__)
#define CUBLAS_TRY(call)   TRY(CUBLAS_CHECK(call))

#endif
