/*
 * attention.cuh: what the attention kernels share.
 *
 * Work is cut into tiles of rows of the whole buffers, whatever segments lie in
 * them, so that a launch depends on the numbers of rows and heads only. A block
 * walks over the segments that touch its tile and, in each, over tiles of the
 * other side's rows: the walks below. Query row r of a segment sees the key rows
 * up to r + ahead, the last `window` of them, and none before the segment's
 * first; that is all that masks have to know.
 */
#ifndef LORASHARD_MODEL_CUDA_ATTENTION_CUH
#define LORASHARD_MODEL_CUDA_ATTENTION_CUH

#include "model/cuda/kernel.cuh"

#define LOG2_E 1.44269504f
#define LN_2   0.69314718f

/* Widest head; the window of who has none (more keys than any buffer has, and sums with it do not overflow). */
#define ATTENTION_MAX_HEAD  256
#define ATTENTION_NO_WINDOW (1 << 30)

/* At most so much shared memory do the kernels of backward take beside the dynamic one. */
#define ATTENTION_STATIC_SHARED 256

/* What backward knows of a query row: its log-sum-exp in units of log2, or INFINITY if the row sees nothing, so that
 * its probabilities are 0; and rowsum(do o). */
struct attention_row {
  float lse, inner;
};

/* A call, as the kernels get it. */
struct attention_job {
  struct attention_args args;
  int64_t M;      /* rows of q and o; in backward of all buffers */
  float factor;   /* scale log2 e */
  int32_t window; /* at most ATTENTION_NO_WINDOW */
  bool copies;    /* every head of q, k, v and d_o starts at an address divisible by 16 and is whole 16 bytes */
  bool stores;    /* the same of what is written */
  struct tensor_view d_o, dq, dk, dv;
  struct attention_row *rows; /* [n_heads, M] */
};

/* attention_forward.cu, attention_dq.cu, attention_dkv.cu, attention_f32*.cu: queue the kernel for a job. Plain:
 * without tensor cores, the same arithmetic. */
enum status attention_forward_bf16(struct device *d, const struct attention_job *job, bool plain);
enum status attention_dq_bf16(struct device *d, const struct attention_job *job, bool plain);
enum status attention_dkv_bf16(struct device *d, const struct attention_job *job, bool plain);
enum status attention_forward_f32(struct device *d, const struct attention_job *job);
enum status attention_dq_f32(struct device *d, const struct attention_job *job);
enum status attention_dkv_f32(struct device *d, const struct attention_job *job);

/* First segment that ends behind `row` on the axis of queries, or of keys; n_segments if none. Segments without rows
 * may stand anywhere: they count as ending behind everything, and the walks step over them. */
