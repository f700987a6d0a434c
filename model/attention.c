#include "model/attention.h"

#include "model/linear.h"

/* q, k and v within a [M, (H + 2G) E] buffer. */
struct qkv_views {
  struct tensor_view q, k, v;
};
static struct qkv_views split_qkv(const struct model *m, struct tensor_view qkv) {
  int64_t E = m->facts.head_dim, H = m->shard.heads.n, G = m->shard.kv_heads.n;
  return (struct qkv_views){qkv, tensor_view_columns(qkv, H * E), tensor_view_columns(qkv, (H + G) * E)};
}

static struct attention_args arguments(const struct model *m, const struct batch *b, int layer, struct layer_saved *s) {
  const struct model_facts *f = &m->facts;
  struct qkv_views views = split_qkv(m, s->qkv);
  double scale = f->attention_scale;
  if (f->attention_scale_by_layer) scale /= layer + 1;
  return (struct attention_args){
      .q = views.q,
      .k = views.k,
      .v = views.v,
      .o = s->attn,
      .n_rows = b->M,
      .segments = b->segments,
      .n_segments = b->n_segments,
      .n_heads = (int)m->shard.heads.n,
      .n_kv_heads = (int)m->shard.kv_heads.n,
      .head_dim = (int)f->head_dim,
      .kv_of_head = m->kv_of_head,
      .scale = (float)scale,
      .window = layer >= f->window_first_layer ? f->sliding_window : 0,
      .alibi = m->alibi,
      .lse = s->lse,
      .lse_ld = m->acts.max_tokens,
  };
}

static enum status rotate(struct model *m, const struct batch *b, struct tensor_view x, int64_t heads, bool backward) {
  const struct model_facts *f = &m->facts;
  if (f->position != POSITION_ROTARY) return STATUS_OK;
  return m->ops->rotary(m->device, b->M, (int)heads, (int)f->head_dim, (int)f->rotary_dim, f->rotary_interleaved,
                        b->positions, m->cos_sin, backward, x);
}

/* Rows behind the last document attend to nothing: 0, not what an earlier batch left there. */
static enum status clear_padding(struct model *m, const struct batch *b, struct layer_saved *s) {
  return m->ops->zero(m->device, b->M - b->n_used, m->shard.heads.n * m->facts.head_dim,
                      tensor_view_rows(s->attn, b->n_used));
}

/* Append this batch's k and v to the cache and let attention read from there. */
static enum status through_cache(struct model *m, const struct batch *b, int layer, struct attention_args *args) {
  struct kv_cache *cache = m->cache;
  int64_t width = m->shard.kv_heads.n * m->facts.head_dim;
  TRY(m->ops->cast(m->device, b->M, width, args->k, tensor_view_rows(cache->k[layer], cache->length)));
  TRY(m->ops->cast(m->device, b->M, width, args->v, tensor_view_rows(cache->v[layer], cache->length)));
  args->k = cache->k[layer];
  args->v = cache->v[layer];
  return STATUS_OK;
}

enum status attention_sublayer_forward(struct model *m, const struct batch *b, const struct entry *e,
                                       struct layer_saved *s) {
  const struct layer_weights *w = &m->weights.layers[e->layer];
  const struct model_facts *f = &m->facts;
  int64_t H = m->shard.heads.n, G = m->shard.kv_heads.n;
  struct qkv_views to = split_qkv(m, s->qkv), raw = to;
  if (f->qk_norm) raw = (struct qkv_views){s->qk_raw, tensor_view_columns(s->qk_raw, H * f->head_dim), to.v};
  TRY(linear_column_forward(m, b, e, MODULE_Q, raw.q, s->h[MODULE_Q]));
  TRY(linear_column_forward(m, b, e, MODULE_K, raw.k, s->h[MODULE_K]));
  TRY(linear_column_forward(m, b, e, MODULE_V, raw.v, s->h[MODULE_V]));
  if (f->qk_norm) {
    float eps = (float)f->norm_eps;
    TRY(m->ops->head_norm_forward(m->device, b->M, (int)H, (int)f->head_dim, raw.q, w->q_norm, eps, to.q, s->q_stats));
    TRY(m->ops->head_norm_forward(m->device, b->M, (int)G, (int)f->head_dim, raw.k, w->k_norm, eps, to.k, s->k_stats));
  }
  TRY(rotate(m, b, to.q, H, false));
  TRY(rotate(m, b, to.k, G, false));
  struct attention_args args = arguments(m, b, e->layer, s);
  if (m->cache) TRY(through_cache(m, b, e->layer, &args));
  TRY(clear_padding(m, b, s));
  return m->ops->attention_forward(m->device, &args);
}

enum status attention_sublayer_backward(struct model *m, const struct batch *b, const struct entry *e,
                                        struct layer_saved *s, struct tensor_view d_attn, bool below) {
  const struct layer_weights *w = &m->weights.layers[e->layer];
  const struct model_facts *f = &m->facts;
  struct activations *a = &m->acts;
  int64_t H = m->shard.heads.n, G = m->shard.kv_heads.n;
  struct attention_args args = arguments(m, b, e->layer, s);
  struct qkv_views d = split_qkv(m, a->dqkv);
  TRY(m->ops->attention_backward(m->device, &args, b->M, d_attn, d.q, d.k, d.v));
  TRY(rotate(m, b, d.q, H, true));
  TRY(rotate(m, b, d.k, G, true));
  if (f->qk_norm) {
    struct tensor_view k_raw = tensor_view_columns(s->qk_raw, H * f->head_dim);
    TRY(m->ops->head_norm_backward(m->device, b->M, (int)H, (int)f->head_dim, s->qk_raw, w->q_norm, s->q_stats, d.q,
                                   d.q));
    TRY(m->ops->head_norm_backward(m->device, b->M, (int)G, (int)f->head_dim, k_raw, w->k_norm, s->k_stats, d.k, d.k));
  }
  TRY(linear_column_backward(m, b, e, MODULE_Q, s->h[MODULE_Q], d.q, below, false));
  TRY(linear_column_backward(m, b, e, MODULE_K, s->h[MODULE_K], d.k, below, true));
  return linear_column_backward(m, b, e, MODULE_V, s->h[MODULE_V], d.v, below, true);
}
