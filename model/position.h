/*
 * position.h: tables that give attention its sense of order: rotary angles and
 * ALiBi slopes. Sources: RoFormer (Su et al. 2021), ALiBi (Press et al. 2022),
 * YaRN (Peng et al. 2023), and transformers' rope_scaling definitions.
 */
#ifndef LORASHARD_MODEL_POSITION_H
#define LORASHARD_MODEL_POSITION_H

#include "io/model_facts.h"

/* cos_sin[position][rotary_dim / 2][2] = (cos, sin), for positions < n_positions,
 * scaled as the facts say. `length`: longest sequence (dynamic scaling). */
void position_rotary_table(const struct model_facts *facts, int64_t n_positions, int64_t length, float *cos_sin);

/* slopes[n] of query heads [first, first + n) of n_heads. */
void position_alibi_slopes(int64_t n_heads, int64_t first, int64_t n, float *slopes);

#endif
