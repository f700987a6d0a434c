/*
 * attention_f32_backward.cu: gradients of attention in f32: attention_dq.cu and attention_dkv.cu with tiles in shared
 * memory (attention_f32.cuh). dq: a block takes N query rows of one head and walks over keys; dk and dv: it takes N key
 * rows of one KV head and walks over its query heads and their queries.
 */
#include "model/cuda/attention_f32.cuh"

/* --- dq ---------------------------------------------------------------------- */

template <class SHAPE>
__global__ void __launch_bounds__(F32_THREADS, 2) attention_dq_f32_kernel(const struct attention_job job) {
  CUDA_DYNAMIC_SHARED(float, q);
  __shared__ struct key_walk walk;
  float *d_o = q + SHAPE::TILE, *k = d_o + SHAPE::TILE, *v = k + SHAPE::TILE, *scores = v + SHAPE::TILE;
  int head = (int)(blockIdx.x % (unsigned)job.args.n_heads), n_tiles = (int)(gridDim.x / (unsigned)job.args.n_heads);
  int32_t row = (n_tiles - 1 - (int)(blockIdx.x / (unsigned)job.args.n_heads)) * SHAPE::N;
  int32_t row_end = (int32_t)min((int64_t)row + SHAPE::N, job.M);
  int head_dim = job.args.head_dim, column = job.args.kv_of_head[head] * head_dim;
  float slope = attention_slope(job, head);
  struct four dq[SHAPE::R][SHAPE::C];
  f32_clear<SHAPE>(dq);
  f32_load<SHAPE>(q, job.args.q, head * head_dim, row, row_end, head_dim, job.copies);
  f32_load<SHAPE>(d_o, job.d_o, head * head_dim, row, row_end, head_dim, job.copies);
  if (threadIdx.x == 0) key_walk_begin(job, row, row_end, &walk);
  __syncthreads();
  while (walk.at < job.args.n_segments) {
    float p[SHAPE::R][SHAPE::R], ds[SHAPE::R][SHAPE::R];
    f32_load<SHAPE>(k, job.args.k, column, walk.key, walk.end, head_dim, job.copies);
    f32_load<SHAPE>(v, job.args.v, column, walk.key, walk.end, head_dim, job.copies);
    __syncthreads();
    f32_scores<SHAPE>(q, k, head_dim, p);
    f32_scores<SHAPE>(d_o, v, head_dim, ds);
#pragma unroll
    for (int i = 0; i < SHAPE::R; i++) {
      int32_t r = row + f32_y() * SHAPE::R + i;
      struct attention_row known = r < row_end ? job.rows[head * job.M + r] : attention_row{INFINITY, 0};
#pragma unroll
      for (int j = 0; j < SHAPE::R; j++) {
        int32_t key = walk.key + f32_x() + 16 * j;
        float s = p[i][j] + slope * (float)(key - r - walk.ahead);
        float x = exp2f(s * job.factor - known.lse) * (ds[i][j] - known.inner);
        ds[i][j] = key_walk_sees(job, walk, r, key) ? x : 0;
      }
    }
    f32_keep<SHAPE>(ds, scores);
    __syncthreads();
    f32_add<SHAPE>(scores, k, dq);
    if (threadIdx.x == 0) key_walk_next(job, SHAPE::N, &walk);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < SHAPE::R; i++) {
    int32_t r = row + f32_y() * SHAPE::R + i;
    if (r < row_end) f32_store<SHAPE>(dq[i], job.args.scale, job.dq, head * head_dim, r, head_dim);
  }
}

template <class SHAPE>
static enum status launch_dq(struct device *d, const struct attention_job *job) {
  size_t shared = (4 * SHAPE::TILE + SHAPE::SCORES) * sizeof(float);
  CUDA_ALLOW_SHARED(attention_dq_f32_kernel<SHAPE>, shared);
  int64_t n_tiles = cuda_div_up(job->M, SHAPE::N);
  CUDA_LAUNCH(d, (attention_dq_f32_kernel<SHAPE>), (unsigned)(n_tiles * job->args.n_heads), F32_THREADS, shared, *job);
  return STATUS_OK;
}

enum status attention_dq_f32(struct device *d, const struct attention_job *job) {
  if (job->args.head_dim <= 64) return launch_dq<f32_shape<32, 64>>(d, job);
  if (job->args.head_dim <= 128) return launch_dq<f32_shape<32, 128>>(d, job);
  return launch_dq<f32_shape<16, 256>>(d, job);
}

/* --- dk and dv --------------------------------------------------------------- */

