#include "model/block.h"

#include "model/attention.h"
#include "model/exchange.h"
#include "model/linear.h"

/* --- forward --- */

/* Sum a sublayer's output over tp and add what stands beside it: partial -> out.
 * Biases of row-parallel linears are added here, once. */
static enum status complete(struct model *m, const struct batch *b, struct tensor_view partial, struct tensor_view out,
                            struct tensor_view residual, const float *bias, const float *second_bias) {
  const int64_t D = m->facts.d_model;
  const struct tensor_view none = {NULL, D, DTYPE_F32};
  TRY(leave_forward(m, b, partial, out));
  TRY(m->ops->add(m->device, b->own, D, residual, bias, out)); /* whole + whole, or own rows of both */
  return second_bias ? m->ops->add(m->device, b->own, D, none, second_bias, out) : STATUS_OK;
}

/* n -> pre-activations s->gate, s->up and, where they are one operation with the product, acts.hidden. */
static enum status ffn_up(struct model *m, const struct batch *b, const struct entry *e, struct layer_saved *s) {
  const struct layer_weights *w = &m->weights.layers[e->layer];
  if (!s->gate.data && !m->pairs[e->layer][MODULE_UP])
    return m->ops->linear_activation_forward(m->device, m->facts.activation, b->M, e->n, &w->linear[MODULE_UP],
                                             w->bias[MODULE_UP], s->up, m->acts.hidden);
  if (s->gate.data) TRY(linear_column_forward(m, b, e, MODULE_GATE, s->gate, s->h[MODULE_GATE]));
  TRY(linear_column_forward(m, b, e, MODULE_UP, s->up, s->h[MODULE_UP]));
  return m->ops->activation_forward(m->device, m->facts.activation, b->M, m->shard.ffn.n, s->gate, s->up,
                                    m->acts.hidden);
}

enum status block_forward(struct model *m, const struct batch *b, int layer, struct layer_saved *s,
                          struct tensor_view out) {
  const struct layer_weights *w = &m->weights.layers[layer];
  const bool parallel = m->facts.parallel_residual, post_norm = m->facts.post_norm;
  struct tensor_view x2 = parallel ? s->x1 : s->x2;
  struct tensor_view attention_out = leave_from(m, parallel ? out : x2), ffn_out = leave_from(m, out);

  struct entry e = entry_of_attention(m, b, layer, s);
  TRY(entry_forward(m, b, &e, s));
  TRY(attention_sublayer_forward(m, b, &e, s));                                                  /* n -> s->attn */
  TRY(linear_row_forward(m, b, layer, MODULE_O, s->attn, attention_out, false, s->h[MODULE_O])); /* partial */
  if (!parallel) TRY(complete(m, b, attention_out, x2, post_norm ? e.own_n : s->x1, w->bias[MODULE_O], NULL));

  if (!m->facts.shared_norm) {
    e = entry_of_ffn(m, b, layer, s);
    TRY(entry_forward(m, b, &e, s));
  }
  TRY(ffn_up(m, b, &e, s)); /* n -> hidden */
  /* partial; on top of attention's partial when parallel */
  TRY(linear_row_forward(m, b, layer, MODULE_DOWN, m->acts.hidden, ffn_out, parallel, s->h[MODULE_DOWN]));
  if (!out.data) return STATUS_OK;
  return complete(m, b, ffn_out, out, post_norm ? e.own_n : x2, w->bias[MODULE_DOWN],
                  parallel ? w->bias[MODULE_O] : NULL);
}

/* --- backward --- */

/* A shard's gradient in the type that products and kernels take. */
static enum status as_act(struct model *m, int64_t M, int64_t n, struct tensor_view wide, struct tensor_view narrow,
                          struct tensor_view *act) {
  *act = m->act == DTYPE_F32 ? wide : narrow;
  return m->act == DTYPE_F32 ? STATUS_OK : m->ops->cast(m->device, M, n, wide, narrow);
}

/* The forward pass again, as far as its results were not kept. */
static enum status recompute(struct model *m, const struct batch *b, int layer, struct layer_saved *s) {
  if (m->recompute == RECOMPUTE_FULL)
    return block_forward(m, b, layer, s, (struct tensor_view){NULL, m->facts.d_model, DTYPE_F32});
  bool ffn = m->needs[layer].hidden || m->pairs[layer][MODULE_DOWN];
  if (m->recompute != RECOMPUTE_SELECTIVE || !ffn) return STATUS_OK;
  struct entry e = entry_of_ffn(m, b, layer, s);
  TRY(entry_forward(m, b, &e, s));
  return ffn_up(m, b, &e, s);
}

