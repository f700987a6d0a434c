/*
 * attention_forward.cu: softmax(scale q k' + mask) v of bf16 on tensor cores, with a running maximum and sum per row
 * (flash attention, Dao, arXiv 2307.08691).
 *
 * A block takes a tile of query rows of one head, a warp 16 TILES of them. The queries stay in shared memory; tiles of
 * keys and values pass through two places, one filled while the other is used. A warp's scores and sums stay in its
 * registers: 16 TILES x KEYS scores become, rounded, the left operand of the product with the values.
 */
#include "model/cuda/attention_tile.cuh"

template <int HEAD_, int WARPS_, int TILES_, int KEYS_>
struct forward_shape {
  static constexpr int HEAD = HEAD_, TILES = TILES_, KEYS = KEYS_, WARPS = WARPS_;
  static constexpr int THREADS = WARPS * CUDA_WARP, WARP_ROWS = 16 * TILES, ROWS = WARPS * WARP_ROWS;
  static constexpr int KEY_BYTES = KEYS * tile<HEAD>::STRIDE;
  static constexpr int SHARED = ROWS * tile<HEAD>::STRIDE + 4 * KEY_BYTES;
  static constexpr int BLOCKS = 65536 / (255 * THREADS); /* that the registers of a multiprocessor have room for */
};

/* One thread's part of its warp's rows: row 16 m + 8 i + lane / 4 has max[m][i]. Registers are short: the sums of p,
 * used once a tile, are in shared memory. */
template <class SHAPE>
struct forward_sums {
  float o[SHAPE::TILES][SHAPE::HEAD / 8][4];
  float max[SHAPE::TILES][2]; /* largest score so far, not scaled */
  float *sum;                 /* [2 TILES, THREADS] of this thread's columns */
};

template <class SHAPE>
__device__ __forceinline__ void forward_clear(struct forward_sums<SHAPE> *sums) {
#pragma unroll
  for (int m = 0; m < SHAPE::TILES; m++) {
    sums->max[m][0] = sums->max[m][1] = -INFINITY;
    sums->sum[2 * m * SHAPE::THREADS] = sums->sum[(2 * m + 1) * SHAPE::THREADS] = 0;
#pragma unroll
    for (int n = 0; n < SHAPE::HEAD / 8; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) sums->o[m][n][i] = 0;
    }
  }
}

/* Scores of a tile: ALiBi added, -INFINITY where a row does not see. */
template <class SHAPE>
__device__ __forceinline__ void forward_mask(const struct attention_job &job, const struct key_walk &walk, int32_t row,
                                             float slope, float (&score)[SHAPE::TILES][SHAPE::KEYS / 8][4]) {
  int lane = threadIdx.x % CUDA_WARP;
#pragma unroll
  for (int m = 0; m < SHAPE::TILES; m++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int32_t r = row + 16 * m + 8 * i + lane / 4, position = r + walk.ahead;
      bool inside = r >= walk.first && r < walk.last;
      int32_t from = position - job.window; /* sees keys > from */
#pragma unroll
      for (int n = 0; n < SHAPE::KEYS / 8; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          int32_t key = walk.key + 8 * n + 2 * (lane % 4) + e;
          float s = score[m][n][2 * i + e] + slope * (float)(key - position);
          score[m][n][2 * i + e] = inside && key <= position && key > from ? s : -INFINITY;
        }
      }
    }
  }
}

/* Scores become p = 2^(job.factor (score - max)); max, sum and o move on. */
template <class SHAPE>
__device__ __forceinline__ void forward_soften(const struct attention_job &job,
                                               float (&score)[SHAPE::TILES][SHAPE::KEYS / 8][4],
                                               struct forward_sums<SHAPE> *sums) {
#pragma unroll
  for (int m = 0; m < SHAPE::TILES; m++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float top = sums->max[m][i], total = 0;
#pragma unroll
      for (int n = 0; n < SHAPE::KEYS / 8; n++) top = fmaxf(top, fmaxf(score[m][n][2 * i], score[m][n][2 * i + 1]));
      top = row_max(top);
      float base = top == -INFINITY ? 0 : top * job.factor; /* a row that has seen no key yet: p = 2^-inf = 0 */
      float shrink = exp2_fast(sums->max[m][i] * job.factor - base);
      sums->max[m][i] = top;
#pragma unroll
      for (int n = 0; n < SHAPE::KEYS / 8; n++) {
#pragma unroll
        for (int e = 2 * i; e < 2 * i + 2; e++)
          total += score[m][n][e] = exp2_fast(fmaf(score[m][n][e], job.factor, -base));
      }
      float *sum = &sums->sum[(2 * m + i) * SHAPE::THREADS];
      *sum = *sum * shrink + total;
#pragma unroll
      for (int n = 0; n < SHAPE::HEAD / 8; n++) {
        sums->o[m][n][2 * i] *= shrink;
        sums->o[m][n][2 * i + 1] *= shrink;
      }
    }
  }
}

