/*
 * attention.c: softmax(scale q k' + mask) v in tiles, with a running maximum
 * and sum per row (flash attention, Dao et al., arXiv 2205.14135). Scores are
 * kept in units of log2, so that the exponential is 2^x.
 */
#include <omp.h>

#include "model/cpu/attention_plan.h"

#define LOG2_E 1.44269504f
#define LN_2   0.69314718f

/* One thread's memory. */
struct forward_work {
  float *q, *o;         /* [TILE_QUERIES, ld]: queries, scaled if f32; sums of p v */
  float *keys;          /* [ld, TILE_KEYS] */
  float *values;        /* [TILE_KEYS, ld] */
  float *score;         /* [TILE_ROWS, TILE_KEYS] */
  float *p;             /* score, or as pairs [TILE_ROWS, TILE_KEYS / 2] */
  float *sum;           /* [TILE_QUERIES, VF_LANES] partial sums of p */
  float *max, *inverse; /* [TILE_QUERIES + VF_LANES] running maximum; 1 / sum of p */
  uint64_t started;     /* bit b: block b of the tile has seen keys */
  struct query_tile tile;
};

static int64_t forward_floats(int64_t ld) {
  return 2 * (TILE_QUERIES + TILE_KEYS) * ld + 2 * TILE_ROWS * TILE_KEYS + TILE_QUERIES * VF_LANES +
         4 * (TILE_QUERIES + VF_LANES);
}

static void forward_work_set(const struct attention_plan *plan, struct forward_work *work) {
  float *block = plan->work + omp_get_thread_num() * plan->work_floats;
  int64_t ld = plan->ld;
  work->q = block;
  work->o = work->q + TILE_QUERIES * ld;
  work->keys = work->o + TILE_QUERIES * ld;
  work->values = work->keys + TILE_KEYS * ld;
  work->score = work->values + TILE_KEYS * ld;
  work->p = plan->pairs ? work->score + TILE_ROWS * TILE_KEYS : work->score;
  work->sum = work->score + 2 * TILE_ROWS * TILE_KEYS;
  work->max = work->sum + TILE_QUERIES * VF_LANES;
  work->inverse = work->max + TILE_QUERIES + VF_LANES;
  work->tile.position = (int32_t *)(work->inverse + TILE_QUERIES + VF_LANES);
  work->tile.slope = plan->args->alibi ? (float *)work->tile.position + TILE_QUERIES + VF_LANES : NULL;
}

/* Scores of a block become p = 2^(score - max); sum and max of its rows move on, and o is scaled to the new max. With
 * pairs the scores are not scaled yet, and p is rounded to bf16 for the product with v (its sum is not). */
VF_INLINE void soften_block(const struct attention_plan *plan, const struct forward_work *work, int block, int32_t k0,
                            const struct key_span *span, bool masked, bool first, bool pairs) {
  const struct query_tile *tile = &work->tile;
  float largest[VF_LANES] = {0}, base[VF_LANES], shrink[VF_LANES];
  float *max = work->max + block * TILE_ROWS;
  int begin = span->first_vector * VF_LANES, end = begin + span->n_vectors * VF_LANES;
  for (int m = 0; m < TILE_ROWS; m++) {
    float *score = work->score + m * TILE_KEYS;
    vf top = vf_set(max[m]);
    for (int j = begin; j < end; j += VF_LANES) {
      vf s = vf_load(score + j);
      if (pairs) s *= plan->args->scale * LOG2_E;
      if (masked || tile->slope) s = attention_mask(plan, tile, block * TILE_ROWS + m, k0 + j, masked, s);
      if (masked || tile->slope || pairs) vf_store(score + j, s);
      top = vf_max(s, top);
    }
    largest[m] = vf_largest(top);
  }
  vf now = vf_load(largest);
  now = vf_select(now == -INFINITY, (vf){0}, now); /* a row that has seen no key yet: p = 2^-inf = 0 */
  vf_store(base, now);
  vf_store(shrink, vf_exp2(vf_load(max) - now));
  for (int m = 0; m < TILE_ROWS; m++) {
    float *score = work->score + m * TILE_KEYS, *sum = work->sum + (block * TILE_ROWS + m) * VF_LANES;
    vf total = first ? (vf){0} : vf_load(sum) * shrink[m];
    for (int j = begin; j < end; j += VF_LANES) {
      vf p = vf_exp2(vf_load(score + j) - base[m]);
      if (pairs) {
        *(vh_u *)((uint16_t *)(work->p + m * TILE_KEYS / 2) + j) = vf_round_bf16(p);
      } else {
        vf_store(score + j, p);
      }
      total += p;
    }
    vf_store(sum, total);
    if (!first && largest[m] != max[m]) {
      float *o = work->o + (block * TILE_ROWS + m) * plan->ld;
      for (int64_t i = 0; i < plan->ld; i += VF_LANES) vf_store(o + i, vf_load(o + i) * shrink[m]);
    }
    max[m] = largest[m];
  }
}

