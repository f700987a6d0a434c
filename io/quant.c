#include "io/quant.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

static inline float bf16_value(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

float bf16_to_f32(uint16_t bits) { return bf16_value(bits); }

uint16_t f32_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (isnan(value)) return (uint16_t)((bits >> 16) | 0x40); /* stays a NaN even if its payload was low bits only */
  bits += 0x7fff + ((bits >> 16) & 1);
  return (uint16_t)(bits >> 16);
}

float f16_to_f32(uint16_t bits) {
  uint32_t sign = (uint32_t)(bits & 0x8000) << 16;
  uint32_t exponent = (bits >> 10) & 0x1f, mantissa = bits & 0x3ff;
  uint32_t wide;
  if (exponent == 0x1f) {
    wide = sign | 0x7f800000 | mantissa << 13;
  } else if (exponent) {
    wide = sign | (exponent + 112) << 23 | mantissa << 13;
  } else {
    float value = ldexpf((float)mantissa, -24);
    return sign ? -value : value;
  }
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

uint16_t f32_to_f16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
  if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and above round to infinity */
  if (magnitude < 0x38800000) {                                  /* below 2^-14: subnormal, a multiple of 2^-24 */
    float scaled;
    memcpy(&scaled, &magnitude, sizeof scaled);
    return (uint16_t)(sign | (uint32_t)lrintf(ldexpf(scaled, 24)));
  }
  magnitude += 0xfff + ((magnitude >> 13) & 1);
  return (uint16_t)(sign | ((magnitude - 0x38000000) >> 13));
}

static uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

float f8_to_f32(uint8_t bits) {
  int magnitude = bits & 0x7f, exponent = magnitude >> 3, mantissa = magnitude & 7;
  float value = exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
  if (magnitude == 0x7f) value = NAN;
  return bits & 0x80 ? -value : value;
}

/* Both ways of rounding are computed and one is taken, by masks and without a branch: loops over this become vector
 * code. Signed numbers, since older vector units compare nothing else. */
static inline uint8_t f8_code(float value) {
  int32_t bits = (int32_t)bits_of(value), magnitude = bits & 0x7fffffff;
  int32_t normal = ((magnitude - 0x3c000000) + 0x7ffff + ((magnitude >> 20) & 1)) >> 20;
  int32_t small = (int32_t)(bits_of(fabsf(value) + 0x1p14f) - 0x46800000); /* f32's steps above 2^14 are 2^-9, too */
  int32_t is_small = -(magnitude < 0x3c800000);                            /* below 2^-6 */
  int32_t is_large = -(magnitude >= 0x43e00000);                           /* 448 */
  int32_t code = (small & is_small) | (normal & ~is_small & ~is_large) | (0x7e & is_large) | (magnitude > 0x7f800000);
  return (uint8_t)((bits >> 24 & 0x80) | code);
}

uint8_t f32_to_f8(float value) { return f8_code(value); }

static void pack_f8(const float *src, uint8_t *block) {
  int32_t most = 0; /* bits of the largest finite magnitude: they order like numbers */
  for (int j = 0; j < 32; j++) {
    int32_t magnitude = (int32_t)(bits_of(src[j]) & 0x7fffffff);
    magnitude = magnitude < 0x7f800000 ? magnitude : 0;
    most = magnitude > most ? magnitude : most;
  }
  float largest, scale;
  memcpy(&largest, &most, sizeof largest);
  scale = largest / 448.0f;
  memcpy(block, &scale, sizeof scale);
  float divisor = scale > 0 ? scale : INFINITY; /* every number 0 */
  for (int j = 0; j < 32; j++) {
    int32_t magnitude = (int32_t)(bits_of(src[j]) & 0x7fffffff);
    block[4 + j] = (uint8_t)(f8_code(src[j] / divisor) | (-(magnitude >= 0x7f800000) & 0x7f));
  }
}