template <class SHAPE, bool PLAIN>
__device__ __forceinline__ void forward_keys(const struct attention_job &job, const struct key_walk &walk, int32_t row,
                                             const float *slope, const unsigned char *q, const unsigned char *k,
                                             const unsigned char *v, struct forward_sums<SHAPE> *sums) {
  struct attention_sight sight = key_walk_sight(job, walk, SHAPE::KEYS, row, SHAPE::WARP_ROWS);
  if (!sight.any) return;
  float score[SHAPE::TILES][SHAPE::KEYS / 8][4];
  uint32_t p[SHAPE::TILES][SHAPE::KEYS / 16][4];
  tile_product_heads<PLAIN, SHAPE::HEAD>(score, q, k);
  if (sight.masked || job.args.alibi) forward_mask<SHAPE>(job, walk, row, *slope, score);
  forward_soften<SHAPE>(job, score, sums);
  tile_round(score, p);
  tile_product_rows<PLAIN, SHAPE::HEAD, SHAPE::TILES, SHAPE::HEAD>(sums->o, p, v, 0);
}

/* o / sum, and the log-sum-exp. A row that sees no key gets o = 0 and lse = -INFINITY; one in no segment nothing. */
template <class SHAPE>
__device__ __forceinline__ void forward_finish(const struct attention_job &job, int head, int32_t row,
                                               unsigned char *tile_rows, struct forward_sums<SHAPE> *sums) {
  int lane = threadIdx.x % CUDA_WARP;
  int32_t mine = row + lane;
  bool write = lane < SHAPE::WARP_ROWS && mine < job.M && attention_covered(job.args, mine);
  uint32_t rows = __ballot_sync(CUDA_FULL, write);
  float inverse[SHAPE::TILES][2];
#pragma unroll
  for (int m = 0; m < SHAPE::TILES; m++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float sum = row_sum(sums->sum[(2 * m + i) * SHAPE::THREADS]);
      int r = 16 * m + 8 * i + lane / 4;
      inverse[m][i] = sum == 0 ? 0 : 1 / sum;
      if (job.args.lse && lane % 4 == 0 && (rows >> r & 1)) {
        float lse = sum == 0 ? -INFINITY : sums->max[m][i] * job.args.scale + __logf(sum);
        job.args.lse[head * job.args.lse_ld + row + r] = lse;
      }
    }
  }
  tile_store<SHAPE::HEAD, SHAPE::TILES, SHAPE::HEAD>(sums->o, inverse, tile_rows, job.args.o, head * job.args.head_dim,
                                                     0, row, rows, job.args.head_dim, job.stores);
}

template <class SHAPE, bool PLAIN>
__device__ __forceinline__ void forward_load(const struct attention_job &job, const struct key_walk &walk, int column,
                                             unsigned char *place) {
  tile_load<PLAIN, SHAPE::HEAD, SHAPE::KEYS, SHAPE::THREADS>(place, job.args.k, column, walk.key, walk.end,
                                                             job.args.head_dim, job.copies);
  tile_load<PLAIN, SHAPE::HEAD, SHAPE::KEYS, SHAPE::THREADS>(place + SHAPE::KEY_BYTES, job.args.v, column, walk.key,
                                                             walk.end, job.args.head_dim, job.copies);
}

