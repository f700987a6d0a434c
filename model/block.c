#include "model/block.h"

#include "model/attention.h"
#include "model/linear.h"

/* n = norm(x), or a copy where there is no norm. */
static enum status norm_input(struct model *m, const struct norm_weights *norm, int64_t M, struct tensor_view x,
                              float *stats, struct tensor_view n) {
  const struct model_facts *f = &m->facts;
  if (!norm->w) return m->ops->cast(m->device, M, f->d_model, x, n);
  return m->ops->norm_forward(m->device, f->norm, M, f->d_model, x, norm->w, norm->b, (float)f->norm_eps, n, stats);
}

/* The same n again, from the saved statistics. */
static enum status norm_again(struct model *m, const struct norm_weights *norm, int64_t M, struct tensor_view x,
                              const float *stats, struct tensor_view n) {
  if (!norm->w) return m->ops->cast(m->device, M, m->facts.d_model, x, n);
  return m->ops->norm_apply(m->device, m->facts.norm, M, m->facts.d_model, x, norm->w, norm->b, stats, n);
}

/* Sum a sublayer's output over tp and add what stands beside it: partial -> whole.
 * Biases of row-parallel linears are added here, once. */
static enum status complete(struct model *m, int64_t M, struct tensor_view out, struct tensor_view residual,
                            const float *bias, const float *second_bias) {
  const int64_t D = m->facts.d_model;
  const struct tensor_view none = {NULL, D, DTYPE_F32};
  TRY(comm_all_reduce_f32(m->tp, out.data, M * D, REDUCE_SUM)); /* out: partial -> whole */
  TRY(m->ops->add(m->device, M, D, residual, bias, out));       /* whole + whole */
  return second_bias ? m->ops->add(m->device, M, D, none, second_bias, out) : STATUS_OK;
}

static enum status ffn_forward(struct model *m, const struct batch *b, int layer, struct layer_saved *s,
                               struct tensor_view out, bool accumulate) {
  struct activations *a = &m->acts;
  const struct layer_weights *w = &m->weights.layers[layer];
  if (!s->gate.data && !m->pairs[layer][MODULE_UP]) {
    TRY(m->ops->linear_activation_forward(m->device, m->facts.activation, b->M, a->n, &w->linear[MODULE_UP],
                                          w->bias[MODULE_UP], s->up, a->hidden));
  } else {
    if (s->gate.data) TRY(linear_column_forward(m, b, layer, MODULE_GATE, a->n, s->gate, s->h[MODULE_GATE]));
    TRY(linear_column_forward(m, b, layer, MODULE_UP, a->n, s->up, s->h[MODULE_UP]));
    TRY(m->ops->activation_forward(m->device, m->facts.activation, b->M, m->shard.ffn.n, s->gate, s->up, a->hidden));
  }
  return linear_row_forward(m, b, layer, MODULE_DOWN, a->hidden, out, accumulate, s->h[MODULE_DOWN]); /* partial */
}

enum status block_forward(struct model *m, const struct batch *b, int layer, struct layer_saved *s,
                          struct tensor_view out) {
  const struct layer_weights *w = &m->weights.layers[layer];
  struct activations *a = &m->acts;
  const bool parallel = m->facts.parallel_residual, post_norm = m->facts.post_norm;
  struct tensor_view x2 = parallel ? s->x1 : s->x2;

  TRY(norm_input(m, &w->norm1, b->M, s->x1, s->stats1, a->n));
  TRY(attention_sublayer_forward(m, b, layer, s)); /* n -> s->attn, shard */
  TRY(linear_row_forward(m, b, layer, MODULE_O, s->attn, parallel ? out : x2, false, s->h[MODULE_O])); /* partial */
  if (!parallel) TRY(complete(m, b->M, x2, post_norm ? a->n : s->x1, w->bias[MODULE_O], NULL));        /* x2: whole */
  if (!m->facts.shared_norm) TRY(norm_input(m, &w->norm2, b->M, x2, s->stats2, a->n));
  TRY(ffn_forward(m, b, layer, s, out, parallel)); /* partial; on top of attention's partial when parallel */
  return complete(m, b->M, out, post_norm ? a->n : x2, w->bias[MODULE_DOWN], parallel ? w->bias[MODULE_O] : NULL);
}

