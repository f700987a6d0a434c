/*
 * Which tensors a checkpoint of a family has, from the rows of model/arch.c.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/synthetic_internal.h"
#include "model/arch.h"

/* The list being made. Kinds count the tensors of a layer, and those outside from KIND_OUTSIDE on: a layer's numbers
 * are the same however many layers there are. */
struct listing {
  const char *path;
  const struct model_facts *facts;
  const struct arch *arch;
  struct synthetic_list *list;
  int64_t capacity;
  int64_t layer; /* -1: outside the layers */
  uint32_t kind; /* of the next tensor */
};

#define KIND_OUTSIDE 256

static enum status add(struct listing *to, const char *path, const char *suffix, int64_t rows, int64_t cols,
                       enum synthetic_fill fill, double deviation) {
  struct synthetic_list *list = to->list;
  if (list->n == to->capacity) {
    int64_t capacity = to->capacity ? 2 * to->capacity : 64;
    struct synthetic_tensor *tensors = realloc(list->tensors, (size_t)capacity * sizeof *tensors);
    if (!tensors) return status_set(STATUS_SYSTEM, "%s: no memory for the names of its tensors", to->path);
    list->tensors = tensors;
    to->capacity = capacity;
  }
  struct synthetic_tensor *tensor = &list->tensors[list->n++];
  *tensor = (struct synthetic_tensor){{0}, cols ? 2 : 1, {rows, cols}, fill, deviation, to->kind++, 0};
  char in_layer[32] = "";
  if (to->layer >= 0) {
    snprintf(in_layer, sizeof in_layer, to->arch->layer, (int)to->layer);
    tensor->layer = (uint32_t)to->layer;
  }
  snprintf(tensor->name, sizeof tensor->name, "%s%s%s%s", path == to->arch->head ? "" : to->arch->prefixes[0], in_layer,
           path, suffix);
  return STATUS_OK;
}

static enum status add_norm(struct listing *to, const char *path, int64_t n, bool bias) {
  TRY(add(to, path, ".weight", n, 0, SYNTHETIC_ONES, 0));
  return bias ? add(to, path, ".bias", n, 0, SYNTHETIC_ZEROS, 0) : STATUS_OK;
}

/* A matrix whose products with rows of size 1 have size 1. */
static enum status add_linear(struct listing *to, const char *path, int64_t out, int64_t in, bool bias) {
  bool turned = to->arch->conv1d && to->layer >= 0;
  TRY(add(to, path, ".weight", turned ? in : out, turned ? out : in, SYNTHETIC_RANDOM, 1 / sqrt((double)in)));
  return bias ? add(to, path, ".bias", out, 0, SYNTHETIC_ZEROS, 0) : STATUS_OK;
}

static enum status add_layer(struct listing *to) {
  const struct model_facts *f = to->facts;
  const struct arch *arch = to->arch;
  int64_t D = f->d_model, q = f->n_heads * f->head_dim, kv = f->n_kv_heads * f->head_dim;
  TRY(add_norm(to, arch->norm1, D, f->bias_norm));
  if (!f->shared_norm) TRY(add_norm(to, arch->norm2, D, f->bias_norm));
  if (f->qk_norm) TRY(add_norm(to, arch->q_norm, f->head_dim, false));
  if (f->qk_norm) TRY(add_norm(to, arch->k_norm, f->head_dim, false));
  if (arch->qkv_layout != QKV_SEPARATE) {
    TRY(add_linear(to, arch->qkv, q + 2 * kv, D, f->bias_qkv));
  } else {
    TRY(add_linear(to, arch->linear[MODULE_Q], q, D, f->bias_qkv));
    TRY(add_linear(to, arch->linear[MODULE_K], kv, D, f->bias_qkv));
    TRY(add_linear(to, arch->linear[MODULE_V], kv, D, f->bias_qkv));
  }
  TRY(add_linear(to, arch->linear[MODULE_O], D, q, f->bias_o));
  if (f->gated) TRY(add_linear(to, arch->linear[MODULE_GATE], f->d_ffn, D, f->bias_ffn));
  TRY(add_linear(to, arch->linear[MODULE_UP], f->d_ffn, D, f->bias_ffn));
  return add_linear(to, arch->linear[MODULE_DOWN], D, f->d_ffn, f->bias_ffn);
}

static enum status add_outside(struct listing *to) {
  const struct model_facts *f = to->facts;
  const struct arch *arch = to->arch;
  int64_t D = f->d_model, De = f->d_embed, V = f->n_vocab;
  /* Rows of length 1, so that a tied head gives logits of size 1; norms bring the stream to size 1. */
  TRY(add(to, arch->embed, ".weight", V, De, SYNTHETIC_RANDOM, 1 / sqrt((double)De)));
  if (f->position == POSITION_LEARNED)
    TRY(add(to, arch->position, ".weight", f->max_positions + f->position_offset, D, SYNTHETIC_RANDOM,
            1 / sqrt((double)D)));
  if (f->embed_norm) TRY(add_norm(to, arch->embed_norm, D, true));
  if (De != D) {
    TRY(add_linear(to, arch->project_in, D, De, false));
    TRY(add_linear(to, arch->project_out, De, D, false));
  }
  if (f->final_norm && !f->post_norm) TRY(add_norm(to, arch->final_norm, D, f->bias_norm));
  if (!f->tied_head) TRY(add_linear(to, arch->head, V, De, false));
  return f->bias_head ? add(to, arch->head, ".bias", V, 0, SYNTHETIC_ZEROS, 0) : STATUS_OK;
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const struct synthetic_tensor *)a)->name, ((const struct synthetic_tensor *)b)->name);
}

enum status synthetic_tensors(const char *path, const struct model_facts *facts, struct synthetic_list *list) {
  enum status status = STATUS_OK;
  *list = (struct synthetic_list){0};
  struct listing to = {.path = path, .facts = facts, .arch = arch_find(facts->family), .list = list};
  if (!to.arch)
    return status_set(STATUS_USAGE, "%s: model family '%s' is not supported: %s are", path, facts->family, arch_list());
  to.layer = -1;
  to.kind = KIND_OUTSIDE;
  TRY_OUT(add_outside(&to));
  for (to.layer = 0; to.layer < facts->n_layers; to.layer++) {
    to.kind = 0;
    TRY_OUT(add_layer(&to));
  }
  qsort(list->tensors, (size_t)list->n, sizeof *list->tensors, by_name);
out:
  if (status != STATUS_OK) {
    free(list->tensors);
    *list = (struct synthetic_list){0};
  }
  return status;
}
