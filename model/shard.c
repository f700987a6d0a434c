#include "model/shard.h"

#include <string.h>

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* Part t of n items dealt over p ranks, sizes differing by one at most. */
static struct span deal(int64_t n, int p, int t) {
  int64_t base = n / p, extra = n % p;
  return (struct span){t * base + min64(t, extra), base + (t < extra)};
}

static void deal_heads(const struct model_facts *facts, int n_tp, int t, struct shard *shard) {
  int64_t group = facts->n_heads / facts->n_kv_heads; /* query heads of a KV head */
  if (n_tp <= facts->n_kv_heads) {
    shard->kv_heads = deal(facts->n_kv_heads, n_tp, t);
    shard->heads = (struct span){shard->kv_heads.first * group, shard->kv_heads.n * group};
    shard->kv_replicated = false;
    return;
  }
  shard->heads = deal(facts->n_heads, n_tp, t);
  int64_t first = shard->heads.first / group, last = (shard->heads.first + shard->heads.n - 1) / group;
  shard->kv_heads = (struct span){first, last - first + 1};
  shard->kv_replicated = true;
}

/* Work per token of a rank's attention linears, and of one FFN column. */
static int64_t attention_work(const struct model_facts *facts, const struct shard *shard) {
  return facts->d_model * facts->head_dim * (2 * shard->heads.n + 2 * shard->kv_heads.n);
}
static int64_t ffn_column_work(const struct model_facts *facts) { return facts->d_model * (facts->gated ? 3 : 2); }

/* FFN columns are dealt in units: 64 keeps quantised blocks whole, nf4's too, and
 * vectors full; a model so narrow that this would unbalance it gets 32, or less. */
static int64_t ffn_unit(const struct model_facts *facts, int n_tp) {
  int64_t unit = 64;
  while (unit > 1 && facts->d_ffn < (unit == 64 ? 12 : 4) * unit * n_tp) unit /= 2;
  return unit;
}

/* Boundary b (0..n_tp) of the FFN cut: rank t holds [boundary t, boundary t + 1).
 * Cumulative sums are rounded, so the parts add up and no rank drifts. */
static int64_t ffn_boundary(const struct model_facts *facts, int n_tp, int b) {
  if (b <= 0) return 0;
  if (b >= n_tp) return facts->d_ffn;
  int64_t attention_before = 0, attention_all = 0;
  for (int t = 0; t < n_tp; t++) {
    struct shard other;
    deal_heads(facts, n_tp, t, &other);
    int64_t work = attention_work(facts, &other);
    attention_all += work;
    if (t < b) attention_before += work;
  }
  double all = (double)attention_all + (double)ffn_column_work(facts) * (double)facts->d_ffn;
  double columns = (all * b / n_tp - (double)attention_before) / (double)ffn_column_work(facts);
  int64_t unit = ffn_unit(facts, n_tp);
  int64_t boundary = (int64_t)(columns / (double)unit + 0.5) * unit;
  int64_t low = ffn_boundary(facts, n_tp, b - 1) + unit; /* each rank holds at least a unit */
  int64_t high = facts->d_ffn - (int64_t)(n_tp - b) * unit;
  return boundary < low ? low : boundary > high ? high : boundary;
}

enum status shard_plan(const struct model_facts *facts, int n_tp, int tp_rank, struct shard *shard) {
  memset(shard, 0, sizeof *shard);
  if (n_tp > facts->n_heads)
    return status_set(STATUS_USAGE, "parallel.tp %d is more than the model's %lld attention heads", n_tp,
                      (long long)facts->n_heads);
  if (n_tp > facts->d_ffn || n_tp > facts->n_vocab)
    return status_set(STATUS_USAGE, "parallel.tp %d is more than the model's %lld FFN columns or %lld vocabulary rows",
                      n_tp, (long long)facts->d_ffn, (long long)facts->n_vocab);
  shard->stage = (struct stage){.n_pp = 1, .layers = {0, facts->n_layers}};
  shard->n_tp = n_tp;
  shard->tp_rank = tp_rank;
  deal_heads(facts, n_tp, tp_rank, shard);
  if (shard->heads.n > SHARD_MAX_HEADS)
    return status_set(STATUS_USAGE, "%lld attention heads on one rank are more than %d: raise parallel.tp",
                      (long long)shard->heads.n, SHARD_MAX_HEADS);
  int64_t group = facts->n_heads / facts->n_kv_heads;
  for (int64_t h = 0; h < shard->heads.n; h++)
    shard->kv_of_head[h] = (int32_t)((shard->heads.first + h) / group - shard->kv_heads.first);
  int64_t begin = ffn_boundary(facts, n_tp, tp_rank), end = ffn_boundary(facts, n_tp, tp_rank + 1);
  shard->ffn = (struct span){begin, end - begin};
  int64_t part = (facts->n_vocab + n_tp - 1) / n_tp;
  int64_t first = min64(part * tp_rank, facts->n_vocab);
  shard->vocab = (struct span){first, min64(part, facts->n_vocab - first)};
  return STATUS_OK;
}

