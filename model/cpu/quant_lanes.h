/*
 * quant_lanes.h: stored weights to f32 in registers, a group of 32 at a time.
 * Layouts: io/quant.c, whose values these are bit for bit.
 *
 * They are so although the compiler may fuse d q + m: an 11-bit scale times a
 * number of at most 13 bits is exact in f32, so that fused or not there is one
 * rounding. Only q6_k, f8, int8 and nf4 round their products, and add nothing.
 */
#ifndef LORASHARD_MODEL_CPU_QUANT_LANES_H
#define LORASHARD_MODEL_CPU_QUANT_LANES_H

#include "io/quant.h"
#include "model/cpu/vmath.h"
#include "model/ops.h"
#ifdef __AVX__
#include <immintrin.h>
#endif

#define QUANT_GROUP   32 /* every block of a quantised format is whole groups */
#define QUANT_VECTORS (QUANT_GROUP / VF_LANES)

VF_INLINE vi quant_lane(void) {
  static const int32_t lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  vi number;
  memcpy(&number, lane, sizeof number);
  return number;
}

/* VF_LANES bytes as numbers, without and with sign. gcc converts such vectors in many steps where there is one. */
VF_INLINE vi quant_bytes(const uint8_t *p) {
#if VF_LANES == 16
  return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
  vi x;
  for (int i = 0; i < VF_LANES; i++) x[i] = p[i];
  return x;
#endif
}
VF_INLINE vi quant_signed(const uint8_t *p) {
#if VF_LANES == 16
  return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
  vi x;
  for (int i = 0; i < VF_LANES; i++) x[i] = (int8_t)p[i];
  return x;
#endif
}

VF_INLINE uint16_t quant_half_bits(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
VF_INLINE float quant_half(const uint8_t *p) {
#ifdef __F16C__
  return _cvtsh_ss(quant_half_bits(p));
#else
  return f16_to_f32(quant_half_bits(p));
#endif
}

/* The two halves at p, each in all lanes. */
VF_INLINE void quant_two_halves(const uint8_t *p, vf *first, vf *second) {
#if VF_LANES == 16
  __m512 both = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_loadu_si32(p)));
  *first = (vf)_mm512_permutexvar_ps(_mm512_setzero_si512(), both);
  *second = (vf)_mm512_permutexvar_ps(_mm512_set1_epi32(1), both);
#else
  *first = vf_set(quant_half(p));
  *second = vf_set(quant_half(p + 2));
#endif
}

VF_INLINE vf quant_scaled(vi q, vf d) { return d * __builtin_convertvector(q, vf); }

/* Bytes whose low four bits are the numbers of vector v of a group: the low halves of 16 bytes are weights 0 .. 15,
 * the high ones 16 .. 31. */
VF_INLINE vi quant_halves(const uint8_t *q, int v) {
  int first = v * VF_LANES;
  return first < 16 ? quant_bytes(q + first) : quant_bytes(q + first - 16) >> 4;
}

/* d (q - zero), or d q + m, for q the low four bits: 16 lanes are a table of all there are, looked up by them alone. */
VF_INLINE vf quant_around(vi q, vf d, int zero) {
#if VF_LANES == 16
  return __builtin_shuffle(quant_scaled(quant_lane() - zero, d), q);
#else
  return quant_scaled((q & 15) - zero, d);
#endif
}
VF_INLINE vf quant_above(vi q, vf d, vf m) {
#if VF_LANES == 16
  return __builtin_shuffle(quant_scaled(quant_lane(), d) + m, q);
#else
  return quant_scaled(q & 15, d) + m;
#endif
}

/* The fifth bits of vector v: bit i of `word` is weight i's. */
VF_INLINE vi quant_fifth(const uint8_t *p, int v) {
  uint32_t word = quant_half_bits(p) | (uint32_t)quant_half_bits(p + 2) << 16;
  vu shifted = (word - (vu){0}) >> (vu)(quant_lane() + v * VF_LANES);
  return (vi)(shifted << 4) & 16;
}

VF_INLINE vf quant_q4_k(const uint8_t *block, int group, int v) {
  const uint8_t *b = block + 4, *pair = block + 16 + group / 2 * 32;
  int j = group;
  int sc = j < 4 ? b[j] & 63 : (b[j + 4] & 15) | (b[j - 4] >> 6) << 4;
  int m = j < 4 ? b[j + 4] & 63 : (b[j + 4] >> 4) | (b[j] >> 6) << 4;
  vi q = quant_bytes(pair + v * VF_LANES) >> group % 2 * 4;
  vf scale, offset;
  quant_two_halves(block, &scale, &offset);
  return quant_above(q, scale * (float)sc, offset * -(float)m);
}

VF_INLINE vf quant_q6_k(const uint8_t *block, int group, int v) {
  int half = group / 4, part = group % 4, first = v * VF_LANES;
  const uint8_t *low = block + 64 * half + 32 * (part % 2) + first, *high = block + 128 + 32 * half + first;
  float scale = quant_half(block + 208) * (float)(int8_t)block[192 + 2 * group + first / 16];
  vi q = ((quant_bytes(low) >> part / 2 * 4) & 15) | ((quant_bytes(high) >> 2 * part) & 3) << 4;
  return quant_scaled(q - 32, vf_set(scale));
}

/* e4m3 numbers without their scale. The exponent and mantissa of a normal number go to f32's places with another bias;
 * a subnormal one is a multiple of 2^-9. */
