/*
 * synthetic.h: base models that need no files: sizes built into the program,
 * weights from the counter-based generator (dist/rng.h). Any rank makes its own
 * slice of any tensor, the same numbers in every layout.
 */
#ifndef LORASHARD_IO_SYNTHETIC_H
#define LORASHARD_IO_SYNTHETIC_H

#include "io/tensor_source.h"

/* True for "synthetic:..." */
bool synthetic_is_name(const char *base);

/* Open "synthetic:NAME[,layers=N][,dtype=f32|bf16|f16][,seed=S]". NAME is one of
 * the built-in models or the path of a config.json. Matrices are uniform with the
 * standard deviation that keeps activations at size 1, 1 / sqrt(inputs); norms
 * ones, biases zero; dtype as the config.json has it (dtype or torch_dtype), else
 * bf16; seed 0. A layer's weights do not depend on the number of layers, and those
 * of the narrower dtypes are f32's, rounded. The tensors are those that a checkpoint of the family has. STATUS_USAGE
 * names what is unknown, with the nearest name. On success the source is the
 * caller's, to be closed with base_model_close. */
enum status synthetic_open_base(const char *base, struct tensor_source **source_p);

/* A source with these facts. `path` is what messages call it; it is copied. */
enum status synthetic_from_facts(const char *path, const struct model_facts *facts, enum dtype dtype, uint64_t seed,
                                 struct tensor_source **source_p);

/* Facts of a built-in model ("gpt3-175b"), as a config.json would give them.
 * STATUS_USAGE with the nearest name. */
enum status synthetic_facts(const char *name, struct model_facts *facts);

/* The built-in names, ended by NULL. */
const char *const *synthetic_names(void);

#endif
