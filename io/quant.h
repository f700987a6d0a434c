/*
 * quant.h: value of stored weights. Plain C, exact; the fast version is in
 * model/cpu. Target base.
 */
#ifndef LORASHARD_IO_QUANT_H
#define LORASHARD_IO_QUANT_H

#include "io/dtype.h"

#ifdef __cplusplus /* the kernels of model/cuda are CUDA C */
extern "C" {
#endif

/* Expand n weights (a multiple of the block) of any dtype that is not in planes to f32. */
void quant_expand_f32(enum dtype dtype, const void *src, int64_t n, float *dst);

/* Quantise n weights (a multiple of the block) to DTYPE_F8: each block's scale
 * is its largest magnitude / 448, so that numbers end where e4m3 does, and each
 * number the nearest. Zeros have scale 0. What is not finite becomes NaN and
 * does not count towards the scale. */
void quant_pack_f8(const float *src, int64_t n, void *dst);

/* IEEE half and bfloat16 to and from f32, round to nearest even. */
float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);
float bf16_to_f32(uint16_t bits);
uint16_t f32_to_bf16(float value);

/* OCP e4m3 (the variant without infinities) to and from f32, round to nearest
 * even; what is beyond 448, infinity too, becomes 448. NaN stays NaN. */
float f8_to_f32(uint8_t bits);
uint8_t f32_to_f8(float value);

/* --- int8: a number from -127 to 127 a weight, one scale a row of the whole matrix --- */

/* Largest magnitude of n weights; infinity if one of them is not finite. */
float quant_largest(const float *src, int64_t n);

/* The scale of a row with that largest magnitude: largest / 127. */
float quant_int8_scale(float largest);

/* numbers = src / scale, round to nearest even; and the weights again: scale * number. */
void quant_pack_int8(const float *src, int64_t n, float scale, int8_t *numbers);
void quant_expand_int8(const int8_t *numbers, int64_t n, float scale, float *dst);

/* --- nf4: 4-bit NormalFloat with double quantisation ----------------------------------
 *
 * QLoRA (Dettmers et al. 2023, arXiv:2305.14314): a block of 64 weights of a row has
 * as scale its largest magnitude; a weight is the nearest of 16 values, times the
 * scale. Numbers and scales are those of bitsandbytes' kernels, but for what has no
 * finite weights.
 *
 * The scales are quantised again: offset = mean of a group's scales; scale - offset
 * is coded in 8 bits by bitsandbytes' dynamic map (an 8-bit floating point with a
 * variable exponent), times the group's largest magnitude. A group is a tile of 32
 * rows by one block at fixed places of the whole matrix, so that a part of a matrix
 * that is cut between tiles is the same to the bit as in the whole. 4.16 bits a weight.
 * A tile with a weight that is not finite has none that is.
 */
#define QUANT_NF4_BLOCK 64
#define QUANT_NF4_TILE  32 /* rows */

/* The planes of a matrix of `columns` (a multiple of the block). */
struct quant_nf4 {
  uint8_t *numbers; /* [rows, columns / 2]; of 32 weights in 16 bytes the first 16 are the low halves */
  uint8_t *codes;   /* [rows, columns / 64] of the scales */
  float *tiles;     /* [ceil(rows / 32), columns / 64, 2]: scale and offset of the codes */
};

/* Quantise src [rows, columns], which begins at a tile of the whole matrix and ends at one or at its end. */
void quant_pack_nf4(const float *src, int64_t rows, int64_t columns, const struct quant_nf4 *planes);

/* Row `row` of planes again, from column on, n weights; both multiples of the block. */
void quant_expand_nf4(const struct quant_nf4 *planes, int64_t columns, int64_t row, int64_t column, int64_t n,
                      float *dst);

/* The numbers of one block; returns its scale. */
float quant_nf4_block(const float *src, uint8_t *numbers);

/* A block's scale from its code and its tile, rounded once: kernels fuse the addition, too. */
float quant_nf4_scale(uint8_t code, const float *tile);

/* The 16 values. */
#define QUANT_NF4_VALUES                                                                              \
  -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,    \
      -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, \
      0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f
extern const float quant_nf4_values[16];

/* The dynamic map (create_dynamic_map(signed=True)) from its middle on: code c stands for step c - 127, negative ones
 * mirrored. Powers of ten from 1e-6 to 1, between which 1, 2, 4, .. 64 numbers are spread evenly; 0 and 1. */
#define QUANT_NF4_STEPS                                                                                               \
  0.0f, 5.50000038e-07f, 3.25000019e-06f, 7.7499999e-06f, 2.12499981e-05f, 4.37499984e-05f, 6.62500024e-05f,          \
      8.87499991e-05f, 0.000156250011f, 0.000268750038f, 0.000381250022f, 0.000493750034f, 0.000606250076f,           \
      0.00071875006f, 0.000831249985f, 0.000943750085f, 0.00128124992f, 0.00184375001f, 0.00240624999f,               \
      0.00296874996f, 0.00353124971f, 0.00409374991f, 0.00465624966f, 0.00521875033f, 0.00578125007f, 0.00634374982f, \
      0.00690625003f, 0.00746874977f, 0.00803124998f, 0.00859375019f, 0.00915624946f, 0.00971874967f, 0.0114062503f,  \
      0.0142187504f, 0.0170312505f, 0.0198437516f, 0.0226562507f, 0.0254687499f, 0.028281251f, 0.0310937501f,         \
      0.0339062512f, 0.0367187522f, 0.0395312496f, 0.0423437469f, 0.0451562516f, 0.047968749f, 0.05078125f,           \
      0.053593751f, 0.0564062484f, 0.0592187531f, 0.0620312504f, 0.0648437515f, 0.0676562563f, 0.0704687461f,         \
      0.0732812509f, 0.0760937482f, 0.078906253f, 0.0817187577f, 0.0845312476f, 0.0873437524f, 0.0901562497f,         \
      0.0929687545f, 0.0957812592f, 0.0985937491f, 0.107031256f, 0.12109375f, 0.135156244f, 0.149218753f,             \
      0.163281247f, 0.177343756f, 0.19140625f, 0.205468744f, 0.219531253f, 0.233593747f, 0.247656241f, 0.26171875f,   \
      0.275781274f, 0.289843738f, 0.303906262f, 0.317968726f, 0.33203125f, 0.346093744f, 0.360156238f, 0.374218762f,  \
      0.388281226f, 0.40234375f, 0.416406244f, 0.430468738f, 0.444531262f, 0.458593726f, 0.47265625f, 0.486718714f,   \
      0.500781238f, 0.514843702f, 0.528906226f, 0.54296875f, 0.557031274f, 0.571093798f, 0.585156262f, 0.599218726f,  \
      0.61328125f, 0.627343774f, 0.641406298f, 0.655468762f, 0.669531226f, 0.68359375f, 0.697656274f, 0.711718798f,   \
      0.725781262f, 0.739843726f, 0.75390625f, 0.767968774f, 0.782031238f, 0.796093762f, 0.810156226f, 0.82421875f,   \
      0.838281274f, 0.852343738f, 0.866406262f, 0.880468726f, 0.89453125f, 0.908593774f, 0.922656238f, 0.936718762f,  \
      0.950781226f, 0.96484375f, 0.978906274f, 0.992968738f, 1.0f
extern const float quant_nf4_steps[129];

#ifdef __cplusplus
}
#endif

#endif
