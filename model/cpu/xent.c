/*
 * xent.c: cross-entropy over this rank's part of the vocabulary. Rows are cut
 * into blocks of columns of one size, so that few rows keep all threads busy
 * and the order of the sums does not depend on their number.
 */
#include "model/cpu/cpu_internal.h"
#include "model/cpu/vmath.h"

enum { BLOCK = 4096 }; /* columns; a multiple of VF_LANES */

static int64_t blocks_of(int64_t V) { return (V + BLOCK - 1) / BLOCK; }
static int64_t block_width(int64_t V, int64_t block) { return V - block * BLOCK < BLOCK ? V - block * BLOCK : BLOCK; }

static float block_max(const float *logits, int64_t n) {
  vf top = vf_set(-INFINITY);
  for (int64_t i = 0; i < n; i += VF_LANES) top = vf_max(vf_get_row(DTYPE_F32, logits, i, n, -INFINITY), top);
  return vf_largest(top);
}

static float block_sum(const float *logits, int64_t n, float max) {
  vf sum = {0};
  for (int64_t i = 0; i < n; i += VF_LANES) sum += vf_exp(vf_get_row(DTYPE_F32, logits, i, n, -INFINITY) - max);
  return vf_sum(sum);
}

enum status cpu_xent_max(struct device *d, int64_t M, int64_t V, struct tensor_view logits, float *max) {
  int64_t n_blocks = blocks_of(V);
  void *memory = NULL;
  TRY(cpu_scratch(d, CPU_SCRATCH_WORK, (size_t)(M * n_blocks) * sizeof(float), &memory));
  float *part = memory; /* [M, n_blocks] */
#pragma omp parallel for num_threads(d->n_threads) if (M * n_blocks > 1)
  for (int64_t task = 0; task < M * n_blocks; task++) {
    int64_t m = task / n_blocks, block = task % n_blocks;
    part[task] = block_max(cpu_at(logits, m, block * BLOCK), block_width(V, block));
  }
  for (int64_t m = 0; m < M; m++) {
    max[m] = -INFINITY;
    for (int64_t block = 0; block < n_blocks; block++) max[m] = fmaxf(max[m], part[m * n_blocks + block]);
  }
  return STATUS_OK;
}

enum status cpu_xent_sum(struct device *d, int64_t M, int64_t V, struct tensor_view logits, const float *max,
                         const int32_t *targets, int64_t first, float *sum, float *target) {
  int64_t n_blocks = blocks_of(V);
  void *memory = NULL;
  TRY(cpu_scratch(d, CPU_SCRATCH_WORK, (size_t)(M * n_blocks) * sizeof(float), &memory));
  float *part = memory; /* [M, n_blocks] */
#pragma omp parallel for num_threads(d->n_threads) if (M * n_blocks > 1)
  for (int64_t task = 0; task < M * n_blocks; task++) {
    int64_t m = task / n_blocks, block = task % n_blocks;
    part[task] = block_sum(cpu_at(logits, m, block * BLOCK), block_width(V, block), max[m]);
  }
  for (int64_t m = 0; m < M; m++) {
    double total = 0;
    for (int64_t block = 0; block < n_blocks; block++) total += part[m * n_blocks + block];
    sum[m] = (float)total;
    int64_t column = targets[m] - first;
    target[m] = targets[m] >= 0 && column >= 0 && column < V ? *(const float *)cpu_at(logits, m, column) - max[m] : 0;
  }
  return STATUS_OK;
}

/* out = e^(logit - max) factor; `out` may be the logits. */
VF_INLINE void block_slope(enum dtype dtype, const float *logits, int64_t n, float max, float factor, void *out) {
  for (int64_t i = 0; i < n; i += VF_LANES) {
    vf_put_row(dtype, out, i, n, vf_exp(vf_get_row(DTYPE_F32, logits, i, n, -INFINITY) - max) * factor);
  }
}

/* One block; `column` is the target's within it, or outside of [0, n). */
static void backward_block(enum dtype dtype, const float *logits, int64_t n, float max, float sum, int64_t column,
                           float g, void *out) {
  bool here = column >= 0 && column < n;
  float logit = here ? logits[column] : 0; /* read before it is overwritten */
  if (dtype == DTYPE_BF16) {
    block_slope(DTYPE_BF16, logits, n, max, g / sum, out);
  } else {
    block_slope(DTYPE_F32, logits, n, max, g / sum, out);
  }
  if (!here) return;
  vf slope = (vf_exp(vf_set(logit) - max) / sum - 1.0f) * g;
  vf_put_part(dtype, out, column, 1, slope);
}

enum status cpu_xent_backward(struct device *d, int64_t M, int64_t V, struct tensor_view logits, const float *max,
                              const float *sum, const int32_t *targets, int64_t first, float g,
                              struct tensor_view out) {
  int64_t n_blocks = blocks_of(V);
#pragma omp parallel for num_threads(d->n_threads) if (M * n_blocks > 1)
  for (int64_t task = 0; task < M * n_blocks; task++) {
    int64_t m = task / n_blocks, block = task % n_blocks, n = block_width(V, block);
    void *dst = cpu_at(out, m, block * BLOCK);
    if (targets[m] < 0) {
      memset(dst, 0, (size_t)n * cpu_element_bytes(out.dtype));
    } else {
      backward_block(out.dtype, cpu_at(logits, m, block * BLOCK), n, max[m], sum[m], targets[m] - first - block * BLOCK,
                     g, dst);
    }
  }
  return STATUS_OK;
}
