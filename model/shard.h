/*
 * shard.h: which heads, FFN columns and vocabulary rows each tp rank holds, and
 * which layers each pipeline stage. Pure functions of the model's facts and the number of ranks.
 */
#ifndef LORASHARD_MODEL_SHARD_H
#define LORASHARD_MODEL_SHARD_H

#include "io/model_facts.h"
#include "io/status.h"
#include "model/arch.h"

#define SHARD_MAX_HEADS 1024 /* query heads of one rank */

/* Contiguous part [first, first + n) of an axis. */
struct span {
  int64_t first, n;
};

/* The layers of one pipeline stage. The first stage has the embedding, the last
 * the final norm and the head. */
struct stage {
  int n_pp, pp_rank;
  struct span layers;
  bool adapted_below; /* an earlier stage has adapters: backward goes through all of this one's layers and on to it */
};

struct shard {
  struct stage stage;
  int n_tp, tp_rank;
  struct span heads;                   /* query heads */
  struct span kv_heads;                /* the KV heads that they read */
  bool kv_replicated;                  /* some KV head is held by several ranks */
  int32_t kv_of_head[SHARD_MAX_HEADS]; /* local query head -> local KV head */
  struct span ffn;                     /* FFN columns */
  struct span vocab;                   /* real rows of the embedding and head; padding is never stored */
};

/* Deal the model over n_tp ranks and say what rank tp_rank gets. With n_tp <= G
 * heads go in whole KV groups; beyond that query heads are dealt evenly and KV
 * heads replicated. FFN columns go in multiples of 64 (32 or fewer for narrow models),
 * more of them to ranks with fewer heads, so that the work is even. The
 * vocabulary is cut into equal parts of ceil(V / n_tp); the last may be short.
 * STATUS_USAGE when there are more ranks than query heads or FFN columns. */
enum status shard_plan(const struct model_facts *facts, int n_tp, int tp_rank, struct shard *shard);

/* Deal the layers over n_pp stages, contiguous and so that the slowest stage is
 * as fast as can be: forward and backward of a layer and of the head count with
 * their products, layers below first_adapted (the lowest adapted layer of the whole
 * model; L if none) without backward, the embedding with nothing. shard_plan itself
 * makes one stage of all layers. STATUS_USAGE when there are more stages than layers. */
enum status shard_plan_stage(const struct model_facts *facts, int first_adapted, int n_pp, int pp_rank,
                             struct shard *shard);

/* The stage's layers: from the first on, below the end. */
static inline int shard_first_layer(const struct shard *shard) { return (int)shard->stage.layers.first; }
static inline int shard_end_layer(const struct shard *shard) {
  return (int)(shard->stage.layers.first + shard->stage.layers.n);
}
static inline bool shard_has_layer(const struct shard *shard, int64_t layer) {
  return layer >= shard_first_layer(shard) && layer < shard_end_layer(shard);
}
static inline bool shard_is_first_stage(const struct shard *shard) { return shard->stage.pp_rank == 0; }
static inline bool shard_is_last_stage(const struct shard *shard) {
  return shard->stage.pp_rank == shard->stage.n_pp - 1;
}

/* Whole size and this rank's part of a linear's outputs and inputs. */
struct linear_dims {
  int64_t out, in;         /* whole */
  struct span out_t, in_t; /* this rank's */
};
struct linear_dims shard_linear(const struct shard *shard, const struct model_facts *facts, enum module module);

/* Multiplications per token of this rank's linears in one layer, for the balance. */
int64_t shard_layer_work(const struct shard *shard, const struct model_facts *facts);

#endif
