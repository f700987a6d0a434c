/*
 * attention_dq.cu: dq of bf16 attention on tensor cores. The probabilities p are computed again from the log-sum-exp;
 * with D = rowsum(do o),
 *   ds = p (do v' - D),  dq = scale ds k.
 *
 * As in attention_forward.cu a block takes a tile of query rows of one head, here a warp 16 of them, and walks over the
 * keys; q and do stay in shared memory, tiles of keys and values pass through two places.
 */
#include "model/cuda/attention_tile.cuh"

template <int HEAD_, int WARPS_, int KEYS_>
struct dq_shape {
  static constexpr int HEAD = HEAD_, KEYS = KEYS_, WARPS = WARPS_;
  static constexpr int THREADS = WARPS * CUDA_WARP, ROWS = 16 * WARPS;
  static constexpr int ROW_BYTES = ROWS * tile<HEAD>::STRIDE, KEY_BYTES = KEYS * tile<HEAD>::STRIDE;
  static constexpr int SHARED = 2 * ROW_BYTES + 4 * KEY_BYTES;
};

/* -INFINITY where a row does not see; ALiBi added. Of this thread's rows row and row + 8. */
template <int COLUMNS>
__device__ __forceinline__ void dq_mask(const struct attention_job &job, const struct key_walk &walk, int32_t row,
                                        float slope, float (&score)[1][COLUMNS][4]) {
  int lane = threadIdx.x % CUDA_WARP;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int32_t r = row + 8 * i, position = r + walk.ahead;
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        int32_t key = walk.key + 8 * n + 2 * (lane % 4) + e;
        float s = score[0][n][2 * i + e] + slope * (float)(key - position);
        score[0][n][2 * i + e] = key_walk_sees(job, walk, r, key) ? s : -INFINITY;
      }
    }
  }
}

/* dq += ds k of 16 rows and a tile of keys. */
template <class SHAPE, bool PLAIN>
__device__ __forceinline__ void dq_keys(const struct attention_job &job, const struct key_walk &walk, int32_t row,
                                        const struct attention_row (&rows)[2], const float *slope,
                                        const unsigned char *q, const unsigned char *k,
                                        float (&dq)[1][SHAPE::HEAD / 8][4]) {
  struct attention_sight sight = key_walk_sight(job, walk, SHAPE::KEYS, row, 16);
  if (!sight.any) return;
  const unsigned char *d_o = q + SHAPE::ROW_BYTES, *v = k + SHAPE::KEY_BYTES;
  float p[1][SHAPE::KEYS / 8][4], ds[1][SHAPE::KEYS / 8][4];
  uint32_t rounded[1][SHAPE::KEYS / 16][4];
  tile_product_heads<PLAIN, SHAPE::HEAD>(p, q, k);
  bool masked = sight.masked || job.args.alibi;
  if (masked) dq_mask(job, walk, row + (int)(threadIdx.x % CUDA_WARP) / 4, *slope, p);
#pragma unroll
  for (int n = 0; n < SHAPE::KEYS / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) p[0][n][i] = exp2_fast(fmaf(p[0][n][i], job.factor, -rows[i / 2].lse));
  }
  tile_product_heads<PLAIN, SHAPE::HEAD>(ds, d_o, v);
  if (masked) { /* the product with v of another document need not be a number */
#pragma unroll
    for (int n = 0; n < SHAPE::KEYS / 8; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) ds[0][n][i] = p[0][n][i] == 0 ? rows[i / 2].inner : ds[0][n][i];
    }
  }
#pragma unroll
  for (int n = 0; n < SHAPE::KEYS / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) ds[0][n][i] = p[0][n][i] * (ds[0][n][i] - rows[i / 2].inner);
  }
  tile_round(ds, rounded);
  tile_product_rows<PLAIN, SHAPE::HEAD, 1, SHAPE::HEAD>(dq, rounded, k, 0);
}

template <class SHAPE, bool PLAIN>
__device__ __forceinline__ void dq_load(const struct attention_job &job, const struct key_walk &walk, int column,
                                        unsigned char *place) {
  tile_load<PLAIN, SHAPE::HEAD, SHAPE::KEYS, SHAPE::THREADS>(place, job.args.k, column, walk.key, walk.end,
                                                             job.args.head_dim, job.copies);
  tile_load<PLAIN, SHAPE::HEAD, SHAPE::KEYS, SHAPE::THREADS>(place + SHAPE::KEY_BYTES, job.args.v, column, walk.key,
                                                             walk.end, job.args.head_dim, job.copies);
}

