/*
 * Configuration keys of each family, with the defaults of its class: a
 * config.json may leave out every field that equals its default, so the
 * defaults are part of the format.
 */
#include <jansson.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/base_model.h"
#include "io/file_read.h"
#include "io/model_facts_internal.h"
#include "model/arch.h"

/* One integer key: where it goes, its name, another name it goes by (or NULL),
 * its class's default, and whether null is a value, meaning 0: derive it. */
struct int_key {
  size_t offset;
  const char *key, *alias;
  int64_t value;
  bool nullable;
};

#define FACT(field) offsetof(struct model_facts, field)

static const struct int_key gpt2_ints[] = {
    {FACT(n_vocab), "vocab_size", NULL, 50257},
    {FACT(max_positions), "n_positions", "max_position_embeddings", 1024},
    {FACT(d_model), "n_embd", "hidden_size", 768},
    {FACT(n_layers), "n_layer", "num_hidden_layers", 12},
    {FACT(n_heads), "n_head", "num_attention_heads", 12},
    {FACT(d_ffn), "n_inner", NULL, 0, true},
    {0},
};
static const struct int_key opt_ints[] = {
    {FACT(n_vocab), "vocab_size", NULL, 50272},
    {FACT(max_positions), "max_position_embeddings", NULL, 2048},
    {FACT(d_model), "hidden_size", NULL, 768},
    {FACT(d_embed), "word_embed_proj_dim", NULL, 0, true},
    {FACT(n_layers), "num_hidden_layers", NULL, 12},
    {FACT(n_heads), "num_attention_heads", NULL, 12},
    {FACT(d_ffn), "ffn_dim", NULL, 3072},
    {0},
};
static const struct int_key bloom_ints[] = {
    {FACT(n_vocab), "vocab_size", NULL, 250880},
    {FACT(max_positions), "seq_length", NULL, 2048}, /* what it was trained with; ALiBi itself has no limit */
    {FACT(d_model), "n_embed", "hidden_size", 64},
    {FACT(n_layers), "n_layer", "num_hidden_layers", 2},
    {FACT(n_heads), "n_head", "num_attention_heads", 8},
    {0},
};
static const struct int_key gpt_neox_ints[] = {
    {FACT(n_vocab), "vocab_size", NULL, 50432},
    {FACT(max_positions), "max_position_embeddings", NULL, 2048},
    {FACT(d_model), "hidden_size", NULL, 6144},
    {FACT(n_layers), "num_hidden_layers", NULL, 44},
    {FACT(n_heads), "num_attention_heads", NULL, 64},
    {FACT(d_ffn), "intermediate_size", NULL, 24576},
    {0},
};
static const struct int_key gptj_ints[] = {
    {FACT(n_vocab), "vocab_size", NULL, 50400},
    {FACT(max_positions), "n_positions", "max_position_embeddings", 2048},
    {FACT(d_model), "n_embd", "hidden_size", 4096},
    {FACT(n_layers), "n_layer", "num_hidden_layers", 28},
    {FACT(n_heads), "n_head", "num_attention_heads", 16},
    {FACT(rotary_dim), "rotary_dim", NULL, 64},
    {FACT(d_ffn), "n_inner", NULL, 0, true},
    {0},
};
static const struct int_key llama_ints[] = {
    {FACT(n_vocab), "vocab_size", NULL, 32000},
    {FACT(max_positions), "max_position_embeddings", NULL, 2048},
    {FACT(d_model), "hidden_size", NULL, 4096},
    {FACT(n_layers), "num_hidden_layers", NULL, 32},
    {FACT(n_heads), "num_attention_heads", NULL, 32},
    {FACT(n_kv_heads), "num_key_value_heads", NULL, 0, true},
    {FACT(head_dim), "head_dim", NULL, 0, true},
    {FACT(d_ffn), "intermediate_size", NULL, 11008},
    {0},
};
static const struct int_key mistral_ints[] = {
    {FACT(n_vocab), "vocab_size", NULL, 32000},
    {FACT(max_positions), "max_position_embeddings", NULL, 131072},
    {FACT(d_model), "hidden_size", NULL, 4096},
    {FACT(n_layers), "num_hidden_layers", NULL, 32},
    {FACT(n_heads), "num_attention_heads", NULL, 32},
    {FACT(n_kv_heads), "num_key_value_heads", NULL, 8, true},
    {FACT(head_dim), "head_dim", NULL, 0, true},
    {FACT(d_ffn), "intermediate_size", NULL, 14336},
    {FACT(sliding_window), "sliding_window", NULL, 4096, true},
    {0},
};
#define QWEN_INTS(default_head_dim)                                                                                  \
  {                                                                                                                  \
    {FACT(n_vocab), "vocab_size", NULL, 151936}, {FACT(max_positions), "max_position_embeddings", NULL, 32768},      \
        {FACT(d_model), "hidden_size", NULL, 4096}, {FACT(n_layers), "num_hidden_layers", NULL, 32},                 \
        {FACT(n_heads), "num_attention_heads", NULL, 32}, {FACT(n_kv_heads), "num_key_value_heads", NULL, 32, true}, \
        {FACT(head_dim), "head_dim", NULL, default_head_dim, true}, {FACT(d_ffn), "intermediate_size", NULL, 22016}, \
        {FACT(sliding_window), "sliding_window", NULL, 4096, true},                                                  \
        {FACT(window_first_layer), "max_window_layers", NULL, 28}, {0},                                              \
  }
