/*
 * attention_dkv.cu: dk and dv of bf16 attention on tensor cores:
 *   dv = p' do,  ds = p (do v' - D),  dk = scale ds' q.
 *
 * A block takes a tile of key rows of one KV head, a warp 16 of them, and walks over the query heads that read this
 * KV head, in rising order, and over the queries that see the tile. Everything is transposed: a warp makes scores of
 * its keys (rows) with QUERIES queries (columns), so that p' and ds' are left operands as they lie in registers, and
 * no two warps add to the same sums. Heads too wide for the registers are done in parts of COLUMNS columns of dk and
 * dv, each by a block of its own that repeats the scores.
 */
#include "model/cuda/attention_tile.cuh"

template <int HEAD_, int WARPS_, int QUERIES_, int COLUMNS_>
struct dkv_shape {
  static constexpr int HEAD = HEAD_, WARPS = WARPS_, QUERIES = QUERIES_, COLUMNS = COLUMNS_, PARTS = HEAD / COLUMNS;
  static constexpr int THREADS = WARPS * CUDA_WARP, KEYS = 16 * WARPS;
  static constexpr int KEY_BYTES = KEYS * tile<HEAD>::STRIDE, ROW_BYTES = QUERIES * tile<HEAD>::STRIDE;
  static constexpr int PLACE = 2 * ROW_BYTES + QUERIES * (int)sizeof(struct attention_row); /* q, do, rows */
  static constexpr int SHARED = 2 * KEY_BYTES + 2 * PLACE;
};

/* Two neighbouring queries' lse and inner. */
struct row_pair {
  float lse[2], inner[2];
};
__device__ __forceinline__ struct row_pair dkv_rows(const unsigned char *rows, int n) {
  float4 x = ((const float4 *)rows)[4 * n + (int)(threadIdx.x % 4)];
  return {{x.x, x.z}, {x.y, x.w}};
}

/* -INFINITY where a query does not see the key; ALiBi added. This thread's keys are key and key + 8. */
template <int COLUMNS>
__device__ __forceinline__ void dkv_mask(const struct attention_job &job, const struct query_walk &walk, int32_t key,
                                         float (&score)[1][COLUMNS][4]) {
  int lane = threadIdx.x % CUDA_WARP;
  float slope = attention_slope(job, walk.head);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int32_t j = key + 8 * i;
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        int32_t row = walk.row + 8 * n + 2 * (lane % 4) + e;
        float s = score[0][n][2 * i + e] + slope * (float)(j - row - walk.ahead);
        score[0][n][2 * i + e] = query_walk_sees(job, walk, row, j) ? s : -INFINITY;
      }
    }
  }
}

/* dk += ds' q and dv += p' do of 16 keys and a tile of queries. */
template <class SHAPE, bool PLAIN>
__device__ __forceinline__ void dkv_queries(const struct attention_job &job, const struct query_walk &walk, int32_t key,
                                            int part, const unsigned char *k, const unsigned char *q,
                                            float (&dk)[1][SHAPE::COLUMNS / 8][4],
                                            float (&dv)[1][SHAPE::COLUMNS / 8][4]) {
  struct attention_sight sight = query_walk_sight(job, walk, SHAPE::QUERIES, key, 16);
  if (!sight.any) return;
  const unsigned char *v = k + SHAPE::KEY_BYTES, *d_o = q + SHAPE::ROW_BYTES, *rows = q + 2 * SHAPE::ROW_BYTES;
  float p[1][SHAPE::QUERIES / 8][4], ds[1][SHAPE::QUERIES / 8][4];
  uint32_t rounded[1][SHAPE::QUERIES / 16][4];
  tile_product_heads<PLAIN, SHAPE::HEAD>(p, k, q);
  bool masked = sight.masked || job.args.alibi;
  if (masked) dkv_mask(job, walk, key + (int)(threadIdx.x % CUDA_WARP) / 4, p);
#pragma unroll
  for (int n = 0; n < SHAPE::QUERIES / 8; n++) {
    struct row_pair pair = dkv_rows(rows, n);
#pragma unroll
    for (int i = 0; i < 4; i++) p[0][n][i] = exp2_fast(fmaf(p[0][n][i], job.factor, -pair.lse[i % 2]));
  }
  tile_round(p, rounded);
  tile_product_rows<PLAIN, SHAPE::HEAD, 1, SHAPE::COLUMNS>(dv, rounded, d_o, part * (SHAPE::COLUMNS / 16));
  tile_product_heads<PLAIN, SHAPE::HEAD>(ds, v, d_o);
#pragma unroll
  for (int n = 0; n < SHAPE::QUERIES / 8; n++) {
    struct row_pair pair = dkv_rows(rows, n);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float x = p[0][n][i] * (ds[0][n][i] - pair.inner[i % 2]);
      ds[0][n][i] = masked && p[0][n][i] == 0 ? 0 : x; /* v of rows that no document has need not be numbers */
    }
  }
  tile_round(ds, rounded);
  tile_product_rows<PLAIN, SHAPE::HEAD, 1, SHAPE::COLUMNS>(dk, rounded, q, part * (SHAPE::COLUMNS / 16));
}