template <class SHAPE, bool PLAIN>
__global__ void __launch_bounds__(SHAPE::THREADS, 1) attention_dq_kernel(const struct attention_job job) {
  CUDA_DYNAMIC_SHARED(unsigned char, shared);
  __shared__ struct key_walk walks[3]; /* of step i in i % 3: one is set while the two before are read */
  __shared__ float slope;
  unsigned char *q = shared, *places = shared + 2 * SHAPE::ROW_BYTES;
  int head = (int)(blockIdx.x % (unsigned)job.args.n_heads), n_tiles = (int)(gridDim.x / (unsigned)job.args.n_heads);
  int32_t row = (n_tiles - 1 - (int)(blockIdx.x / (unsigned)job.args.n_heads)) * SHAPE::ROWS;
  int32_t row_end = (int32_t)min((int64_t)row + SHAPE::ROWS, job.M);
  int head_dim = job.args.head_dim, column = job.args.kv_of_head[head] * head_dim;
  tile_load<PLAIN, SHAPE::HEAD, SHAPE::ROWS, SHAPE::THREADS>(q, job.args.q, head * head_dim, row, row_end, head_dim,
                                                             job.copies);
  tile_load<PLAIN, SHAPE::HEAD, SHAPE::ROWS, SHAPE::THREADS>(q + SHAPE::ROW_BYTES, job.d_o, head * head_dim, row,
                                                             row_end, head_dim, job.copies);
  if (threadIdx.x == 0) {
    slope = attention_slope(job, head);
    key_walk_begin(job, row, row_end, &walks[0]);
  }
  int lane = threadIdx.x % CUDA_WARP, warp_row = (int)(threadIdx.x / CUDA_WARP) * 16;
  struct attention_row rows[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int32_t r = row + warp_row + 8 * i + lane / 4;
    rows[i] = r < row_end ? job.rows[head * job.M + r] : attention_row{INFINITY, 0};
  }
  __syncthreads();
  if (walks[0].at < job.args.n_segments) dq_load<SHAPE, PLAIN>(job, walks[0], column, places);

  unsigned char *warp_q = q + warp_row * tile<SHAPE::HEAD>::STRIDE;
  float dq[1][SHAPE::HEAD / 8][4];
#pragma unroll
  for (int n = 0; n < SHAPE::HEAD / 8; n++) dq[0][n][0] = dq[0][n][1] = dq[0][n][2] = dq[0][n][3] = 0;
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
      dq_load<SHAPE, PLAIN>(job, walks[next], column, places + (place ^ 1) * 2 * SHAPE::KEY_BYTES);
    }
    dq_keys<SHAPE, PLAIN>(job, walks[now], row + warp_row, rows, &slope, warp_q, places + place * 2 * SHAPE::KEY_BYTES,
                          dq);
    now = next;
    place ^= 1;
  }
  copies_wait<PLAIN>(); /* of the queries, if there were no keys: their place is written to now */
  __syncthreads();
  uint32_t written = __ballot_sync(CUDA_FULL, lane < 16 && row + warp_row + lane < row_end);
  float scale[1][2] = {{job.args.scale, job.args.scale}};
  tile_store<SHAPE::HEAD, 1, SHAPE::HEAD>(dq, scale, warp_q, job.dq, head * head_dim, 0, row + warp_row, written,
                                          head_dim, job.stores);
}

template <class SHAPE, bool PLAIN>
static enum status launch_dq(struct device *d, const struct attention_job *job) {
  CUDA_ALLOW_SHARED((attention_dq_kernel<SHAPE, PLAIN>), SHAPE::SHARED);
  int64_t n_tiles = cuda_div_up(job->M, SHAPE::ROWS);
  CUDA_LAUNCH(d, (attention_dq_kernel<SHAPE, PLAIN>), (unsigned)(n_tiles * job->args.n_heads), SHAPE::THREADS,
              SHAPE::SHARED, *job);
  return STATUS_OK;
}

enum status attention_dq_bf16(struct device *d, const struct attention_job *job, bool plain) {
  typedef dq_shape<96, 8, 64> large_96;   /* 104 KB of shared memory */
  typedef dq_shape<128, 8, 64> large_128; /* 128 KB */
  int head_dim = job->args.head_dim;
  int64_t shared = (int64_t)cuda_state(d)->properties.sharedMemPerBlockOptin - ATTENTION_STATIC_SHARED;
  if (plain) { /* one of each layout of tiles */
    if (head_dim <= 80) return launch_dq<dq_shape<80, 8, 64>, true>(d, job);
    return launch_dq<dq_shape<256, 4, 16>, true>(d, job);
  }
  if (head_dim <= 32) return launch_dq<dq_shape<32, 8, 64>, false>(d, job);
  if (head_dim <= 64) return launch_dq<dq_shape<64, 8, 64>, false>(d, job);
  if (head_dim <= 80) return launch_dq<dq_shape<80, 8, 64>, false>(d, job);
  if (head_dim <= 96 && large_96::SHARED <= shared) return launch_dq<large_96, false>(d, job);
  if (head_dim <= 128 && large_128::SHARED <= shared) return launch_dq<large_128, false>(d, job);
  if (head_dim <= 128) return launch_dq<dq_shape<128, 8, 32>, false>(d, job);
  return launch_dq<dq_shape<256, 4, 16>, false>(d, job);
}
