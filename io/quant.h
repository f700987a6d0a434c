/*
 * quant.h: value of stored weights. Plain C, exact; the fast version is in
 * model/cpu. Target base.
 */
#ifndef LORASHARD_IO_QUANT_H
#define LORASHARD_IO_QUANT_H

#include "io/dtype.h"

/* Expand n weights (a multiple of the block) of any dtype to f32. */
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

#endif
