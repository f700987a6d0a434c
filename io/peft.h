/*
 * peft.h: PEFT adapter folders (adapter_model.safetensors + adapter_config.json).
 */
#ifndef LORASHARD_IO_PEFT_H
#define LORASHARD_IO_PEFT_H

#include "io/checkpoint.h"
#include "io/model_facts.h"
#include "model/arch.h"

/* An adapter in memory, whole: what export reads and import makes. */
struct adapter_module {
  int layer;
  enum module module;
  int64_t r, in, out;
  double scale; /* s of y += s (x A') B' */
  double alpha;
  bool rslora;
  float *A; /* [r, in] */
  float *B; /* [out, r] */
};
struct adapter_set {
  struct adapter_module *modules; /* in (layer, module) order */
  int n_modules;
};
void adapter_set_free(struct adapter_set *set);

/* Read any adapter: gathered file, step directory, or PEFT folder. `facts`
 * says how fused linears split; it may be NULL for our own files. For our own
 * files *header_p (if not NULL) is filled; for a PEFT folder it is zeroed. */
enum status adapter_set_read(const char *path, const struct model_facts *facts, struct adapter_set *set,
                             struct checkpoint_header *header_p);

/* True if the folder looks like a PEFT adapter. */
bool peft_is_folder(const char *path);

/* What a path stands for: a PEFT folder (*peft_p), or what checkpoint_resolve
 * says. A folder that is both is STATUS_USAGE: which one is meant is not guessed. */
enum status adapter_resolve(const char *path, char *resolved, size_t size, bool *peft_p);

/* Write a PEFT folder. Fused families join q, k, v exactly (stacked A, block B).
 * One r and one scale for all modules where that is possible without loss
 * (padding ranks with zeros, folding scales into B), so that vLLM and PEFT give
 * the trained scale. base_name goes into base_model_name_or_path. */
enum status peft_write(const char *folder, const struct adapter_set *set, const struct model_facts *facts,
                       const char *base_name);

/* Read a PEFT folder; every key must be understood, every module complete. */
enum status peft_read(const char *folder, const struct model_facts *facts, struct adapter_set *set);

#endif
