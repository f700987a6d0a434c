/*
 * norm.c: LayerNorm and RMSNorm over rows, and RMSNorm over heads. Rows are
 * shared out to threads; the sums of one row are taken by one thread.
 */
#include "model/cpu/cpu_internal.h"
#include "model/cpu/vmath.h"

enum { SUM_BLOCK = 512 }; /* elements summed in f32; the blocks' sums are added in f64 */

/* Mean and 1/std. Two passes: the squares are taken of what is left after the mean, so that a large mean costs no
 * accuracy. */
static void row_stats(enum norm_kind kind, int64_t n, const float *x, float eps, float stats[2]) {
  double total = 0;
  for (int64_t begin = 0; begin < n && kind == NORM_LAYER; begin += SUM_BLOCK) {
    vf sum = {0};
    for (int64_t i = begin; i < begin + SUM_BLOCK && i < n; i += VF_LANES) sum += vf_get_row(DTYPE_F32, x, i, n, 0);
    total += (double)vf_sum(sum);
  }
  float mean = (float)(total / (double)n);
  total = 0;
  for (int64_t begin = 0; begin < n; begin += SUM_BLOCK) {
    vf squares = {0};
    for (int64_t i = begin; i < begin + SUM_BLOCK && i < n; i += VF_LANES) {
      vf rest = vf_get_row(DTYPE_F32, x, i, n, mean) - mean;
      squares += rest * rest;
    }
    total += (double)vf_sum(squares);
  }
  stats[0] = mean;
  stats[1] = (float)(1 / sqrt(total / (double)n + (double)eps));
}

VF_INLINE void apply_row(enum dtype y_dtype, int64_t n, const float *x, const float *w, const float *b,
                         const float stats[2], void *y) {
  for (int64_t i = 0; i < n; i += VF_LANES) {
    vf value = (vf_get_row(DTYPE_F32, x, i, n, 0) - stats[0]) * stats[1] * vf_get_row(DTYPE_F32, w, i, n, 0);
    if (b) value += vf_get_row(DTYPE_F32, b, i, n, 0);
    vf_put_row(y_dtype, y, i, n, value);
  }
}

static void apply(int64_t m, int64_t n, struct tensor_view x, const float *w, const float *b, const float stats[2],
                  struct tensor_view y) {
  if (y.dtype == DTYPE_BF16) {
    apply_row(DTYPE_BF16, n, cpu_at(x, m, 0), w, b, stats, cpu_at(y, m, 0));
  } else {
    apply_row(DTYPE_F32, n, cpu_at(x, m, 0), w, b, stats, cpu_at(y, m, 0));
  }
}

enum status cpu_norm_forward(struct device *d, enum norm_kind kind, int64_t M, int64_t n, struct tensor_view x,
                             const float *w, const float *b, float eps, struct tensor_view y, float *stats) {
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) {
    row_stats(kind, n, cpu_at(x, m, 0), eps, stats + 2 * m);
    apply(m, n, x, w, b, stats + 2 * m, y);
  }
  return STATUS_OK;
}

enum status cpu_norm_apply(struct device *d, enum norm_kind kind, int64_t M, int64_t n, struct tensor_view x,
                           const float *w, const float *b, const float *stats, struct tensor_view y) {
  (void)kind; /* the mean in stats is 0 for RMSNorm */
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) apply(m, n, x, w, b, stats + 2 * m, y);
  return STATUS_OK;
}

/* With g = dy w and z = (x - mean) rstd:  dx += rstd (g - mean(g) - z mean(g z)), where RMSNorm has no mean(g). */
static void backward_row(enum norm_kind kind, int64_t n, const float *x, const float *w, const float stats[2],
                         const float *dy, float *dx) {
  vf sum = {0}, product = {0};
  for (int64_t i = 0; i < n; i += VF_LANES) {
    vf g = vf_get_row(DTYPE_F32, dy, i, n, 0) * vf_get_row(DTYPE_F32, w, i, n, 0);
    sum += g;
    product += g * ((vf_get_row(DTYPE_F32, x, i, n, 0) - stats[0]) * stats[1]);
  }
  float mean = kind == NORM_LAYER ? vf_sum(sum) / (float)n : 0, slope = vf_sum(product) / (float)n;
  for (int64_t i = 0; i < n; i += VF_LANES) {
    vf g = vf_get_row(DTYPE_F32, dy, i, n, 0) * vf_get_row(DTYPE_F32, w, i, n, 0);
    vf z = (vf_get_row(DTYPE_F32, x, i, n, 0) - stats[0]) * stats[1];
    vf_put_row(DTYPE_F32, dx, i, n, vf_get_row(DTYPE_F32, dx, i, n, 0) + stats[1] * (g - mean - z * slope));
  }
}

