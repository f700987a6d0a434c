/*
 * attention_backward.c: gradients of attention. The probabilities p are
 * computed again from the log-sum-exp; with D = rowsum(do o),
 *   dv = p' do,  ds = p (do v' - D),  dq = scale ds k,  dk = scale ds' q.
 *
 * Either one task owns all of a segment's rows of one KV head (five products a
 * tile), or, when that gives too few tasks, dk and dv are made by key tile and
 * dq by query tile (seven products). Every element is summed in the same order
 * both ways, so the choice, which depends on the number of threads, changes no
 * bit of the result.
 */
#include <omp.h>

#include "model/cpu/attention_plan.h"

#define LOG2_E 1.44269504f
#define LN_2   0.69314718f

/* Most memory a thread may take for dk and dv of a whole segment. */
#define OWNER_BYTES (32 << 20)

struct backward {
  struct attention_plan plan;
  struct tensor_view d_o, dq, dk, dv;
  int32_t rows_kept; /* keys of dk and dv a thread has room for: a multiple of TILE_KEYS */
};

/* One thread's memory. */
struct backward_work {
  float *q, *d_o, *dq;  /* [TILE_QUERIES, ld]; q scaled to log2 units if f32 */
  float *p, *ds;        /* [TILE_QUERIES, TILE_KEYS]; pairs of rows [TILE_QUERIES / 2, TILE_KEYS] */
  float *keys, *values; /* [ld, TILE_KEYS] */
  float *key_rows;      /* [TILE_KEYS, ld] */
  float *lse, *inner;   /* [TILE_QUERIES + VF_LANES] log-sum-exp in log2 units; D */
  float *dk, *dv;       /* [rows_kept, ld] */
  /* with pairs only: */
  float *q_pairs, *d_o_pairs; /* [TILE_QUERIES / 2, ld] pairs of rows */
  float *score, *dp;          /* [TILE_ROWS, TILE_KEYS] of the block at hand */
  float *ds_rows;             /* [TILE_ROWS, TILE_KEYS / 2] its ds, pairs of keys */
  uint64_t started;           /* bit b: block b of dq holds a sum */
  struct query_tile tile;
};

static int64_t backward_floats(int64_t ld, int64_t rows_kept, bool pairs) {
  int64_t more = pairs ? TILE_QUERIES * ld + 3 * TILE_ROWS * TILE_KEYS : 0;
  return (3 * TILE_QUERIES + 3 * TILE_KEYS + 2 * rows_kept) * ld + 2 * TILE_QUERIES * TILE_KEYS +
         4 * (TILE_QUERIES + VF_LANES) + more;
}

static void backward_work_set(const struct backward *job, struct backward_work *work) {
  const struct attention_plan *plan = &job->plan;
  float *block = plan->work + omp_get_thread_num() * plan->work_floats;
  int64_t ld = plan->ld;
  work->q = block;
  work->d_o = work->q + TILE_QUERIES * ld;
  work->dq = work->d_o + TILE_QUERIES * ld;
  work->keys = work->dq + TILE_QUERIES * ld;
  work->values = work->keys + TILE_KEYS * ld;
  work->key_rows = work->values + TILE_KEYS * ld;
  work->dk = work->key_rows + TILE_KEYS * ld;
  work->dv = work->dk + job->rows_kept * ld;
  work->p = work->dv + job->rows_kept * ld;
  work->ds = work->p + TILE_QUERIES * TILE_KEYS;
  work->lse = work->ds + TILE_QUERIES * TILE_KEYS;
  work->inner = work->lse + TILE_QUERIES + VF_LANES;
  work->tile.position = (int32_t *)(work->inner + TILE_QUERIES + VF_LANES);
  work->tile.slope = plan->args->alibi ? (float *)work->tile.position + TILE_QUERIES + VF_LANES : NULL;
  if (!plan->pairs) return;
  work->q_pairs = (float *)work->tile.position + 2 * (TILE_QUERIES + VF_LANES);
  work->d_o_pairs = work->q_pairs + TILE_QUERIES / 2 * ld;
  work->score = work->d_o_pairs + TILE_QUERIES / 2 * ld;
  work->dp = work->score + TILE_ROWS * TILE_KEYS;
  work->ds_rows = work->dp + TILE_ROWS * TILE_KEYS;
}

