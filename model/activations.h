/*
 * activations.h: what forward keeps for backward, and the scratch of both.
 *
 * Kept per layer: the residual stream before each norm and the norms'
 * statistics, q k v after rotary, attention output and log-sum-exp, the FFN's
 * pre-activations, the adapters' x A'. Norm outputs and FFN activations are
 * computed again in backward from these: cheaper than their memory. Selective
 * recomputation does not keep the pre-activations, full recomputation only the
 * residual stream before the layer; layers below the lowest adapter keep nothing.
 * What a layer does not keep lies in one of two flowing sets that all share.
 *
 * Alphabet as in model.h; T: rows of the residual stream that this rank holds, M
 * but with sequence parallelism M / tp.
 */
#ifndef LORASHARD_MODEL_ACTIVATIONS_H
#define LORASHARD_MODEL_ACTIVATIONS_H

#include "model/arch.h"
#include "model/batch.h"
#include "model/memory.h"
#include "model/ops.h"

struct layer_saved {
  struct tensor_view x1;     /* [T, D] f32: residual stream before norm1 */
  struct tensor_view x2;     /* [T, D] f32: before norm2 (sequential blocks) */
  float *stats1, *stats2;    /* [T, 2] */
  struct tensor_view qk_raw; /* [M, (H_t + G_t) E] act: q, k before their norms (qwen3) */
  float *q_stats, *k_stats;  /* [M, H_t], [M, G_t] */
  struct tensor_view qkv;    /* [M, (H_t + 2 G_t) E] act: after norm and rotary */
  struct tensor_view attn;   /* [M, H_t E] act */
  float *lse;                /* [H_t, M] */
  struct tensor_view gate;   /* [M, F_t] act; data NULL without a gate */
  struct tensor_view up;     /* [M, F_t] act */
  float *h[MODULE_COUNT];    /* [M, r]: x A' of each adapter */
};

/* A micro-batch between its forward and its backward pass. */
struct activation_set {
  struct layer_saved *layers; /* [L]: those of the stage are filled */
  struct batch_buffers buffers;
  struct batch batch; /* placed in the buffers */
};

/* Tokens of one chunk of the head's logits: the same on every tp rank, for they
 * reduce each chunk together. Larger on a device with its own memory, which needs
 * more rows for a product at full rate. */
int64_t activations_chunk(int64_t n_vocab, int n_tp, bool host_memory);

/* Rows of logits that are gathered over tp at a time. */
#define GATHER_ROWS 4

struct activations {
  int64_t max_tokens, own_tokens; /* most M and T */
  bool training;
  int n_sets;                  /* micro-batches under way at a time: more than one only in a pipeline */
  struct activation_set *sets; /* [n_sets] */
  struct layer_saved *flowing; /* [L] for evaluation: nothing kept */
  struct tensor_view x_end;    /* [T, D] f32: residual stream after the last block of the stage */
  struct tensor_view n;        /* [M, D] act: a norm's output; with sequence parallelism rows [n | h] (exchange.h) */
  struct tensor_view hidden;   /* [M, max(F_t, H_t E)] act: ffn activations; gradients in bf16 */
  struct tensor_view embed;    /* [T, De] f32: embedding rows before project_in */
  float *embed_stats;          /* [T, 2]: of the norm on the embeddings; on the first stage */
  struct tensor_view partial;  /* sequence parallelism: [M, D + columns] f32: what will be reduce-scattered */
  struct tensor_view own_n;    /* sequence parallelism: [T, D] act: a norm's output again */
  float *u;                    /* sequence parallelism: [M, r] */
  /* backward */
  struct tensor_view dx;     /* [T, D] f32: gradient of the residual stream */
  struct tensor_view dx_act; /* [M, D] bf16 copy for products; data NULL in f32 and with sequence parallelism */
  struct tensor_view dn;     /* [M, D] f32: gradient of a norm's output; NULL with sequence parallelism */
  struct tensor_view dn_sum; /* [M, D] f32: of both norms, taken through them; parallel blocks with two norms */
  struct tensor_view wide;   /* [M, max(F_t, H_t E)] f32 */
  struct tensor_view dqkv;   /* [M, (H_t + 2 G_t) E] act */
  /* head, on the last stage: only tokens that have a target, in chunks of `chunk`; C: M, or with sequence
   * parallelism chunk */
  int64_t chunk;
  struct tensor_view head_x;  /* [M, D] f32; NULL with sequence parallelism */
  float *head_stats;          /* [M, 2] */
  struct tensor_view head_n;  /* [C, D] act */
  struct tensor_view head_e;  /* [chunk, De] act, with project_out */
  struct tensor_view head_dn; /* [C, D] f32 */
  struct tensor_view head_de; /* [chunk, De] act, with project_out */
  struct tensor_view logits;  /* [chunk, V_t] f32 */
  struct tensor_view dlogits; /* [chunk, V_t] act; = logits in f32 */
  float *xent;                /* [M / chunk] of [3, chunk]: max, sum of exponentials, target */
  float *xent_host;           /* the same in host memory; = xent on a device with host memory */
  float *shares;              /* [1 + tp, GATHER_ROWS, ceil(V / tp)]: this rank's logits, all ranks' */
  void *host; /* pinned memory of the sets' host buffers and xent_host; NULL on a device with host memory */
  struct memory_table memory;
  size_t kept; /* bytes of its arena that hold something from forward to backward */
};

#endif