void quant_pack_f8(const float *src, int64_t n, void *dst) {
  uint8_t *block = dst;
  for (int64_t i = 0; i < n / 32; i++, block += 36) pack_f8(src + 32 * i, block);
}

float quant_largest(const float *src, int64_t n) {
  int32_t most = 0; /* of the bits: they order like numbers, and what is not finite is above the others */
  for (int64_t i = 0; i < n; i++) {
    int32_t magnitude = (int32_t)(bits_of(src[i]) & 0x7fffffff);
    most = magnitude > most ? magnitude : most;
  }
  float largest;
  memcpy(&largest, &most, sizeof largest);
  return most < 0x7f800000 ? largest : INFINITY;
}

float quant_int8_scale(float largest) { return largest / 127.0f; }

void quant_pack_int8(const float *src, int64_t n, float scale, int8_t *numbers) {
  float divisor = scale > 0 && scale < INFINITY ? scale : INFINITY; /* every number 0 */
  for (int64_t i = 0; i < n; i++) {
    float number = src[i] / divisor;
    number = number > -127.0f ? number : -127.0f; /* a scale of few bits is too small; a NaN is a number here */
    number = number < 127.0f ? number : 127.0f;
    float shifted = number + 0x1.8p23f; /* f32's steps there are 1: it rounds, to even in the middle */
    numbers[i] = (int8_t)(bits_of(shifted) & 0xff);
  }
}

void quant_expand_int8(const int8_t *numbers, int64_t n, float scale, float *dst) {
  for (int64_t i = 0; i < n; i++) dst[i] = scale * (float)numbers[i];
}

const float quant_nf4_values[16] = {QUANT_NF4_VALUES};
const float quant_nf4_steps[129] = {QUANT_NF4_STEPS};

/* Between the values, as bitsandbytes' kernels have them: the middles, rounded. */
static const float nf4_thresholds[15] = {
    -0.8480964004993439f,  -0.6106329262256622f,   -0.4599952697753906f, -0.33967943489551544f, -0.23460740596055984f,
    -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f, 0.1202552504837513f,   0.2035212516784668f,
    0.2920137718319893f,   0.3893125355243683f,    0.5016634166240692f,  0.6427869200706482f,   0.8614784181118011f};

float quant_nf4_block(const float *src, uint8_t *numbers) {
  float largest = quant_largest(src, QUANT_NF4_BLOCK);
  float factor = largest > 0 ? 1.0f / largest : 0; /* zeros become the 0 among the values */
  int32_t number[QUANT_NF4_BLOCK];
  for (int i = 0; i < QUANT_NF4_BLOCK; i++) {
    float value = src[i] * factor;
    number[i] = 0;
    for (int t = 0; t < 15; t++) number[i] += value > nf4_thresholds[t];
  }
  for (int i = 0; i < QUANT_NF4_BLOCK; i++) numbers[i] = (uint8_t)number[i];
  return largest;
}

static float nf4_map(int code) { return code < 127 ? -quant_nf4_steps[127 - code] : quant_nf4_steps[code - 127]; }

/* The code nearest to value, the lower one in the middle. */
static uint8_t nf4_code(float value) {
  int low = 0, high = 255; /* map[low] < value <= map[high], but at the ends */
  while (high - low > 1) {
    int middle = (low + high) / 2;
    if (nf4_map(middle) < value)
      low = middle;
    else
      high = middle;
  }
  return (uint8_t)(value - nf4_map(low) <= nf4_map(high) - value ? low : high);
}

float quant_nf4_scale(uint8_t code, const float *tile) { return fmaf(nf4_map(code), tile[0], tile[1]); }

/* The scales of a tile, in the order of its rows, to codes `stride` apart. */
static void pack_scales(const float *scales, int n, uint8_t *codes, int64_t stride, float *tile) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += (double)scales[i];
  float offset = (float)(sum / n), centred[QUANT_NF4_TILE];
  for (int i = 0; i < n; i++) centred[i] = scales[i] - offset;
  float largest = quant_largest(centred, n), factor = largest > 0 ? 1.0f / largest : 0;
  for (int i = 0; i < n; i++) codes[i * stride] = nf4_code(centred[i] * factor);
  tile[0] = largest;
  tile[1] = offset;
}