/* A shard's gradient in the type that products and kernels take. */
static enum status as_act(struct model *m, int64_t M, int64_t n, struct tensor_view wide, struct tensor_view narrow,
                          struct tensor_view *act) {
  *act = m->act == DTYPE_F32 ? wide : narrow;
  return m->act == DTYPE_F32 ? STATUS_OK : m->ops->cast(m->device, M, n, wide, narrow);
}

/* From dy (whole, act) to the gradient of the ffn's input norm output, dn: partial. */
static enum status ffn_backward(struct model *m, const struct batch *b, int layer, struct layer_saved *s,
                                struct tensor_view x2, struct tensor_view dy, struct tensor_view dn, bool accumulate) {
  const struct layer_weights *w = &m->weights.layers[layer];
  const struct layer_needs *needs = &m->needs[layer];
  struct activations *a = &m->acts;
  const int64_t F = m->shard.ffn.n;
  struct tensor_view wide = a->wide, dh;
  if (!needs->hidden) wide.data = NULL;
  if (m->pairs[layer][MODULE_DOWN])
    TRY(m->ops->activation_forward(m->device, m->facts.activation, b->M, F, s->gate, s->up, a->hidden));
  TRY(linear_row_backward(m, b, layer, MODULE_DOWN, a->hidden, s->h[MODULE_DOWN], dy, wide));
  if (!needs->hidden) return STATUS_OK;
  TRY(as_act(m, b->M, F, wide, a->hidden, &dh));
  TRY(m->ops->activation_backward(m->device, m->facts.activation, b->M, F, s->gate, s->up, dh, s->gate, s->up));
  if (!needs->x2) dn.data = NULL;
  if (m->pairs[layer][MODULE_GATE] || m->pairs[layer][MODULE_UP]) {
    const struct norm_weights *norm = m->facts.shared_norm ? &w->norm1 : &w->norm2;
    TRY(norm_again(m, norm, b->M, x2, m->facts.shared_norm ? s->stats1 : s->stats2, a->n));
  }
  if (s->gate.data) {
    TRY(linear_column_backward(m, b, layer, MODULE_GATE, a->n, s->h[MODULE_GATE], s->gate, dn, accumulate));
    accumulate = true;
  }
  return linear_column_backward(m, b, layer, MODULE_UP, a->n, s->h[MODULE_UP], s->up, dn, accumulate);
}

/* From dy (whole, act) to the gradient of attention's input norm output, dn: partial. */
static enum status attention_backward(struct model *m, const struct batch *b, int layer, struct layer_saved *s,
                                      struct tensor_view dy, struct tensor_view dn, bool accumulate) {
  const struct layer_weights *w = &m->weights.layers[layer];
  const struct layer_needs *needs = &m->needs[layer];
  struct activations *a = &m->acts;
  struct tensor_view wide = a->wide, d_attn;
  if (!needs->attn_out) wide.data = NULL;
  TRY(linear_row_backward(m, b, layer, MODULE_O, s->attn, s->h[MODULE_O], dy, wide));
  if (!needs->attn_out) return STATUS_OK;
  TRY(as_act(m, b->M, m->shard.heads.n * m->facts.head_dim, wide, a->hidden, &d_attn));
  if (m->pairs[layer][MODULE_Q] || m->pairs[layer][MODULE_K] || m->pairs[layer][MODULE_V])
    TRY(norm_again(m, &w->norm1, b->M, s->x1, s->stats1, a->n));
  if (!needs->x1) dn.data = NULL;
  return attention_sublayer_backward(m, b, layer, s, d_attn, dn, accumulate);
}

/* dx += what flows back through a norm. In a post-norm model the residual was
 * the norm's output, so dx itself flows through it as well. */