/* Pack the queries, do and D of a tile. o is needed for D only: q takes its place. */
static void pack_queries(const struct backward *job, struct backward_work *work) {
  const struct attention_plan *plan = &job->plan;
  const struct query_tile *tile = &work->tile;
  cpu_attention_pack(plan, tile, plan->args->o, 1, work->q);
  cpu_attention_pack(plan, tile, job->d_o, 1, work->d_o);
  for (int r = 0; r < tile->n_blocks * TILE_ROWS; r++) {
    const float *o = work->q + r * plan->ld, *d_o = work->d_o + r * plan->ld;
    vf sum = {0};
    for (int64_t j = 0; j < plan->ld; j += VF_LANES) sum += vf_load(o + j) * vf_load(d_o + j);
    work->inner[r] = vf_sum(sum);
  }
  cpu_attention_pack(plan, tile, plan->args->q, plan->args->scale * LOG2_E, work->q);
}

static void pack_query_pairs(const struct backward *job, struct backward_work *work) {
  const struct attention_plan *plan = &job->plan;
  const struct query_tile *tile = &work->tile;
  int n_rows = tile->n_blocks * TILE_ROWS;
  cpu_attention_pack_pairs(plan, tile, plan->args->o, work->q);
  cpu_attention_pack_pairs(plan, tile, job->d_o, work->d_o);
  for (int r = 0; r < n_rows; r++) {
    const float *o = work->q + r * plan->ld_pairs, *d_o = work->d_o + r * plan->ld_pairs;
    vf sum = {0};
    for (int64_t j = 0; j < plan->ld_pairs; j += VF_LANES) sum = vf_add_pairs(sum, vf_load(o + j), vf_load(d_o + j));
    work->inner[r] = vf_sum(sum);
  }
  cpu_attention_pack_pairs(plan, tile, plan->args->q, work->q);
  cpu_pair_rows(work->q, plan->ld_pairs, n_rows, work->q_pairs, plan->ld);
  cpu_pair_rows(work->d_o, plan->ld_pairs, n_rows, work->d_o_pairs, plan->ld);
}

/* Make a tile: its queries, do, D and lse. */
static void load_queries(const struct backward *job, struct backward_work *work, int s, int64_t i,
                         const struct attention_unit *unit) {
  const struct attention_plan *plan = &job->plan;
  const struct attention_args *args = plan->args;
  struct query_tile *tile = &work->tile;
  cpu_attention_tile(plan, s, i, unit, tile);
  if (plan->pairs) {
    pack_query_pairs(job, work);
  } else {
    pack_queries(job, work);
  }
  for (int h = 0; h < unit->n; h++) {
    const float *lse = args->lse + plan->order[unit->first + h] * args->lse_ld + tile->row;
    /* a row that saw no key has lse = -INFINITY: with the other sign its p is 0 */
    for (int j = 0; j < tile->n; j++) work->lse[j * unit->n + h] = lse[j] == -INFINITY ? INFINITY : lse[j] * LOG2_E;
  }
  for (int r = tile->n_rows; r < tile->n_blocks * TILE_ROWS; r++) work->lse[r] = INFINITY;
  work->started = 0;
}

static int load_keys(const struct backward *job, struct backward_work *work, const struct segment *segment, int kv,
                     int32_t k0) {
  const struct attention_args *args = job->plan.args;
  int n_keys = segment->n_k - k0 < TILE_KEYS ? segment->n_k - k0 : TILE_KEYS;
  int64_t row = (int64_t)segment->k + k0, column = (int64_t)kv * args->head_dim, ld = job->plan.ld;
  if (job->plan.pairs) {
    cpu_pair_pack_transposed(args->k, row, n_keys, column, args->head_dim, work->keys);
    cpu_pair_pack_transposed(args->v, row, n_keys, column, args->head_dim, work->values);
    cpu_pair_pack(args->k, row, n_keys, column, args->head_dim, work->key_rows, ld);
  } else {
    cpu_tile_pack_transposed(args->k, row, n_keys, column, args->head_dim, work->keys);
    cpu_tile_pack_transposed(args->v, row, n_keys, column, args->head_dim, work->values);
    cpu_tile_pack(args->k, row, n_keys, column, args->head_dim, work->key_rows, ld);
  }
  return n_keys;
}

