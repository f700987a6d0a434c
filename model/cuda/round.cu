/*
 * round.cu: the small f32 matrices of an adapter (A, B, x A') rounded to bf16
 * and padded, several in one launch: there are seven adapters a layer.
 *
 * A thread makes four neighbours of a row; blockIdx.y is the matrix, and threads
 * beyond the end of a shorter one do nothing.
 */
#include "model/cuda/kernel.cuh"

enum { ROUND_THREADS = 256 };

struct round_job {
  const float *x;
  uint16_t *y;
  int64_t ld, rows, columns;
  int64_t fours;   /* of a padded row */
  int64_t n_fours; /* of all */
  int64_t aligned; /* rows of x may be read four at a time; a bool would leave padding of any content */
};

struct round_jobs {
  struct round_job job[CUDA_ROUNDINGS];
};

__global__ void __launch_bounds__(ROUND_THREADS) round_matrices(struct round_jobs jobs) {
  struct round_job job = jobs.job[0];
  if (blockIdx.y == 1) job = jobs.job[1]; /* an index would put the arguments into local memory */
  if (blockIdx.y == 2) job = jobs.job[2];
  int64_t index = (int64_t)blockIdx.x * ROUND_THREADS + threadIdx.x;
  if (index >= job.n_fours) return;
  int64_t row = index / job.fours, column = index % job.fours * 4;
  struct four value = {{0, 0, 0, 0}};
  if (row < job.rows) {
    const float *x = job.x + row * job.ld + column;
    if (job.aligned && column + 4 <= job.columns) {
      value = get4(x);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (column + i < job.columns) value.v[i] = x[i];
    }
  }
  put4(job.y + index * 4, value);
}

extern "C" enum status cuda_round(struct device *d, const struct cuda_rounding *roundings, int n) {
  struct round_jobs jobs = {};
  int64_t most = 0;
  for (int i = 0; i < n; i++) {
    const struct cuda_rounding *r = &roundings[i];
    int64_t fours = r->padded_columns / 4, n_fours = r->padded_rows * fours;
    bool aligned = cuda_aligned4({(void *)r->x, r->ld, DTYPE_F32});
    jobs.job[i] = {r->x, (uint16_t *)r->y, r->ld, r->rows, r->columns, fours, n_fours, aligned};
    if (n_fours > most) most = n_fours;
  }
  if (most == 0) return STATUS_OK;
  dim3 grid((unsigned)cuda_div_up(most, ROUND_THREADS), (unsigned)n);
  CUDA_LAUNCH(d, (round_matrices), grid, ROUND_THREADS, 0, jobs);
  return STATUS_OK;
}