static const struct int_key qwen2_ints[] = QWEN_INTS(0);
static const struct int_key qwen3_ints[] = QWEN_INTS(128);

static const struct family_keys {
  const char *family;
  const struct int_key *ints;
  const char *eps; /* key; NULL: fixed */
  double eps_value;
  const char *activation; /* key; NULL: fixed */
  const char *activation_value;
  enum norm_kind norm;
  enum position_kind position;
  bool gated, tied;
} families[] = {
    {"gpt2", gpt2_ints, "layer_norm_epsilon", 1e-5, "activation_function", "gelu_new", NORM_LAYER, POSITION_LEARNED,
     false, true},
    {"opt", opt_ints, NULL, 1e-5, "activation_function", "relu", NORM_LAYER, POSITION_LEARNED, false, true},
    {"bloom", bloom_ints, "layer_norm_epsilon", 1e-5, NULL, "gelu_new", NORM_LAYER, POSITION_ALIBI, false, true},
    {"gpt_neox", gpt_neox_ints, "layer_norm_eps", 1e-5, "hidden_act", "gelu", NORM_LAYER, POSITION_ROTARY, false,
     false},
    {"gptj", gptj_ints, "layer_norm_epsilon", 1e-5, "activation_function", "gelu_new", NORM_LAYER, POSITION_ROTARY,
     false, false},
    {"llama", llama_ints, "rms_norm_eps", 1e-6, "hidden_act", "silu", NORM_RMS, POSITION_ROTARY, true, false},
    {"mistral", mistral_ints, "rms_norm_eps", 1e-6, "hidden_act", "silu", NORM_RMS, POSITION_ROTARY, true, false},
    {"qwen2", qwen2_ints, "rms_norm_eps", 1e-6, "hidden_act", "silu", NORM_RMS, POSITION_ROTARY, true, false},
    {"qwen3", qwen3_ints, "rms_norm_eps", 1e-6, "hidden_act", "silu", NORM_RMS, POSITION_ROTARY, true, false},
};

/* A configuration being read: its object and the name for messages. */
struct reading {
  const json_t *root;
  const char *name;
};

static enum status bad_key(const struct reading *in, const char *key, const char *expected) {
  return status_set(STATUS_DATA, "%s: \"%s\" must be %s", in->name, key, expected);
}

static enum status get_double(const struct reading *in, const json_t *object, const char *key, double absent,
                              double *value) {
  const json_t *item = json_object_get(object, key);
  *value = absent;
  if (!item || json_is_null(item)) return STATUS_OK;
  if (!json_is_number(item) || !isfinite(json_number_value(item))) return bad_key(in, key, "a number");
  *value = json_number_value(item);
  return STATUS_OK;
}

