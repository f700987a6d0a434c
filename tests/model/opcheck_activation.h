/*
 * opcheck_activation.h: activations and their slopes in double.
 */
#ifndef LORASHARD_TESTS_MODEL_OPCHECK_ACTIVATION_H
#define LORASHARD_TESTS_MODEL_OPCHECK_ACTIVATION_H

#include "tests/model/opcheck.h"

static inline double opcheck_act(enum activation kind, double x) {
  switch (kind) {
    case ACTIVATION_GELU:
      return x * 0.5 * erfc(-x / sqrt(2));
    case ACTIVATION_GELU_TANH:
      return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case ACTIVATION_RELU:
      return x > 0 ? x : 0;
    default:
      return x / (1 + exp(-x));
  }
}

static inline double opcheck_act_slope(enum activation kind, double x) {
  double t = tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)), s = 1 / (1 + exp(-x));
  switch (kind) {
    case ACTIVATION_GELU:
      return 0.5 * erfc(-x / sqrt(2)) + x * exp(-x * x / 2) / sqrt(2 * M_PI);
    case ACTIVATION_GELU_TANH:
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
    case ACTIVATION_RELU:
      return x > 0;
    default:
      return s * (1 + x * (1 - s));
  }
}

#endif
