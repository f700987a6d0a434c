/*
 * sampling.h: choosing the next token from logits.
 */
#ifndef LORASHARD_MODEL_SAMPLING_H
#define LORASHARD_MODEL_SAMPLING_H

#include <stdint.h>

#include "io/status.h"

struct sampling {
  double temperature; /* 0: the likeliest token */
  double top_p;       /* keep the likeliest tokens whose probabilities reach it; 1: all */
  uint64_t seed;
};

/* The token chosen as number `position` of the sequence from logits [n]: a pure
 * function of its arguments. Source: Holtzman et al. 2020 (nucleus sampling).
 * STATUS_DATA when a logit is not finite, STATUS_SYSTEM when out of memory. */
enum status sampling_choose(const struct sampling *sampling, const float *logits, int64_t n, int64_t position,
                            int32_t *token);

#endif