VF_INLINE vf quant_e4m3(const uint8_t *p) {
  vi code = quant_bytes(p), magnitude = code & 0x7f;
  vi small = (vi)(__builtin_convertvector(magnitude, vf) * 0x1p-9f), normal = (magnitude << 20) + 0x3c000000;
  vi is_small = magnitude < 8, is_nan = (magnitude == 0x7f) & 0x7fc00000;
  return (vf)((small & is_small) | (normal & ~is_small) | is_nan | (vi)((vu)code >> 7 << 31));
}

VF_INLINE vf quant_f8(const uint8_t *block, int v) {
  float scale;
  memcpy(&scale, block, sizeof scale);
  return quant_e4m3(block + 4 + v * VF_LANES) * scale;
}

VF_INLINE vf quant_f16(const uint8_t *p) {
#if VF_LANES == 16
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif VF_LANES == 8 && defined(__F16C__)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
  vf x;
  for (int i = 0; i < VF_LANES; i++) x[i] = quant_half(p + 2 * i);
  return x;
#endif
}

/* Values of nf4 times their block's scale: the table is scaled and then looked up. */
VF_INLINE vf quant_nf4(const uint8_t *numbers, int v, vf scale) {
  vi q = quant_halves(numbers, v);
#if VF_LANES >= 8
  vf low = *(const vf_u *)quant_nf4_values, high = *(const vf_u *)(quant_nf4_values + 16 - VF_LANES);
#if VF_LANES == 16
  (void)high;
  return __builtin_shuffle(low * scale, q);
#else
  vi is_high = (q << 28) >> 31; /* the fourth bit; a shuffle takes the lower three */
  vi a = (vi)__builtin_shuffle(low * scale, q), b = (vi)__builtin_shuffle(high * scale, q);
  return (vf)((a & ~is_high) | (b & is_high));
#endif
#else
  vf x;
  for (int i = 0; i < VF_LANES; i++) x[i] = quant_nf4_values[q[i] & 15];
  return x * scale;
#endif
}

/* The scale of block `block` of a row in all lanes, where scales are in planes of their own; else it is not needed. */
VF_INLINE vf quant_plane_scale(enum dtype dtype, const struct weight *W, int64_t row, int64_t block) {
  if (dtype == DTYPE_INT8) return vf_set(W->scales[row]);
  if (dtype != DTYPE_NF4) return (vf){0};
  int64_t blocks = W->n_in / QUANT_NF4_BLOCK;
  int32_t code = W->codes[row * blocks + block] - 127, sign = code >> 31; /* no branch: it would be taken at random */
  const float *tile = W->scales + 2 * (row / QUANT_NF4_TILE * blocks + block);
  int32_t bits;
  float step;
  memcpy(&bits, &quant_nf4_steps[(code ^ sign) - sign], sizeof bits);
  bits ^= sign & INT32_MIN;
  memcpy(&step, &bits, sizeof step);
  return vf_set(__builtin_fmaf(step, tile[0], tile[1]));
}

/* Vector v of group `group` of a block: weights group QUANT_GROUP + v VF_LANES and on. A plain format's "block" is the
 * address of group 0; scale is quant_plane_scale's. Quick where dtype, group and v are known to the compiler. */
VF_INLINE vf quant_vector(enum dtype dtype, const uint8_t *block, vf scale, int group, int v) {
  int first = group * QUANT_GROUP + v * VF_LANES;
  vf d, m;
  switch (dtype) {
    case DTYPE_F32:
    case DTYPE_BF16:
      return vf_get(dtype, block, first);
    case DTYPE_F16:
      return quant_f16(block + 2 * first);
    case DTYPE_Q4_0:
      return quant_around(quant_halves(block + 2, v), vf_set(quant_half(block)), 8);
    case DTYPE_Q4_1:
      quant_two_halves(block, &d, &m);
      return quant_above(quant_halves(block + 4, v), d, m);
    case DTYPE_Q5_0:
      return quant_scaled(((quant_halves(block + 6, v) & 15) | quant_fifth(block + 2, v)) - 16,
                          vf_set(quant_half(block)));
    case DTYPE_Q5_1:
      quant_two_halves(block, &d, &m);
      return quant_scaled((quant_halves(block + 8, v) & 15) | quant_fifth(block + 4, v), d) + m;
    case DTYPE_Q8_0:
      return quant_scaled(quant_signed(block + 2 + first), vf_set(quant_half(block)));
    case DTYPE_Q4_K:
      return quant_q4_k(block, group, v);
    case DTYPE_Q6_K:
      return quant_q6_k(block, group, v);
    case DTYPE_F8:
      return quant_f8(block, v);
    case DTYPE_INT8:
      return quant_scaled(quant_signed(block + first), scale);
    case DTYPE_NF4:
      return quant_nf4(block + group * 16, v, scale);
    case DTYPE_COUNT:
      break;
  }
  return (vf){0};
}

/* Weights and bytes of a block, as io/dtype.h says, for the compiler; of plain numbers and int8 a group. */
VF_INLINE int quant_block(enum dtype dtype) {
  if (dtype == DTYPE_NF4) return QUANT_NF4_BLOCK;
  return dtype == DTYPE_Q4_K || dtype == DTYPE_Q6_K ? 256 : QUANT_GROUP;
}
VF_INLINE int quant_block_bytes(enum dtype dtype) {
  static const int bytes[DTYPE_COUNT] = {
      4 * QUANT_GROUP, 2 * QUANT_GROUP, 2 * QUANT_GROUP, 18, 20, 22, 24, 34, 144, 210, 36, QUANT_GROUP, 32};
  return bytes[dtype];
}

#endif