/* Two numbers a byte: of 32 weights the first 16 in the low halves. */
static void pack_numbers(const uint8_t *numbers, uint8_t *dst) {
  for (int half = 0; half < QUANT_NF4_BLOCK / 32; half++)
    for (int i = 0; i < 16; i++)
      dst[16 * half + i] = (uint8_t)(numbers[32 * half + i] | numbers[32 * half + 16 + i] << 4);
}

void quant_pack_nf4(const float *src, int64_t rows, int64_t columns, const struct quant_nf4 *planes) {
  int64_t blocks = columns / QUANT_NF4_BLOCK;
  for (int64_t first = 0; first < rows; first += QUANT_NF4_TILE) {
    int n = rows - first < QUANT_NF4_TILE ? (int)(rows - first) : QUANT_NF4_TILE;
    for (int64_t b = 0; b < blocks; b++) {
      float scales[QUANT_NF4_TILE];
      for (int r = 0; r < n; r++) {
        uint8_t numbers[QUANT_NF4_BLOCK];
        scales[r] = quant_nf4_block(src + (first + r) * columns + b * QUANT_NF4_BLOCK, numbers);
        pack_numbers(numbers, planes->numbers + ((first + r) * blocks + b) * (QUANT_NF4_BLOCK / 2));
      }
      pack_scales(scales, n, planes->codes + first * blocks + b, blocks,
                  planes->tiles + 2 * (first / QUANT_NF4_TILE * blocks + b));
    }
  }
}

void quant_expand_nf4(const struct quant_nf4 *planes, int64_t columns, int64_t row, int64_t column, int64_t n,
                      float *dst) {
  int64_t blocks = columns / QUANT_NF4_BLOCK, first = column / QUANT_NF4_BLOCK;
  for (int64_t b = first; b < first + n / QUANT_NF4_BLOCK; b++) {
    const uint8_t *numbers = planes->numbers + (row * blocks + b) * (QUANT_NF4_BLOCK / 2);
    float scale =
        quant_nf4_scale(planes->codes[row * blocks + b], planes->tiles + 2 * (row / QUANT_NF4_TILE * blocks + b));
    for (int i = 0; i < QUANT_NF4_BLOCK; i++, dst++) {
      uint8_t pair = numbers[i / 32 * 16 + i % 16];
      *dst = quant_nf4_values[i % 32 < 16 ? pair & 15 : pair >> 4] * scale;
    }
  }
}

static float half_at(const uint8_t *p) { return f16_to_f32((uint16_t)(p[0] | p[1] << 8)); }

/* Nibble j of the 32-weight formats: low halves hold weights 0..15, high halves 16..31. */
static int nibble(const uint8_t *q, int j) { return j < 16 ? q[j] & 15 : q[j - 16] >> 4; }

static void expand_q4_0(const uint8_t *block, float *dst) {
  float d = half_at(block);
  for (int j = 0; j < 32; j++) dst[j] = d * (float)(nibble(block + 2, j) - 8);
}

static void expand_q4_1(const uint8_t *block, float *dst) {
  float d = half_at(block), m = half_at(block + 2);
  for (int j = 0; j < 32; j++) dst[j] = d * (float)nibble(block + 4, j) + m;
}

/* The five-bit number of weight j: its top bit is bit j of the word `high`. */
static int five_bits(const uint8_t *high, const uint8_t *q, int j) {
  return nibble(q, j) | ((high[j / 8] >> (j % 8)) & 1) << 4;
}

static void expand_q5_0(const uint8_t *block, float *dst) {
  float d = half_at(block);
  for (int j = 0; j < 32; j++) dst[j] = d * (float)(five_bits(block + 2, block + 6, j) - 16);
}

