/*
 * quant.h: value of stored weights. Plain C, exact; the fast version is in
 * model/cpu. Target base.
 */
#ifndef LORASHARD_IO_QUANT_H
#define LORASHARD_IO_QUANT_H

#include "io/dtype.h"

/* Expand n weights (a multiple of the block) of any dtype to f32. */
void quant_expand_f32(enum dtype dtype, const void *src, int64_t n, float *dst);

/* IEEE half and bfloat16 to and from f32, round to nearest even. */
float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);
float bf16_to_f32(uint16_t bits);
uint16_t f32_to_bf16(float value);

#endif
