#include "model/head.h"

#include <math.h>

/* Final norm of n rows, or a copy where there is none. */
static enum status final_norm(struct model *m, int64_t n, struct tensor_view x, struct tensor_view y) {
  const struct model_facts *f = &m->facts;
  const struct norm_weights *norm = &m->weights.final_norm;
  if (!norm->w) return m->ops->cast(m->device, n, f->d_model, x, y);
  return m->ops->norm_forward(m->device, f->norm, n, f->d_model, x, norm->w, norm->b, (float)f->norm_eps, y,
                              m->acts.head_stats);
}

/* The stream's rows with a target through the final norm. With sequence parallelism a rank norms its own rows and
 * all are gathered; chunk_input picks those with a target. */
static enum status head_input(struct model *m, const struct batch *b) {
  struct activations *a = &m->acts;
  const int64_t D = m->facts.d_model;
  if (!m->sequence) {
    TRY(m->ops->gather_rows(m->device, b->n_targets, D, b->target_rows, a->x_end, a->head_x));
    return final_norm(m, b->n_targets, a->head_x, a->head_n);
  }
  struct tensor_view all = {a->n.data, D, m->act}, own = tensor_view_rows(all, b->own_first);
  TRY(final_norm(m, b->own, a->x_end, own));
  return comm_all_gather(m->tp, own.data, dtype_bytes(m->act, b->own * D), all.data); /* shard -> whole */
}

/* Rows [first, first + n) of the targets: the head's input, whole. */
static enum status chunk_input(struct model *m, const struct batch *b, int64_t first, int64_t n,
                               struct tensor_view *input) {
  struct activations *a = &m->acts;
  const int64_t D = m->facts.d_model;
  *input = m->sequence ? a->head_n : tensor_view_rows(a->head_n, first);
  if (m->sequence)
    TRY(m->ops->gather_rows(m->device, n, D, b->target_rows + first, (struct tensor_view){a->n.data, D, m->act},
                            *input));
  if (!m->weights.project_out.data) return STATUS_OK;
  TRY(m->ops->linear_forward(m->device, n, *input, &m->weights.project_out, NULL, a->head_e, false));
  *input = a->head_e;
  return STATUS_OK;
}

/* Max, sum of exponentials and target logit of a chunk over the whole
 * vocabulary: this rank's columns, then two small all-reduces (three vectors). */
static enum status chunk_statistics(struct model *m, int64_t n, const int32_t *targets, float *max, float *sum) {
  struct activations *a = &m->acts;
  const int64_t V = m->shard.vocab.n;
  TRY(m->ops->xent_max(m->device, n, V, a->logits, max));
  TRY(comm_all_reduce_f32(m->tp, max, n, REDUCE_MAX)); /* of a shard of the vocabulary -> of the whole */
  TRY(m->ops->xent_sum(m->device, n, V, a->logits, max, targets, m->shard.vocab.first, sum, sum + n));
  return comm_all_reduce_f32(m->tp, sum, 2 * n, REDUCE_SUM); /* sum and target: partial -> whole */
}

/* head_dn = the gradient of the head's input for a chunk: partial. With sequence parallelism the rows of acts.partial
 * that it belongs to = it. */
static enum status chunk_backward(struct model *m, const struct batch *b, int64_t first, int64_t n, const float *max,
                                  const float *sum, float g) {
  struct activations *a = &m->acts;
  const struct weight *project_out = &m->weights.project_out;
  struct tensor_view dn = m->sequence ? a->head_dn : tensor_view_rows(a->head_dn, first);
  struct tensor_view de = project_out->data ? a->head_de : dn;
  TRY(m->ops->xent_backward(m->device, n, m->shard.vocab.n, a->logits, max, sum, b->targets + first,
                            m->shard.vocab.first, g, a->dlogits));
  TRY(m->ops->linear_backward(m->device, n, a->dlogits, &m->weights.head, de, false)); /* partial */
  /* partial through a replicated linear stays partial */
  if (project_out->data) TRY(m->ops->linear_backward(m->device, n, de, project_out, dn, false));
  if (!m->sequence) return STATUS_OK;
  return m->ops->scatter_rows(m->device, n, m->facts.d_model, b->target_rows + first, dn,
                              (struct tensor_view){a->partial.data, m->facts.d_model, DTYPE_F32});
}

/* dx = (whole) what follows from head_dn, the partial gradients of the head's input rows. */
static enum status input_backward(struct model *m, const struct batch *b) {
  struct activations *a = &m->acts;
  const int64_t n = b->n_targets;
  const struct norm_weights *norm = &m->weights.final_norm;
  const int64_t D = m->facts.d_model;
  TRY(comm_all_reduce_f32(m->tp, a->head_dn.data, n * D, REDUCE_SUM)); /* partial -> whole */
  TRY(m->ops->zero(m->device, b->M, D, a->dx));
  if (!norm->w) return m->ops->scatter_rows(m->device, n, D, b->target_rows, a->head_dn, a->dx);
  struct tensor_view through = a->dn; /* free at this point of the step */
  TRY(m->ops->zero(m->device, n, D, through));
  TRY(m->ops->norm_backward(m->device, m->facts.norm, n, D, a->head_x, norm->w, a->head_stats, a->head_dn, through));
  return m->ops->scatter_rows(m->device, n, D, b->target_rows, through, a->dx);
}

