/*
 * merge.h: adding a low-rank pair to a frozen weight, row by row:
 * W + s B A in f32, rounded once to the stored dtype.
 */
#ifndef LORASHARD_LORA_MERGE_H
#define LORASHARD_LORA_MERGE_H

#include <stdint.h>

#include "io/dtype.h"

/* A pair as one row of the stored weight sees it:
 *   delta[j] = scale sum_k left[k left_step] right[k rank_step + j step], j < n.
 * Row o of W [out, in]: left = B[o, :], right = A. Row i of a Conv1D weight
 * [in, out]: left = A[:, i], right = B transposed by its steps. */
struct merge_change {
  const float *left;
  int64_t left_step;
  const float *right;
  int64_t rank_step, step;
  int64_t r, n;
  double scale;
};

/* Sums of squares over the rows that changed. */
struct merge_sizes {
  double weight; /* before */
  double change; /* s B A */
  double lost;   /* what rounding to the stored dtype took */
};

/* w[n] += the row's change. delta [n] is scratch; on return it holds the
 * change. Adds to sizes->weight and sizes->change. */
void merge_add_row(const struct merge_change *change, float *w, float *delta, struct merge_sizes *sizes);

/* dst [n] of dtype (f32, f16, bf16) = w, to nearest even. Adds the squared
 * rounding errors to *lost. Returns the index of the first finite value that
 * became infinite (f16's range is small), or -1. */
int64_t merge_round(const float *w, int64_t n, enum dtype dtype, void *dst, double *lost);

#endif
