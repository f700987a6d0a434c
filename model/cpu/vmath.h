/*
 * vmath.h: vectors of f32 as wide as the processor's registers, and the
 * functions of them that the kernels of model/cpu need. gcc vector extensions;
 * a few steps take an AVX-512 instruction where there is one.
 *
 * Every element goes through the same operations wherever it stands in a row
 * (tails are padded, not looped over one by one), so results do not depend on
 * how rows are cut. NaN goes in and comes out.
 */
#ifndef LORASHARD_MODEL_CPU_VMATH_H
#define LORASHARD_MODEL_CPU_VMATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "io/dtype.h"

#ifdef __AVX512F__
#include <immintrin.h>
#define VF_LANES 16
#elif defined(__AVX__)
#define VF_LANES 8
#else
#define VF_LANES 4
#endif

/* f32, i32 and bf16 vectors; the _u types may be loaded from any address of an element. */
typedef float vf __attribute__((vector_size(4 * VF_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * VF_LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * VF_LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * VF_LANES)));
typedef float vf_u __attribute__((vector_size(4 * VF_LANES), aligned(4), may_alias));
typedef uint16_t vh_u __attribute__((vector_size(2 * VF_LANES), aligned(2), may_alias));

#define VF_INLINE static inline __attribute__((always_inline))

/* n rounded up to whole vectors. */
VF_INLINE int64_t vf_round_up(int64_t n) { return (n + VF_LANES - 1) / VF_LANES * VF_LANES; }

VF_INLINE vf vf_set(float x) { return x - (vf){0}; } /* x - 0 is x for every x, also -0 */
VF_INLINE vf vf_load(const float *p) { return *(const vf_u *)p; }
VF_INLINE void vf_store(float *p, vf x) { *(vf_u *)p = x; }

VF_INLINE vf vf_select(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }

/* The larger; x where x is NaN. */
VF_INLINE vf vf_max(vf x, vf other) {
#ifdef __AVX512F__
  return (vf)_mm512_max_ps((__m512)other, (__m512)x);
#else
  return vf_select(other > x, other, x);
#endif
}
VF_INLINE vf vf_min(vf x, vf other) {
#ifdef __AVX512F__
  return (vf)_mm512_min_ps((__m512)other, (__m512)x);
#else
  return vf_select(other < x, other, x);
#endif
}

VF_INLINE vf vf_sqrt(vf x) {
#ifdef __AVX512F__
  return (vf)_mm512_sqrt_ps((__m512)x);
#else
  for (int i = 0; i < VF_LANES; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

VF_INLINE vf vf_abs(vf x) { return (vf)((vi)x & 0x7fffffff); }

/* Sum and largest of the lanes, always in the same order. */
VF_INLINE float vf_sum(vf x) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)x);
#else
  float lane[VF_LANES];
  memcpy(lane, &x, sizeof lane);
  for (int width = VF_LANES / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lane[i] += lane[i + width];
  }
  return lane[0];
#endif
}
VF_INLINE float vf_largest(vf x) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps((__m512)x);
#else
  float largest = x[0];
  for (int i = 1; i < VF_LANES; i++) largest = x[i] > largest ? x[i] : largest;
  return largest;
#endif
}

/* --- bf16 and rows -------------------------------------------------------- */

VF_INLINE vf vf_from_bf16(vh bits) { return (vf)(__builtin_convertvector(bits, vu) << 16); }

/* Round to nearest even; NaN stays NaN. */
VF_INLINE vh vf_to_bf16(vf x) {
  vu word = (vu)x;
  vu rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  vu quiet = (word >> 16) | 0x40;
  vi nan = x != x;
  return __builtin_convertvector((rounded & ~(vu)nan) | (quiet & (vu)nan), vh);
}

