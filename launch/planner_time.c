/*
 * How long a step takes: operations by the device's rates, messages by the cluster's
 * links, stages by the schedule of the pipeline.
 *
 * A product takes the longer of its arithmetic and of reading its weights. Everything
 * else is bound by memory: bytes read and written, counted from the operations of
 * model/ops.h. Messages hide behind nothing: the program waits for them.
 */
#include <math.h>
#include <string.h>

#include "launch/planner_internal.h"
#include "model/activations.h"

#define WIDE 4.0 /* bytes of an f32 */

const char *const plan_flow_names[PLAN_FLOWS] = {"tp", "pp", "stage", "dp", "control"};

/* One layout under the model. Times are of one micro-batch unless they say "step". */
struct predict {
  struct planner *planner;
  const struct model_facts *facts;
  const struct plan_job *job;
  const struct plan_layout *layout;
  const struct plan_cut *cut;
  double M;      /* tokens of a full micro-batch */
  double own;    /* rows of the residual stream on a rank */
  double act;    /* bytes of an act */
  double rate;   /* FLOP/s */
  double stream; /* bytes/s of the device's memory */
};

/* What one stage does in one micro-batch, seconds. */
struct stage_time {
  double products, attention, adapters, elementwise, recompute;
  struct plan_traffic tp, pp;
};

static double stage_total(const struct stage_time *s) {
  return s->products + s->attention + s->adapters + s->elementwise + s->recompute + s->tp.seconds + s->pp.seconds;
}

/* --- arithmetic --- */

/* Products of `weights` frozen weights with M tokens, once. */
static double product(const struct predict *p, double weights, double weight_bytes) {
  double bytes = weights * weight_bytes;
  /* A GPU expands weights of another type into memory and reads them from there; a CPU does it in its caches. */
  if (!p->planner->device.host_memory && weight_bytes != p->act) bytes += 2 * weights * p->act;
  return fmax(2 * weights * p->M / p->rate, bytes / p->stream);
}

/* Scores and values of one layer: each query sees half of the sequence, or the window. */
static double attention_flops(const struct predict *p) {
  double seen = 0.5 * (double)(p->planner->seq_len + 1);
  if (p->facts->sliding_window && (double)p->facts->sliding_window < seen) seen = (double)p->facts->sliding_window;
  return 4 * p->cut->heads * (double)p->facts->head_dim * seen * p->M;
}

/* Bytes that norms, residuals, rotary and activation of one layer move. */
static double forward_bytes(const struct predict *p) {
  double D = (double)p->facts->d_model, E = (double)p->facts->head_dim;
  double qkv = (p->cut->heads + 2 * p->cut->kv_heads) * E;
  int norms = p->facts->shared_norm ? 1 : 2, sums = p->facts->parallel_residual ? 1 : 2;
  return p->own * D * (norms * (WIDE + p->act) + sums * 3 * WIDE) + p->M * 2 * qkv * p->act +
         p->M * p->cut->ffn * p->act * (p->facts->gated ? 3 : 2);
}
static double backward_bytes(const struct predict *p) {
  double D = (double)p->facts->d_model, E = (double)p->facts->head_dim;
  double qkv = (p->cut->heads + 2 * p->cut->kv_heads) * E;
  int norms = p->facts->shared_norm ? 1 : 2, sums = p->facts->parallel_residual ? 1 : 2;
  /* norm again, its backward (x, dy, dx twice), the gradient as act; activation again and its backward */
  return p->own * D * (norms * (WIDE + p->act) + norms * 4 * WIDE + sums * (WIDE + p->act)) + p->M * 2 * qkv * p->act +
         p->M * p->cut->ffn * p->act * (p->facts->gated ? 8 : 5);
}

/* The low-rank products of a stage's layers, forward and backward. */
static double adapter_time(const struct predict *p, const struct plan_pairs *from, const struct plan_pairs *to) {
  double in = to->in - from->in, out = to->out - from->out;
  double reads = to->reads - from->reads, writes = to->writes - from->writes;
  double forward = fmax(2 * (in + out) * p->M / p->rate, p->M * p->act * (reads + 2 * writes) / p->stream);
  double backward =
      fmax(4 * (in + out) * p->M / p->rate, p->M * (2 * p->act * writes + (p->act + 2 * WIDE) * reads) / p->stream);
  return forward + backward;
}

/* --- messages --- */

