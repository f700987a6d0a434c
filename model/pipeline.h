/*
 * pipeline.h: pipeline stages: what travels between them, and in which order a
 * step's micro-batches pass (1F1B: one forward, one backward).
 *
 * Source: Narayanan et al. 2019 (PipeDream), 2021 (Megatron-LM). A stage runs ahead
 * by as many forward passes as stages follow it, then alternates, so that it never
 * keeps the activations of more micro-batches than those and the one at hand. Messages are the residual
 * stream [T, D] f32 forward and its gradient backward, between ranks of equal tp and
 * dp place. Stages below the lowest adapter run forward only and get no gradient.
 */
#ifndef LORASHARD_MODEL_PIPELINE_H
#define LORASHARD_MODEL_PIPELINE_H

#include "model/transformer.h"

/* Who looks at the residual stream x [own, D] f32 on its way forward: called with the
 * embeddings (layer -1, on the first stage) and with each layer's output. */
struct onlooker {
  enum status (*look)(void *context, struct model *model, const struct batch *placed, int layer, struct tensor_view x);
  void *context;
};

/* One stage's part of a pass, in transformer.c. `layers` is a set's or acts.flowing. */
struct tensor_view stage_input(struct model *model, struct layer_saved *layers); /* [T, D] f32 */
/* set->batch = the batch in the set's buffers, and the rows of it that are this rank's. STATUS_USAGE: too many tokens
 * for the buffers, or with sequence parallelism no multiple of tp. */
enum status stage_place(struct model *model, const struct batch *batch, struct activation_set *set);
/* The first stage's input is the embeddings, which it makes; the others' must be there. Output: acts.x_end.
 * onlooker NULL: nobody looks. */
enum status stage_forward(struct model *model, const struct batch *placed, struct layer_saved *layers,
                          const struct onlooker *onlooker);
/* acts.dx: gradient of acts.x_end -> gradient of the stage's input, where adapters lie below. The pairs' dA, dB +=,
 * partial over tp as docs/architecture.md says. */
enum status stage_backward(struct model *model, const struct batch *placed, struct layer_saved *layers);

/* transformer_train over several stages. */
enum status pipeline_train(struct model *model, const struct micro_batches *micro_batches, float g, double *loss_sum);

/* A forward pass through all stages, each by itself: from the stage before into the
 * stage's input, and x_end to the stage behind. Nothing at the ends. */
enum status pipeline_receive_input(struct model *model, const struct batch *placed, struct layer_saved *layers);
enum status pipeline_send_output(struct model *model, const struct batch *placed);

/* The last stage's data [bytes], host memory, to all stages. */
enum status pipeline_spread(struct model *model, void *data, size_t bytes);

#endif