static enum status norm_output_backward(struct model *m, const struct norm_weights *norm, int64_t M,
                                        struct tensor_view x, const float *stats, struct tensor_view dn) {
  struct activations *a = &m->acts;
  const int64_t D = m->facts.d_model;
  if (!norm->w) return m->ops->add(m->device, M, D, dn, NULL, a->dx);
  if (!m->facts.post_norm) return m->ops->norm_backward(m->device, m->facts.norm, M, D, x, norm->w, stats, dn, a->dx);
  TRY(m->ops->add(m->device, M, D, a->dx, NULL, dn));
  TRY(m->ops->zero(m->device, M, D, a->dx));
  return m->ops->norm_backward(m->device, m->facts.norm, M, D, x, norm->w, stats, dn, a->dx);
}

static enum status backward_sequential(struct model *m, const struct batch *b, int layer, struct layer_saved *s) {
  const struct layer_weights *w = &m->weights.layers[layer];
  const struct layer_needs *needs = &m->needs[layer];
  struct activations *a = &m->acts;
  const int64_t D = m->facts.d_model;
  struct tensor_view dy;
  TRY(as_act(m, b->M, D, a->dx, a->dx_act, &dy));
  TRY(ffn_backward(m, b, layer, s, s->x2, dy, a->dn, false));
  if (!needs->x2) return STATUS_OK;
  TRY(comm_all_reduce_f32(m->tp, a->dn.data, b->M * D, REDUCE_SUM)); /* dn: partial -> whole */
  TRY(norm_output_backward(m, &w->norm2, b->M, s->x2, s->stats2, a->dn));
  TRY(as_act(m, b->M, D, a->dx, a->dx_act, &dy));
  TRY(attention_backward(m, b, layer, s, dy, a->dn, false));
  if (!needs->x1) return STATUS_OK;
  TRY(comm_all_reduce_f32(m->tp, a->dn.data, b->M * D, REDUCE_SUM)); /* dn: partial -> whole */
  return norm_output_backward(m, &w->norm1, b->M, s->x1, s->stats1, a->dn);
}

/* Both branches read x1. A norm's backward is linear in the gradient, so each rank
 * takes its partial gradients through both norms first, and one all-reduce of the
 * sum remains; branches that share their norm are summed before it. */
static enum status backward_parallel(struct model *m, const struct batch *b, int layer, struct layer_saved *s) {
  const struct layer_weights *w = &m->weights.layers[layer];
  const struct model_facts *f = &m->facts;
  struct activations *a = &m->acts;
  const int64_t D = f->d_model;
  const bool below = m->needs[layer].x1;
  struct tensor_view dy, sum = a->dn_sum;
  TRY(as_act(m, b->M, D, a->dx, a->dx_act, &dy));
  TRY(attention_backward(m, b, layer, s, dy, a->dn, false)); /* dn: partial */
  if (below && !f->shared_norm) {
    TRY(m->ops->zero(m->device, b->M, D, sum));
    TRY(m->ops->norm_backward(m->device, f->norm, b->M, D, s->x1, w->norm1.w, s->stats1, a->dn, sum)); /* partial */
  }
  TRY(ffn_backward(m, b, layer, s, s->x1, dy, a->dn, f->shared_norm));
  if (!below) return STATUS_OK;
  if (f->shared_norm) {
    TRY(comm_all_reduce_f32(m->tp, a->dn.data, b->M * D, REDUCE_SUM)); /* dn: partial -> whole */
    return norm_output_backward(m, &w->norm1, b->M, s->x1, s->stats1, a->dn);
  }
  TRY(m->ops->norm_backward(m->device, f->norm, b->M, D, s->x1, w->norm2.w, s->stats2, a->dn, sum)); /* partial */
  TRY(comm_all_reduce_f32(m->tp, sum.data, b->M * D, REDUCE_SUM));                                   /* -> whole */
  return m->ops->add(m->device, b->M, D, sum, NULL, a->dx);                                          /* whole + whole */
}

enum status block_backward(struct model *m, const struct batch *b, int layer, struct layer_saved *s) {
  return m->facts.parallel_residual ? backward_parallel(m, b, layer, s) : backward_sequential(m, b, layer, s);
}
