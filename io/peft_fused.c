/*
 * peft_fused.c: PEFT puts one adapter on a fused q-k-v linear; here q, k and v
 * have one each. Both directions are exact.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/peft_internal.h"

void module_shape(const struct model_facts *facts, enum module module, int64_t *in_p, int64_t *out_p) {
  int64_t q = facts->n_heads * facts->head_dim, kv = facts->n_kv_heads * facts->head_dim;
  *in_p = facts->d_model;
  *out_p = facts->d_model;
  switch (module) {
    case MODULE_Q:
      *out_p = q;
      break;
    case MODULE_K:
    case MODULE_V:
      *out_p = kv;
      break;
    case MODULE_O:
      *in_p = q;
      break;
    case MODULE_GATE:
    case MODULE_UP:
      *out_p = facts->d_ffn;
      break;
    case MODULE_DOWN:
      *in_p = facts->d_ffn;
      break;
    case MODULE_COUNT:
      break;
  }
}

int64_t fused_row(const struct arch *arch, const struct model_facts *facts, enum module module, int64_t j) {
  int64_t head = facts->head_dim;
  if (arch->qkv_layout == QKV_PER_HEAD) return (j / head) * 3 * head + (int64_t)module * head + j % head;
  if (module == MODULE_Q) return j;
  return (facts->n_heads + (module == MODULE_V ? facts->n_kv_heads : 0)) * head + j;
}

static bool row_is_zero(const float *values, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (values[i] != 0) return false;
  return true;
}

/* Which part each rank serves: owner[c] in 0..2, 3 for a padding rank (zeros in
 * A and B). False if a rank serves several, or none although its A is not zero
 * (an adapter that is still to be trained). */
static bool find_owners(const struct arch *arch, const struct model_facts *facts, const struct adapter_module *whole,
                        unsigned char *owner) {
  int64_t r = whole->r;
  memset(owner, 3, (size_t)r);
  for (int part = 0; part < 3; part++) {
    int64_t in, out;
    module_shape(facts, (enum module)part, &in, &out);
    for (int64_t j = 0; j < out; j++) {
      const float *row = whole->B + fused_row(arch, facts, (enum module)part, j) * r;
      for (int64_t c = 0; c < r; c++) {
        if (row[c] == 0) continue;
        if (owner[c] != 3 && owner[c] != part) return false;
        owner[c] = (unsigned char)part;
      }
    }
  }
  for (int64_t c = 0; c < r; c++)
    if (owner[c] == 3 && !row_is_zero(whole->A + c * whole->in, whole->in)) return false;
  return true;
}

/* One of q, k and v with the ranks that are its own; owner NULL: with all. */
static enum status take_part(const struct arch *arch, const struct model_facts *facts,
                             const struct adapter_module *whole, const unsigned char *owner, int part,
                             struct adapter_module *module) {
  int64_t r = 0, in, out;
  module_shape(facts, (enum module)part, &in, &out);
  for (int64_t c = 0; c < whole->r; c++) r += !owner || owner[c] == part;
  *module = *whole;
  module->module = (enum module)part;
  module->r = r;
  module->out = out;
  module->alpha = owner ? whole->scale * (whole->rslora ? sqrt((double)r) : (double)r) : whole->alpha;
  module->A = module->B = NULL;
  if (r == 0) return STATUS_OK;
  module->A = malloc((size_t)r * (size_t)in * sizeof(float));
  module->B = malloc((size_t)out * (size_t)r * sizeof(float));
  if (!module->A || !module->B) {
    free(module->A);
    free(module->B);
    return status_set(STATUS_SYSTEM, "out of memory for an adapter of rank %lld", (long long)r);
  }
  int64_t own = 0;
  for (int64_t c = 0; c < whole->r; c++) {
    if (owner && owner[c] != part) continue;
    memcpy(module->A + own * in, whole->A + c * in, (size_t)in * sizeof(float));
    for (int64_t j = 0; j < out; j++)
      module->B[j * r + own] = whole->B[fused_row(arch, facts, (enum module)part, j) * whole->r + c];
    own++;
  }
  return STATUS_OK;
}

enum status fused_split(const struct arch *arch, const struct model_facts *facts, const struct adapter_module *whole,
                        struct adapter_module parts[3], int *n_parts_p, bool *copied_p) {
  int n = 0;
  enum status status = STATUS_OK;
  unsigned char *owner = malloc((size_t)whole->r);
  if (!owner) return status_set(STATUS_SYSTEM, "out of memory for an adapter of rank %lld", (long long)whole->r);
  bool separate = find_owners(arch, facts, whole, owner);
  if (separate && memchr(owner, 0, (size_t)whole->r) == NULL && memchr(owner, 1, (size_t)whole->r) == NULL &&
      memchr(owner, 2, (size_t)whole->r) == NULL)
    separate = false; /* nothing but zeros: keep its shape */
  for (int part = 0; part < 3 && status == STATUS_OK; part++) {
    status = take_part(arch, facts, whole, separate ? owner : NULL, part, &parts[n]);
    if (status == STATUS_OK && parts[n].r > 0) n++;
  }
  free(owner);
  if (status != STATUS_OK) {
    for (int i = 0; i < n; i++) {
      free(parts[i].A);
      free(parts[i].B);
    }
    return status;
  }
  *copied_p = !separate;
  *n_parts_p = n;
  return STATUS_OK;
}
