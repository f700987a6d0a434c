/*
 * weights.h: this rank's part of the frozen base, read slice by slice from a
 * tensor source into one arena. A rank of a pipeline has the layers of its stage;
 * the embedding is the first stage's, the head the last one's.
 *
 * Alphabet: D width of the residual stream, De width of the embedding rows (= D
 * but for opt-350m), V_t vocabulary rows, E head width, out_t and in_t a
 * linear's local sizes (model/shard.h).
 */
#ifndef LORASHARD_MODEL_WEIGHTS_H
#define LORASHARD_MODEL_WEIGHTS_H

#include "dist/comm.h"
#include "io/tensor_source.h"
#include "model/arch.h"
#include "model/memory.h"
#include "model/ops.h"
#include "model/shard.h"

/* A norm's parameters [n]; w NULL: no norm at this place (identity). */
struct norm_weights {
  float *w, *b;
};

struct layer_weights {
  struct norm_weights norm1;          /* [D] before attention */
  struct norm_weights norm2;          /* [D] before the ffn; none with a shared norm */
  float *q_norm, *k_norm;             /* [E] qwen3, else NULL */
  struct weight linear[MODULE_COUNT]; /* [out_t, in_t]; n_in 0: the model has none (gate) */
  float *bias[MODULE_COUNT];          /* column-parallel [out_t], row-parallel whole [D]; NULL: none */
};

struct weights {
  struct weight embed;            /* [V_t, De] */
  float *position;                /* [max_positions + offset, D], learned positions */
  struct norm_weights embed_norm; /* [D] bloom */
  struct weight project_in;       /* [D, De] whole, opt-350m */
  struct weight project_out;      /* [De, D] whole, opt-350m */
  struct norm_weights final_norm; /* [D] */
  struct weight head;             /* [V_t, De]; the embedding when tied, read again by a last stage without it */
  float *head_bias;               /* [V_t] gptj */
  struct layer_weights *layers;   /* [L], zeros but for this stage's */
  struct memory_table memory;
};

/* How weights are kept in memory. */
enum weight_storage {
  STORE_AS_FILE, /* as in the file; quantised blocks stay quantised */
  STORE_F32,
  STORE_BF16,
  /* The layers' linears so where the file has plain numbers and the format fits; all else as in the file. */
  STORE_F8,
  STORE_INT8,
  STORE_NF4,
};

struct weights_options {
  enum weight_storage storage;
  enum dtype compute; /* f32 or bf16: of what cannot be kept as it is stored */
  struct comm *tp;    /* the ranks that hold the other parts, all of which call; NULL: nobody */
  bool dry;           /* find and check all tensors and fill the memory table, but allocate and read nothing */
};

/* Find every tensor that this rank needs, check shapes and dtypes against the
 * facts, then allocate and read its slices and nothing else. A quantised
 * matrix whose column cut falls inside a block is kept in `compute`
 * instead, with the values of the blocks; so is what nf4 would cut inside a tile.
 * Numbers of int8 and nf4 do not depend on the cut. post_norm models get their norms shifted: see model/block.h.
 * On failure *weights holds what weights_release can free. STATUS_DATA names
 * tensor, file and what differs; STATUS_PEER: another rank of tp failed. */
enum status weights_load(struct device *device, struct tensor_source *source, const struct shard *shard,
                         const struct weights_options *options, struct weights *weights);

void weights_release(struct weights *weights, struct device *device);

#endif
