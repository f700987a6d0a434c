#include "io/gguf_model.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "io/file_read.h"
#include "io/model_facts_internal.h"

/* --- names --- */

static const struct {
  const char *gguf, *hf;
} global_names[] =
    {
        {"token_embd", "model.embed_tokens"},
        {"output_norm", "model.norm"},
        {"output", "lm_head"},
},
  layer_names[] = {
      {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
      {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
      {"attn_output", "self_attn.o_proj"}, {"attn_q_norm", "self_attn.q_norm"},
      {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
      {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
      {"ffn_down", "mlp.down_proj"},
};

/* Split "blk.12.attn_q.weight" into 12, "attn_q" and ".weight"; layer -1 for a
 * name outside the layers. False if it has no such form. */
static bool split_name(const char *name, int *layer, const char **part, int *part_length, const char **suffix) {
  *layer = -1;
  *part = name;
  if (strncmp(name, "blk.", 4) == 0) {
    int used = 0;
    if (!isdigit((unsigned char)name[4]) || sscanf(name + 4, "%6d.%n", layer, &used) != 1 || used == 0) return false;
    *part = name + 4 + used;
  }
  *suffix = strrchr(*part, '.');
  if (!*suffix || (strcmp(*suffix, ".weight") != 0 && strcmp(*suffix, ".bias") != 0)) return false;
  *part_length = (int)(*suffix - *part);
  return true;
}

static bool equals(const char *part, int length, const char *name) {
  return strlen(name) == (size_t)length && memcmp(part, name, (size_t)length) == 0;
}

void gguf_model_name(const char *name, char *hf_name, size_t size) {
  int layer, length;
  const char *part, *suffix;
  snprintf(hf_name, size, "%s", name);
  if (!split_name(name, &layer, &part, &length, &suffix)) return;
  if (layer < 0) {
    for (size_t i = 0; i < sizeof global_names / sizeof global_names[0]; i++)
      if (equals(part, length, global_names[i].gguf)) snprintf(hf_name, size, "%s%s", global_names[i].hf, suffix);
    return;
  }
  for (size_t i = 0; i < sizeof layer_names / sizeof layer_names[0]; i++)
    if (equals(part, length, layer_names[i].gguf))
      snprintf(hf_name, size, "model.layers.%d.%s%s", layer, layer_names[i].hf, suffix);
}

int64_t gguf_model_permuted_heads(const char *name, const struct model_facts *facts) {
  int layer, length;
  const char *part, *suffix;
  if (strcmp(facts->family, "llama") != 0 || !split_name(name, &layer, &part, &length, &suffix) || layer < 0) return 0;
  if (equals(part, length, "attn_q")) return facts->n_heads;
  if (equals(part, length, "attn_k")) return facts->n_kv_heads;
  return 0;
}

/* --- facts --- */

/* The keys of one architecture: "llama.block_count". */
struct arch_keys {
  const struct gguf *gguf;
  const char *arch;
};

static void full_key(const struct arch_keys *in, const char *key, char text[96]) {
  snprintf(text, 96, "%s.%s", in->arch, key);
}

static bool has_key(const struct arch_keys *in, const char *key) {
  char text[96];
  full_key(in, key, text);
  return gguf_has(in->gguf, text);
}

static enum status get_size(const struct arch_keys *in, const char *key, int64_t *value) {
  char text[96];
  full_key(in, key, text);
  return gguf_get_i64(in->gguf, text, value);
}

/* The default stays in *value if the key is absent. */
static enum status get_size_or(const struct arch_keys *in, const char *key, int64_t *value) {
  return has_key(in, key) ? get_size(in, key, value) : STATUS_OK;
}

static enum status get_number_or(const struct arch_keys *in, const char *key, double *value) {
  char text[96];
  float found = 0;
  full_key(in, key, text);
  if (!gguf_has(in->gguf, text)) return STATUS_OK;
  TRY(gguf_get_f32(in->gguf, text, &found));
  *value = (double)found;
  return STATUS_OK;
}

static const struct gguf_tensor *find_tensor(const struct gguf *gguf, const char *name) {
  for (int64_t i = 0; i < gguf_n_tensors(gguf); i++)
    if (strcmp(gguf_tensor_at(gguf, i)->name, name) == 0) return gguf_tensor_at(gguf, i);
  return NULL;
}

static enum status get_sizes(const struct arch_keys *in, struct model_facts *facts) {
  TRY(get_size(in, "block_count", &facts->n_layers));
  TRY(get_size(in, "context_length", &facts->max_positions));
  TRY(get_size(in, "embedding_length", &facts->d_model));
  TRY(get_size(in, "feed_forward_length", &facts->d_ffn));
  TRY(get_size(in, "attention.head_count", &facts->n_heads));
  facts->d_embed = facts->d_model;
  facts->n_kv_heads = facts->n_heads;
  TRY(get_size_or(in, "attention.head_count_kv", &facts->n_kv_heads));
  if (facts->n_heads < 1 || facts->d_model < 1 || facts->n_kv_heads < 1)
    return status_set(STATUS_DATA, "%s: width and numbers of heads must be positive", gguf_path(in->gguf));
  facts->head_dim = facts->d_model / facts->n_heads;
  TRY(get_size_or(in, "attention.key_length", &facts->head_dim));
  int64_t value_length = facts->head_dim;
  TRY(get_size_or(in, "attention.value_length", &value_length));
  if (value_length != facts->head_dim)
    return status_set(STATUS_USAGE, "%s: values of another width than keys are not supported", gguf_path(in->gguf));
  facts->rotary_dim = facts->head_dim;
  TRY(get_size_or(in, "rope.dimension_count", &facts->rotary_dim));
  const struct gguf_tensor *embed = find_tensor(in->gguf, "token_embd.weight");
  if (!embed || embed->n_dims != 2)
    return status_set(STATUS_DATA, "%s: tensor token_embd.weight is missing or no matrix", gguf_path(in->gguf));
  facts->n_vocab = embed->shape[0];
  return STATUS_OK;
}

static enum status get_scaling(const struct arch_keys *in, struct model_facts *facts) {
  char key[96];
  struct gguf_string type = {"none", 4};
  full_key(in, "rope.scaling.type", key);
  if (gguf_has(in->gguf, key)) TRY(gguf_get_string(in->gguf, key, &type));
  if (equals(type.text, (int)type.length, "none")) return STATUS_OK;
  if (equals(type.text, (int)type.length, "linear")) {
    facts->rope_scaling = ROPE_LINEAR;
  } else if (equals(type.text, (int)type.length, "yarn")) {
    facts->rope_scaling = ROPE_YARN;
  } else {
    return status_set(STATUS_USAGE, "%s: rotary scaling \"%.*s\" is not supported (none, linear, yarn are)",
                      gguf_path(in->gguf), type.length < 40 ? (int)type.length : 40, type.text);
  }
  double attention = 1;
  facts->rope_beta_fast = 32;
  facts->rope_beta_slow = 1;
  facts->rope_original_positions = facts->max_positions;
  TRY(get_number_or(in, "rope.scaling.factor", &facts->rope_factor));
  TRY(get_size_or(in, "rope.scaling.original_context_length", &facts->rope_original_positions));
  TRY(get_number_or(in, "rope.scaling.yarn_beta_fast", &facts->rope_beta_fast));
  TRY(get_number_or(in, "rope.scaling.yarn_beta_slow", &facts->rope_beta_slow));
  TRY(get_number_or(in, "rope.scaling.attn_factor", &attention));
  if (attention != 1)
    return status_set(STATUS_USAGE, "%s: rope.scaling.attn_factor %g is not supported", gguf_path(in->gguf), attention);
  if (!(facts->rope_factor > 0 && isfinite(facts->rope_factor)) || facts->rope_original_positions < 1 ||
      !(facts->rope_beta_slow > 0 && facts->rope_beta_fast > facts->rope_beta_slow))
    return status_set(STATUS_DATA, "%s: its rotary scaling keys make no sense", gguf_path(in->gguf));
  return STATUS_OK;
}

/* rope_freqs.weight: what each rotary frequency is divided by (Llama 3). */
static enum status get_divisors(const struct gguf *gguf, struct model_facts *facts) {
  const struct gguf_tensor *tensor = find_tensor(gguf, "rope_freqs.weight");
  if (!tensor) return STATUS_OK;
  if (tensor->n_dims != 1 || tensor->dtype != DTYPE_F32 || tensor->shape[0] != facts->rotary_dim / 2)
    return status_set(STATUS_DATA, "%s: tensor rope_freqs.weight must be f32 [%lld]", gguf_path(gguf),
                      (long long)(facts->rotary_dim / 2));
  TRY(file_read_at(gguf_fd(gguf), gguf_path(gguf), tensor->offset, facts->rope_divisors, (size_t)tensor->bytes));
  for (int64_t i = 0; i < tensor->shape[0]; i++)
    if (!(facts->rope_divisors[i] > 0 && isfinite(facts->rope_divisors[i])))
      return status_set(STATUS_DATA, "%s: tensor rope_freqs.weight: value %lld is not a positive number",
                        gguf_path(gguf), (long long)i);
  facts->has_rope_divisors = true;
  return STATUS_OK;
}

static enum status get_family(const struct gguf *gguf, struct model_facts *facts) {
  static const char *const known[] = {"llama", "qwen2", "qwen3"};
  struct gguf_string arch;
  TRY(gguf_get_string(gguf, "general.architecture", &arch));
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
    if (equals(arch.text, arch.length > 100 ? 100 : (int)arch.length, known[i]))
      snprintf(facts->family, sizeof facts->family, "%s", known[i]);
  if (!*facts->family)
    return status_set(STATUS_USAGE, "%s: GGUF architecture \"%.*s\" is not supported (llama, qwen2, qwen3 are)",
                      gguf_path(gguf), arch.length < 40 ? (int)arch.length : 40, arch.text);
  return STATUS_OK;
}

enum status gguf_model_facts(const struct gguf *gguf, struct model_facts *facts) {
  struct model_facts found = {
      .norm = NORM_RMS, .activation = ACTIVATION_SILU, .gated = true, .position = POSITION_ROTARY, .final_norm = true};
  TRY(get_family(gguf, &found));
  const struct arch_keys in = {gguf, found.family};
  int64_t experts = 0;
  TRY(get_size_or(&in, "expert_count", &experts));
  if (experts > 0) return status_set(STATUS_USAGE, "%s: a mixture of experts, which is not supported", gguf_path(gguf));
  TRY(get_sizes(&in, &found));
  TRY(get_number_or(&in, "attention.layer_norm_rms_epsilon", &found.norm_eps));
  found.rope_theta = 10000;
  TRY(get_number_or(&in, "rope.freq_base", &found.rope_theta));
  found.qk_norm = strcmp(found.family, "qwen3") == 0;
  found.tied_head = !find_tensor(gguf, "output.weight");
  found.bias_qkv = find_tensor(gguf, "blk.0.attn_q.bias") != NULL;
  found.bias_o = find_tensor(gguf, "blk.0.attn_output.bias") != NULL;
  found.bias_ffn = find_tensor(gguf, "blk.0.ffn_up.bias") != NULL;
  found.attention_scale = 1 / sqrt((double)found.head_dim);
  TRY(model_facts_check(gguf_path(gguf), &found));
  TRY(get_scaling(&in, &found));
  TRY(get_divisors(gguf, &found));
  *facts = found;
  return STATUS_OK;
}
