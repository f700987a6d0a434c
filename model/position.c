#include "model/position.h"

#include <math.h>

/* Llama 3.1: long wavelengths are stretched, short ones kept, those between blended. */
static double scale_llama3(const struct model_facts *facts, double frequency) {
  double original = (double)facts->rope_original_positions, wavelength = 2 * M_PI / frequency;
  if (wavelength < original / facts->rope_high_freq) return frequency;
  if (wavelength > original / facts->rope_low_freq) return frequency / facts->rope_factor;
  double smooth = (original / wavelength - facts->rope_low_freq) / (facts->rope_high_freq - facts->rope_low_freq);
  return (1 - smooth) * frequency / facts->rope_factor + smooth * frequency;
}

static double yarn_boundary(const struct model_facts *facts, double rotations) {
  double n = (double)facts->rotary_dim, original = (double)facts->rope_original_positions;
  return n * log(original / (2 * M_PI * rotations)) / (2 * log(facts->rope_theta));
}

static double scale_yarn(const struct model_facts *facts, double frequency, int64_t i) {
  double low = fmax(floor(yarn_boundary(facts, facts->rope_beta_fast)), 0);
  double high = fmin(ceil(yarn_boundary(facts, facts->rope_beta_slow)), (double)facts->rotary_dim - 1);
  if (high <= low) high = low + 0.001;
  double ramp = fmin(fmax(((double)i - low) / (high - low), 0), 1);
  return ramp * frequency / facts->rope_factor + (1 - ramp) * frequency;
}

static double rotary_theta(const struct model_facts *facts, int64_t length) {
  double n = (double)facts->rotary_dim, m = (double)facts->max_positions;
  if (facts->rope_scaling != ROPE_DYNAMIC || (double)length <= m) return facts->rope_theta;
  double stretch = facts->rope_factor * (double)length / m - (facts->rope_factor - 1);
  return facts->rope_theta * pow(stretch, n / (n - 2));
}

static float rotary_frequency(const struct model_facts *facts, double theta, int64_t i) {
  /* f32 as in transformers, whose angles are f32 products. */
  double frequency = (float)(1.0 / pow(theta, 2.0 * (double)i / (double)facts->rotary_dim));
  if (facts->has_rope_divisors) return (float)(frequency / (double)facts->rope_divisors[i]);
  switch (facts->rope_scaling) {
    case ROPE_LINEAR:
      return (float)(frequency / facts->rope_factor);
    case ROPE_LLAMA3:
      return (float)scale_llama3(facts, frequency);
    case ROPE_YARN:
      return (float)scale_yarn(facts, frequency, i);
    default:
      return (float)frequency;
  }
}

void position_rotary_table(const struct model_facts *facts, int64_t n_positions, int64_t length, float *cos_sin) {
  int64_t half = facts->rotary_dim / 2;
  double theta = rotary_theta(facts, length), factor = 1;
  if (facts->rope_scaling == ROPE_YARN)
    factor = facts->rope_attention_factor > 0 ? facts->rope_attention_factor : 0.1 * log(facts->rope_factor) + 1;
  for (int64_t i = 0; i < half; i++) {
    float frequency = rotary_frequency(facts, theta, i);
    for (int64_t p = 0; p < n_positions; p++) {
      float angle = (float)p * frequency;
      cos_sin[(p * half + i) * 2] = (float)(cos((double)angle) * factor);
      cos_sin[(p * half + i) * 2 + 1] = (float)(sin((double)angle) * factor);
    }
  }
}

void position_alibi_slopes(int64_t n_heads, int64_t first, int64_t n, float *slopes) {
  int64_t power = 1;
  while (power * 2 <= n_heads) power *= 2;
  double base = exp2(-exp2(3 - log2((double)power))), between = exp2(-exp2(3 - log2(2.0 * (double)power)));
  for (int64_t i = 0; i < n; i++) {
    int64_t head = first + i;
    slopes[i] = (float)(head < power ? pow(base, (double)(head + 1)) : pow(between, (double)(2 * (head - power) + 1)));
  }
}
