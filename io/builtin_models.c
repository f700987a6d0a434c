/*
 * The models that the program knows without files: what their published
 * config.json say, without what does not matter here. gpt3-175b is table 2.1 of
 * Brown et al., "Language Models are Few-Shot Learners" (2020), with all its
 * attention dense: the paper's sparse layers have the same weights.
 */
#include "io/synthetic_internal.h"

#define LLAMA_3_1(layers, width, heads, ffn)                                                           \
  "{\"model_type\": \"llama\", \"num_hidden_layers\": " #layers ", \"hidden_size\": " #width           \
  ", \"num_attention_heads\": " #heads ", \"num_key_value_heads\": 8, \"intermediate_size\": " #ffn    \
  ", \"vocab_size\": 128256, \"max_position_embeddings\": 131072, \"rms_norm_eps\": 1e-05, "           \
  "\"rope_theta\": 500000.0, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, "          \
  "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}, " \
  "\"tie_word_embeddings\": false}"

const struct builtin_model builtin_models[] = {
    {"gpt3-175b",
     "{\"model_type\": \"gpt2\", \"n_layer\": 96, \"n_embd\": 12288, \"n_head\": 96, \"n_inner\": 49152, "
     "\"n_positions\": 2048, \"vocab_size\": 50257, \"activation_function\": \"gelu_new\", "
     "\"layer_norm_epsilon\": 1e-05}"},
    {"bloom-176b",
     "{\"model_type\": \"bloom\", \"n_layer\": 70, \"n_embed\": 14336, \"num_attention_heads\": 112, "
     "\"vocab_size\": 250880, \"seq_length\": 2048, \"layer_norm_epsilon\": 1e-05}"},
    {"llama-3.1-405b", LLAMA_3_1(126, 16384, 128, 53248)},
    {"llama-3.1-70b", LLAMA_3_1(80, 8192, 64, 28672)},
    {"llama-3.1-8b", LLAMA_3_1(32, 4096, 32, 14336)},
    {"opt-66b",
     "{\"model_type\": \"opt\", \"num_hidden_layers\": 64, \"hidden_size\": 9216, \"num_attention_heads\": 72, "
     "\"ffn_dim\": 36864, \"word_embed_proj_dim\": 9216, \"vocab_size\": 50272, \"max_position_embeddings\": 2048, "
     "\"activation_function\": \"relu\", \"do_layer_norm_before\": true}"},
    {"gpt-neox-20b",
     "{\"model_type\": \"gpt_neox\", \"num_hidden_layers\": 44, \"hidden_size\": 6144, \"num_attention_heads\": 64, "
     "\"intermediate_size\": 24576, \"vocab_size\": 50432, \"max_position_embeddings\": 2048, "
     "\"hidden_act\": \"gelu_fast\", \"layer_norm_eps\": 1e-05, \"rotary_pct\": 0.25, \"rotary_emb_base\": 10000, "
     "\"use_parallel_residual\": true, \"tie_word_embeddings\": false}"},
    {"gpt2",
     "{\"model_type\": \"gpt2\", \"n_layer\": 12, \"n_embd\": 768, \"n_head\": 12, \"n_positions\": 1024, "
     "\"vocab_size\": 50257, \"activation_function\": \"gelu_new\", \"layer_norm_epsilon\": 1e-05}"},
    {"smollm2-135m",
     "{\"model_type\": \"llama\", \"num_hidden_layers\": 30, \"hidden_size\": 576, \"num_attention_heads\": 9, "
     "\"num_key_value_heads\": 3, \"intermediate_size\": 1536, \"vocab_size\": 49152, "
     "\"max_position_embeddings\": 8192, \"rms_norm_eps\": 1e-05, \"rope_theta\": 100000, "
     "\"tie_word_embeddings\": true}"},
    {0},
};