template <class SHAPE, bool PLAIN>
__device__ __forceinline__ void dkv_load(const struct attention_job &job, const struct query_walk &walk,
                                         unsigned char *place) {
  int column = walk.head * job.args.head_dim;
  tile_load<PLAIN, SHAPE::HEAD, SHAPE::QUERIES, SHAPE::THREADS>(place, job.args.q, column, walk.row, walk.end,
                                                                job.args.head_dim, job.copies);
  tile_load<PLAIN, SHAPE::HEAD, SHAPE::QUERIES, SHAPE::THREADS>(place + SHAPE::ROW_BYTES, job.d_o, column, walk.row,
                                                                walk.end, job.args.head_dim, job.copies);
}

/* The block's tile: PARTS blocks for each KV head of each tile of rows. */
template <class SHAPE>
__device__ __forceinline__ void dkv_begin(const struct attention_job &job, struct query_walk *walk) {
  unsigned block = blockIdx.x / SHAPE::PARTS, n_heads = (unsigned)job.args.n_kv_heads;
  int32_t key = (int32_t)(block / n_heads) * SHAPE::KEYS;
  query_walk_begin(job, (int)(block % n_heads), key, (int32_t)min((int64_t)key + SHAPE::KEYS, job.M), walk);
}

template <class SHAPE, bool PLAIN>
__device__ __forceinline__ void dkv_load_keys(const struct attention_job &job, const struct query_walk &walk,
                                              unsigned char *k) {
  int column = walk.kv_head * job.args.head_dim;
  tile_load<PLAIN, SHAPE::HEAD, SHAPE::KEYS, SHAPE::THREADS>(k, job.args.k, column, walk.key, walk.key_end,
                                                             job.args.head_dim, job.copies);
  tile_load<PLAIN, SHAPE::HEAD, SHAPE::KEYS, SHAPE::THREADS>(k + SHAPE::KEY_BYTES, job.args.v, column, walk.key,
                                                             walk.key_end, job.args.head_dim, job.copies);
}

/* What is known of the query that this thread takes care of; one outside of the segment has p = 0. */
__device__ __forceinline__ struct attention_row dkv_row(const struct attention_job &job, const struct query_walk &walk,
                                                        int n_rows) {
  int32_t row = walk.row + (int)threadIdx.x;
  bool inside = walk.head < job.args.n_heads && (int)threadIdx.x < n_rows && row < walk.end;
  return inside ? job.rows[walk.head * job.M + row] : attention_row{INFINITY, 0};
}