static void expand_q5_1(const uint8_t *block, float *dst) {
  float d = half_at(block), m = half_at(block + 2);
  for (int j = 0; j < 32; j++) dst[j] = d * (float)five_bits(block + 4, block + 8, j) + m;
}

static void expand_q8_0(const uint8_t *block, float *dst) {
  float d = half_at(block);
  for (int j = 0; j < 32; j++) dst[j] = d * (float)(int8_t)block[2 + j];
}

static void expand_q4_k(const uint8_t *block, float *dst) {
  float d = half_at(block), dmin = half_at(block + 2);
  const uint8_t *b = block + 4, *q = block + 16;
  for (int j = 0; j < 8; j++) {
    int sc = j < 4 ? b[j] & 63 : (b[j + 4] & 15) | (b[j - 4] >> 6) << 4;
    int m = j < 4 ? b[j + 4] & 63 : (b[j + 4] >> 4) | (b[j] >> 6) << 4;
    float scale = d * (float)sc, offset = dmin * (float)m;
    const uint8_t *pair = q + 32 * (j / 2); /* group 2p in the low halves, 2p + 1 in the high ones */
    for (int k = 0; k < 32; k++) dst[32 * j + k] = scale * (float)(j % 2 ? pair[k] >> 4 : pair[k] & 15) - offset;
  }
}

/* Two halves of 128 weights; in each, the four groups of 32 share 64 bytes of
 * low halves (groups 0 2, 1 3 in one byte) and 32 bytes of two-bit tops. */
static void expand_q6_k(const uint8_t *block, float *dst) {
  const uint8_t *low = block, *high = block + 128, *scales = block + 192;
  float d = half_at(block + 208);
  for (int i = 0; i < 256; i++) {
    int half = i / 128, group = i % 128 / 32, k = i % 32;
    uint8_t byte = low[64 * half + 32 * (group % 2) + k];
    int q = (group < 2 ? byte & 15 : byte >> 4) | ((high[32 * half + k] >> (2 * group)) & 3) << 4;
    dst[i] = d * (float)(int8_t)scales[i / 16] * (float)(q - 32);
  }
}

static void expand_f8(const uint8_t *block, float *dst) {
  float scale;
  memcpy(&scale, block, sizeof scale);
  for (int j = 0; j < 32; j++) dst[j] = scale * f8_to_f32(block[4 + j]);
}

typedef void expand_block_func_t(const uint8_t *block, float *dst);

static expand_block_func_t *const expanders[DTYPE_COUNT] = {
    [DTYPE_Q4_0] = expand_q4_0, [DTYPE_Q4_1] = expand_q4_1, [DTYPE_Q5_0] = expand_q5_0, [DTYPE_Q5_1] = expand_q5_1,
    [DTYPE_Q8_0] = expand_q8_0, [DTYPE_Q4_K] = expand_q4_k, [DTYPE_Q6_K] = expand_q6_k, [DTYPE_F8] = expand_f8,
};

void quant_expand_f32(enum dtype dtype, const void *src, int64_t n, float *dst) {
  const uint8_t *bytes = src;
  if (dtype == DTYPE_F32) {
    memcpy(dst, src, (size_t)n * sizeof *dst);
  } else if (dtype == DTYPE_F16) {
    for (int64_t i = 0; i < n; i++) dst[i] = half_at(bytes + 2 * i);
  } else if (dtype == DTYPE_BF16) {
    for (int64_t i = 0; i < n; i++) dst[i] = bf16_value((uint16_t)(bytes[2 * i] | bytes[2 * i + 1] << 8));
  } else {
    int64_t width = dtype_block(dtype);
    size_t size = dtype_block_bytes(dtype);
    for (int64_t i = 0; i < n / width; i++) expanders[dtype](bytes + (size_t)i * size, dst + i * width);
  }
}