/* The same with sequence parallelism, dx = own rows: sum acts.partial over tp, then own rows through the norm. */
static enum status input_backward_split(struct model *m, const struct batch *b) {
  struct activations *a = &m->acts;
  const struct norm_weights *norm = &m->weights.final_norm;
  const int64_t D = m->facts.d_model;
  struct tensor_view own = {(float *)a->partial.data + b->own_first * D, D, DTYPE_F32};
  TRY(comm_reduce_scatter_f32(m->tp, a->partial.data, b->own * D, own.data)); /* partial -> own rows */
  TRY(m->ops->zero(m->device, b->own, D, a->dx));
  if (!norm->w) return m->ops->add(m->device, b->own, D, own, NULL, a->dx);
  return m->ops->norm_backward(m->device, m->facts.norm, b->own, D, a->x_end, norm->w, a->head_stats, own, a->dx);
}

/* Where the max, sums and targets of a chunk lie in acts.xent: n each. */
static float *chunk_xent(float *xent, int64_t first) { return xent + 3 * first; }

enum status head_loss(struct model *m, const struct batch *b, bool backward, float g) {
  struct activations *a = &m->acts;
  struct tensor_view input;
  const int64_t n = b->n_targets, D = m->facts.d_model;
  if (n == 0) return backward ? m->ops->zero(m->device, b->own, D, a->dx) : STATUS_OK;
  TRY(head_input(m, b));
  if (backward && m->sequence)
    TRY(m->ops->zero(m->device, b->M, D, (struct tensor_view){a->partial.data, D, DTYPE_F32}));
  for (int64_t first = 0; first < n; first += a->chunk) {
    int64_t now = n - first < a->chunk ? n - first : a->chunk;
    float *max = chunk_xent(a->xent, first), *sum = max + now;
    TRY(chunk_input(m, b, first, now, &input));
    TRY(m->ops->linear_forward(m->device, now, input, &m->weights.head, m->weights.head_bias, a->logits,
                               false)); /* shard of the vocabulary */
    TRY(chunk_statistics(m, now, b->targets + first, max, sum));
    if (backward) TRY(chunk_backward(m, b, first, now, max, sum, g));
  }
  if (!backward) return STATUS_OK;
  return m->sequence ? input_backward_split(m, b) : input_backward(m, b);
}

enum status head_collect(struct model *m, const struct batch *b, double *loss_sum, float *nll) {
  struct activations *a = &m->acts;
  const int64_t n = b->n_targets;
  double loss = 0;
  if (a->xent_host != a->xent) TRY(device_copy_out(m->device, a->xent_host, a->xent, (size_t)(3 * n) * sizeof(float)));
  for (int64_t first = 0; first < n; first += a->chunk) {
    int64_t now = n - first < a->chunk ? n - first : a->chunk;
    const float *sum = chunk_xent(a->xent_host, first) + now, *target = sum + now;
    for (int64_t i = 0; i < now; i++) {
      double value = log((double)sum[i]) - (double)target[i];
      loss += value;
      if (nll) nll[b->rows_host[first + i]] = (float)value;
    }
  }
  *loss_sum += loss;
  return STATUS_OK;
}

/* This rank's columns of n rows of logits, gathered into rows of the whole vocabulary: parts are ceil(V / tp) wide. */
static enum status gather_vocabulary(struct model *m, int64_t n, struct tensor_view local, float *logits) {
  const int64_t V = m->facts.n_vocab, tp = comm_size(m->tp), part = (V + tp - 1) / tp;
  struct tensor_view own = {m->acts.shares, part, DTYPE_F32};
  float *all = tp == 1 ? m->acts.shares : m->acts.shares + n * part;
  TRY(m->ops->cast(m->device, n, m->shard.vocab.n, local, own));
  if (tp > 1) TRY(comm_all_gather(m->tp, own.data, (size_t)(n * part) * sizeof *all, all)); /* shard -> whole */
  for (int64_t i = 0; i < n; i++)
    for (int64_t t = 0; t < tp && t * part < V; t++) {
      int64_t width = V - t * part < part ? V - t * part : part;
      TRY(device_copy_out(m->device, logits + i * V + t * part, all + (t * n + i) * part,
                          (size_t)width * sizeof *logits));
    }
  return STATUS_OK;
}

enum status head_logits(struct model *m, const struct batch *b, float *logits) {
  struct activations *a = &m->acts;
  struct tensor_view input;
  const int64_t n = b->n_targets, most = a->chunk < GATHER_ROWS ? a->chunk : GATHER_ROWS;
  TRY(head_input(m, b));
  for (int64_t first = 0; first < n; first += most) {
    int64_t now = n - first < most ? n - first : most;
    TRY(chunk_input(m, b, first, now, &input));
    TRY(m->ops->linear_forward(m->device, now, input, &m->weights.head, m->weights.head_bias, a->logits, false));
    TRY(gather_vocabulary(m, now, a->logits, logits + first * m->facts.n_vocab));
  }
  return STATUS_OK;
}
