#include "model/arch.h"

#include <stdio.h>
#include <string.h>

const char *const module_names[MODULE_COUNT] = {"q", "k", "v", "o", "gate", "up", "down"};

int module_from_name(const char *name) {
  for (int m = 0; m < MODULE_COUNT; m++)
    if (strcmp(name, module_names[m]) == 0) return m;
  if (strcmp(name, "fc1") == 0) return MODULE_UP;
  if (strcmp(name, "fc2") == 0) return MODULE_DOWN;
  return -1;
}

#define LLAMA_LAYOUT                                                                                                   \
  .prefixes = {"model.", ""}, .layer = "layers.%d.", .embed = "embed_tokens", .final_norm = "norm", .head = "lm_head", \
  .norm1 = "input_layernorm", .norm2 = "post_attention_layernorm",                                                     \
  .linear = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",                           \
             "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"},                                                 \
  .peft_prefix = "model."

static const struct arch archs[] = {
    {
        .family = "gpt2",
        .prefixes = {"transformer.", ""},
        .layer = "h.%d.",
        .embed = "wte",
        .position = "wpe",
        .final_norm = "ln_f",
        .head = "lm_head",
        .norm1 = "ln_1",
        .norm2 = "ln_2",
        .qkv = "attn.c_attn",
        .qkv_layout = QKV_CONCAT,
        .linear = {[MODULE_O] = "attn.c_proj", [MODULE_UP] = "mlp.c_fc", [MODULE_DOWN] = "mlp.c_proj"},
        .conv1d = true,
        .peft_prefix = "transformer.",
    },
    {
        .family = "opt",
        .prefixes = {"model.decoder.", "decoder.", ""},
        .layer = "layers.%d.",
        .embed = "embed_tokens",
        .position = "embed_positions",
        .project_in = "project_in",
        .project_out = "project_out",
        .final_norm = "final_layer_norm",
        .head = "lm_head",
        .norm1 = "self_attn_layer_norm",
        .norm2 = "final_layer_norm",
        .linear = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", NULL, "fc1",
                   "fc2"},
        .peft_prefix = "model.decoder.",
    },
    {
        .family = "bloom",
        .prefixes = {"transformer.", ""},
        .layer = "h.%d.",
        .embed = "word_embeddings",
        .embed_norm = "word_embeddings_layernorm",
        .final_norm = "ln_f",
        .head = "lm_head",
        .norm1 = "input_layernorm",
        .norm2 = "post_attention_layernorm",
        .qkv = "self_attention.query_key_value",
        .qkv_layout = QKV_PER_HEAD,
        .linear = {[MODULE_O] = "self_attention.dense",
                   [MODULE_UP] = "mlp.dense_h_to_4h",
                   [MODULE_DOWN] = "mlp.dense_4h_to_h"},
        .peft_prefix = "transformer.",
    },
    {
        .family = "gpt_neox",
        .prefixes = {"gpt_neox.", ""},
        .layer = "layers.%d.",
        .embed = "embed_in",
        .final_norm = "final_layer_norm",
        .head = "embed_out",
        .norm1 = "input_layernorm",
        .norm2 = "post_attention_layernorm",
        .qkv = "attention.query_key_value",
        .qkv_layout = QKV_PER_HEAD,
        .linear =
            {[MODULE_O] = "attention.dense", [MODULE_UP] = "mlp.dense_h_to_4h", [MODULE_DOWN] = "mlp.dense_4h_to_h"},
        .peft_prefix = "gpt_neox.",
    },
    {
        .family = "gptj",
        .prefixes = {"transformer.", ""},
        .layer = "h.%d.",
        .embed = "wte",
        .final_norm = "ln_f",
        .head = "lm_head",
        .norm1 = "ln_1",
        .linear = {"attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj", NULL, "mlp.fc_in", "mlp.fc_out"},
        .peft_prefix = "transformer.",
    },
    {.family = "llama", LLAMA_LAYOUT},
    {.family = "mistral", LLAMA_LAYOUT},
    {.family = "qwen2", LLAMA_LAYOUT},
    {.family = "qwen3", LLAMA_LAYOUT, .q_norm = "self_attn.q_norm", .k_norm = "self_attn.k_norm"},
};

#define N_ARCHS ((int)(sizeof archs / sizeof archs[0]))

const struct arch *arch_find(const char *family) {
  for (int i = 0; i < N_ARCHS; i++)
    if (strcmp(archs[i].family, family) == 0) return &archs[i];
  return NULL;
}

const char *arch_list(void) { return "gpt2, opt, bloom, gpt_neox, gptj, llama, mistral, qwen2, qwen3"; }

void arch_module_path(const struct arch *arch, int layer, enum module module, char *buffer) {
  const char *path = arch->linear[module] ? arch->linear[module] : arch->qkv;
  char prefix[32];
  snprintf(prefix, sizeof prefix, arch->layer, layer);
  snprintf(buffer, 128, "%s%s%s", arch->peft_prefix, prefix, path ? path : "");
}