/* p and ds of one block of rows from its scores and do v'; 0 for keys outside of the span. */
VF_INLINE void probabilities(const struct attention_plan *plan, const struct backward_work *work, int block, int32_t k0,
                             const struct key_span *span, bool masked) {
  int begin = span->first_vector * VF_LANES, end = begin + span->n_vectors * VF_LANES;
  for (int r = block * TILE_ROWS; r < (block + 1) * TILE_ROWS; r++) {
    float *p_row = work->p + r * TILE_KEYS, *ds_row = work->ds + r * TILE_KEYS;
    float lse = work->lse[r], inner = work->inner[r];
    for (int j = 0; j < begin; j += VF_LANES) {
      vf_store(p_row + j, (vf){0});
      vf_store(ds_row + j, (vf){0});
    }
    for (int j = begin; j < end; j += VF_LANES) {
      vf s = vf_load(p_row + j);
      if (masked || work->tile.slope) s = attention_mask(plan, &work->tile, r, k0 + j, masked, s);
      vf p = vf_exp2(s - lse);
      vf_store(p_row + j, p);
      vf_store(ds_row + j, p * (vf_load(ds_row + j) - inner));
    }
    for (int j = end; j < TILE_KEYS; j += VF_LANES) {
      vf_store(p_row + j, (vf){0});
      vf_store(ds_row + j, (vf){0});
    }
  }
}

/* The same of a block's score and dp, rounded to bf16: pairs of rows for dk and dv, and ds in pairs of keys for dq. */
VF_INLINE void probability_pairs(const struct attention_plan *plan, const struct backward_work *work, int block,
                                 int32_t k0, const struct key_span *span, bool masked) {
  int begin = span->first_vector * VF_LANES, end = begin + span->n_vectors * VF_LANES;
  float factor = plan->args->scale * LOG2_E;
  for (int m = 0; m < TILE_ROWS; m += 2) {
    int r = block * TILE_ROWS + m;
    float *p_row = work->p + r / 2 * TILE_KEYS, *ds_row = work->ds + r / 2 * TILE_KEYS;
    for (int j = 0; j < begin; j += VF_LANES) {
      vf_store(p_row + j, (vf){0});
      vf_store(ds_row + j, (vf){0});
    }
    for (int j = begin; j < end; j += VF_LANES) {
      vf p[2];
      vh ds[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; i++) {
        vf s = vf_load(work->score + (m + i) * TILE_KEYS + j) * factor;
        if (masked || work->tile.slope) s = attention_mask(plan, &work->tile, r + i, k0 + j, masked, s);
        p[i] = vf_exp2(s - work->lse[r + i]);
        ds[i] = vf_round_bf16(p[i] * (vf_load(work->dp + (m + i) * TILE_KEYS + j) - work->inner[r + i]));
        *(vh_u *)((uint16_t *)(work->ds_rows + (m + i) * TILE_KEYS / 2) + j) = ds[i];
      }
      vf_store(p_row + j, vf_pair(p[0], p[1]));
      vf_store(ds_row + j, vf_pair_bf16(ds[0], ds[1]));
    }
    for (int j = end; j < TILE_KEYS; j += VF_LANES) {
      vf_store(p_row + j, (vf){0});
      vf_store(ds_row + j, (vf){0});
    }
  }
}

/* A block's p and ds from its scores and do v', and dq += ds k if wanted. */
static void block_rows(const struct attention_plan *plan, struct backward_work *work, int block, int32_t k0,
                       const struct key_span *span, bool want_dq) {
  int64_t ld = plan->ld;
  int head_dim = plan->args->head_dim, start = span->first_vector * VF_LANES, row = block * TILE_ROWS;
  float *p = work->p + row * TILE_KEYS, *ds = work->ds + row * TILE_KEYS;
  cpu_tile_product(span->n_vectors, head_dim, work->q + row * ld, ld, work->keys + start, TILE_KEYS, p + start,
                   TILE_KEYS, false);
  cpu_tile_product(span->n_vectors, head_dim, work->d_o + row * ld, ld, work->values + start, TILE_KEYS, ds + start,
                   TILE_KEYS, false);
  if (span->masked) {
    probabilities(plan, work, block, k0, span, true);
  } else {
    probabilities(plan, work, block, k0, span, false);
  }
  if (!want_dq) return;
  cpu_tile_product((int)(ld / VF_LANES), span->end - span->begin, ds + span->begin, TILE_KEYS,
                   work->key_rows + span->begin * ld, ld, work->dq + row * ld, ld, work->started >> block & 1);
}

