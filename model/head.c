#include "model/head.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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

static enum status chunk_backward(struct model *m, int64_t first, int64_t n, const float *max, const float *sum,
                                  float g) {
  struct activations *a = &m->acts;
  struct tensor_view de = tensor_view_rows(m->weights.project_out.data ? a->head_de : a->head_dn, first);
  TRY(m->ops->xent_backward(m->device, n, m->shard.vocab.n, a->logits, max, sum, a->targets + first,
                            m->shard.vocab.first, g, a->dlogits));
  return m->ops->linear_backward(m->device, n, a->dlogits, &m->weights.head, de, false); /* partial */
}

/* From the partial gradients of the head's input rows to dx (whole). */
static enum status input_backward(struct model *m, const struct batch *b, int64_t n) {
  struct activations *a = &m->acts;
  const struct norm_weights *norm = &m->weights.final_norm;
  const int64_t D = m->facts.d_model;
  if (m->weights.project_out.data) /* partial through a replicated linear stays partial */
    TRY(m->ops->linear_backward(m->device, n, a->head_de, &m->weights.project_out, a->head_dn, false));
  TRY(comm_all_reduce_f32(m->tp, a->head_dn.data, n * D, REDUCE_SUM)); /* partial -> whole */
  TRY(m->ops->zero(m->device, b->M, D, a->dx));
  if (!norm->w) return m->ops->scatter_rows(m->device, n, D, a->target_rows, a->head_dn, a->dx);
  struct tensor_view through = a->dn; /* free at this point of the step */
  TRY(m->ops->zero(m->device, n, D, through));
  TRY(m->ops->norm_backward(m->device, m->facts.norm, n, D, a->head_x, norm->w, a->head_stats, a->head_dn, through));
  return m->ops->scatter_rows(m->device, n, D, a->target_rows, through, a->dx);
}

static int64_t collect_targets(struct activations *a, const struct batch *b) {
  int64_t n = 0;
  for (int64_t t = 0; b->labels && t < b->M; t++)
    if (b->labels[t] >= 0) {
      a->target_rows[n] = (int32_t)t;
      a->targets[n++] = b->labels[t];
    }
  return n;
}

enum status head_loss(struct model *m, const struct batch *b, bool backward, float g, double *loss_sum, float *nll) {
  struct activations *a = &m->acts;
  struct tensor_view input;
  int64_t n = collect_targets(a, b);
  if (n == 0) return backward ? m->ops->zero(m->device, b->M, m->facts.d_model, a->dx) : STATUS_OK;
  TRY(head_input(m, a->target_rows, n, &input));
  double loss = 0;
  for (int64_t first = 0; first < n; first += a->chunk) {
    int64_t now = n - first < a->chunk ? n - first : a->chunk;
    float *max = a->xent, *sum = max + now, *target = sum + now;
    TRY(m->ops->linear_forward(m->device, now, tensor_view_rows(input, first), &m->weights.head, m->weights.head_bias,
                               a->logits, false)); /* shard of the vocabulary */
    TRY(chunk_statistics(m, now, a->targets + first, max, sum));
    for (int64_t i = 0; i < now; i++) {
      double value = log((double)sum[i]) - (double)target[i];
      loss += value;
      if (nll) nll[a->target_rows[first + i]] = (float)value;
    }
    if (backward) TRY(chunk_backward(m, first, now, max, sum, g));
  }
  *loss_sum += loss;
  return backward ? input_backward(m, b, n) : STATUS_OK;
}

/* This rank's columns of every row, gathered: parts are ceil(V / tp) wide. */
static enum status gather_vocabulary(struct model *m, int64_t n, const float *local, float *logits) {
  const int64_t V = m->facts.n_vocab, tp = comm_size(m->tp), part = (V + tp - 1) / tp;
  float *padded = calloc((size_t)(n * part * (tp + 1)), sizeof *padded), *all = padded + n * part;
  if (!padded) return status_set(STATUS_SYSTEM, "out of memory for %lld rows of logits", (long long)n);
  for (int64_t i = 0; i < n; i++)
    memcpy(padded + i * part, local + i * m->acts.logits.ld, (size_t)m->shard.vocab.n * sizeof *padded);
  enum status status = comm_all_gather(m->tp, padded, (size_t)(n * part) * sizeof *padded, all);
  for (int64_t t = 0; t < tp && status == STATUS_OK; t++)
    for (int64_t i = 0; i < n; i++)
      for (int64_t v = 0; v < part && t * part + v < V; v++) logits[i * V + t * part + v] = all[(t * n + i) * part + v];
  free(padded);
  return status;
}

enum status head_logits(struct model *m, const int32_t *rows, int64_t n, float *logits) {
  struct activations *a = &m->acts;
  struct tensor_view input;
  TRY(head_input(m, rows, n, &input));
  for (int64_t first = 0; first < n; first += a->chunk) {
    int64_t now = n - first < a->chunk ? n - first : a->chunk;
    TRY(m->ops->linear_forward(m->device, now, tensor_view_rows(input, first), &m->weights.head, m->weights.head_bias,
                               a->logits, false));
    TRY(gather_vocabulary(m, now, a->logits.data, logits + first * m->facts.n_vocab));
  }
  return STATUS_OK;
}