enum status cpu_norm_backward(struct device *d, enum norm_kind kind, int64_t M, int64_t n, struct tensor_view x,
                              const float *w, const float *stats, struct tensor_view dy, struct tensor_view dx) {
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) {
    backward_row(kind, n, cpu_at(x, m, 0), w, stats + 2 * m, cpu_at(dy, m, 0), cpu_at(dx, m, 0));
  }
  return STATUS_OK;
}

VF_INLINE float head_forward(enum dtype dtype, int n, const void *x, const float *w, float eps, void *y) {
  vf squares = {0};
  for (int i = 0; i < n; i += VF_LANES) {
    vf value = vf_get_row(dtype, x, i, n, 0);
    squares += value * value;
  }
  float rstd = 1 / sqrtf(vf_sum(squares) / (float)n + eps);
  for (int i = 0; i < n; i += VF_LANES) {
    vf_put_row(dtype, y, i, n, vf_get_row(dtype, x, i, n, 0) * rstd * vf_get_row(DTYPE_F32, w, i, n, 0));
  }
  return rstd;
}

/* Each vector of dy is read before the same elements of dx are written: dx may be dy. */
VF_INLINE void head_backward(enum dtype dtype, int n, const void *x, const float *w, float rstd, const void *dy,
                             void *dx) {
  vf product = {0};
  for (int i = 0; i < n; i += VF_LANES) {
    product += vf_get_row(dtype, dy, i, n, 0) * vf_get_row(DTYPE_F32, w, i, n, 0) * vf_get_row(dtype, x, i, n, 0);
  }
  float slope = vf_sum(product) / (float)n * rstd * rstd;
  for (int i = 0; i < n; i += VF_LANES) {
    vf g = vf_get_row(dtype, dy, i, n, 0) * vf_get_row(DTYPE_F32, w, i, n, 0);
    vf_put_row(dtype, dx, i, n, rstd * (g - vf_get_row(dtype, x, i, n, 0) * slope));
  }
}

enum status cpu_head_norm_forward(struct device *d, int64_t M, int heads, int head_dim, struct tensor_view x,
                                  const float *w, float eps, struct tensor_view y, float *stats) {
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) {
    for (int h = 0; h < heads; h++) {
      const void *src = cpu_at(x, m, (int64_t)h * head_dim);
      void *dst = cpu_at(y, m, (int64_t)h * head_dim);
      stats[m * heads + h] = x.dtype == DTYPE_BF16 ? head_forward(DTYPE_BF16, head_dim, src, w, eps, dst)
                                                   : head_forward(DTYPE_F32, head_dim, src, w, eps, dst);
    }
  }
  return STATUS_OK;
}

enum status cpu_head_norm_backward(struct device *d, int64_t M, int heads, int head_dim, struct tensor_view x,
                                   const float *w, const float *stats, struct tensor_view dy, struct tensor_view dx) {
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) {
    for (int h = 0; h < heads; h++) {
      int64_t column = (int64_t)h * head_dim;
      const void *value = cpu_at(x, m, column), *slope = cpu_at(dy, m, column);
      void *out = cpu_at(dx, m, column);
      if (x.dtype == DTYPE_BF16) {
        head_backward(DTYPE_BF16, head_dim, value, w, stats[m * heads + h], slope, out);
      } else {
        head_backward(DTYPE_F32, head_dim, value, w, stats[m * heads + h], slope, out);
      }
    }
  }
  return STATUS_OK;
}
