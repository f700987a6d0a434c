/*
 * attention_plan.h: how attention is cut into pieces of work. The cut depends on
 * the shapes alone, never on the number of threads.
 */
#ifndef LORASHARD_MODEL_CPU_ATTENTION_PLAN_H
#define LORASHARD_MODEL_CPU_ATTENTION_PLAN_H

#include "model/cpu/attention_tile.h"

/* Query heads order[first .. first + n) of one KV head, at most GROUP_HEADS: they share packed keys and values. */
#define GROUP_HEADS 4
struct attention_unit {
  int32_t kv_head, first, n;
};

struct attention_plan {
  const struct attention_args *args;
  bool pairs;                   /* tiles of bf16 pairs */
  int64_t ld;                   /* head_dim rounded up to whole vectors: floats of a packed row */
  int64_t ld_pairs;             /* half of head_dim, likewise: words of a packed row of pairs */
  int32_t tile_positions;       /* query positions in a tile */
  int32_t window;               /* INT32_MAX: none */
  int64_t n_tiles;              /* query tiles of all segments */
  int n_units;                  /* head groups */
  int64_t *tile_start;          /* [n_segments + 1] first tile of each segment */
  int32_t *order;               /* [n_heads] query heads sorted by KV head */
  struct attention_unit *units; /* [n_units] sorted by KV head */
  int32_t *unit_start;          /* [n_kv_heads + 1] first unit of each KV head */
  float *work;                  /* [n_threads, work_floats] */
  int64_t work_floats;
};

/* Are tiles made of pairs? */
static inline bool cpu_attention_pairs(const struct attention_args *args) {
  return VF_PAIRS && args->q.dtype == DTYPE_BF16;
}

/* Sort the heads, number the tiles and find memory: work_floats floats for each thread. */
enum status cpu_attention_plan(struct device *d, const struct attention_args *args, int64_t work_floats,
                               struct attention_plan *plan);

/* A tile of queries: positions first .. first + n of its segment, on the keys' axis (key j is seen from position p if
 * p - window < j <= p), times the heads of a unit. Row r is position r / unit->n, head order[unit->first + r %
 * unit->n]; the rows that fill up the last block repeat the last position. */
struct query_tile {
  const struct segment *segment;
  const struct attention_unit *unit;
  int32_t first, n;           /* positions; first is < 0 where queries see no key */
  int64_t row;                /* of the query buffers, of the first position */
  int n_rows, n_blocks;       /* rows, and blocks of TILE_ROWS */
  int32_t key_begin, key_end; /* keys that some row sees; begin is a multiple of TILE_KEYS */
  int32_t *position;          /* [TILE_QUERIES + VF_LANES] */
  float *slope;               /* [TILE_QUERIES + VF_LANES] ALiBi in units of log2, or NULL */
};

/* Tile `i` of segment s; tile->position and tile->slope point to room for them. */
void cpu_attention_tile(const struct attention_plan *plan, int s, int64_t i, const struct attention_unit *unit,
                        struct query_tile *tile);

/* Segment of a tile number. */
int cpu_attention_segment(const struct attention_plan *plan, int64_t tile);

/* Pack a buffer of query rows for a tile: [n_blocks TILE_ROWS, ld], rows beyond the last are 0. */
void cpu_attention_pack(const struct attention_plan *plan, const struct query_tile *tile, struct tensor_view x,
                        float scale, float *dst);
/* Of bf16 buffers, as they are: pairs of columns [n_blocks TILE_ROWS, ld_pairs]. */
void cpu_attention_pack_pairs(const struct attention_plan *plan, const struct query_tile *tile, struct tensor_view x,
                              float *dst);
/* The reverse: row r times scale[r], or times scale[0] throughout with `uniform`. */
void cpu_attention_unpack(const struct attention_plan *plan, const struct query_tile *tile, const float *src,
                          const float *scale, bool uniform, struct tensor_view x);

/* Which keys of a tile starting at key k0 (n_keys of them) a block of TILE_ROWS rows sees: any of [begin, end); all
 * rows all vectors of them if not `masked`. False if none. */
struct key_span {
  int begin, end;
  int first_vector, n_vectors; /* whole vectors around them */
  bool masked;
};
static inline bool key_span_find(const struct attention_plan *plan, const struct query_tile *tile, int block,
                                 int32_t k0, int n_keys, struct key_span *span) {
  int32_t low = tile->position[block * TILE_ROWS], high = tile->position[block * TILE_ROWS + TILE_ROWS - 1];
  int64_t begin = (int64_t)low - plan->window + 1 - k0, end = (int64_t)high + 1 - k0;
  span->begin = begin > 0 ? (int)(begin < n_keys ? begin : n_keys) : 0;
  span->end = end < n_keys ? (int)(end > 0 ? end : 0) : n_keys;
  if (span->begin >= span->end) return false;
  span->first_vector = span->begin / VF_LANES;
  span->n_vectors = (span->end + VF_LANES - 1) / VF_LANES - span->first_vector;
  int first = span->first_vector * VF_LANES, last = first + span->n_vectors * VF_LANES - 1;
  span->masked = last > low - k0 || first < (int64_t)high - plan->window + 1 - k0 || last >= n_keys;
  return true;
}

/* Scores of row r against VF_LANES keys from key k: ALiBi added, -INFINITY where the row does not see. */
VF_INLINE vf attention_mask(const struct attention_plan *plan, const struct query_tile *tile, int r, int32_t k,
                            bool masked, vf score) {
  static const vi lane = {
    0,
    1,
    2,
    3,
#if VF_LANES > 4
    4,
    5,
    6,
    7,
#endif
#if VF_LANES > 8
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
#endif
  };
  vi ahead = lane + (k - tile->position[r]);
  if (tile->slope) score += tile->slope[r] * __builtin_convertvector(ahead, vf);
  if (!masked) return score;
  return vf_select((ahead <= 0) & (ahead > -plan->window), score, vf_set(-INFINITY));
}

#endif
