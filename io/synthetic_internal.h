/*
 * synthetic_internal.h: what the synthetic_*.c files and builtin_models.c share.
 */
#ifndef LORASHARD_IO_SYNTHETIC_INTERNAL_H
#define LORASHARD_IO_SYNTHETIC_INTERNAL_H

#include "io/synthetic.h"

/* --- builtin_models.c --- */

/* A model by name, as the text of its config.json. */
struct builtin_model {
  const char *name, *json;
};
extern const struct builtin_model builtin_models[]; /* ended by a NULL name */

/* --- synthetic_tensors.c --- */

enum synthetic_fill { SYNTHETIC_ZEROS, SYNTHETIC_ONES, SYNTHETIC_RANDOM };

/* One tensor: its HF name and shape, and how its values come about. */
struct synthetic_tensor {
  char name[112];
  int n_dims;
  int64_t shape[2];
  enum synthetic_fill fill;
  double deviation;     /* of random values */
  uint32_t kind, layer; /* what the generator counts by; layer is 0 outside the layers */
};

struct synthetic_list {
  struct synthetic_tensor *tensors; /* [n] in name order, free() them */
  int64_t n;
};

/* All tensors of a model with these facts, as model/weights.c asks for them.
 * On failure the list is empty. */
enum status synthetic_tensors(const char *path, const struct model_facts *facts, struct synthetic_list *list);

/* --- synthetic_values.c --- */

/* Elements [first, first + n) of a tensor of random values to dst: uniform,
 * mean 0, of the given standard deviation. Element e is half word e % 2 of word
 * e / 2 of the stream (seed, RNG_SYNTHETIC, kind, layer, 0). bf16 and f16 values
 * are the f32 ones rounded to nearest even. dtype is f32, bf16 or f16. */
void synthetic_values(uint64_t seed, uint32_t kind, uint32_t layer, double deviation, int64_t first, int64_t n,
                      enum dtype dtype, void *dst);

#endif