/* n again, where dA of one of these modules is computed from it before the entry's sum. */
static enum status again_for(struct model *m, const struct batch *b, const struct entry *e, unsigned modules) {
  bool used = false;
  for (int module = 0; module < MODULE_COUNT; module++) used |= m->pairs[e->layer][module] && modules >> module & 1;
  return used && !m->sequence ? entry_again(m, b, e) : STATUS_OK;
}

/* From dy (whole, act): the entry's gradient = (or += with `accumulate`), partial; D columns where `below`. down's
 * dA, dB +=; gate's and up's dB +=, and dA +=, except with sequence parallelism (entry_backward). */
static enum status ffn_backward(struct model *m, const struct batch *b, const struct entry *e, struct layer_saved *s,
                                struct tensor_view dy, bool below, bool accumulate) {
  const int layer = e->layer;
  struct activations *a = &m->acts;
  const int64_t F = m->shard.ffn.n;
  const enum activation kind = m->facts.activation;
  struct tensor_view wide = a->wide, dh;
  if (!m->needs[layer].hidden) wide.data = NULL;
  if (m->pairs[layer][MODULE_DOWN])
    TRY(m->ops->activation_forward(m->device, kind, b->M, F, s->gate, s->up, a->hidden));
  TRY(linear_row_backward(m, b, layer, MODULE_DOWN, a->hidden, s->h[MODULE_DOWN], dy, wide));
  if (!m->needs[layer].hidden) return STATUS_OK;
  TRY(as_act(m, b->M, F, wide, a->hidden, &dh));
  TRY(m->ops->activation_backward(m->device, kind, b->M, F, s->gate, s->up, dh, s->gate, s->up));
  TRY(again_for(m, b, e, 1u << MODULE_GATE | 1u << MODULE_UP));
  if (s->gate.data) {
    TRY(linear_column_backward(m, b, e, MODULE_GATE, s->h[MODULE_GATE], s->gate, below, accumulate));
    accumulate = true;
  }
  return linear_column_backward(m, b, e, MODULE_UP, s->h[MODULE_UP], s->up, below, accumulate);
}

/* From dy (whole, act): the entry's gradient =, partial. o's dA, dB +=; q's, k's and v's dB +=, and dA +=, except
 * with sequence parallelism. */
static enum status attention_backward(struct model *m, const struct batch *b, const struct entry *e,
                                      struct layer_saved *s, struct tensor_view dy) {
  const int layer = e->layer;
  const struct layer_needs *needs = &m->needs[layer];
  struct activations *a = &m->acts;
  struct tensor_view wide = a->wide, d_attn;
  if (!needs->attn_out) wide.data = NULL;
  TRY(linear_row_backward(m, b, layer, MODULE_O, s->attn, s->h[MODULE_O], dy, wide));
  if (!needs->attn_out) return STATUS_OK;
  TRY(as_act(m, b->M, m->shard.heads.n * m->facts.head_dim, wide, a->hidden, &d_attn));
  TRY(again_for(m, b, e, 1u << MODULE_Q | 1u << MODULE_K | 1u << MODULE_V));
  return attention_sublayer_backward(m, b, e, s, d_attn, needs->x1);
}

/* dx += what flows back through a norm. In a post-norm model the residual was
 * the norm's output, so dx itself flows through it as well. */
static enum status norm_output_backward(struct model *m, const struct batch *b, const struct entry *e,
                                        struct tensor_view dn) {
  struct activations *a = &m->acts;
  const struct model_facts *f = &m->facts;
  const int64_t D = f->d_model;
  if (!e->norm->w) return m->ops->add(m->device, b->own, D, dn, NULL, a->dx);
  if (f->post_norm) {
    TRY(m->ops->add(m->device, b->own, D, a->dx, NULL, dn));
    TRY(m->ops->zero(m->device, b->own, D, a->dx));
  }
  return m->ops->norm_backward(m->device, f->norm, b->own, D, e->x, e->norm->w, e->stats, dn, a->dx);
}

