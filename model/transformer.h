/*
 * transformer.h: the whole stack: embedding, blocks, head. Forward, backward and
 * what generation and scoring need.
 */
#ifndef LORASHARD_MODEL_TRANSFORMER_H
#define LORASHARD_MODEL_TRANSFORMER_H

#include "model/model.h"

/* The micro-batches of one step on this replica, in order; all ranks of the replica
 * see the same. `next` fills *batch with number i (rising by one), whose arrays are
 * free to be written again once the next is asked for. */
struct micro_batches {
  int64_t n;
  enum status (*next)(void *context, int64_t i, struct batch *batch);
  void *context;
};

/* Forward and backward of a step's micro-batches: *loss_sum += the negative
 * log-likelihood summed over their targets (f64), on the last stage (others: += 0);
 * every pair's dA and dB += g x d(loss_sum) (partial over tp as docs/architecture.md
 * says). g is 1 / targets of the whole global batch.
 *
 * Communication over tp, per micro-batch: 2 L + 1 (L + 1 parallel) all-reduces of
 * [M, D] forward, at most 2 L backward, and two small ones per chunk of targets;
 * with sequence parallelism a reduce-scatter and an all-gather in place of each.
 * Over pp: [T, D] f32 from stage to stage, once each way (model/pipeline.h). */
enum status transformer_train(struct model *model, const struct micro_batches *micro_batches, float g,
                              double *loss_sum);

/* Forward alone: *loss_sum += as above, same bits as in training without
 * dropout. nll, if not NULL: [M] the negative log-likelihood of each position
 * that has a label (others are the last stage's), on every rank. */
enum status transformer_loss(struct model *model, const struct batch *batch, double *loss_sum, float *nll);

/* Forward alone, logits of the given positions: [n, V] whole on every rank. */
enum status transformer_logits(struct model *model, const struct batch *batch, const int32_t *rows, int64_t n,
                               float *logits);

/* The first place of this rank's stage whose values are not all finite: -1 the
 * embeddings, 0 .. L - 1 the output of that layer, L none of them. */
enum status transformer_find_not_finite(struct model *model, const struct batch *batch, int *place);

/* A cache for one sequence of up to `capacity` tokens; put into model->cache
 * while decoding. */
enum status kv_cache_create(struct model *model, int64_t capacity, struct kv_cache **cache_p);
void kv_cache_destroy(struct model *model, struct kv_cache **cache_p);

/* Feed n tokens after those in the cache and give the logits [V] after the last
 * one. n may not be more than the prepared micro-batch. */
enum status transformer_decode(struct model *model, struct kv_cache *cache, const int32_t *ids, int64_t n,
                               float *logits);

#endif