static void load_keys(const struct attention_plan *plan, struct forward_work *work, int32_t k0, int n_keys) {
  const struct attention_args *args = plan->args;
  int64_t row = (int64_t)work->tile.segment->k + k0, column = (int64_t)work->tile.unit->kv_head * args->head_dim;
  if (plan->pairs) {
    cpu_pair_pack_transposed(args->k, row, n_keys, column, args->head_dim, work->keys);
    cpu_pair_pack(args->v, row, n_keys, column, args->head_dim, work->values, plan->ld);
  } else {
    cpu_tile_pack_transposed(args->k, row, n_keys, column, args->head_dim, work->keys);
    cpu_tile_pack(args->v, row, n_keys, column, args->head_dim, work->values, plan->ld);
  }
}

static void block_keys(const struct attention_plan *plan, struct forward_work *work, int block, int32_t k0,
                       const struct key_span *span, bool first) {
  int start = span->first_vector * VF_LANES;
  float *o = work->o + block * TILE_ROWS * plan->ld;
  cpu_tile_product(span->n_vectors, plan->args->head_dim, work->q + block * TILE_ROWS * plan->ld, plan->ld,
                   work->keys + start, TILE_KEYS, work->score + start, TILE_KEYS, false);
  if (span->masked) {
    soften_block(plan, work, block, k0, span, true, first, false);
  } else {
    soften_block(plan, work, block, k0, span, false, first, false);
  }
  cpu_tile_product((int)(plan->ld / VF_LANES), span->end - span->begin, work->p + span->begin, TILE_KEYS,
                   work->values + span->begin * plan->ld, plan->ld, o, plan->ld, !first);
}

/* The same with pairs; the span's ends may each take in a key that no row sees, whose p is 0. */
static void block_key_pairs(const struct attention_plan *plan, struct forward_work *work, int block, int32_t k0,
                            const struct key_span *span, bool first) {
  int start = span->first_vector * VF_LANES, begin = span->begin / 2, end = (span->end + 1) / 2;
  float *o = work->o + block * TILE_ROWS * plan->ld;
  cpu_pair_product(span->n_vectors, (plan->args->head_dim + 1) / 2, work->q + block * TILE_ROWS * plan->ld_pairs,
                   plan->ld_pairs, work->keys + start, TILE_KEYS, work->score + start, TILE_KEYS, false);
  if (span->masked) {
    soften_block(plan, work, block, k0, span, true, first, true);
  } else {
    soften_block(plan, work, block, k0, span, false, first, true);
  }
  cpu_pair_product((int)(plan->ld / VF_LANES), end - begin, work->p + begin, TILE_KEYS / 2,
                   work->values + begin * plan->ld, plan->ld, o, plan->ld, !first);
}

