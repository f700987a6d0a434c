#include "model/head.h"

#include <math.h>

/* Rows of x_end -> head_n (or head_e): the head's input, whole. */
static enum status head_input(struct model *m, const int32_t *rows, int64_t n, struct tensor_view *input) {
  struct activations *a = &m->acts;
  const struct model_facts *f = &m->facts;
  const struct norm_weights *norm = &m->weights.final_norm;
  const int64_t D = f->d_model;
  TRY(m->ops->gather_rows(m->device, n, D, rows, a->x_end, a->head_x));
  if (norm->w)
    TRY(m->ops->norm_forward(m->device, f->norm, n, D, a->head_x, norm->w, norm->b, (float)f->norm_eps, a->head_n,
                             a->head_stats));
  else
    TRY(m->ops->cast(m->device, n, D, a->head_x, a->head_n));
  *input = a->head_n;
  if (!m->weights.project_out.data) return STATUS_OK;
  *input = a->head_e;
  return m->ops->linear_forward(m->device, n, a->head_n, &m->weights.project_out, NULL, a->head_e, false);
}

/* Max, sum of exponentials and target logit of a chunk over the whole
 * vocabulary: this rank's columns, then two small all-reduces (three vectors). */
static enum status chunk_statistics(struct model *m, int64_t n, const int32_t *targets, float *max, float *sum) {
  struct activations *a = &m->acts;
  const int64_t V = m->shard.vocab.n;
  TRY(m->ops->xent_max(m->device, n, V, a->logits, max));
  TRY(comm_all_reduce_f32(m->tp, max, n, REDUCE_MAX));
  TRY(m->ops->xent_sum(m->device, n, V, a->logits, max, targets, m->shard.vocab.first, sum, sum + n));
  return comm_all_reduce_f32(m->tp, sum, 2 * n, REDUCE_SUM); /* sum and target: partial -> whole */
}

static enum status chunk_backward(struct model *m, int64_t first, int64_t n, const int32_t *targets, const float *max,
                                  const float *sum, float g) {
  struct activations *a = &m->acts;
  struct tensor_view de = tensor_view_rows(m->weights.project_out.data ? a->head_de : a->head_dn, first);
  TRY(m->ops->xent_backward(m->device, n, m->shard.vocab.n, a->logits, max, sum, targets, m->shard.vocab.first, g,
                            a->dlogits));
  return m->ops->linear_backward(m->device, n, a->dlogits, &m->weights.head, de, false); /* partial */
}

/* From the partial gradients of the head's input rows to dx (whole). */
static enum status input_backward(struct model *m, const struct batch *b) {
  struct activations *a = &m->acts;
  const int64_t n = b->n_targets;
  const struct norm_weights *norm = &m->weights.final_norm;
  const int64_t D = m->facts.d_model;
  if (m->weights.project_out.data) /* partial through a replicated linear stays partial */
    TRY(m->ops->linear_backward(m->device, n, a->head_de, &m->weights.project_out, a->head_dn, false));
  TRY(comm_all_reduce_f32(m->tp, a->head_dn.data, n * D, REDUCE_SUM)); /* partial -> whole */
  TRY(m->ops->zero(m->device, b->M, D, a->dx));
  if (!norm->w) return m->ops->scatter_rows(m->device, n, D, b->target_rows, a->head_dn, a->dx);
  struct tensor_view through = a->dn; /* free at this point of the step */
  TRY(m->ops->zero(m->device, n, D, through));
  TRY(m->ops->norm_backward(m->device, m->facts.norm, n, D, a->head_x, norm->w, a->head_stats, a->head_dn, through));
  return m->ops->scatter_rows(m->device, n, D, b->target_rows, through, a->dx);
}

/* Where the max, sums and targets of a chunk lie in acts.xent: n each. */
static float *chunk_xent(float *xent, int64_t first) { return xent + 3 * first; }

enum status head_loss(struct model *m, const struct batch *b, bool backward, float g) {
  struct activations *a = &m->acts;
  struct tensor_view input;
  const int64_t n = b->n_targets;
  if (n == 0) return backward ? m->ops->zero(m->device, b->M, m->facts.d_model, a->dx) : STATUS_OK;
  TRY(head_input(m, b->target_rows, n, &input));
  for (int64_t first = 0; first < n; first += a->chunk) {
    int64_t now = n - first < a->chunk ? n - first : a->chunk;
    float *max = chunk_xent(a->xent, first), *sum = max + now;
    TRY(m->ops->linear_forward(m->device, now, tensor_view_rows(input, first), &m->weights.head, m->weights.head_bias,
                               a->logits, false)); /* shard of the vocabulary */
    TRY(chunk_statistics(m, now, b->targets + first, max, sum));
    if (backward) TRY(chunk_backward(m, first, now, b->targets + first, max, sum, g));
  }
  return backward ? input_backward(m, b) : STATUS_OK;
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
      if (nll) nll[a->batch.rows_host[first + i]] = (float)value;
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
  if (tp > 1) TRY(comm_all_gather(m->tp, own.data, (size_t)(n * part) * sizeof *all, all));
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
  TRY(head_input(m, b->target_rows, n, &input));
  for (int64_t first = 0; first < n; first += most) {
    int64_t now = n - first < most ? n - first : most;
    TRY(m->ops->linear_forward(m->device, now, tensor_view_rows(input, first), &m->weights.head, m->weights.head_bias,
                               a->logits, false));
    TRY(gather_vocabulary(m, now, a->logits, logits + first * m->facts.n_vocab));
  }
  return STATUS_OK;
}
