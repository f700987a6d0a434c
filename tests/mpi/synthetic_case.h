/*
 * synthetic_case.h: a random Llama-shaped model of any sizes with random
 * adapters, as a case for golden_case.h and golden_step.h. It has no golden
 * values: one rank alone is the reference.
 */
#ifndef LORASHARD_TESTS_MPI_SYNTHETIC_CASE_H
#define LORASHARD_TESTS_MPI_SYNTHETIC_CASE_H

#include "golden_case.h"

struct synthetic_dims {
  const char *name;
  int64_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ffn, n_vocab;
};

/* Write the model below a folder of its own (rank 0; all ranks call) and open
 * it: adapters of rank 3 on every linear, B not zero, 6 rows of 24 tokens. */
void synthetic_open(const struct synthetic_dims *dims, const struct mesh *mesh, struct golden_case *golden);

/* Close it and remove the folder. */
void synthetic_close(const struct mesh *mesh, struct golden_case *golden);

#endif