/* `calls` collectives over n ranks that are `stride` apart, each of `bytes`. A group counts as if every node that it is
 * on held as few of its ranks as the one that holds fewest. */
static void add_collective(const struct predict *p, struct plan_traffic *t, enum cluster_pattern pattern, double calls,
                           double bytes, int64_t n, int64_t stride) {
  if (n < 2 || calls <= 0 || bytes <= 0) return;
  const struct plan_spread spread = planner_spread(p->job, n, stride);
  const int64_t here = spread.fewest, nodes = spread.nodes;
  double passes = pattern == CLUSTER_ALL_REDUCE ? 2 : 1;
  t->calls += calls;
  t->bytes += calls * bytes;
  t->node += calls * passes * bytes * (double)(here - 1) / (double)here;
  t->network += calls * passes * bytes / (double)here * (double)(nodes - 1) / (double)nodes;
  t->seconds += calls * cluster_time(p->planner->cluster, pattern, bytes, here * nodes, here, p->job->per_node);
}

/* A sum over tp, or with sequence parallelism half of one: a reduce-scatter. */
static void add_sums(const struct predict *p, struct plan_traffic *t, double calls, double width) {
  enum cluster_pattern pattern = p->layout->sequence ? CLUSTER_ALL_GATHER : CLUSTER_ALL_REDUCE;
  add_collective(p, t, pattern, calls, p->M * width * WIDE, p->layout->tp, 1);
}

/* Rows of act gathered over tp, each with `columns` numbers of adapters; sequence parallelism only. */
static void add_gathers(const struct predict *p, struct plan_traffic *t, double calls, double columns) {
  if (!p->layout->sequence) return;
  double row = p->act * (double)p->facts->d_model + WIDE * columns;
  add_collective(p, t, CLUSTER_ALL_GATHER, calls, p->M * row, p->layout->tp, 1);
  t->bytes -= calls * p->M * row * (1 - 1.0 / p->layout->tp); /* dist/comm counts what a rank gives to a gather */
}

/* Messages of n layers' forward passes, of which `whole` bring their output out. */
static void add_forward(const struct predict *p, struct plan_traffic *t, double n, double whole, double columns) {
  double D = (double)p->facts->d_model;
  int norms = p->facts->shared_norm ? 1 : 2;
  add_gathers(p, t, norms * n, columns / norms);
  add_sums(p, t, (p->facts->parallel_residual ? 0 : n) + whole, D);
}

/* The lowest adapted layer: only what its own adapters need comes back through it, and nothing goes further. */
static void add_lowest(const struct predict *p, struct plan_traffic *t, double columns) {
  const double D = (double)p->facts->d_model;
  const unsigned modules = p->planner->lowest_modules;
  const bool qkv = modules & PLAN_QKV, up = modules & PLAN_UP, attention = modules & (PLAN_QKV | 1u << MODULE_O);
  if (p->facts->parallel_residual) {
    add_gathers(p, t, 1, 0);
    if (p->layout->sequence) add_sums(p, t, p->facts->shared_norm ? qkv || up : qkv + up, columns / 2);
    return;
  }
  add_gathers(p, t, attention ? 2 : 1, 0);
  if (attention) add_sums(p, t, 1, D + (p->layout->sequence ? columns / 2 : 0));
  if (p->layout->sequence && (attention ? qkv : up)) add_sums(p, t, 1, columns / 2);
}

/* Messages of n layers' backward passes. */
static void add_backward(const struct predict *p, struct plan_traffic *t, double n, double columns) {
  const double D = (double)p->facts->d_model;
  const bool parallel = p->facts->parallel_residual, sequence = p->layout->sequence;
  const int sums = parallel && !(sequence && !p->facts->shared_norm) ? 1 : 2;
  add_gathers(p, t, (parallel ? 1 : 2) * n, 0);
  add_sums(p, t, sums * n, D + (sequence ? columns / sums : 0));
}

/* The head's messages: the loss of each chunk of targets, the gradient of its input. */
static void add_head(const struct predict *p, struct plan_traffic *t) {
  double chunk = (double)activations_chunk(p->facts->n_vocab, p->layout->tp, p->planner->device.host_memory);
  double chunks = ceil(p->M / chunk), targets = p->M / chunks;
  add_gathers(p, t, 1, 0);
  add_collective(p, t, CLUSTER_ALL_REDUCE, chunks, targets * WIDE, p->layout->tp, 1);
  add_collective(p, t, CLUSTER_ALL_REDUCE, chunks, 2 * targets * WIDE, p->layout->tp, 1);
  add_sums(p, t, 1, (double)p->facts->d_model);
}