template <class SHAPE, bool PLAIN>
__global__ void __launch_bounds__(SHAPE::THREADS, 1) attention_dkv_kernel(const struct attention_job job) {
  CUDA_DYNAMIC_SHARED(unsigned char, shared);
  __shared__ struct query_walk walks[3]; /* of step i in i % 3: one is set while the two before are read */
  unsigned char *k = shared, *places = shared + 2 * SHAPE::KEY_BYTES;
  int part = (int)(blockIdx.x % SHAPE::PARTS);
  if (threadIdx.x == 0) dkv_begin<SHAPE>(job, &walks[0]);
  __syncthreads();
  dkv_load_keys<SHAPE, PLAIN>(job, walks[0], k);
  struct attention_row mine = dkv_row(job, walks[0], SHAPE::QUERIES);
  if (walks[0].head < job.args.n_heads) {
    dkv_load<SHAPE, PLAIN>(job, walks[0], places);
    if (threadIdx.x < SHAPE::QUERIES) ((struct attention_row *)(places + 2 * SHAPE::ROW_BYTES))[threadIdx.x] = mine;
  }
  float dk[1][SHAPE::COLUMNS / 8][4], dv[1][SHAPE::COLUMNS / 8][4];
#pragma unroll
  for (int n = 0; n < SHAPE::COLUMNS / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) dk[0][n][i] = dv[0][n][i] = 0;
  }
  int warp_key = (int)(threadIdx.x / CUDA_WARP) * 16, place = 0, now = 0;
  unsigned char *warp_k = k + warp_key * tile<SHAPE::HEAD>::STRIDE;
  while (walks[now].head < job.args.n_heads) {
    int next = now == 2 ? 0 : now + 1;
    if (threadIdx.x == 0) {
      walks[next] = walks[now];
      query_walk_next(job, SHAPE::QUERIES, &walks[next]);
    }
    copies_wait<PLAIN>();
    __syncthreads(); /* this place is filled, and the other is no longer in use */
    unsigned char *other = places + (place ^ 1) * SHAPE::PLACE;
    mine = dkv_row(job, walks[next], SHAPE::QUERIES);
    if (walks[next].head < job.args.n_heads) dkv_load<SHAPE, PLAIN>(job, walks[next], other);
    dkv_queries<SHAPE, PLAIN>(job, walks[now], walks[now].key + warp_key, part, warp_k, places + place * SHAPE::PLACE,
                              dk, dv);
    if (threadIdx.x < SHAPE::QUERIES) ((struct attention_row *)(other + 2 * SHAPE::ROW_BYTES))[threadIdx.x] = mine;
    now = next;
    place ^= 1;
  }
  copies_wait<PLAIN>(); /* of the keys, if there were no queries: their place is written to now */
  __syncthreads();
  int lane = threadIdx.x % CUDA_WARP, first = part * SHAPE::COLUMNS;
  int head_dim = job.args.head_dim, column = walks[now].kv_head * head_dim;
  int32_t key = walks[now].key, key_end = walks[now].key_end;
  uint32_t written = __ballot_sync(CUDA_FULL, lane < 16 && key + warp_key + lane < key_end);
  float scale[1][2] = {{job.args.scale, job.args.scale}}, one[1][2] = {{1, 1}};
  tile_store<SHAPE::HEAD, 1, SHAPE::COLUMNS>(dk, scale, warp_k, job.dk, column, first, key + warp_key, written,
                                             head_dim, job.stores);
  tile_store<SHAPE::HEAD, 1, SHAPE::COLUMNS>(dv, one, warp_k + SHAPE::KEY_BYTES, job.dv, column, first, key + warp_key,
                                             written, head_dim, job.stores);
}

template <class SHAPE, bool PLAIN>
static enum status launch_dkv(struct device *d, const struct attention_job *job) {
  CUDA_ALLOW_SHARED((attention_dkv_kernel<SHAPE, PLAIN>), SHAPE::SHARED);
  int64_t n_tiles = cuda_div_up(job->M, SHAPE::KEYS);
  CUDA_LAUNCH(d, (attention_dkv_kernel<SHAPE, PLAIN>), (unsigned)(n_tiles * job->args.n_kv_heads * SHAPE::PARTS),
              SHAPE::THREADS, SHAPE::SHARED, *job);
  return STATUS_OK;
}

enum status attention_dkv_bf16(struct device *d, const struct attention_job *job, bool plain) {
  typedef dkv_shape<96, 8, 64, 96> large_96;    /* 105 KB of shared memory */
  typedef dkv_shape<128, 8, 64, 128> large_128; /* 129 KB */
  int head_dim = job->args.head_dim;
  int64_t shared = (int64_t)cuda_state(d)->properties.sharedMemPerBlockOptin - ATTENTION_STATIC_SHARED;
  if (plain) { /* one of each layout of tiles */
    if (head_dim <= 80) return launch_dkv<dkv_shape<80, 8, 64, 80>, true>(d, job);
    return launch_dkv<dkv_shape<256, 4, 16, 128>, true>(d, job);
  }
  if (head_dim <= 32) return launch_dkv<dkv_shape<32, 8, 64, 32>, false>(d, job);
  if (head_dim <= 64) return launch_dkv<dkv_shape<64, 8, 64, 64>, false>(d, job);
  if (head_dim <= 80) return launch_dkv<dkv_shape<80, 8, 64, 80>, false>(d, job);
  if (head_dim <= 96 && large_96::SHARED <= shared) return launch_dkv<large_96, false>(d, job);
  if (head_dim <= 128 && large_128::SHARED <= shared) return launch_dkv<large_128, false>(d, job);
  if (head_dim <= 128) return launch_dkv<dkv_shape<128, 8, 32, 128>, false>(d, job);
  return launch_dkv<dkv_shape<256, 4, 16, 128>, false>(d, job);
}