static enum status get_bool(const struct reading *in, const char *key, bool absent, bool *value) {
  const json_t *item = json_object_get(in->root, key);
  *value = absent;
  if (!item) return STATUS_OK;
  if (!json_is_boolean(item)) return bad_key(in, key, "true or false");
  *value = json_is_true(item);
  return STATUS_OK;
}

static enum status get_ints(const struct reading *in, const struct int_key *keys, struct model_facts *facts) {
  for (; keys->key; keys++) {
    const char *key = keys->key;
    const json_t *item = json_object_get(in->root, key);
    if (!item && keys->alias) item = json_object_get(in->root, key = keys->alias);
    int64_t value = keys->value;
    if (json_is_integer(item)) {
      value = json_integer_value(item);
      if (value < 0) return bad_key(in, key, "positive");
    } else if (json_is_null(item) && keys->nullable) {
      value = 0;
    } else if (item) {
      return bad_key(in, key, "an integer");
    }
    memcpy((char *)facts + keys->offset, &value, sizeof value);
  }
  return STATUS_OK;
}

static enum status get_activation(const struct reading *in, const struct family_keys *keys, struct model_facts *facts) {
  static const struct {
    const char *name;
    enum activation activation;
  } known[] = {
      {"gelu", ACTIVATION_GELU},           {"gelu_new", ACTIVATION_GELU_TANH},
      {"gelu_fast", ACTIVATION_GELU_TANH}, {"gelu_pytorch_tanh", ACTIVATION_GELU_TANH},
      {"relu", ACTIVATION_RELU},           {"silu", ACTIVATION_SILU},
      {"swish", ACTIVATION_SILU},
  };
  const char *name = keys->activation_value;
  const json_t *item = keys->activation ? json_object_get(in->root, keys->activation) : NULL;
  if (item && !(name = json_string_value(item))) return bad_key(in, keys->activation, "the name of an activation");
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
    if (strcmp(name, known[i].name) == 0) {
      facts->activation = known[i].activation;
      return STATUS_OK;
    }
  return status_set(STATUS_USAGE,
                    "%s: activation \"%.40s\" is not supported (gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu, "
                    "silu, swish are)",
                    in->name, name);
}

static enum status get_yarn(const struct reading *in, const json_t *scaling, struct model_facts *facts) {
  TRY(get_double(in, scaling, "beta_fast", 32, &facts->rope_beta_fast));
  TRY(get_double(in, scaling, "beta_slow", 1, &facts->rope_beta_slow));
  TRY(get_double(in, scaling, "attention_factor", 0, &facts->rope_attention_factor));
  static const char *const unknown[] = {"mscale", "mscale_all_dim", "truncate"};
  for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++)
    if (json_object_get(scaling, unknown[i]))
      return status_set(STATUS_USAGE, "%s: yarn's option \"%s\" is not supported", in->name, unknown[i]);
  if (facts->rope_beta_fast <= facts->rope_beta_slow || facts->rope_beta_slow <= 0)
    return bad_key(in, "beta_fast", "above beta_slow, and both above 0");
  if (facts->rope_attention_factor < 0) return bad_key(in, "attention_factor", "positive");
  return STATUS_OK;
}

/* The rope_scaling object (or rope_parameters, which holds the same keys). */
static enum status get_scaling(const struct reading *in, const json_t *scaling, struct model_facts *facts) {
  static const char *const names[] = {"default", "linear", "llama3", "yarn", "dynamic"};
  const json_t *type = json_object_get(scaling, "rope_type");
  if (!type) type = json_object_get(scaling, "type");
  const char *name = type ? json_string_value(type) : "default";
  if (!name) return bad_key(in, "rope_type", "a name");
  int kind = -1;
  for (int i = 0; i < (int)(sizeof names / sizeof names[0]); i++)
    if (strcmp(name, names[i]) == 0) kind = i;
  if (kind < 0)
    return status_set(STATUS_USAGE,
                      "%s: rotary scaling \"%.40s\" is not supported (default, linear, llama3, yarn, "
                      "dynamic are)",
                      in->name, name);
  facts->rope_scaling = (enum rope_scaling)kind;
  if (kind == ROPE_PLAIN) return STATUS_OK;