/* The same with pairs; the span's ends may each take in a key that no row sees, whose ds is 0. */
static void block_row_pairs(const struct attention_plan *plan, struct backward_work *work, int block, int32_t k0,
                            const struct key_span *span, bool want_dq) {
  int64_t ld = plan->ld, ld_pairs = plan->ld_pairs;
  int depth = (plan->args->head_dim + 1) / 2, start = span->first_vector * VF_LANES, row = block * TILE_ROWS;
  int begin = span->begin / 2, end = (span->end + 1) / 2;
  cpu_pair_product(span->n_vectors, depth, work->q + row * ld_pairs, ld_pairs, work->keys + start, TILE_KEYS,
                   work->score + start, TILE_KEYS, false);
  cpu_pair_product(span->n_vectors, depth, work->d_o + row * ld_pairs, ld_pairs, work->values + start, TILE_KEYS,
                   work->dp + start, TILE_KEYS, false);
  if (span->masked) {
    probability_pairs(plan, work, block, k0, span, true);
  } else {
    probability_pairs(plan, work, block, k0, span, false);
  }
  if (!want_dq) return;
  cpu_pair_product((int)(ld / VF_LANES), end - begin, work->ds_rows + begin, TILE_KEYS / 2, work->key_rows + begin * ld,
                   ld, work->dq + row * ld, ld, work->started >> block & 1);
}

/* Scores to p and ds of all blocks, and dq += ds k if wanted. */
static void tile_rows(const struct backward *job, struct backward_work *work, int32_t k0, int n_keys, bool want_dq) {
  const struct attention_plan *plan = &job->plan;
  const struct query_tile *tile = &work->tile;
  for (int block = 0; block < tile->n_blocks; block++) {
    struct key_span span;
    if (!key_span_find(plan, tile, block, k0, n_keys, &span)) continue;
    if (plan->pairs) {
      block_row_pairs(plan, work, block, k0, &span, want_dq);
    } else {
      block_rows(plan, work, block, k0, &span, want_dq);
    }
    if (want_dq) work->started |= (uint64_t)1 << block;
  }
}

/* dk += ds' q and dv += p' do for the keys of a tile, from the rows that see them. */
static void tile_columns(const struct backward *job, struct backward_work *work, int32_t k0, int n_keys, float *dk,
                         float *dv) {
  const struct attention_plan *plan = &job->plan;
  const struct query_tile *tile = &work->tile;
  int64_t ld = plan->ld;
  int n_vectors = (int)(ld / VF_LANES);
  for (int j = 0; j < n_keys; j += TILE_ROWS) {
    int last = j + TILE_ROWS < n_keys ? j + TILE_ROWS - 1 : n_keys - 1;
    int64_t begin = ((int64_t)k0 + j - tile->first) * tile->unit->n;
    int64_t end = ((int64_t)k0 + last + plan->window - tile->first) * tile->unit->n;
    begin = begin > 0 ? begin : 0;
    end = end < tile->n_rows ? end : tile->n_rows;
    if (begin >= end) continue;
    if (plan->pairs) { /* a row taken in at either end is of the same block as its neighbour: p and ds are 0 there */
      begin /= 2;
      int depth = (int)((end + 1) / 2 - begin);
      cpu_pair_product_t(n_vectors, depth, work->p + begin * TILE_KEYS + j, TILE_KEYS, work->d_o_pairs + begin * ld, ld,
                         dv + j * ld, ld, true);
      cpu_pair_product_t(n_vectors, depth, work->ds + begin * TILE_KEYS + j, TILE_KEYS, work->q_pairs + begin * ld, ld,
                         dk + j * ld, ld, true);
      continue;
    }
    int depth = (int)(end - begin);
    cpu_tile_product_t(n_vectors, depth, work->p + begin * TILE_KEYS + j, TILE_KEYS, work->d_o + begin * ld, ld,
                       dv + j * ld, ld, true);
    cpu_tile_product_t(n_vectors, depth, work->ds + begin * TILE_KEYS + j, TILE_KEYS, work->q + begin * ld, ld,
                       dk + j * ld, ld, true);
  }
}

static void finish_queries(const struct backward *job, struct backward_work *work) {
  const struct query_tile *tile = &work->tile;
  for (int block = 0; block < tile->n_blocks; block++) { /* blocks that saw no key */
    if (work->started >> block & 1) continue;
    memset(work->dq + block * TILE_ROWS * job->plan.ld, 0, (size_t)(TILE_ROWS * job->plan.ld) * sizeof *work->dq);
  }
  cpu_attention_unpack(&job->plan, tile, work->dq, &job->plan.args->scale, true, job->dq);
}

