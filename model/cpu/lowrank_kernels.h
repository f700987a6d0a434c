/*
 * lowrank_kernels.h: the three skinny products of a low-rank pair and
 * its dropout masks, on one thread and one block. A library's product of this shape runs at a third of
 * these or less, and has no dropout.
 *
 *   project    out[M, R]  = x[M, K] F           rows block by block
 *   spread     y[M, N]   += c[M, R] G[R, N]     rows block by block
 *   token sum  s[R, N]   += c[M, R]' x[M, N]    columns panel by panel
 *
 * R is padded: LOWRANK_PAD for the coefficients c and sums s, panels of 8 or
 * 16 for the packed factor F.
 */
#ifndef LORASHARD_MODEL_CPU_LOWRANK_KERNELS_H
#define LORASHARD_MODEL_CPU_LOWRANK_KERNELS_H

#include "model/cpu/cpu_internal.h"

enum {
#ifdef __AVX512F__
  LOWRANK_LANES = 16,
  LOWRANK_SPREAD_ROWS = 8, /* rows of a spread block: 24 sums in 32 vector registers */
#else
  LOWRANK_LANES = 8,
  LOWRANK_SPREAD_ROWS = 4, /* 12 sums in 16 */
#endif
  LOWRANK_MAX_R = 1024,
  LOWRANK_PAD = 4,
  LOWRANK_ROWS = 12,                   /* rows of a project block */
  LOWRANK_CHUNK = 256,                 /* inputs that are converted at a time */
  LOWRANK_STRIDE = LOWRANK_CHUNK + 16, /* of the converted rows: not a power of two, which would share cache sets */
  LOWRANK_TOKENS = 64,                 /* tokens of a token-sum block: with its columns it fits the L2 cache */
  LOWRANK_PANEL = 3 * LOWRANK_LANES,   /* columns in registers */
  LOWRANK_SPREAD = 8 * LOWRANK_PANEL,  /* columns a thread works on at a time */
};

static inline int64_t lowrank_pad(int64_t r, int64_t unit) { return (r + unit - 1) / unit * unit; }

/* Width of the factor's panel that starts at column `first`: the widest vector
 * the rest fills, else 8. */
static inline int lowrank_panel_width(int64_t r, int64_t first) {
  return LOWRANK_LANES == 16 && r - first > 8 ? 16 : 8;
}

/* Floats of a packed factor of K inputs. */
static inline int64_t lowrank_packed_size(int64_t k, int64_t r) { return k * lowrank_pad(r, 16); }

/* Pack inputs [first, first + n) of a factor, F[k][j] = factor[k row + j column]:
 * panels one after another, each [K][width]; columns from r on are 0. */
void lowrank_pack(const float *factor, int64_t row, int64_t column, int64_t K, int64_t r, int64_t first, int64_t n,
                  float *packed);

/* sums += x F for `n` inputs from input `first`, which x points to; x is
 * LOWRANK_ROWS rows at distance ldx; sums is [panels][LOWRANK_ROWS][width]. */
void lowrank_project(const float *x, int64_t ldx, int64_t first, int64_t n, const float *packed, int64_t K, int64_t r,
                     float *sums);

/* y[i, 0..n) += sum_j c[j, i] G[j, 0..n) for n_rows <= LOWRANK_SPREAD_ROWS
 * rows; c is [r][LOWRANK_SPREAD_ROWS]. */
void lowrank_spread(int64_t n_rows, struct tensor_view y, int64_t n, const float *c, int64_t r, const float *G,
                    int64_t ldg);

/* s[j, 0..n) += sum_i c[i, j] x[i, 0..n) for n_rows rows; r is a
 * multiple of LOWRANK_PAD. */
void lowrank_token_sum(int64_t n_rows, struct tensor_view x, int64_t n, const float *c, int64_t ldc, int64_t r,
                       float *s, int64_t lds);

/* --- lowrank_mask.c --------------------------------------------------------
 * Feature f of global row i is kept if 16 random bits are >= threshold: half
 * f % 2 (low first) of rng_u32(seed, RNG_DROPOUT, step, layer, module,
 * i 2^19 + f / 2). One Philox block serves eight features. p is rounded to a
 * 65536th, and what is kept is scaled by the rounded p, so the mean is exact. */

uint32_t lowrank_drop_threshold(const struct lowrank_dropout *dropout);

/* mask[i] = 1 if feature `feature` + i of global row `row` is kept, else 0. */
void lowrank_mask(const struct lowrank_dropout *dropout, int64_t row, int64_t feature, int64_t n, uint8_t *mask);

#endif