struct linear_dims shard_linear(const struct shard *shard, const struct model_facts *facts, enum module module) {
  int64_t E = facts->head_dim;
  struct span model = {0, facts->d_model};
  struct span q = {shard->heads.first * E, shard->heads.n * E};
  struct span kv = {shard->kv_heads.first * E, shard->kv_heads.n * E};
  switch (module) {
    case MODULE_Q:
      return (struct linear_dims){facts->n_heads * E, facts->d_model, q, model};
    case MODULE_K:
    case MODULE_V:
      return (struct linear_dims){facts->n_kv_heads * E, facts->d_model, kv, model};
    case MODULE_O:
      return (struct linear_dims){facts->d_model, facts->n_heads * E, model, q};
    case MODULE_DOWN:
      return (struct linear_dims){facts->d_model, facts->d_ffn, model, shard->ffn};
    default:
      return (struct linear_dims){facts->d_ffn, facts->d_model, shard->ffn, model};
  }
}

int64_t shard_layer_work(const struct shard *shard, const struct model_facts *facts) {
  return attention_work(facts, shard) + ffn_column_work(facts) * shard->ffn.n;
}

/* Products per token of a whole layer and of the head. Backward repeats them once:
 * the base's weights have no gradient. */
static double layer_products(const struct model_facts *facts) {
  int64_t attention = facts->d_model * facts->head_dim * (2 * facts->n_heads + 2 * facts->n_kv_heads);
  return (double)(attention + ffn_column_work(facts) * facts->d_ffn);
}
static double layer_cost(const struct model_facts *facts, int64_t layer, int first_adapted) {
  return layer_products(facts) * (layer >= first_adapted ? 2 : 1);
}
static double head_cost(const struct model_facts *facts) { return 2 * (double)facts->n_vocab * (double)facts->d_embed; }

/* Layers that one stage takes from `first` on without exceeding `most`, leaving at least one for each stage behind. */
static int64_t fill_stage(const struct model_facts *facts, int first_adapted, int64_t first, int stages_behind,
                          double most) {
  int64_t n = 0;
  double cost = stages_behind == 0 ? head_cost(facts) : 0;
  while (first + n < facts->n_layers - stages_behind) {
    cost += layer_cost(facts, first + n, first_adapted);
    if (n > 0 && cost > most) break;
    n++;
  }
  return n;
}

/* True if stages of at most this cost hold all layers; *span: those of stage pp_rank. */
static bool deal_layers(const struct model_facts *facts, int first_adapted, int n_pp, int pp_rank, double most,
                        struct span *span) {
  int64_t first = 0;
  double last = head_cost(facts);
  for (int s = 0; s < n_pp; s++) {
    int64_t n = fill_stage(facts, first_adapted, first, n_pp - 1 - s, most);
    if (s == pp_rank) *span = (struct span){first, n};
    if (s == n_pp - 1)
      for (int64_t layer = first; layer < first + n; layer++) last += layer_cost(facts, layer, first_adapted);
    first += n;
  }
  return first == facts->n_layers && last <= most;
}

enum status shard_plan_stage(const struct model_facts *facts, int first_adapted, int n_pp, int pp_rank,
                             struct shard *shard) {
  if (n_pp > facts->n_layers)
    return status_set(STATUS_USAGE, "parallel.pp %d is more than the model's %lld layers", n_pp,
                      (long long)facts->n_layers);
  shard->stage = (struct stage){.n_pp = n_pp, .pp_rank = pp_rank, .layers = {0, facts->n_layers}};
  if (n_pp == 1) return STATUS_OK;
  /* Bisect the cost of the slowest stage: 60 halvings are below any difference between two splits. */
  double low = 0, high = head_cost(facts);
  for (int64_t layer = 0; layer < facts->n_layers; layer++) high += layer_cost(facts, layer, first_adapted);
  struct span span = shard->stage.layers;
  for (int i = 0; i < 60; i++) {
    double middle = 0.5 * (low + high);
    if (deal_layers(facts, first_adapted, n_pp, pp_rank, middle, &span))
      high = middle;
    else
      low = middle;
  }
  deal_layers(facts, first_adapted, n_pp, pp_rank, high, &shard->stage.layers);
  shard->stage.adapted_below = first_adapted < shard_first_layer(shard);
  return STATUS_OK;
}