/* VF_LANES elements of f32 or bf16 from element i of a row. */
VF_INLINE vf vf_get(enum dtype dtype, const void *row, int64_t i) {
  return dtype == DTYPE_BF16 ? vf_from_bf16(*(const vh_u *)((const uint16_t *)row + i))
                             : vf_load((const float *)row + i);
}
VF_INLINE void vf_put(enum dtype dtype, void *row, int64_t i, vf x) {
  if (dtype == DTYPE_BF16) {
    *(vh_u *)((uint16_t *)row + i) = vf_to_bf16(x);
  } else {
    vf_store((float *)row + i, x);
  }
}

/* The first n < VF_LANES elements, the others `fill`; and back. */
VF_INLINE vf vf_get_part(enum dtype dtype, const void *row, int64_t i, int64_t n, float fill) {
  vf x = vf_set(fill);
  if (dtype == DTYPE_BF16) {
    vh bits = {0};
    memcpy(&bits, (const uint16_t *)row + i, (size_t)n * 2);
    vf value = vf_from_bf16(bits);
    memcpy(&x, &value, (size_t)n * 4);
  } else {
    memcpy(&x, (const float *)row + i, (size_t)n * 4);
  }
  return x;
}
VF_INLINE void vf_put_part(enum dtype dtype, void *row, int64_t i, int64_t n, vf x) {
  if (dtype == DTYPE_BF16) {
    vh bits = vf_to_bf16(x);
    memcpy((uint16_t *)row + i, &bits, (size_t)n * 2);
  } else {
    memcpy((float *)row + i, &x, (size_t)n * 4);
  }
}

/* Elements [i, i + VF_LANES) of a row of n; a tail is filled up with `fill`, and stored as far as it goes. */
VF_INLINE vf vf_get_row(enum dtype dtype, const void *row, int64_t i, int64_t n, float fill) {
  return i + VF_LANES <= n ? vf_get(dtype, row, i) : vf_get_part(dtype, row, i, n - i, fill);
}
VF_INLINE void vf_put_row(enum dtype dtype, void *row, int64_t i, int64_t n, vf x) {
  if (i + VF_LANES <= n) {
    vf_put(dtype, row, i, x);
  } else {
    vf_put_part(dtype, row, i, n - i, x);
  }
}

/* --- pairs of bf16 --------------------------------------------------------- */

/* A lane of 32 bits holds two bf16, the first in its low half; where the processor multiplies such pairs
 * (VF_PAIRS), a product of two bf16 matrices takes half the instructions. Denormal numbers count as 0 there. */
#ifdef __AVX512BF16__
#define VF_PAIRS 1
#else
#define VF_PAIRS 0
#endif

/* sum + a b over both numbers of each lane; products are exact, sums rounded to f32. */
VF_INLINE vf vf_add_pairs(vf sum, vf a, vf b) {
#if VF_PAIRS
  return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  sum += (vf)((vu)a << 16) * (vf)((vu)b << 16);
  return sum + (vf)((vu)a & 0xffff0000u) * (vf)((vu)b & 0xffff0000u);
#endif
}

/* The word at p in all lanes; never touched as a number, which would change infinities beside other bits. */
VF_INLINE vf vf_set_pair(const float *p) {
  int32_t word;
  memcpy(&word, p, sizeof word);
  return (vf)(word - (vi){0});
}

/* Round to bf16. */
VF_INLINE vh vf_round_bf16(vf x) {
#if VF_PAIRS
  return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
  return vf_to_bf16(x);
#endif
}

/* Lanes of `first` and `second` side by side as pairs. */
VF_INLINE vf vf_pair_bf16(vh first, vh second) {
  return (vf)(__builtin_convertvector(first, vu) | __builtin_convertvector(second, vu) << 16);
}
VF_INLINE vf vf_pair(vf first, vf second) { return vf_pair_bf16(vf_round_bf16(first), vf_round_bf16(second)); }

/* --- exponentials ---------------------------------------------------------- */

VF_INLINE vf vf_round(vf x) {
#ifdef __AVX512F__
  return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  vf shift = vf_set(0x1.8p23f); /* |x| < 2^22 */
  return (x + shift) - shift;
#endif
}

