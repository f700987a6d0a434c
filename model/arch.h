/*
 * arch.h: a row per model family: what its tensors and modules are called and
 * how they are stored. Adding a family is adding a row here, its configuration
 * keys in io/model_facts.c, and a golden. Target base.
 */
#ifndef LORASHARD_MODEL_ARCH_H
#define LORASHARD_MODEL_ARCH_H

#include <stdbool.h>

/* The linears of a block that can carry an adapter. Models without a gate call
 * UP fc1 and DOWN fc2. */
enum module { MODULE_Q, MODULE_K, MODULE_V, MODULE_O, MODULE_GATE, MODULE_UP, MODULE_DOWN, MODULE_COUNT };

/* "q" "k" "v" "o" "gate" "up" "down". */
extern const char *const module_names[MODULE_COUNT];

/* Index of a name ("fc1" and "fc2" are taken too), or -1. */
int module_from_name(const char *name);

/* Column-parallel linears (q k v gate up) cut their outputs over tp,
 * row-parallel ones (o down) their inputs. */
static inline bool module_is_row_parallel(enum module module) { return module == MODULE_O || module == MODULE_DOWN; }

/* How q, k and v lie in the checkpoint. */
enum qkv_layout {
  QKV_SEPARATE, /* three tensors */
  QKV_CONCAT,   /* one: all q, then all k, then all v (gpt2) */
  QKV_PER_HEAD, /* one, rows [H][3][head_dim] (bloom, gpt_neox) */
};

struct arch {
  const char *family;
  const char *prefixes[3]; /* base prefixes a file may use, tried in order: "transformer.", "" */
  const char *layer;       /* printf pattern of a layer's prefix: "h.%d." */
  /* Paths without ".weight" / ".bias". Outside the layers: */
  const char *embed, *position, *embed_norm, *project_in, *project_out, *final_norm;
  const char *head; /* no base prefix */
  /* Inside a layer; NULL if the family has none: */
  const char *norm1, *norm2, *q_norm, *k_norm;
  const char *qkv; /* the fused linear, with QKV_CONCAT and QKV_PER_HEAD */
  enum qkv_layout qkv_layout;
  const char *linear[MODULE_COUNT]; /* q, k, v are NULL when fused */
  bool conv1d;                      /* linears are stored [in, out] */
  const char *peft_prefix;          /* what PEFT calls the base prefix: "transformer." */
};

/* The row of a family, or NULL. */
const struct arch *arch_find(const char *family);

/* "gpt2, opt, bloom, ..." for messages. */
const char *arch_list(void);

/* The path of a module in layer `layer` as PEFT names it, without
 * "base_model.model.": "model.layers.0.self_attn.q_proj". q, k and v of a fused
 * family give the fused linear. buffer holds at least 128 bytes. */
void arch_module_path(const struct arch *arch, int layer, enum module module, char *buffer);

#endif
