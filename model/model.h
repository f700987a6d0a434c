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

struct model {
  struct device *device;
  const struct ops *ops;
  struct comm *tp; /* borrowed */
  struct model_facts facts;
  const struct arch *arch;
  struct shard shard;
  enum dtype act;
  struct weights weights;
  float *cos_sin;                               /* [n_positions, rotary_dim / 2, 2] */
  int64_t n_positions;                          /* longest sequence prepared for */
  float *alibi;                                 /* [H_t] or NULL */
  int32_t *kv_of_head;                          /* [H_t] shard.kv_of_head, for the device */
  const struct lowrank *(*pairs)[MODULE_COUNT]; /* [L] borrowed; NULL: no adapter */
  struct layer_needs *needs;                    /* [L] */
  int first_adapted;                            /* lowest layer with an adapter; L if none */
  struct activations acts;
  struct kv_cache *cache;                          /* NULL but while decoding */
  struct comm_counts graph_traffic[DEVICE_GRAPHS]; /* messages over tp that a recorded micro-batch holds */
};

struct model_options {
  enum dtype act; /* DTYPE_F32 or DTYPE_BF16 */
  enum weight_storage storage;
  int64_t n_positions; /* longest sequence */
};

/* Plan the shard, read this rank's weights, make the position tables. `tp` is
 * borrowed. STATUS_USAGE: the sequence is longer than the model's learned
 * positions, the layout cannot be dealt. On success the model is the caller's. */
enum status model_create(struct device *device, struct tensor_source *source, struct comm *tp,
                         const struct model_options *options, struct model **model_p);
void model_destroy(struct model **model_p);

/* Put a low-rank pair on a linear; the pair stays the caller's and must outlive
 * its use. NULL takes it off. */
void model_attach(struct model *model, int layer, enum module module, const struct lowrank *pair);

/* After the last model_attach: decide what backward must compute and allocate
 * every activation buffer for micro-batches of up to max_tokens. `training`
 * false: forward only. */
enum status model_prepare(struct model *model, int64_t max_tokens, bool training);

/* Parameters of a whole base model with these facts. */
int64_t model_base_parameters(const struct model_facts *facts);

#endif
