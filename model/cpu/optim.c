/*
 * optim.c: AdamW (Loshchilov and Hutter, arXiv 1711.05101) and the sum of
 * squares for clipping. An element's update depends on its own values alone,
 * not on where it lies, so any split over ranks or threads gives the same bits.
 */
#include "model/adamw_step.h"
#include "model/cpu/cpu_internal.h"
#include "model/cpu/vmath.h"

enum { BLOCK = 4096 }; /* elements of one piece of work; a multiple of VF_LANES */

static int64_t block_size(int64_t n, int64_t begin) { return n - begin < BLOCK ? n - begin : BLOCK; }

static void update_block(const struct adamw_args *args, const struct adamw_step *step, int64_t begin, int64_t n) {
  float *w = args->w + begin, *m = args->m + begin, *v = args->v + begin;
  for (int64_t i = 0; i < n; i += VF_LANES) {
    vf g = vf_get_row(DTYPE_F32, args->g + begin, i, n, 0) * args->g_scale;
    vf mean = vf_get_row(DTYPE_F32, m, i, n, 0) * step->keep_m + g * step->take_m;
    vf square = vf_get_row(DTYPE_F32, v, i, n, 0) * step->keep_v + g * g * step->take_v;
    vf value = vf_get_row(DTYPE_F32, w, i, n, 0);
    vf change = step->rate * mean / (vf_sqrt(square) * step->spread + args->eps) + step->decay * value;
    vf_put_row(DTYPE_F32, m, i, n, mean);
    vf_put_row(DTYPE_F32, v, i, n, square);
    vf_put_row(DTYPE_F32, w, i, n, value - change);
  }
}

enum status cpu_adamw(struct device *d, const struct adamw_args *args) {
  struct adamw_step step = adamw_step_of(args);
#pragma omp parallel for num_threads(d->n_threads) if (args->n > BLOCK)
  for (int64_t begin = 0; begin < args->n; begin += BLOCK) {
    update_block(args, &step, begin, block_size(args->n, begin));
  }
  return STATUS_OK;
}

/* In f64: the square of an f32 is exact. */
static double block_squares(const float *x, int64_t n) {
  enum { CHAINS = 16 };
  double sum[CHAINS] = {0};
  int64_t i = 0;
  for (; i + CHAINS <= n; i += CHAINS) {
    for (int c = 0; c < CHAINS; c++) sum[c] += (double)x[i + c] * (double)x[i + c];
  }
  for (; i < n; i++) sum[i % CHAINS] += (double)x[i] * (double)x[i];
  for (int width = CHAINS / 2; width > 0; width /= 2) {
    for (int c = 0; c < width; c++) sum[c] += sum[c + width];
  }
  return sum[0];
}

enum status cpu_sum_squares(struct device *d, const float *x, int64_t n, double *sum) {
  int64_t n_blocks = (n + BLOCK - 1) / BLOCK;
  void *memory = NULL;
  TRY(cpu_scratch(d, CPU_SCRATCH_WORK, (size_t)n_blocks * sizeof(double), &memory));
  double *part = memory, total = 0;
#pragma omp parallel for num_threads(d->n_threads) if (n_blocks > 1)
  for (int64_t block = 0; block < n_blocks; block++) {
    part[block] = block_squares(x + block * BLOCK, block_size(n, block * BLOCK));
  }
  for (int64_t block = 0; block < n_blocks; block++) total += part[block];
  *sum = total;
  return STATUS_OK;
}