static void forward_keys(const struct attention_plan *plan, struct forward_work *work, int32_t k0) {
  const struct query_tile *tile = &work->tile;
  int n_keys = tile->key_end - k0 < TILE_KEYS ? tile->key_end - k0 : TILE_KEYS;
  load_keys(plan, work, k0, n_keys);
  for (int block = 0; block < tile->n_blocks; block++) {
    struct key_span span;
    if (!key_span_find(plan, tile, block, k0, n_keys, &span)) continue;
    bool first = (work->started >> block & 1) == 0;
    work->started |= (uint64_t)1 << block;
    if (plan->pairs) {
      block_key_pairs(plan, work, block, k0, &span, first);
    } else {
      block_keys(plan, work, block, k0, &span, first);
    }
  }
}

/* o / sum, and the log-sum-exp. A row that sees no key gets o = 0 and lse = -INFINITY. */
static void forward_finish(const struct attention_plan *plan, const struct forward_work *work) {
  const struct attention_args *args = plan->args;
  const struct query_tile *tile = &work->tile;
  for (int r = 0; r < tile->n_rows; r++) {
    float sum = vf_sum(vf_load(work->sum + r * VF_LANES));
    work->inverse[r] = sum == 0 ? 0 : 1 / sum;
  }
  for (int r = tile->n_rows; r % VF_LANES; r++) work->inverse[r] = 1; /* lanes that are computed and not used */
  cpu_attention_unpack(plan, tile, work->o, work->inverse, false, args->o);
  if (args->lse == NULL) return;
  for (int r = 0; r < tile->n_rows; r += VF_LANES) {
    vf max = vf_load(work->max + r);
    vf lse = (max - vf_log2(vf_load(work->inverse + r))) * LN_2;
    vf_store(work->max + r, vf_select(max == -INFINITY, max, lse));
  }
  for (int h = 0; h < tile->unit->n; h++) {
    float *lse = args->lse + plan->order[tile->unit->first + h] * args->lse_ld + tile->row;
    for (int i = 0; i < tile->n; i++) lse[i] = work->max[i * tile->unit->n + h];
  }
}

static void forward_tile(const struct attention_plan *plan, struct forward_work *work, int64_t number, int unit) {
  int s = cpu_attention_segment(plan, number);
  struct query_tile *tile = &work->tile;
  cpu_attention_tile(plan, s, number - plan->tile_start[s], &plan->units[unit], tile);
  if (plan->pairs) {
    cpu_attention_pack_pairs(plan, tile, plan->args->q, work->q);
  } else {
    cpu_attention_pack(plan, tile, plan->args->q, plan->args->scale * LOG2_E, work->q);
  }
  int n_rows = tile->n_blocks * TILE_ROWS;
  work->started = 0;
  for (int r = 0; r < n_rows + VF_LANES; r++) work->max[r] = -INFINITY;
  memset(work->sum, 0, (size_t)(n_rows * VF_LANES) * sizeof *work->sum);
  if (tile->first < 0) memset(work->o, 0, (size_t)(n_rows * plan->ld) * sizeof *work->o);
  for (int32_t k0 = tile->key_begin; k0 < tile->key_end; k0 += TILE_KEYS) forward_keys(plan, work, k0);
  forward_finish(plan, work);
}

enum status cpu_attention_forward(struct device *d, const struct attention_args *args) {
  struct attention_plan plan;
  TRY(cpu_attention_plan(d, args, forward_floats(vf_round_up(args->head_dim)), &plan));
  int64_t n_tasks = plan.n_tiles * plan.n_units;
#pragma omp parallel num_threads(d->n_threads)
  {
    struct forward_work work;
    forward_work_set(&plan, &work);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < n_tasks; i++) { /* the last tiles of a segment have the most keys: they go first */
      int64_t task = n_tasks - 1 - i;
      forward_tile(&plan, &work, task / plan.n_units, (int)(task % plan.n_units));
    }
  }
  return STATUS_OK;
}