/* p 2^n for p in [0.7, 1.5] and whole n in [-151, 128]; results below the smallest normal number become 0. */
VF_INLINE vf vf_scale(vf p, vf n) {
#ifdef __AVX512F__
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  vi power = __builtin_convertvector(n, vi);
  vf scaled = (vf)((vi)p + (power << 23));
  scaled = vf_select(power > -126, scaled, (vf){0});
  scaled = vf_select((power == 128) & (p >= 1.0f), vf_set(INFINITY), scaled);
  return vf_select(p == p, scaled, p);
#endif
}

/* 2^x; relative error below 1e-7. */
VF_INLINE vf vf_exp2(vf x) {
  x = vf_min(vf_max(x, vf_set(-151.0f)), vf_set(128.0f));
  vf n = vf_round(x), f = x - n;
  vf p = f * 0x1.448fa4p-13f + 0x1.5f4776p-10f;
  p = p * f + 0x1.3b29aap-7f;
  p = p * f + 0x1.c6aed0p-5f;
  p = p * f + 0x1.ebfbe0p-3f;
  p = p * f + 0x1.62e430p-1f;
  p = p * f + 1.0f;
  return vf_scale(p, n);
}

/* e^x; relative error below 2e-7. ln 2 is taken off in two parts, so that large x keep their accuracy. */
VF_INLINE vf vf_exp(vf x) {
  x = vf_min(vf_max(x, vf_set(-104.0f)), vf_set(89.0f));
  vf n = vf_min(vf_round(x * 0x1.715476p0f), vf_set(128.0f));
  vf f = x - n * 0x1.62e400p-1f;
  f = f - n * 0x1.7f7d1cp-20f;
  vf p = f * 0x1.6dceecp-10f + 0x1.126e94p-7f;
  p = p * f + 0x1.555432p-5f;
  p = p * f + 0x1.555408p-3f;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  return vf_scale(p, n);
}

/* log2 of normal positive numbers; absolute error below 1e-7 + 6e-8 |result|. */
VF_INLINE vf vf_log2(vf x) {
  vi power = ((vi)x - 0x3f3504f3) >> 23; /* x = m 2^power with m in [sqrt(1/2), sqrt(2)) */
  vf z = (vf)((vi)x - (power << 23)) - 1.0f;
  vf p = z * 0.12926428f + -0.20893389f;
  p = p * z + 0.21521229f;
  p = p * z + -0.23867567f;
  p = p * z + 0.2879391f;
  p = p * z + -0.36071625f;
  p = p * z + 0.48091027f;
  p = p * z + -0.7213472f;
  p = p * z + 1.442695f;
  return p * z + __builtin_convertvector(power, vf);
}

/* The normal distribution: *density = e^(-x^2/2) / sqrt(2 pi); returns Phi(x) = (1 + erf(x / sqrt 2)) / 2.
 * log2 of the upper tail is -x^2/2 log2 e plus a smooth function, fitted on [0, 6] by weighted least squares in the
 * maximum norm; absolute error below 6e-8. */
VF_INLINE vf vf_normal(vf x, vf *density) {
  vf t = vf_abs(x), c = vf_min(t, vf_set(6.0f));
  vf square = x * x * -0.72134752f;
  vf p = c * 2.3531783e-07f + -5.4738707e-06f;
  p = p * c + 5.0796953e-05f;
  p = p * c + -0.00021012432f;
  p = p * c + -0.000112574184f;
  p = p * c + 0.0070546404f;
  p = p * c + -0.05249912f;
  p = p * c + 0.26214215f;
  p = p * c + -1.1511058f;
  p = p * c + -1.0f;
  *density = vf_exp2(square) * 0.39894228f;
  vf tail = vf_exp2(square + p);
  return vf_select(x < 0.0f, tail, 1.0f - tail);
}

#endif
