#include "model/pipeline.h"

#include "model/head.h"

/* A step on this stage. */
struct step {
  struct model *m;
  const struct micro_batches *source;
  float g;
  double *loss_sum;
};

static struct activation_set *set_of(const struct step *step, int64_t i) {
  return &step->m->acts.sets[i % step->m->acts.n_sets];
}

static int64_t stream_size(const struct model *m, const struct batch *b) { return b->own * m->facts.d_model; }
/* That of micro-batch i; 0 for -1, none. */
static int64_t size_of(const struct step *step, int64_t i) {
  return i < 0 ? 0 : stream_size(step->m, &set_of(step, i)->batch);
}

/* Neighbours in the pipeline, -1: none. Messages to nobody, and empty ones, are left out by comm_exchange_f32. */
static int before(const struct model *m) { return m->shard.stage.pp_rank - 1; }
static int behind(const struct model *m) { return shard_is_last_stage(&m->shard) ? -1 : m->shard.stage.pp_rank + 1; }

static enum status place(const struct step *step, int64_t i) {
  struct batch batch;
  TRY(step->source->next(step->source->context, i, &batch));
  return stage_place(step->m, &batch, set_of(step, i));
}

/* Micro-batch i goes through this stage; on the last one the loss is taken and its gradient begins. */
static enum status forward(const struct step *step, int64_t i) {
  struct model *m = step->m;
  struct activation_set *set = set_of(step, i);
  TRY(stage_forward(m, &set->batch, set->layers, NULL));
  if (!shard_is_last_stage(&m->shard)) return STATUS_OK;
  TRY(head_loss(m, &set->batch, model_has_backward(m), step->g));
  return head_collect(m, &set->batch, step->loss_sum, NULL);
}

static enum status backward(const struct step *step, int64_t i) {
  struct activation_set *set = set_of(step, i);
  return stage_backward(step->m, &set->batch, set->layers);
}

/* With the stage behind: the stream of micro-batch `out` to it, the gradient of `in` from it (-1: none). */
static enum status exchange_behind(const struct step *step, int64_t out, int64_t in) {
  struct model *m = step->m;
  return comm_exchange_f32(m->pp, m->acts.x_end.data, size_of(step, out), behind(m), m->acts.dx.data, size_of(step, in),
                           behind(m));
}

/* With the stage before: the gradient of `out` to it, the stream of `in` from it, which is placed first. */
static enum status exchange_before(const struct step *step, int64_t out, int64_t in) {
  struct model *m = step->m;
  /* Below the lowest adapter nobody wants it. Placing may reuse the set of `out`. */
  int64_t n_out = m->shard.stage.adapted_below ? size_of(step, out) : 0;
  if (in >= 0) TRY(place(step, in));
  float *input = in >= 0 ? stage_input(m, set_of(step, in)->layers).data : NULL;
  return comm_exchange_f32(m->pp, m->acts.dx.data, n_out, before(m), input, size_of(step, in), before(m));
}

/* 1F1B: `ahead` forward passes, then one of each, then what is left of backward. Below the lowest adapter a stage
 * only runs ahead. */
static enum status one_forward_one_backward(const struct step *step) {
  const struct stage *stage = &step->m->shard.stage;
  const int64_t n = step->source->n, stages_behind = stage->n_pp - 1 - stage->pp_rank;
  const bool has_backward = model_has_backward(step->m);
  const int64_t ahead = has_backward && stages_behind < n ? stages_behind : n;
  for (int64_t i = 0; i < ahead; i++) {
    TRY(exchange_before(step, -1, i));
    TRY(forward(step, i));
    TRY(exchange_behind(step, i, -1));
  }
  if (!has_backward) return STATUS_OK;
  if (ahead < n) TRY(exchange_before(step, -1, ahead));
  for (int64_t i = ahead; i < n; i++) {
    TRY(forward(step, i));
    TRY(exchange_behind(step, i, i - ahead));
    TRY(backward(step, i - ahead));
    TRY(exchange_before(step, i - ahead, i + 1 < n ? i + 1 : -1));
  }
  for (int64_t i = n - ahead; i < n; i++) {
    TRY(exchange_behind(step, -1, i));
    TRY(backward(step, i));
    TRY(exchange_before(step, i, -1));
  }
  return STATUS_OK;
}

enum status pipeline_train(struct model *m, const struct micro_batches *source, float g, double *loss_sum) {
  return one_forward_one_backward(&(struct step){m, source, g, loss_sum});
}

enum status pipeline_receive_input(struct model *m, const struct batch *b, struct layer_saved *layers) {
  return comm_exchange_f32(m->pp, NULL, 0, -1, stage_input(m, layers).data, stream_size(m, b), before(m));
}

enum status pipeline_send_output(struct model *m, const struct batch *b) {
  return comm_exchange_f32(m->pp, m->acts.x_end.data, stream_size(m, b), behind(m), NULL, 0, -1);
}

enum status pipeline_spread(struct model *m, void *data, size_t bytes) {
  return comm_broadcast(m->pp, data, bytes, m->shard.stage.n_pp - 1);
}