  TRY(get_double(in, scaling, "factor", 0, &facts->rope_factor));
  if (facts->rope_factor <= 0) return bad_key(in, "factor", "a positive number (rotary scaling)");
  double positions = 0;
  TRY(get_double(in, scaling, "original_max_position_embeddings", (double)facts->max_positions, &positions));
  if (positions < 1 || positions > INT32_MAX) return bad_key(in, "original_max_position_embeddings", "a length");
  facts->rope_original_positions = (int64_t)positions;
  if (kind == ROPE_YARN) return get_yarn(in, scaling, facts);
  if (kind == ROPE_LLAMA3) {
    TRY(get_double(in, scaling, "low_freq_factor", 0, &facts->rope_low_freq));
    TRY(get_double(in, scaling, "high_freq_factor", 0, &facts->rope_high_freq));
    if (facts->rope_low_freq <= 0 || facts->rope_high_freq <= facts->rope_low_freq)
      return bad_key(in, "high_freq_factor", "above low_freq_factor, and both above 0");
  }
  return STATUS_OK;
}

/* Theta, the rotating share of a head and the scaling, from their old places
 * (rope_theta and rope_scaling at the top) or the new one (rope_parameters). */
static enum status get_rotary(const struct reading *in, struct model_facts *facts) {
  bool neox = strcmp(facts->family, "gpt_neox") == 0, gptj = strcmp(facts->family, "gptj") == 0;
  const json_t *parameters = json_object_get(in->root, "rope_parameters");
  const json_t *scaling = json_object_get(in->root, "rope_scaling");
  double share = 1;
  TRY(get_double(in, in->root, neox ? "rotary_emb_base" : "rope_theta", 10000, &facts->rope_theta));
  if (neox) TRY(get_double(in, in->root, "rotary_pct", 0.25, &share));
  TRY(get_double(in, in->root, "partial_rotary_factor", share, &share));
  if (parameters && !json_is_null(parameters)) {
    if (!json_is_object(parameters)) return bad_key(in, "rope_parameters", "an object");
    TRY(get_double(in, parameters, "rope_theta", facts->rope_theta, &facts->rope_theta));
    TRY(get_double(in, parameters, "partial_rotary_factor", share, &share));
    scaling = parameters;
  }
  if (!(share > 0 && share <= 1)) return bad_key(in, "rotary_pct", "above 0 and at most 1");
  facts->rotary_interleaved = gptj;
  if (gptj) return STATUS_OK; /* its own rotary_dim; theta 10000; no scaling exists for it */
  facts->rotary_dim = (int64_t)((double)facts->head_dim * share);
  if (!scaling || json_is_null(scaling)) return STATUS_OK;
  if (!json_is_object(scaling)) return bad_key(in, "rope_scaling", "an object");
  return get_scaling(in, scaling, facts);
}

/* qwen2 and qwen3: windows only with use_sliding_window, on layers that
 * max_window_layers or layer_types choose. */
static enum status get_window(const struct reading *in, struct model_facts *facts) {
  bool used = false;
  TRY(get_bool(in, "use_sliding_window", false, &used));
  if (!used || facts->sliding_window == 0) {
    facts->sliding_window = facts->window_first_layer = 0;
    return STATUS_OK;
  }
  const json_t *types = json_object_get(in->root, "layer_types");
  if (!types || json_is_null(types)) return STATUS_OK;
  if ((int64_t)json_array_size(types) != facts->n_layers) return bad_key(in, "layer_types", "a name for every layer");
  int64_t first = facts->n_layers;
  for (int64_t i = 0; i < facts->n_layers; i++) {
    const char *type = json_string_value(json_array_get(types, (size_t)i));
    bool sliding = type && strcmp(type, "sliding_attention") == 0;
    if (!sliding && (!type || strcmp(type, "full_attention") != 0))
      return bad_key(in, "layer_types", "a list of full_attention and sliding_attention");
    if (sliding && first == facts->n_layers) first = i;
    if (!sliding && first < i)
      return status_set(STATUS_USAGE,
                        "%s: \"layer_types\" with full attention above a layer with a sliding window is not supported",
                        in->name);
  }
  facts->window_first_layer = first;
  return STATUS_OK;
}