/* A message between `stage` and the next one, of the rank that has it worst. */
static void add_exchange(const struct predict *p, struct plan_traffic *t, int stage) {
  double bytes = p->own * (double)p->facts->d_model * WIDE;
  bool same_node = planner_stages_share_node(p->job, p->layout, stage);
  t->calls++;
  t->bytes += bytes;
  *(same_node ? &t->node : &t->network) += bytes;
  t->seconds += cluster_time(p->planner->cluster, CLUSTER_POINT, bytes, 2, same_node ? 2 : 1, p->job->per_node);
}

/* --- a stage --- */

/* Weights that full recomputation does not multiply again (model/block.c): those of the layer's last sum, whose result
 * nobody reads. Down, and o where attention and FFN are summed together; no more than the residual is added to it. */
static double left_out(const struct predict *p) {
  double attention = p->facts->parallel_residual ? p->cut->heads * (double)p->facts->head_dim : 0;
  return (p->cut->ffn + attention) * (double)p->facts->d_model;
}

static void stage_layers(const struct predict *p, const struct span *layers, struct stage_time *s) {
  const struct planner *planner = p->planner;
  double n = (double)layers->n, end = (double)(layers->first + layers->n), D = (double)p->facts->d_model;
  double low = fmax((double)layers->first, (double)planner->first_adapted);
  double trained = end > low ? end - low : 0; /* layers with a backward pass */
  bool lowest = trained > 0 && layers->first <= planner->first_adapted;
  double bytes = planner_weight_bytes(planner, p->layout->base_dtype);
  const struct plan_pairs *from = &p->cut->before[layers->first], *to = &p->cut->before[layers->first + layers->n];
  double columns = trained > 0 ? (to->columns - from->columns) / trained : 0;
  double layer_product = product(p, p->cut->work, bytes), attention = attention_flops(p) / p->rate;
  s->products += (n + trained) * layer_product;
  s->attention += (n + 2.5 * trained) * attention; /* backward: five products where forward has two */
  s->elementwise += (n * forward_bytes(p) + trained * backward_bytes(p)) / p->stream;
  s->adapters += adapter_time(p, from, to);
  add_forward(p, &s->tp, n, n, columns);
  add_backward(p, &s->tp, lowest ? trained - 1 : trained, columns);
  if (lowest) add_lowest(p, &s->tp, columns);
  if (p->layout->recompute == RECOMPUTE_KIND_FULL) {
    double products = product(p, p->cut->work - left_out(p), bytes);
    s->recompute += trained * (products + attention + (forward_bytes(p) - p->own * D * 3 * WIDE) / p->stream);
    add_forward(p, &s->tp, trained, 0, columns);
  } else if (p->layout->recompute == RECOMPUTE_KIND_SELECTIVE) {
    double up = p->cut->ffn * D * (p->facts->gated ? 2 : 1);
    s->recompute += trained * product(p, up, bytes);
    add_gathers(p, &s->tp, trained, columns / 2);
  }
}

static void stage_ends(const struct predict *p, int stage, const struct span *layers, struct stage_time *s) {
  double De = (double)p->facts->d_embed, D = (double)p->facts->d_model;
  bool first = stage == 0, last = stage == p->layout->pp - 1;
  if (first) {
    s->elementwise += p->own * De * (p->act + WIDE) / p->stream;
    add_sums(p, &s->tp, 1, De);
  }
  if (last) {
    /* Logits: written, read twice, changed, rounded. */
    s->products += 2 * product(p, p->cut->vocab * De, planner_head_bytes(p->planner, p->layout->base_dtype));
    s->elementwise += p->M * (p->cut->vocab * (5 * WIDE + 2 * p->act) + 6 * D * WIDE) / p->stream;
    add_head(p, &s->tp);
  }
  /* Activations go on, gradients come back; each side waits for its own. */
  if (!last) add_exchange(p, &s->pp, stage);
  if (!first && layers->first > p->planner->first_adapted) add_exchange(p, &s->pp, stage - 1);
}

/* --- a step --- */