/* dk = scale ds' q. q was scaled by scale log2 e if f32: then that is ln 2 times the sum. */
static void finish_keys(const struct backward *job, const struct backward_work *work, const struct segment *segment,
                        int kv, int32_t k0, int32_t n_keys) {
  int head_dim = job->plan.args->head_dim;
  int64_t column = (int64_t)kv * head_dim;
  float factor = job->plan.pairs ? job->plan.args->scale : LN_2;
  for (int32_t j = 0; j < n_keys; j++) {
    int64_t row = (int64_t)segment->k + k0 + j;
    cpu_tile_unpack(work->dk + j * job->plan.ld, head_dim, factor, job->dk, row, column);
    cpu_tile_unpack(work->dv + j * job->plan.ld, head_dim, 1, job->dv, row, column);
  }
}

/* Does any row of the tile see any of the n keys from k0? */
static bool tile_sees(const struct attention_plan *plan, const struct query_tile *tile, int32_t k0, int n) {
  return k0 < tile->key_end && (int64_t)tile->first - plan->window + 1 < (int64_t)k0 + n;
}

/* Everything of one segment and one KV head. */
static void owner_task(const struct backward *job, struct backward_work *work, int s, int kv) {
  const struct attention_plan *plan = &job->plan;
  const struct segment *segment = &plan->args->segments[s];
  size_t kept = (size_t)((segment->n_k + TILE_KEYS - 1) / TILE_KEYS * TILE_KEYS * plan->ld) * sizeof *work->dk;
  memset(work->dk, 0, kept);
  memset(work->dv, 0, kept);
  for (int u = plan->unit_start[kv]; u < plan->unit_start[kv + 1]; u++) {
    for (int64_t i = 0; i < plan->tile_start[s + 1] - plan->tile_start[s]; i++) {
      load_queries(job, work, s, i, &plan->units[u]);
      for (int32_t k0 = work->tile.key_begin; k0 < work->tile.key_end; k0 += TILE_KEYS) {
        int n_keys = load_keys(job, work, segment, kv, k0);
        tile_rows(job, work, k0, n_keys, true);
        tile_columns(job, work, k0, n_keys, work->dk + k0 * plan->ld, work->dv + k0 * plan->ld);
      }
      finish_queries(job, work);
    }
  }
  finish_keys(job, work, segment, kv, 0, segment->n_k);
}

/* dk and dv of one key tile of one segment and KV head. */
static void key_task(const struct backward *job, struct backward_work *work, int s, int kv, int32_t k0) {
  const struct attention_plan *plan = &job->plan;
  const struct segment *segment = &plan->args->segments[s];
  size_t kept = (size_t)(TILE_KEYS * plan->ld) * sizeof *work->dk;
  memset(work->dk, 0, kept);
  memset(work->dv, 0, kept);
  int n_keys = load_keys(job, work, segment, kv, k0);
  for (int u = plan->unit_start[kv]; u < plan->unit_start[kv + 1]; u++) {
    for (int64_t i = 0; i < plan->tile_start[s + 1] - plan->tile_start[s]; i++) {
      cpu_attention_tile(plan, s, i, &plan->units[u], &work->tile);
      if (!tile_sees(plan, &work->tile, k0, n_keys)) continue;
      load_queries(job, work, s, i, &plan->units[u]);
      tile_rows(job, work, k0, n_keys, false);
      tile_columns(job, work, k0, n_keys, work->dk, work->dv);
    }
  }
  finish_keys(job, work, segment, kv, k0, n_keys);
}

/* dq of one query tile. */
static void query_task(const struct backward *job, struct backward_work *work, int s, int64_t i,
                       const struct attention_unit *unit) {
  load_queries(job, work, s, i, unit);
  for (int32_t k0 = work->tile.key_begin; k0 < work->tile.key_end; k0 += TILE_KEYS) {
    int n_keys = load_keys(job, work, &job->plan.args->segments[s], unit->kv_head, k0);
    tile_rows(job, work, k0, n_keys, true);
  }
  finish_queries(job, work);
}

/* Longest segment's keys, and the sum and largest of the segments' work. */
struct workload {
  int32_t most_keys;
  double total, largest;
};
static struct workload workload_find(const struct attention_args *args) {
  struct workload load = {0};
  for (int s = 0; s < args->n_segments; s++) {
    const struct segment *segment = &args->segments[s];
    double pairs = (double)segment->n_q * segment->n_k;
    if (args->window > 0 && args->window < segment->n_k) pairs = (double)segment->n_q * (double)args->window;
    load.total += pairs;
    if (pairs > load.largest) load.largest = pairs;
    if (segment->n_k > load.most_keys) load.most_keys = segment->n_k;
  }
  return load;
}

