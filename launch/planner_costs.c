/*
 * What tp and pp alone decide, kept for all layouts that share them: the parts that
 * a rank holds, and the sums over layers that times are made of.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/quant.h"
#include "launch/batcher.h"
#include "launch/planner_internal.h"

static enum status no_memory(void) { return status_set(STATUS_SYSTEM, "out of memory for the plan's tables"); }

/* Do two ranks hold parts of the same sizes? */
static bool alike(const struct shard *a, const struct shard *b) {
  return a->heads.n == b->heads.n && a->kv_heads.n == b->kv_heads.n && a->ffn.n == b->ffn.n && a->vocab.n == b->vocab.n;
}

/* The largest part of any rank of what one adapter multiplies, reads and trains. */
static void add_adapter(const struct planner *planner, const struct shard *shards, int n_shards,
                        const struct adapter_spec *spec, int tp, struct plan_pairs *sum) {
  struct plan_pairs largest = {0};
  bool row_parallel = module_is_row_parallel(spec->module);
  bool kv = spec->module == MODULE_K || spec->module == MODULE_V;
  double r = (double)spec->r;
  for (int i = 0; i < n_shards; i++) {
    struct linear_dims dims = shard_linear(&shards[i], planner->facts, spec->module);
    bool b_whole = row_parallel || (kv && shards[i].kv_replicated);
    double a = r * (double)(row_parallel ? dims.in_t.n : dims.in);
    double b = r * (double)(b_whole ? dims.out : dims.out_t.n);
    largest.in = fmax(largest.in, r * (double)dims.in_t.n);
    largest.out = fmax(largest.out, r * (double)dims.out_t.n);
    largest.reads = fmax(largest.reads, (double)dims.in_t.n);
    largest.writes = fmax(largest.writes, (double)dims.out_t.n);
    largest.stage = fmax(largest.stage, tp == 1 ? 0 : (row_parallel ? 0 : a) + (b_whole ? b : 0));
    largest.dp = fmax(largest.dp, tp == 1 ? a + b : (row_parallel ? a : 0) + (b_whole ? 0 : b));
  }
  sum->in += largest.in;
  sum->out += largest.out;
  sum->reads += largest.reads;
  sum->writes += largest.writes;
  sum->columns += row_parallel ? 0 : r;
  sum->stage += largest.stage;
  sum->dp += largest.dp;
}

/* Sums of the adapters below each layer. specs are in order of layers. */
static void sum_adapters(const struct planner *planner, const struct shard *shards, struct plan_cut *cut) {
  int at = 0;
  for (int64_t layer = 0; layer < planner->facts->n_layers; layer++) {
    struct plan_pairs sum = cut->before[layer];
    for (; at < planner->n_specs && planner->specs[at].layer == layer; at++)
      add_adapter(planner, shards, cut->n_ranks, &planner->specs[at], cut->tp, &sum);
    cut->before[layer + 1] = sum;
  }
}

/* One rank of each kind: shards[i] is that of cut->ranks[i]. */
static enum status find_kinds(const struct planner *planner, struct plan_cut *cut, struct shard *shards) {
  for (int t = 0; t < cut->tp; t++) {
    struct shard shard;
    TRY(shard_plan(planner->facts, cut->tp, t, &shard));
    int i = 0;
    while (i < cut->n_ranks && !alike(&shards[i], &shard)) i++;
    if (i < cut->n_ranks) continue;
    shards[i] = shard;
    cut->ranks[cut->n_ranks++] = t;
    cut->work = fmax(cut->work, (double)shard_layer_work(&shard, planner->facts));
    cut->heads = fmax(cut->heads, (double)shard.heads.n);
    cut->kv_heads = fmax(cut->kv_heads, (double)shard.kv_heads.n);
    cut->ffn = fmax(cut->ffn, (double)shard.ffn.n);
    cut->vocab = fmax(cut->vocab, (double)shard.vocab.n);
  }
  return STATUS_OK;
}

