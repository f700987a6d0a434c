/*
 * model.h: one rank's part of the frozen transformer, with places for low-rank
 * pairs. The forward and backward passes are in block.h and transformer.h.
 *
 * Alphabet: M tokens of a micro-batch, D width of the residual stream, E head
 * width, H_t query heads and G_t KV heads of this rank, F_t FFN columns, V_t
 * vocabulary rows. "act" is the compute type, f32 or bf16.
 */
#ifndef LORASHARD_MODEL_MODEL_H
#define LORASHARD_MODEL_MODEL_H

#include "dist/comm.h"
#include "model/activations.h"
#include "model/batch.h"
#include "model/weights.h"

/* Which gradients a layer's backward pass must produce: nothing is computed
 * below the lowest adapter. */
struct layer_needs {
  bool x1;       /* gradient of the block's input */
  bool x2;       /* gradient of the ffn's residual input (sequential blocks) */
  bool hidden;   /* gradient of the ffn's hidden activations */
  bool attn_out; /* gradient of the attention's output */
};

/* Keys and values of the tokens so far, for decoding one sequence. */
struct kv_cache {
  int64_t length, capacity;  /* tokens */
  struct tensor_view *k, *v; /* [L] of [capacity, G_t E] act */
  struct memory_table memory;
};

/* What backward computes again. Norm outputs and activation functions always are:
 * they cost less than their memory. */
enum recompute {
  RECOMPUTE_NONE,
  RECOMPUTE_SELECTIVE, /* the ffn's pre-activations, from its input */
  RECOMPUTE_FULL,      /* whole layers, from their input */
};

struct model {
  struct device *device;
  const struct ops *ops;
  struct comm *tp, *pp; /* borrowed */
  struct model_facts facts;
  const struct arch *arch;
  struct shard shard;
  enum dtype act;
  struct weights weights;
  struct memory_table tables;                   /* of the next three */
  float *cos_sin;                               /* [n_positions, rotary_dim / 2, 2] */
  int64_t n_positions;                          /* longest sequence prepared for */
  float *alibi;                                 /* [H_t] or NULL */
  int32_t *kv_of_head;                          /* [H_t] shard.kv_of_head, for the device */
  const struct lowrank *(*pairs)[MODULE_COUNT]; /* [L] borrowed; NULL: no adapter */
  struct layer_needs *needs;                    /* [L] */
  int backward_from;                            /* lowest layer that backward reaches; the stage's end if none */
  bool dry, sequence;                           /* as the options below say; sequence only with tp > 1 */
  enum recompute recompute;
  struct activations acts;
  struct kv_cache *cache;                          /* NULL but while decoding */
  struct comm_counts graph_traffic[DEVICE_GRAPHS]; /* messages over tp that a recorded micro-batch holds */
};

/* Is there anything for backward to do on this stage? */
static inline bool model_has_backward(const struct model *model) {
  return model->backward_from < shard_end_layer(&model->shard);
}

struct model_options {
  enum dtype act; /* DTYPE_F32 or DTYPE_BF16 */
  enum weight_storage storage;
  int64_t n_positions;       /* longest sequence */
  const struct shard *shard; /* what this rank holds; copied */
  bool dry;                  /* fill the memory tables but read and allocate nothing (lorashard plan) */
};

struct prepare_options {
  int64_t max_tokens; /* of a micro-batch */
  bool training;      /* false: forward only */
  enum recompute recompute;
  bool sequence;   /* sequence parallelism: max_tokens, and M of every batch, are multiples of tp */
  int64_t n_micro; /* most micro-batches of a step; 0 counts as 1. Bounds the sets of activations of a stage */
};

/* Read this rank's weights, make the position tables. `tp` and `pp` are borrowed.
 * Collective over tp where weights are quantised. A dry run needs of the device
 * only host_memory, and no groups. STATUS_USAGE: the sequence is longer than the
 * model's learned positions. On success the model is the caller's. */
enum status model_create(struct device *device, struct tensor_source *source, struct comm *tp, struct comm *pp,
                         const struct model_options *options, struct model **model_p);
void model_destroy(struct model **model_p);

/* Put a low-rank pair on a linear; the pair stays the caller's and must outlive
 * its use. NULL takes it off. */
void model_attach(struct model *model, int layer, enum module module, const struct lowrank *pair);

/* After the last model_attach: decide what backward must compute and allocate
 * every activation buffer, model->acts.memory. */
enum status model_prepare(struct model *model, const struct prepare_options *options);

/* Parameters of a whole base model with these facts. */
int64_t model_base_parameters(const struct model_facts *facts);

#endif