/* Block: tile blockIdx.x / n_heads from the end (the last ones of a document have the most keys), all heads of it. */
template <class SHAPE, bool PLAIN>
__global__ void __launch_bounds__(SHAPE::THREADS, SHAPE::BLOCKS)
    attention_forward_kernel(const struct attention_job job) {
  CUDA_DYNAMIC_SHARED(unsigned char, shared);
  __shared__ struct key_walk walks[3]; /* of step i in i % 3: one is set while the two before are read */
  __shared__ float slope, row_sums[2 * SHAPE::TILES * SHAPE::THREADS];
  __shared__ int column; /* of keys and values */
  unsigned char *q = shared, *places = shared + SHAPE::ROWS * tile<SHAPE::HEAD>::STRIDE;
  int head = (int)(blockIdx.x % (unsigned)job.args.n_heads), n_tiles = (int)(gridDim.x / (unsigned)job.args.n_heads);
  int32_t row = (n_tiles - 1 - (int)(blockIdx.x / (unsigned)job.args.n_heads)) * SHAPE::ROWS;
  int32_t row_end = (int32_t)min((int64_t)row + SHAPE::ROWS, job.M);
  tile_load<PLAIN, SHAPE::HEAD, SHAPE::ROWS, SHAPE::THREADS>(q, job.args.q, head * job.args.head_dim, row, row_end,
                                                             job.args.head_dim, job.copies);
  if (threadIdx.x == 0) {
    slope = attention_slope(job, head);
    column = job.args.kv_of_head[head] * job.args.head_dim;
    key_walk_begin(job, row, row_end, &walks[0]);
  }
  __syncthreads();
  if (walks[0].at < job.args.n_segments) forward_load<SHAPE, PLAIN>(job, walks[0], column, places);

  struct forward_sums<SHAPE> sums;
  sums.sum = row_sums + threadIdx.x;
  forward_clear<SHAPE>(&sums);
  int place = 0, now = 0;
  while (walks[now].at < job.args.n_segments) {
    int next = now == 2 ? 0 : now + 1;
    if (threadIdx.x == 0) {
      walks[next] = walks[now];
      key_walk_next(job, SHAPE::KEYS, &walks[next]);
    }
    copies_wait<PLAIN>();
    __syncthreads(); /* this place is filled, and the other is no longer in use */
    if (walks[next].at < job.args.n_segments) {
      forward_load<SHAPE, PLAIN>(job, walks[next], column, places + (place ^ 1) * 2 * SHAPE::KEY_BYTES);
    }
    const unsigned char *keys = places + place * 2 * SHAPE::KEY_BYTES;
    int warp_row = (int)in_place(threadIdx.x / CUDA_WARP) * SHAPE::WARP_ROWS;
    forward_keys<SHAPE, PLAIN>(job, walks[now], walks[now].row + warp_row, &slope,
                               q + warp_row * tile<SHAPE::HEAD>::STRIDE, keys, keys + SHAPE::KEY_BYTES, &sums);
    now = next;
    place ^= 1;
  }
  copies_wait<PLAIN>(); /* of the queries, if there were no keys: their place is written to now */
  __syncthreads();
  int warp_row = (int)(threadIdx.x / CUDA_WARP) * SHAPE::WARP_ROWS;
  forward_finish<SHAPE>(job, head, walks[now].row + warp_row, q + warp_row * tile<SHAPE::HEAD>::STRIDE, &sums);
}

template <class SHAPE, bool PLAIN>
static enum status launch_forward(struct device *d, const struct attention_job *job) {
  CUDA_ALLOW_SHARED((attention_forward_kernel<SHAPE, PLAIN>), SHAPE::SHARED);
  int64_t n_tiles = cuda_div_up(job->M, SHAPE::ROWS);
  CUDA_LAUNCH(d, (attention_forward_kernel<SHAPE, PLAIN>), (unsigned)(n_tiles * job->args.n_heads), SHAPE::THREADS,
              SHAPE::SHARED, *job);
  return STATUS_OK;
}

enum status attention_forward_bf16(struct device *d, const struct attention_job *job, bool plain) {
  int head_dim = job->args.head_dim;
  if (plain) { /* one of each layout of tiles */
    if (head_dim <= 80) return launch_forward<forward_shape<80, 4, 2, 64>, true>(d, job);
    return launch_forward<forward_shape<256, 4, 1, 32>, true>(d, job);
  }
  if (head_dim <= 32) return launch_forward<forward_shape<32, 4, 2, 64>, false>(d, job);
  if (head_dim <= 64) return launch_forward<forward_shape<64, 4, 2, 64>, false>(d, job);
  if (head_dim <= 80) return launch_forward<forward_shape<80, 4, 2, 64>, false>(d, job);
  if (head_dim <= 96) return launch_forward<forward_shape<96, 4, 2, 64>, false>(d, job);
  if (head_dim <= 128) return launch_forward<forward_shape<128, 4, 2, 64>, false>(d, job);
  return launch_forward<forward_shape<256, 4, 1, 32>, false>(d, job);
}