enum status planner_cut(struct planner *planner, int tp, const struct plan_cut **cut_p) {
  for (struct plan_cut *cut = planner->cuts; cut; cut = cut->next)
    if (cut->tp == tp) {
      *cut_p = cut;
      return STATUS_OK;
    }
  struct plan_cut *cut = calloc(1, sizeof *cut);
  struct shard *shards = malloc((size_t)tp * sizeof *shards);
  enum status status = STATUS_OK;
  if (!cut || !shards) {
    free(cut);
    free(shards);
    return no_memory();
  }
  cut->next = planner->cuts; /* from here on planner_free_costs frees it */
  planner->cuts = cut;
  cut->tp = tp;
  cut->ranks = calloc((size_t)tp, sizeof *cut->ranks);
  cut->before = calloc((size_t)planner->facts->n_layers + 1, sizeof *cut->before);
  status = cut->ranks && cut->before ? find_kinds(planner, cut, shards) : no_memory();
  if (status == STATUS_OK) {
    sum_adapters(planner, shards, cut);
    *cut_p = cut;
  } else {
    cut->tp = 0; /* nobody's */
  }
  free(shards);
  return status;
}

enum status planner_stages(struct planner *planner, int pp, const struct plan_stages **stages_p) {
  for (struct plan_stages *stages = planner->stages; stages; stages = stages->next)
    if (stages->pp == pp) {
      *stages_p = stages;
      return STATUS_OK;
    }
  struct plan_stages *stages = calloc(1, sizeof *stages);
  if (!stages) return no_memory();
  stages->next = planner->stages;
  planner->stages = stages;
  stages->layers = calloc((size_t)pp, sizeof *stages->layers);
  if (!stages->layers) return no_memory();
  for (int s = 0; s < pp; s++) {
    struct shard shard;
    TRY(shard_plan_stage(planner->facts, planner->first_adapted, pp, s, &shard));
    stages->layers[s] = shard.stage.layers;
  }
  stages->pp = pp;
  *stages_p = stages;
  return STATUS_OK;
}

void planner_free_costs(struct planner *planner) {
  for (struct plan_cut *cut = planner->cuts, *next; cut; cut = next) {
    next = cut->next;
    free(cut->ranks);
    free(cut->before);
    free(cut);
  }
  for (struct plan_stages *stages = planner->stages, *next; stages; stages = next) {
    next = stages->next;
    free(stages->layers);
    free(stages);
  }
  for (struct plan_known *known = planner->known, *next; known; known = next) {
    next = known->next;
    free(known);
  }
}

/* --- sizes of micro-batches --- */

int64_t planner_rows_at_once(const struct planner *planner, const struct plan_layout *layout) {
  return batcher_rows_at_once(layout->micro_batch, planner->seq_len, layout->tp, planner->device.host_memory);
}

int64_t planner_tokens(const struct planner *planner, const struct plan_layout *layout) {
  return batcher_max_tokens(planner->seq_len, planner_rows_at_once(planner, layout),
                            batcher_unit(layout->tp, layout->sequence));
}

int64_t planner_micro_batches(const struct planner *planner, const struct plan_job *job,
                              const struct plan_layout *layout) {
  return batcher_most_micro_batches(job->global_batch, layout->dp, planner_rows_at_once(planner, layout));
}

/* --- sizes of weights --- */

double planner_layer_weights(const struct planner *planner) {
  const struct model_facts *f = planner->facts;
  return (double)f->d_model * (double)f->head_dim * 2 * (double)(f->n_heads + f->n_kv_heads) +
         (double)f->d_model * (f->gated ? 3 : 2) * (double)f->d_ffn;
}

/* 4 bits, a code for each block's scale, scale and offset of a tile's codes. */
static double nf4_bytes(void) {
  return 0.5 + 1.0 / QUANT_NF4_BLOCK + 2.0 * sizeof(float) / (QUANT_NF4_BLOCK * QUANT_NF4_TILE);
}

double planner_head_bytes(const struct planner *planner, enum base_dtype base_dtype) {
  return base_dtype == BASE_F32 ? 4 : base_dtype == BASE_BF16 ? 2 : planner->head_bytes;
}

double planner_weight_bytes(const struct planner *planner, enum base_dtype base_dtype) {
  switch (base_dtype) {
    case BASE_F32:
      return 4;
    case BASE_BF16:
      return 2;
    case BASE_FP8:
      return dtype_quantised(planner->file) ? planner->file_bytes : 1.125; /* a scale for 32 weights */
    case BASE_INT8:
      return dtype_quantised(planner->file) ? planner->file_bytes : 1; /* a scale a row */
    case BASE_NF4:
      return dtype_quantised(planner->file) ? planner->file_bytes : nf4_bytes();
    default:
      return planner->file_bytes;
  }
}
