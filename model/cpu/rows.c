/*
 * rows.c: rows that are looked up, moved or converted.
 */
#include "model/cpu/cpu_internal.h"

enum status cpu_embedding(struct device *d, int64_t M, const int32_t *ids, int64_t first, const struct weight *W,
                          struct tensor_view x) {
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) {
    int64_t row = ids[m] - first;
    if (row >= 0 && row < W->n_out) {
      cpu_expand_row(W, row, 0, W->n_in, DTYPE_F32, cpu_at(x, m, 0));
    } else {
      memset(cpu_at(x, m, 0), 0, (size_t)W->n_in * sizeof(float));
    }
  }
  return STATUS_OK;
}

static void move_row(struct tensor_view x, int64_t from, struct tensor_view y, int64_t to, int64_t n) {
  const void *src = cpu_at(x, from, 0);
  void *dst = cpu_at(y, to, 0);
  if (x.dtype == y.dtype) {
    memcpy(dst, src, (size_t)n * cpu_element_bytes(x.dtype));
  } else if (x.dtype == DTYPE_F32) {
    cpu_store(DTYPE_BF16, src, n, dst);
  } else {
    cpu_load(DTYPE_BF16, src, n, dst);
  }
}

enum status cpu_cast(struct device *d, int64_t M, int64_t n, struct tensor_view x, struct tensor_view y) {
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) move_row(x, m, y, m, n);
  return STATUS_OK;
}

enum status cpu_gather_rows(struct device *d, int64_t M, int64_t n, const int32_t *rows, struct tensor_view x,
                            struct tensor_view y) {
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) move_row(x, rows[m], y, m, n);
  return STATUS_OK;
}

enum status cpu_scatter_rows(struct device *d, int64_t M, int64_t n, const int32_t *rows, struct tensor_view x,
                             struct tensor_view y) {
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) move_row(x, m, y, rows[m], n);
  return STATUS_OK;
}

enum status cpu_zero(struct device *d, int64_t M, int64_t n, struct tensor_view x) {
#pragma omp parallel for num_threads(d->n_threads) schedule(static)
  for (int64_t m = 0; m < M; m++) memset(cpu_at(x, m, 0), 0, (size_t)n * cpu_element_bytes(x.dtype));
  return STATUS_OK;
}