/* p and ds of this thread's keys and queries from their scores and do v'. */
template <class SHAPE>
__device__ __forceinline__ void f32_probabilities(const struct attention_job &job, const struct query_walk &walk,
                                                  float (&p)[SHAPE::R][SHAPE::R], float (&ds)[SHAPE::R][SHAPE::R]) {
  float slope = attention_slope(job, walk.head);
#pragma unroll
  for (int j = 0; j < SHAPE::R; j++) {
    int32_t r = walk.row + f32_x() + 16 * j;
    struct attention_row known = r < walk.end ? job.rows[walk.head * job.M + r] : attention_row{INFINITY, 0};
#pragma unroll
    for (int i = 0; i < SHAPE::R; i++) {
      int32_t key = walk.key + f32_y() * SHAPE::R + i;
      float s = p[i][j] + slope * (float)(key - r - walk.ahead);
      bool sees = r < walk.end && query_walk_sees(job, walk, r, key);
      p[i][j] = sees ? exp2f(s * job.factor - known.lse) : 0;
      ds[i][j] = sees ? p[i][j] * (ds[i][j] - known.inner) : 0;
    }
  }
}

template <class SHAPE>
__global__ void __launch_bounds__(F32_THREADS, 2) attention_dkv_f32_kernel(const struct attention_job job) {
  CUDA_DYNAMIC_SHARED(float, k);
  __shared__ struct query_walk walk;
  float *v = k + SHAPE::TILE, *q = v + SHAPE::TILE, *d_o = q + SHAPE::TILE;
  float *kept_p = d_o + SHAPE::TILE, *kept_ds = kept_p + SHAPE::SCORES;
  int head_dim = job.args.head_dim, kv_head = (int)(blockIdx.x % (unsigned)job.args.n_kv_heads);
  int32_t key = (int32_t)(blockIdx.x / (unsigned)job.args.n_kv_heads) * SHAPE::N;
  int32_t key_end = (int32_t)min((int64_t)key + SHAPE::N, job.M);
  struct four dk[SHAPE::R][SHAPE::C], dv[SHAPE::R][SHAPE::C];
  f32_clear<SHAPE>(dk);
  f32_clear<SHAPE>(dv);
  f32_load<SHAPE>(k, job.args.k, kv_head * head_dim, key, key_end, head_dim, job.copies);
  f32_load<SHAPE>(v, job.args.v, kv_head * head_dim, key, key_end, head_dim, job.copies);
  if (threadIdx.x == 0) query_walk_begin(job, kv_head, key, key_end, &walk);
  __syncthreads();
  while (walk.head < job.args.n_heads) {
    float p[SHAPE::R][SHAPE::R], ds[SHAPE::R][SHAPE::R];
    f32_load<SHAPE>(q, job.args.q, walk.head * head_dim, walk.row, walk.end, head_dim, job.copies);
    f32_load<SHAPE>(d_o, job.d_o, walk.head * head_dim, walk.row, walk.end, head_dim, job.copies);
    __syncthreads();
    f32_scores<SHAPE>(k, q, head_dim, p);
    f32_scores<SHAPE>(v, d_o, head_dim, ds);
    f32_probabilities<SHAPE>(job, walk, p, ds);
    f32_keep<SHAPE>(p, kept_p);
    f32_keep<SHAPE>(ds, kept_ds);
    __syncthreads();
    f32_add<SHAPE>(kept_p, d_o, dv);
    f32_add<SHAPE>(kept_ds, q, dk);
    if (threadIdx.x == 0) query_walk_next(job, SHAPE::N, &walk);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < SHAPE::R; i++) {
    int32_t r = key + f32_y() * SHAPE::R + i;
    if (r >= key_end) continue;
    f32_store<SHAPE>(dk[i], job.args.scale, job.dk, kv_head * head_dim, r, head_dim);
    f32_store<SHAPE>(dv[i], 1, job.dv, kv_head * head_dim, r, head_dim);
  }
}

template <class SHAPE>
static enum status launch_dkv(struct device *d, const struct attention_job *job) {
  size_t shared = (4 * SHAPE::TILE + 2 * SHAPE::SCORES) * sizeof(float);
  CUDA_ALLOW_SHARED(attention_dkv_f32_kernel<SHAPE>, shared);
  int64_t n_tiles = cuda_div_up(job->M, SHAPE::N);
  CUDA_LAUNCH(d, (attention_dkv_f32_kernel<SHAPE>), (unsigned)(n_tiles * job->args.n_kv_heads), F32_THREADS, shared,
              *job);
  return STATUS_OK;
}

enum status attention_dkv_f32(struct device *d, const struct attention_job *job) {
  if (job->args.head_dim <= 64) return launch_dkv<f32_shape<32, 64>>(d, job);
  if (job->args.head_dim <= 128) return launch_dkv<f32_shape<32, 128>>(d, job);
  return launch_dkv<f32_shape<16, 256>>(d, job);
}
