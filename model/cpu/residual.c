/*
 * residual.c: additions to the residual stream, which is f32.
 */
#include "model/cpu/cpu_internal.h"
#include "model/cpu/vmath.h"

/* x += y + bias; either may be NULL. */
VF_INLINE void add_row(enum dtype y_dtype, int64_t n, const void *y, const float *bias, float *x) {
  for (int64_t i = 0; i < n; i += VF_LANES) {
    vf sum = vf_get_row(DTYPE_F32, x, i, n, 0);
    if (y) sum += vf_get_row(y_dtype, y, i, n, 0);
    if (bias) sum += vf_get_row(DTYPE_F32, bias, i, n, 0);
    vf_put_row(DTYPE_F32, x, i, n, sum);
  }
}

enum status cpu_add_rows(struct device *d, int64_t M, int64_t n, const int32_t *rows, int64_t offset,
                         const float *table, struct tensor_view x) {
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) add_row(DTYPE_F32, n, table + (rows[m] + offset) * n, NULL, cpu_at(x, m, 0));
  return STATUS_OK;
}

enum status cpu_add(struct device *d, int64_t M, int64_t n, struct tensor_view y, const float *bias,
                    struct tensor_view x) {
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) {
    const void *row = y.data ? cpu_at(y, m, 0) : NULL;
    if (y.dtype == DTYPE_BF16) {
      add_row(DTYPE_BF16, n, row, bias, cpu_at(x, m, 0));
    } else {
      add_row(DTYPE_F32, n, row, bias, cpu_at(x, m, 0));
    }
  }
  return STATUS_OK;
}
