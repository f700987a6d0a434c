/*
 * attention_f32.cu: attention forward in f32, as in attention_forward.cu but with tiles in shared memory throughout
 * (attention_f32.cuh). A block takes N query rows of one head; keys and values pass one after the other through one
 * place.
 */
#include "model/cuda/attention_f32.cuh"

/* Largest, or sum, over the 16 threads that share a row. */
__device__ __forceinline__ float share_max(float x) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(CUDA_FULL, x, step));
  return x;
}
__device__ __forceinline__ float share_sum(float x) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) x += __shfl_xor_sync(CUDA_FULL, x, step);
  return x;
}

/* Scores of row i become p; max, sum and o move on. */
template <class SHAPE>
__device__ __forceinline__ void f32_soften(const struct attention_job &job, const struct key_walk &walk, int i,
                                           float slope, float (&score)[SHAPE::R], float *max_p, float *sum_p,
                                           struct four (&o)[SHAPE::C]) {
  int32_t row = walk.row + f32_y() * SHAPE::R + i;
  float top = *max_p, total = 0;
#pragma unroll
  for (int j = 0; j < SHAPE::R; j++) {
    int32_t key = walk.key + f32_x() + 16 * j;
    score[j] += slope * (float)(key - row - walk.ahead);
    if (!key_walk_sees(job, walk, row, key)) score[j] = -INFINITY;
    top = fmaxf(top, score[j]);
  }
  top = share_max(top);
  float base = top == -INFINITY ? 0 : top; /* a row that has seen no key yet: p = 2^-inf = 0 */
  float shrink = exp2f((*max_p - base) * job.factor);
#pragma unroll
  for (int j = 0; j < SHAPE::R; j++) total += score[j] = exp2f((score[j] - base) * job.factor);
  *max_p = top;
  *sum_p = *sum_p * shrink + total;
#pragma unroll
  for (int c = 0; c < SHAPE::C; c++) {
#pragma unroll
    for (int n = 0; n < 4; n++) o[c].v[n] *= shrink;
  }
}

template <class SHAPE>
__global__ void __launch_bounds__(F32_THREADS) attention_forward_f32_kernel(const struct attention_job job) {
  CUDA_DYNAMIC_SHARED(float, q);
  __shared__ struct key_walk walk;
  float *keys = q + SHAPE::TILE, *scores = keys + SHAPE::TILE;
  int head = (int)(blockIdx.x % (unsigned)job.args.n_heads), n_tiles = (int)(gridDim.x / (unsigned)job.args.n_heads);
  int32_t row = (n_tiles - 1 - (int)(blockIdx.x / (unsigned)job.args.n_heads)) * SHAPE::N;
  int32_t row_end = (int32_t)min((int64_t)row + SHAPE::N, job.M);
  int head_dim = job.args.head_dim, column = job.args.kv_of_head[head] * head_dim;
  float slope = attention_slope(job, head), max[SHAPE::R], sum[SHAPE::R];
  struct four o[SHAPE::R][SHAPE::C];
  f32_clear<SHAPE>(o);
#pragma unroll
  for (int i = 0; i < SHAPE::R; i++) {
    max[i] = -INFINITY;
    sum[i] = 0;
  }
  f32_load<SHAPE>(q, job.args.q, head * head_dim, row, row_end, head_dim, job.copies);
  if (threadIdx.x == 0) key_walk_begin(job, row, row_end, &walk);
  __syncthreads();
  while (walk.at < job.args.n_segments) {
    float score[SHAPE::R][SHAPE::R];
    f32_load<SHAPE>(keys, job.args.k, column, walk.key, walk.end, head_dim, job.copies);
    __syncthreads();
    f32_scores<SHAPE>(q, keys, head_dim, score);
#pragma unroll
    for (int i = 0; i < SHAPE::R; i++) f32_soften<SHAPE>(job, walk, i, slope, score[i], &max[i], &sum[i], o[i]);
    f32_keep<SHAPE>(score, scores);
    __syncthreads();
    f32_load<SHAPE>(keys, job.args.v, column, walk.key, walk.end, head_dim, job.copies);
    __syncthreads();
    f32_add<SHAPE>(scores, keys, o);
    if (threadIdx.x == 0) key_walk_next(job, SHAPE::N, &walk);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < SHAPE::R; i++) {
    int32_t r = row + f32_y() * SHAPE::R + i;
    float total = share_sum(sum[i]);
    if (r >= row_end || !attention_covered(job.args, r)) continue;
    f32_store<SHAPE>(o[i], total == 0 ? 0 : 1 / total, job.args.o, head * head_dim, r, head_dim);
    if (job.args.lse == NULL || f32_x() != 0) continue;
    job.args.lse[head * job.args.lse_ld + r] = total == 0 ? -INFINITY : max[i] * job.args.scale + logf(total);
  }
}

template <class SHAPE>
static enum status launch_forward(struct device *d, const struct attention_job *job) {
  size_t shared = (2 * SHAPE::TILE + SHAPE::SCORES) * sizeof(float);
  CUDA_ALLOW_SHARED(attention_forward_f32_kernel<SHAPE>, shared);
  int64_t n_tiles = cuda_div_up(job->M, SHAPE::N);
  CUDA_LAUNCH(d, (attention_forward_f32_kernel<SHAPE>), (unsigned)(n_tiles * job->args.n_heads), F32_THREADS, shared,
              *job);
  return STATUS_OK;
}

enum status attention_forward_f32(struct device *d, const struct attention_job *job) {
  if (job->args.head_dim <= 64) return launch_forward<f32_shape<64, 64>>(d, job);
  if (job->args.head_dim <= 128) return launch_forward<f32_shape<64, 128>>(d, job);
  return launch_forward<f32_shape<32, 256>>(d, job);
}