static enum status backward_sequential(struct model *m, const struct batch *b, int layer, struct layer_saved *s) {
  const struct layer_needs *needs = &m->needs[layer];
  const struct entry ffn = entry_of_ffn(m, b, layer, s), attention = entry_of_attention(m, b, layer, s);
  struct tensor_view dy, dn;
  TRY(leave_backward(m, b, &dy));
  TRY(ffn_backward(m, b, &ffn, s, dy, needs->x2, false));
  if (needs->hidden) TRY(entry_backward(m, b, &ffn, needs->x2, &dn));
  if (!needs->x2) return STATUS_OK;
  TRY(norm_output_backward(m, b, &ffn, dn));
  TRY(leave_backward(m, b, &dy));
  TRY(attention_backward(m, b, &attention, s, dy));
  if (needs->attn_out) TRY(entry_backward(m, b, &attention, needs->x1, &dn));
  return needs->x1 ? norm_output_backward(m, b, &attention, dn) : STATUS_OK;
}

/* Both branches read x1, through one norm: their gradients are summed before it. */
static enum status backward_shared_norm(struct model *m, const struct batch *b, int layer, struct layer_saved *s) {
  const struct layer_needs *needs = &m->needs[layer];
  const struct entry e = entry_of_attention(m, b, layer, s);
  struct tensor_view dy, dn;
  TRY(leave_backward(m, b, &dy));
  TRY(attention_backward(m, b, &e, s, dy));
  TRY(ffn_backward(m, b, &e, s, dy, needs->x1, needs->x1));
  TRY(entry_backward(m, b, &e, needs->x1, &dn));
  return needs->x1 ? norm_output_backward(m, b, &e, dn) : STATUS_OK;
}

/* Through two norms: a norm's backward is linear in the gradient, so each rank takes its
 * partial gradients through both first, and one all-reduce of the sum remains. */
static enum status backward_two_norms(struct model *m, const struct batch *b, int layer, struct layer_saved *s) {
  const struct model_facts *f = &m->facts;
  struct activations *a = &m->acts;
  const int64_t D = f->d_model;
  const bool below = m->needs[layer].x1;
  const struct entry attention = entry_of_attention(m, b, layer, s), ffn = entry_of_ffn(m, b, layer, s);
  struct tensor_view dy, sum = a->dn_sum;
  TRY(leave_backward(m, b, &dy));
  TRY(attention_backward(m, b, &attention, s, dy)); /* dn: partial */
  if (below) {
    TRY(m->ops->zero(m->device, b->M, D, sum));
    TRY(m->ops->norm_backward(m->device, f->norm, b->M, D, s->x1, attention.norm->w, s->stats1, a->dn, sum));
  }
  TRY(ffn_backward(m, b, &ffn, s, dy, below, false));
  if (!below) return STATUS_OK;
  TRY(m->ops->norm_backward(m->device, f->norm, b->M, D, s->x1, ffn.norm->w, s->stats2, a->dn, sum)); /* partial */
  TRY(comm_all_reduce_f32(m->tp, sum.data, b->M * D, REDUCE_SUM));                                    /* -> whole */
  return m->ops->add(m->device, b->M, D, sum, NULL, a->dx); /* whole + whole */
}

/* With sequence parallelism a rank has only its rows of the norms' inputs: each branch is summed by itself. */
static enum status backward_two_norms_split(struct model *m, const struct batch *b, int layer, struct layer_saved *s) {
  const struct layer_needs *needs = &m->needs[layer];
  const struct entry attention = entry_of_attention(m, b, layer, s), ffn = entry_of_ffn(m, b, layer, s);
  struct tensor_view dy, dn;
  TRY(leave_backward(m, b, &dy)); /* a copy: dx may change before dy is done with */
  TRY(attention_backward(m, b, &attention, s, dy));
  if (needs->attn_out) TRY(entry_backward(m, b, &attention, needs->x1, &dn));
  if (needs->x1) TRY(norm_output_backward(m, b, &attention, dn));
  TRY(ffn_backward(m, b, &ffn, s, dy, needs->x1, false));
  if (needs->hidden) TRY(entry_backward(m, b, &ffn, needs->x1, &dn));
  return needs->x1 ? norm_output_backward(m, b, &ffn, dn) : STATUS_OK;
}

enum status block_backward(struct model *m, const struct batch *b, int layer, struct layer_saved *s) {
  TRY(recompute(m, b, layer, s));
  if (!m->facts.parallel_residual) return backward_sequential(m, b, layer, s);
  if (m->facts.shared_norm) return backward_shared_norm(m, b, layer, s);
  return m->sequence ? backward_two_norms_split(m, b, layer, s) : backward_two_norms(m, b, layer, s);
}
