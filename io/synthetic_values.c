/*
 * The numbers of synthetic tensors. A uniform number costs an eighth of a Philox
 * call and no logarithm: GPT-3's layers have 1.8 billion weights each.
 */
#include <math.h>
#include <string.h>

#include "dist/rng.h"
#include "io/quant.h"
#include "io/synthetic_internal.h"

enum {
  HALVES = 8,  /* half words of one Philox call */
  BLOCKS = 64, /* calls at a time: the loop over them becomes vector instructions */
  VALUES = BLOCKS * HALVES
};

/* Half words of blocks [block, block + n), n <= BLOCKS. */
static void draw(uint64_t seed, uint32_t kind, uint32_t layer, uint64_t block, int n, uint16_t halves[VALUES]) {
  uint32_t words[4][BLOCKS];
  for (int i = 0; i < n; i++) {
    uint32_t out[4];
    rng_block(seed, RNG_SYNTHETIC, kind, layer, 0, block + (uint64_t)i, out);
    for (int w = 0; w < 4; w++) words[w][i] = out[w];
  }
  for (int i = 0; i < n; i++)
    for (int w = 0; w < 4; w++) {
      halves[i * HALVES + 2 * w] = (uint16_t)words[w][i];
      halves[i * HALVES + 2 * w + 1] = (uint16_t)(words[w][i] >> 16);
    }
}

/* f32_to_bf16 for finite values, in a form that becomes vector instructions. */
static inline uint16_t round_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float centred(uint16_t half, float step) { return ((float)half - 32767.5f) * step; }

static void convert(const uint16_t *halves, int64_t n, float step, enum dtype dtype, void *dst) {
  if (dtype == DTYPE_F32)
    for (int64_t i = 0; i < n; i++) ((float *)dst)[i] = centred(halves[i], step);
  else if (dtype == DTYPE_BF16)
    for (int64_t i = 0; i < n; i++) ((uint16_t *)dst)[i] = round_bf16(centred(halves[i], step));
  else
    for (int64_t i = 0; i < n; i++) ((uint16_t *)dst)[i] = f32_to_f16(centred(halves[i], step));
}

void synthetic_values(uint64_t seed, uint32_t kind, uint32_t layer, double deviation, int64_t first, int64_t n,
                      enum dtype dtype, void *dst) {
  /* 65536 equally likely values, one step apart, deviate by sqrt((65536^2 - 1) / 12) steps. */
  const float step = (float)(deviation / sqrt((65536.0 * 65536.0 - 1) / 12));
  const size_t size = dtype_bytes(dtype, 1);
  uint16_t halves[VALUES];
  while (n > 0) {
    int64_t skip = first % HALVES, now = VALUES - skip < n ? VALUES - skip : n;
    draw(seed, kind, layer, (uint64_t)(first / HALVES), (int)((skip + now + HALVES - 1) / HALVES), halves);
    convert(halves + skip, now, step, dtype, dst);
    dst = (char *)dst + (size_t)now * size;
    first += now;
    n -= now;
  }
}