template <bool QUERIES>
__device__ __forceinline__ int attention_segment(const struct attention_args &args, int32_t row) {
  int low = 0, high = args.n_segments;
  while (low < high) {
    int middle = (low + high) / 2;
    struct segment s = args.segments[middle];
    int32_t first = QUERIES ? s.q : s.k, n = QUERIES ? s.n_q : s.n_k;
    if (n <= 0 || first + n > row) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

/* Is a query row in some segment? */
__device__ __forceinline__ bool attention_covered(const struct attention_args &args, int32_t row) {
  for (int s = attention_segment<true>(args, row); s < args.n_segments; s++) {
    struct segment segment = args.segments[s];
    if (segment.n_q <= 0 || segment.q + segment.n_q <= row) continue;
    return row >= segment.q;
  }
  return false;
}

/* --- from a tile of queries over the keys that some of its rows see ----------- */

struct key_walk {
  int32_t row, row_end; /* the tile's rows */
  int at;               /* segment; n_segments: at the end */
  int32_t first, last;  /* rows [first, last) of the tile are the segment's */
  int32_t ahead;
  int32_t key, end; /* the key tile starts at row `key`; keys from `end` on are seen by no row of the tile */
};

/* Stand at the first keys of the first segment from walk->at on that has any for the tile. */
__device__ __forceinline__ void key_walk_enter(const struct attention_job &job, struct key_walk *walk) {
  for (; walk->at < job.args.n_segments; walk->at++) {
    struct segment s = job.args.segments[walk->at];
    if (s.n_q <= 0 || s.q + s.n_q <= walk->row) continue;
    if (s.q >= walk->row_end) break;
    walk->first = max(walk->row, s.q);
    walk->last = min(walk->row_end, s.q + s.n_q);
    walk->ahead = s.k + s.n_k - s.n_q - s.q;
    walk->key = max(s.k, walk->first + walk->ahead - job.window + 1);
    walk->end = walk->last + walk->ahead;
    if (walk->key < walk->end) return;
  }
  walk->at = job.args.n_segments;
}

__device__ __forceinline__ void key_walk_begin(const struct attention_job &job, int32_t row, int32_t row_end,
                                               struct key_walk *walk) {
  *walk = {row, row_end, attention_segment<true>(job.args, row), 0, 0, 0, 0, 0};
  key_walk_enter(job, walk);
}

__device__ __forceinline__ void key_walk_next(const struct attention_job &job, int n_keys, struct key_walk *walk) {
  walk->key += n_keys;
  if (walk->key < walk->end) return;
  walk->at++;
  key_walk_enter(job, walk);
}

/* What some rows of the tile have to do with a tile of keys: nothing, or something, and then with masks or without. */
struct attention_sight {
  bool any, masked;
};
__device__ __forceinline__ struct attention_sight key_walk_sight(const struct attention_job &job,
                                                                 const struct key_walk &walk, int n_keys, int32_t row,
                                                                 int n_rows) {
  int32_t first = max(row, walk.first), last = min(row + n_rows, walk.last) - 1;
  bool any = first <= last && walk.key <= last + walk.ahead && walk.key + n_keys > first + walk.ahead - job.window + 1;
  bool all = first == row && last == row + n_rows - 1 && walk.key + n_keys - 1 <= first + walk.ahead &&
             walk.key > last + walk.ahead - job.window;
  return {any, !all};
}

/* Does row see key, both in the walk's segment or the row not? Keys before walk.key are not asked for. */
__device__ __forceinline__ bool key_walk_sees(const struct attention_job &job, const struct key_walk &walk, int32_t row,
                                              int32_t key) {
  int32_t position = row + walk.ahead;
  return row >= walk.first && row < walk.last && key <= position && key > position - job.window;
}

/* --- from a tile of keys over the queries that see some of its rows ------------ */

struct query_walk {
  int32_t key, key_end; /* the tile's rows */
  int kv_head;
  int head;            /* query head; n_heads: at the end */
  int at;              /* segment */
  int32_t first, last; /* rows [first, last) of the key tile are the segment's */
  int32_t ahead;
  int32_t row, end; /* the query tile starts at `row`; queries from `end` on see no key of the tile */
};

__device__ __forceinline__ bool query_walk_enter(const struct attention_job &job, struct query_walk *walk) {
  for (; walk->at < job.args.n_segments; walk->at++) {
    struct segment s = job.args.segments[walk->at];
    if (s.n_k <= 0 || s.k + s.n_k <= walk->key) continue;
    if (s.k >= walk->key_end) break;
    walk->first = max(walk->key, s.k);
    walk->last = min(walk->key_end, s.k + s.n_k);
    walk->ahead = s.k + s.n_k - s.n_q - s.q;
    walk->row = max(s.q, walk->first - walk->ahead);
    walk->end = s.q + s.n_q;
    if (job.window < ATTENTION_NO_WINDOW) walk->end = min(walk->end, walk->last - 1 - walk->ahead + job.window);
    if (walk->row < walk->end) return true;
  }
  return false;
}

/* On to the next query head of the KV head, from walk->head on. */
__device__ __forceinline__ void query_walk_head(const struct attention_job &job, struct query_walk *walk) {
  for (; walk->head < job.args.n_heads; walk->head++) {
    if (job.args.kv_of_head[walk->head] != walk->kv_head) continue;
    walk->at = attention_segment<false>(job.args, walk->key);
    if (query_walk_enter(job, walk)) return;
  }
}

__device__ __forceinline__ void query_walk_begin(const struct attention_job &job, int kv_head, int32_t key,
                                                 int32_t key_end, struct query_walk *walk) {
  *walk = {key, key_end, kv_head, 0, 0, 0, 0, 0, 0, 0};
  query_walk_head(job, walk);
}

__device__ __forceinline__ void query_walk_next(const struct attention_job &job, int n_rows, struct query_walk *walk) {
  walk->row += n_rows;
  if (walk->row < walk->end) return;
  walk->at++;
  if (query_walk_enter(job, walk)) return;
  walk->head++;
  query_walk_head(job, walk);
}

/* What n_keys keys from `key` on have to do with the walk's tile of n_rows queries. */
__device__ __forceinline__ struct attention_sight query_walk_sight(const struct attention_job &job,
                                                                   const struct query_walk &walk, int n_rows,
                                                                   int32_t key, int n_keys) {
  int32_t first = max(key, walk.first), last = min(key + n_keys, walk.last) - 1;
  int32_t low = walk.row + walk.ahead, high = low + n_rows - 1; /* last keys that the queries see */
  bool any = first <= last && first <= high && last > low - job.window;
  bool all = first == key && last == key + n_keys - 1 && last <= low && first > high - job.window;
  return {any, !all};
}

/* Does row, of the walk's segment, see key? */
__device__ __forceinline__ bool query_walk_sees(const struct attention_job &job, const struct query_walk &walk,
                                                int32_t row, int32_t key) {
  int32_t position = row + walk.ahead;
  return key >= walk.first && key < walk.last && key <= position && key > position - job.window;
}

/* ALiBi's slope of a head such that slope (j - i) may be added to scores that are not scaled yet. */
__device__ __forceinline__ float attention_slope(const struct attention_job &job, int head) {
  return job.args.alibi ? job.args.alibi[head] / job.args.scale : 0;
}

#endif