static enum status gpt2_facts(const struct reading *in, struct model_facts *facts) {
  bool scaled = true;
  TRY(get_bool(in, "scale_attn_weights", true, &scaled));
  TRY(get_bool(in, "scale_attn_by_inverse_layer_idx", false, &facts->attention_scale_by_layer));
  if (!scaled) facts->attention_scale = 1;
  facts->bias_qkv = facts->bias_o = facts->bias_ffn = true;
  return STATUS_OK;
}

static enum status opt_facts(const struct reading *in, struct model_facts *facts) {
  bool before = true, removed = false, bias = true, affine = true;
  TRY(get_bool(in, "do_layer_norm_before", true, &before));
  TRY(get_bool(in, "_remove_final_layer_norm", false, &removed));
  TRY(get_bool(in, "enable_bias", true, &bias));
  TRY(get_bool(in, "layer_norm_elementwise_affine", true, &affine));
  if (!affine)
    return status_set(STATUS_USAGE, "%s: \"layer_norm_elementwise_affine\": false is not supported", in->name);
  facts->post_norm = !before;
  facts->final_norm = before && !removed;
  facts->bias_qkv = facts->bias_o = facts->bias_ffn = bias;
  facts->position_offset = 2;
  return STATUS_OK;
}

static enum status bloom_facts(const struct reading *in, struct model_facts *facts) {
  bool residual = false;
  TRY(get_bool(in, "apply_residual_connection_post_layernorm", false, &residual));
  if (residual)
    return status_set(STATUS_USAGE, "%s: \"apply_residual_connection_post_layernorm\": true is not supported",
                      in->name);
  facts->embed_norm = true;
  facts->bias_qkv = facts->bias_o = facts->bias_ffn = true;
  return STATUS_OK;
}

static enum status gpt_neox_facts(const struct reading *in, struct model_facts *facts) {
  TRY(get_bool(in, "use_parallel_residual", true, &facts->parallel_residual));
  TRY(get_bool(in, "attention_bias", true, &facts->bias_qkv));
  facts->bias_o = facts->bias_qkv;
  facts->bias_ffn = true;
  return STATUS_OK;
}

static enum status llama_facts(const struct reading *in, struct model_facts *facts) {
  if (strcmp(facts->family, "llama") == 0) {
    TRY(get_bool(in, "attention_bias", false, &facts->bias_qkv));
    TRY(get_bool(in, "mlp_bias", false, &facts->bias_ffn));
    facts->bias_o = facts->bias_qkv;
  } else if (strcmp(facts->family, "qwen2") == 0) {
    facts->bias_qkv = true;
    TRY(get_window(in, facts));
  } else if (strcmp(facts->family, "qwen3") == 0) {
    TRY(get_bool(in, "attention_bias", false, &facts->bias_qkv));
    facts->bias_o = facts->bias_qkv;
    facts->qk_norm = true;
    TRY(get_window(in, facts));
  }
  return STATUS_OK;
}