static void once_a_step(const struct predict *p, const struct span *layers, struct plan_time *time) {
  const struct plan_layout *l = p->layout;
  const struct plan_pairs *from = &p->cut->before[layers->first], *to = &p->cut->before[layers->first + layers->n];
  double stage = to->stage - from->stage, dp = to->dp - from->dp;
  add_collective(p, &time->traffic[PLAN_STAGE], CLUSTER_ALL_REDUCE, 1, stage * WIDE, (int64_t)l->tp * l->dp, 1);
  add_collective(p, &time->traffic[PLAN_DP], CLUSTER_ALL_REDUCE, 1, dp * WIDE, l->dp, l->tp);
  add_collective(p, &time->traffic[PLAN_CONTROL], CLUSTER_ALL_REDUCE, 1, 5 * 8, p->job->ranks, 1);
  time->optimizer = 9 * WIDE * (stage + dp) / p->stream; /* norm; w m v read and written, g read and zeroed */
}

/* Operations of forward and of backward through the frozen base, nothing twice. */
static double useful_flops(const struct predict *p) {
  const struct model_facts *f = p->facts;
  double tokens = (double)p->job->global_batch * (double)p->planner->seq_len;
  double L = (double)f->n_layers, trained = L - (double)p->planner->first_adapted;
  double layer = planner_layer_weights(p->planner);
  double seen = attention_flops(p) / p->M / p->cut->heads * (double)f->n_heads;
  double head = 2 * (double)f->n_vocab * (double)f->d_embed;
  return tokens * (2 * layer * (L + trained) + seen * (L + 2 * trained) + 2 * head);
}

static void scale_traffic(struct plan_traffic *t, double factor) {
  t->calls *= factor;
  t->bytes *= factor;
  t->node *= factor;
  t->network *= factor;
  t->seconds *= factor;
}

/* The slowest stage's time over the step, and what the pipeline adds. */
static void add_pipeline(const struct predict *p, const struct plan_stages *stages, struct plan_time *time) {
  double m = (double)time->micro_batches, all = 0, most = -1;
  struct stage_time slowest;
  memset(&slowest, 0, sizeof slowest);
  for (int i = 0; i < p->layout->pp; i++) {
    struct stage_time s;
    memset(&s, 0, sizeof s);
    stage_layers(p, &stages->layers[i], &s);
    stage_ends(p, i, &stages->layers[i], &s);
    double total = stage_total(&s);
    all += total;
    if (total <= most) continue;
    most = total;
    slowest = s;
    time->slowest = i;
  }
  time->products = m * slowest.products;
  time->attention = m * slowest.attention;
  time->adapters = m * slowest.adapters;
  time->elementwise = m * slowest.elementwise;
  time->recompute = m * slowest.recompute;
  /* 1F1B: the first micro-batch passes through all stages, the others follow at the slowest one's pace. With equal
   * stages this is the (pp - 1) / m of the literature. */
  time->bubble = all - most;
  time->traffic[PLAN_TP] = slowest.tp;
  time->traffic[PLAN_PP] = slowest.pp;
  scale_traffic(&time->traffic[PLAN_TP], m);
  scale_traffic(&time->traffic[PLAN_PP], m);
}

enum status planner_predict(struct planner *planner, const struct plan_job *job, const struct plan_layout *layout,
                            struct plan_time *time) {
  const struct plan_stages *stages;
  struct predict p = {.planner = planner, .facts = planner->facts, .job = job, .layout = layout};
  memset(time, 0, sizeof *time);
  TRY(planner_cut(planner, layout->tp, &p.cut));
  TRY(planner_stages(planner, layout->pp, &stages));
  p.M = (double)planner_tokens(planner, layout);
  p.own = layout->sequence ? p.M / layout->tp : p.M;
  p.act = (double)dtype_bytes(planner->act, 1);
  p.rate = planner->rate.achieved;
  p.stream = planner->cluster->device.bandwidth;
  time->micro_batches = planner_micro_batches(planner, job, layout);
  add_pipeline(&p, stages, time);
  once_a_step(&p, &stages->layers[time->slowest], time);
  time->step = time->products + time->attention + time->adapters + time->elementwise + time->recompute + time->bubble +
               time->optimizer;
  for (int flow = 0; flow < PLAN_FLOWS; flow++) time->step += time->traffic[flow].seconds;
  time->tokens_per_s = (double)job->global_batch * (double)planner->seq_len / time->step;
  time->flops = useful_flops(&p);
  if (planner->rate.peak > 0) time->mfu = time->flops / (time->step * (double)job->ranks * planner->rate.peak);
  return STATUS_OK;
}
