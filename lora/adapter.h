/*
 * adapter.h: low-rank pairs on linears: which part of A and B a rank holds, their
 * initial values, and the operands that the model multiplies with.
 *
 * Source: Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rsLoRA); initial values as
 * PEFT's: A kaiming uniform with bound 1 / sqrt(in) or Gaussian with standard
 * deviation 1 / r, B zero.
 */
#ifndef LORASHARD_LORA_ADAPTER_H
#define LORASHARD_LORA_ADAPTER_H

#include "lora/param.h"
#include "model/arch.h"
#include "model/ops.h"

enum adapter_init { ADAPTER_KAIMING, ADAPTER_GAUSSIAN };

/* One adapter: where it sits, its whole sizes and this rank's parts. */
struct adapter_spec {
  int layer;
  enum module module;
  int64_t r;
  double alpha;
  bool rslora;
  int64_t in, out;                          /* whole */
  int64_t in_first, in_t, out_first, out_t; /* this rank's part of each axis */
  bool out_shared;                          /* a KV linear whose rows several ranks hold: every rank keeps B whole */
};

/* alpha / r, or alpha / sqrt(r). */
double adapter_scale(const struct adapter_spec *spec);

/* "layers/12/q". */
void adapter_name(const struct adapter_spec *spec, char name[64]);

/* All adapters of this rank. */
struct adapters {
  struct adapter_spec *specs;
  struct lowrank *pairs; /* [n] operands for the model, pointing into params */
  int n;
  struct param_list params; /* A then B of each adapter, in spec order */
};

/*
 * Parallel states (docs/architecture.md):
 *   column-parallel (q k v gate up): A replicated, gradient partial -> PARAM_STAGE;
 *                                    B rows of this rank            -> PARAM_DP
 *   row-parallel (o down):           A columns of this rank         -> PARAM_DP
 *                                    B replicated, gradient partial -> PARAM_STAGE
 *   k, v with replicated KV heads:   B whole on every rank, each adding the gradient of
 *                                    the rows that its query heads read -> PARAM_STAGE
 * With one tp rank both groups are the same ranks and everything is PARAM_DP.
 * `specs` is copied.
 */

/* The list of parameters alone, sizes and parts, without memory (lorashard plan).
 * Freed with adapters_destroy, in both cases. */
enum status adapters_list(int n_tp, const struct adapter_spec *specs, int n, struct adapters *adapters);

/* The same with memory for them, and the operands. dropout applies to all. */
enum status adapters_create(struct device *device, int n_tp, const struct adapter_spec *specs, int n, float dropout,
                            uint64_t seed, struct adapters *adapters);
void adapters_destroy(struct adapters *adapters, struct device *device);

/* Initial values from the full sizes: the same for every layout. */
enum status adapters_init(struct adapters *adapters, struct device *device, enum adapter_init init, uint64_t seed);

#endif