/* What follows from the sizes, and what only one family has. */
static enum status derive(const struct reading *in, struct model_facts *facts) {
  if (facts->n_heads < 1 || facts->d_model < 1)
    return status_set(STATUS_DATA, "%s: width and number of heads must be positive", in->name);
  if (facts->n_kv_heads == 0) facts->n_kv_heads = facts->n_heads;
  if (facts->head_dim == 0) {
    if (facts->d_model % facts->n_heads)
      return status_set(STATUS_DATA, "%s: width %lld is not a multiple of the %lld heads", in->name,
                        (long long)facts->d_model, (long long)facts->n_heads);
    facts->head_dim = facts->d_model / facts->n_heads;
  }
  if (facts->d_embed == 0) facts->d_embed = facts->d_model;
  if (facts->d_ffn == 0 && __builtin_mul_overflow(facts->d_model, (int64_t)4, &facts->d_ffn))
    return status_set(STATUS_DATA, "%s: width %lld is too large", in->name, (long long)facts->d_model);
  facts->attention_scale = 1 / sqrt((double)facts->head_dim);
  facts->final_norm = true;
  facts->bias_norm = facts->norm == NORM_LAYER;

  if (strcmp(facts->family, "gpt2") == 0) TRY(gpt2_facts(in, facts));
  if (strcmp(facts->family, "opt") == 0) TRY(opt_facts(in, facts));
  if (strcmp(facts->family, "bloom") == 0) TRY(bloom_facts(in, facts));
  if (strcmp(facts->family, "gpt_neox") == 0) TRY(gpt_neox_facts(in, facts));
  if (strcmp(facts->family, "gptj") == 0) {
    facts->parallel_residual = facts->shared_norm = true;
    facts->bias_ffn = facts->bias_head = true;
  }
  TRY(llama_facts(in, facts));
  return facts->position == POSITION_ROTARY ? get_rotary(in, facts) : STATUS_OK;
}

/* Other names, such as those of 8-bit types, are none that weights are made up in: as if there were none. */
static void get_dtype(const struct reading *in, struct model_facts *facts) {
  static const struct {
    const char *name;
    enum dtype dtype;
  } known[] = {{"float32", DTYPE_F32}, {"float16", DTYPE_F16}, {"bfloat16", DTYPE_BF16}};
  static const char *const keys[] = {"dtype", "torch_dtype"}; /* the second in older files */
  for (size_t k = 0; k < sizeof keys / sizeof keys[0] && !facts->has_dtype; k++) {
    const char *name = json_string_value(json_object_get(in->root, keys[k]));
    for (size_t i = 0; name && i < sizeof known / sizeof known[0]; i++)
      if (strcmp(name, known[i].name) == 0) {
        facts->has_dtype = true;
        facts->dtype = known[i].dtype;
      }
  }
}

static enum status parse_root(const struct reading *in, struct model_facts *facts) {
  const char *family = json_string_value(json_object_get(in->root, "model_type"));
  if (!family) return status_set(STATUS_DATA, "%s: no \"model_type\"; is this a model's config.json?", in->name);
  const json_t *quantization = json_object_get(in->root, "quantization_config");
  if (quantization && !json_is_null(quantization)) {
    const char *method = json_string_value(json_object_get(quantization, "quant_method"));
    return status_set(STATUS_USAGE,
                      "%s: \"quantization_config\" (%.40s) is not supported; take the unquantised model or a GGUF file",
                      in->name, method ? method : "unnamed");
  }
  const struct family_keys *keys = NULL;
  for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
    if (strcmp(family, families[i].family) == 0) keys = &families[i];
  if (!keys)
    return status_set(STATUS_USAGE, "%s: model_type \"%.40s\" is not supported (%s are)", in->name, family,
                      arch_list());
  snprintf(facts->family, sizeof facts->family, "%s", keys->family);
  facts->norm = keys->norm;
  facts->position = keys->position;
  facts->gated = keys->gated;
  get_dtype(in, facts);
  TRY(get_ints(in, keys->ints, facts));
  TRY(get_double(in, in->root, keys->eps ? keys->eps : "", keys->eps_value, &facts->norm_eps));
  TRY(get_activation(in, keys, facts));
  TRY(get_bool(in, "tie_word_embeddings", keys->tied, &facts->tied_head));
  TRY(derive(in, facts));
  return model_facts_check(in->name, facts);
}

