/*
 * model_facts.h: what a base model is, as numbers and flags, filled by io/ from
 * a config.json or from GGUF keys and read by everything else.
 */
#ifndef LORASHARD_IO_MODEL_FACTS_H
#define LORASHARD_IO_MODEL_FACTS_H

#include <stdbool.h>
#include <stdint.h>

#include "io/dtype.h"

enum norm_kind { NORM_LAYER, NORM_RMS };
enum activation { ACTIVATION_GELU, ACTIVATION_GELU_TANH, ACTIVATION_RELU, ACTIVATION_SILU };
enum position_kind { POSITION_LEARNED, POSITION_ROTARY, POSITION_ALIBI };
enum rope_scaling { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN, ROPE_DYNAMIC };

#define MODEL_FACTS_MAX_ROPE 256 /* rotary pairs a head can have */

struct model_facts {
  char family[16];       /* row of model/arch.c: "gpt2", "opt", "bloom", "gpt_neox", "gptj", "llama", ... */
  int64_t n_layers;      /* L */
  int64_t d_model;       /* D: width of the residual stream */
  int64_t d_embed;       /* width of the embedding rows; D but for opt-350m */
  int64_t n_heads;       /* H */
  int64_t n_kv_heads;    /* G; = H without grouped queries */
  int64_t head_dim;      /* width of one head; H head_dim need not be D */
  int64_t d_ffn;         /* F */
  int64_t n_vocab;       /* V: rows of the embedding */
  int64_t max_positions; /* longest sequence the model was made for */

  bool has_dtype;   /* a config.json names the type of the weights: */
  enum dtype dtype; /* f32, f16 or bf16. The tensors of a checkpoint have types of their own, which may differ */

  enum norm_kind norm;
  double norm_eps;
  enum activation activation;
  bool gated; /* ffn is down(act(gate x) * up x) */

  enum position_kind position;
  int64_t position_offset; /* learned: row = position + offset (opt: 2) */
  int64_t rotary_dim;      /* first dims of each head that rotate */
  bool rotary_interleaved; /* pairs (2i, 2i+1) instead of (i, i + n/2) */
  double rope_theta;
  enum rope_scaling rope_scaling;
  double rope_factor, rope_low_freq, rope_high_freq, rope_beta_fast, rope_beta_slow;
  double rope_attention_factor; /* yarn: 0 means 0.1 ln(factor) + 1 */
  int64_t rope_original_positions;
  bool has_rope_divisors;                    /* GGUF rope_freqs.weight is present: */
  float rope_divisors[MODEL_FACTS_MAX_ROPE]; /* [rotary_dim / 2]; f_i is divided by it */

  bool parallel_residual; /* attention and ffn both read the block's input */
  bool shared_norm;       /* parallel, with one norm for both (gptj) */
  bool post_norm;         /* norms after the residual addition (opt-350m) */
  bool final_norm;        /* a norm before the head */
  bool embed_norm;        /* a norm on the embeddings (bloom) */
  bool qk_norm;           /* RMSNorm over each head of q and k (qwen3) */
  bool bias_qkv, bias_o, bias_ffn;
  bool bias_norm; /* LayerNorm has a bias */
  bool tied_head; /* the head's weight is the embedding */
  bool bias_head;

  double attention_scale;        /* usually 1 / sqrt(head_dim) */
  bool attention_scale_by_layer; /* gpt2 option: divided by layer + 1 */
  int64_t sliding_window;        /* 0: none; else key j is seen from i iff i - window < j <= i */
  int64_t window_first_layer;    /* layers below it have no window */
};

#endif