/* Is the time of owner tasks (5 products) on this many threads at most that of split ones (7 products)? */
static bool owners_suffice(const struct workload *load, int n_kv_heads, int n_segments, int n_threads) {
  double tasks = (double)n_segments * n_kv_heads, rounds = ceil(tasks / n_threads);
  double owner = load->total * n_kv_heads / (tasks > 0 ? tasks : 1) * rounds;
  if (owner < load->largest) owner = load->largest;
  return 5 * owner <= 7 * load->total * n_kv_heads / n_threads;
}

static void run_owners(const struct backward *job, int n_threads) {
  int n_kv_heads = job->plan.args->n_kv_heads;
  int64_t n_tasks = (int64_t)job->plan.args->n_segments * n_kv_heads;
#pragma omp parallel num_threads(n_threads)
  {
    struct backward_work work;
    backward_work_set(job, &work);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < n_tasks; task++) {
      owner_task(job, &work, (int)(task / n_kv_heads), (int)(task % n_kv_heads));
    }
  }
}

static void run_split(const struct backward *job, int n_threads) {
  const struct attention_plan *plan = &job->plan;
  const struct attention_args *args = plan->args;
#pragma omp parallel num_threads(n_threads)
  {
    struct backward_work work;
    backward_work_set(job, &work);
    for (int s = 0; s < args->n_segments; s++) {
      int64_t n_tasks = (args->segments[s].n_k + TILE_KEYS - 1) / TILE_KEYS * (int64_t)args->n_kv_heads;
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t task = 0; task < n_tasks; task++) { /* the first keys are seen by the most rows */
        key_task(job, &work, s, (int)(task % args->n_kv_heads), (int32_t)(task / args->n_kv_heads) * TILE_KEYS);
      }
    }
    int64_t n_tasks = plan->n_tiles * plan->n_units;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < n_tasks; i++) {
      int64_t task = n_tasks - 1 - i, tile = task / plan->n_units;
      int s = cpu_attention_segment(plan, tile);
      query_task(job, &work, s, tile - plan->tile_start[s], &plan->units[task % plan->n_units]);
    }
  }
}

/* Rows of a gradient that no segment covers become 0. `keys`: of dk and dv, else of dq. */
static void clear_uncovered(const struct attention_args *args, int64_t M, bool keys, struct tensor_view x, int64_t n) {
  int64_t row = 0;
  while (row < M) { /* segments come in any order, usually sorted: one round over them per gap */
    int64_t next = M, covered = row;
    for (int s = 0; s < args->n_segments; s++) {
      int64_t begin = keys ? args->segments[s].k : args->segments[s].q;
      int64_t end = begin + (keys ? args->segments[s].n_k : args->segments[s].n_q);
      if (begin <= covered && covered < end) covered = end;
      if (begin > covered && begin < next && end > begin) next = begin;
    }
    if (covered > row) {
      row = covered;
      continue;
    }
    for (; row < next; row++) memset(cpu_at(x, row, 0), 0, (size_t)n * cpu_element_bytes(x.dtype));
  }
}

enum status cpu_attention_backward(struct device *d, const struct attention_args *args, int64_t M,
                                   struct tensor_view d_o, struct tensor_view dq, struct tensor_view dk,
                                   struct tensor_view dv) {
  struct workload load = workload_find(args);
  int64_t ld = vf_round_up(args->head_dim);
  int64_t all_keys = ((int64_t)load.most_keys + TILE_KEYS - 1) / TILE_KEYS * TILE_KEYS;
  bool owners = 2 * all_keys * ld * (int64_t)sizeof(float) <= OWNER_BYTES &&
                owners_suffice(&load, args->n_kv_heads, args->n_segments, d->n_threads);
  struct backward job = {.d_o = d_o, .dq = dq, .dk = dk, .dv = dv};
  job.rows_kept = owners && all_keys > TILE_KEYS ? (int32_t)all_keys : TILE_KEYS;
  TRY(cpu_attention_plan(d, args, backward_floats(ld, job.rows_kept, cpu_attention_pairs(args)), &job.plan));
  clear_uncovered(args, M, false, dq, (int64_t)args->n_heads * args->head_dim);
  clear_uncovered(args, M, true, dk, (int64_t)args->n_kv_heads * args->head_dim);
  clear_uncovered(args, M, true, dv, (int64_t)args->n_kv_heads * args->head_dim);
  if (owners) {
    run_owners(&job, d->n_threads);
  } else {
    run_split(&job, d->n_threads);
  }
  return STATUS_OK;
}