enum status model_facts_parse(const char *json, size_t length, const char *name, struct model_facts *facts) {
  json_error_t error;
  json_t *root = json_loadb(json, length, JSON_REJECT_DUPLICATES, &error);
  if (!root) return status_set(STATUS_DATA, "%s:%d: not valid JSON: %s", name, error.line, error.text);
  struct model_facts parsed = {0};
  struct reading in = {.root = root, .name = name};
  enum status status =
      json_is_object(root) ? parse_root(&in, &parsed) : status_set(STATUS_DATA, "%s: not a JSON object", name);
  if (status == STATUS_OK) *facts = parsed;
  json_decref(root);
  return status;
}

enum status model_facts_read(const char *path, size_t limit, struct model_facts *facts) {
  char *text = NULL;
  size_t length = 0;
  TRY(file_read_text(path, limit, &text, &length));
  enum status status = model_facts_parse(text, length, path, facts);
  free(text);
  return status;
}

enum status model_facts_check(const char *name, const struct model_facts *facts) {
  /* Two of these multiplied, times four bytes, stay below 2^63. */
  const int64_t width_max = 1 << 24, count_max = INT32_MAX;
  const struct {
    const char *what;
    int64_t value, max;
  } sizes[] = {
      {"number of layers", facts->n_layers, 1 << 16},
      {"width", facts->d_model, width_max},
      {"width of the embedding", facts->d_embed, width_max},
      {"number of heads", facts->n_heads, 1 << 16},
      {"number of key/value heads", facts->n_kv_heads, 1 << 16},
      {"width of a head", facts->head_dim, 1 << 16},
      {"width of the feed-forward part", facts->d_ffn, width_max},
      {"vocabulary", facts->n_vocab, count_max},
      {"number of positions", facts->max_positions, count_max},
  };
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
    if (sizes[i].value < 1 || sizes[i].value > sizes[i].max)
      return status_set(STATUS_DATA, "%s: %s is %lld; it must be from 1 to %lld", name, sizes[i].what,
                        (long long)sizes[i].value, (long long)sizes[i].max);
  if (facts->n_heads * facts->head_dim > width_max)
    return status_set(STATUS_DATA, "%s: heads times their width is %lld; the limit is %lld", name,
                      (long long)(facts->n_heads * facts->head_dim), (long long)width_max);
  if (facts->n_heads % facts->n_kv_heads)
    return status_set(STATUS_DATA, "%s: %lld heads are not a multiple of %lld key/value heads", name,
                      (long long)facts->n_heads, (long long)facts->n_kv_heads);
  double per_layer =
      (double)facts->d_model * ((double)facts->n_heads * (double)facts->head_dim * 4 + (double)facts->d_ffn * 3);
  if ((double)facts->n_layers * per_layer + 2 * (double)facts->n_vocab * (double)facts->d_model > 1e17)
    return status_set(STATUS_DATA, "%s: its sizes imply more than 10^17 parameters", name);
  if (!(facts->norm_eps > 0 && facts->norm_eps < 1))
    return status_set(STATUS_DATA, "%s: the norm's epsilon is %g; it must be above 0 and below 1", name,
                      facts->norm_eps);
  if (facts->sliding_window > count_max || facts->window_first_layer > count_max)
    return status_set(STATUS_DATA, "%s: the sliding window is too large", name);
  if (facts->position != POSITION_ROTARY) return STATUS_OK;
  if (facts->head_dim % 2 || facts->rotary_dim % 2 || facts->rotary_dim < 2 || facts->rotary_dim > facts->head_dim ||
      facts->rotary_dim / 2 > MODEL_FACTS_MAX_ROPE)
    return status_set(STATUS_DATA,
                      "%s: %lld of %lld dims of a head rotate; both must be even, the first at most the second and "
                      "at most %d",
                      name, (long long)facts->rotary_dim, (long long)facts->head_dim, 2 * MODEL_FACTS_MAX_ROPE);
  if (!(facts->rope_theta > 1 && isfinite(facts->rope_theta)))
    return status_set(STATUS_DATA, "%s: rope_theta is %g; it must be above 1", name, facts->rope_theta);
  return STATUS_OK;
}
