#include "lora/merge.h"

#include <math.h>
#include <string.h>

#include "io/quant.h"

void merge_add_row(const struct merge_change *change, float *w, float *delta, struct merge_sizes *sizes) {
  memset(delta, 0, (size_t)change->n * sizeof *delta);
  for (int64_t k = 0; k < change->r; k++) {
    float factor = (float)(change->scale * (double)change->left[k * change->left_step]);
    const float *right = change->right + k * change->rank_step;
    if (change->step == 1) {
      for (int64_t j = 0; j < change->n; j++) delta[j] += factor * right[j];
    } else {
      for (int64_t j = 0; j < change->n; j++) delta[j] += factor * right[j * change->step];
    }
  }
  for (int64_t j = 0; j < change->n; j++) {
    sizes->weight += (double)w[j] * (double)w[j];
    sizes->change += (double)delta[j] * (double)delta[j];
    w[j] += delta[j];
  }
}

int64_t merge_round(const float *w, int64_t n, enum dtype dtype, void *dst, double *lost) {
  if (dtype == DTYPE_F32) {
    memcpy(dst, w, (size_t)n * sizeof *w);
    return -1;
  }
  uint16_t *halves = dst;
  int64_t overflow = -1;
  for (int64_t j = 0; j < n; j++) {
    halves[j] = dtype == DTYPE_F16 ? f32_to_f16(w[j]) : f32_to_bf16(w[j]);
    float rounded = dtype == DTYPE_F16 ? f16_to_f32(halves[j]) : bf16_to_f32(halves[j]);
    double error = (double)rounded - (double)w[j];
    if (isinf(rounded) && isfinite(w[j])) {
      if (overflow < 0) overflow = j;
    } else if (isfinite(w[j])) {
      *lost += error * error;
    }
  }
  return overflow;
}
