#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/quant.h"

#define N_BLOCKS 16 /* as in tests/fixtures/make_gguf.py */

/* Random blocks and their weights by GGML's own Python package: equal to the
 * bit, since both do the same float operations in the same order. */
static void test_blocks_equal_reference(void **state) {
  (void)state;
  FILE *file = fopen(FIXTURES "/quant_blocks.bin", "rb");
  assert_non_null(file);
  for (enum dtype dtype = DTYPE_Q4_0; dtype <= DTYPE_Q6_K; dtype++) {
    int64_t n = N_BLOCKS * dtype_block(dtype);
    unsigned char blocks[N_BLOCKS * 256];
    float expected[N_BLOCKS * 256], found[N_BLOCKS * 256];
    size_t bytes = dtype_bytes(dtype, n);
    assert_int_equal(fread(blocks, 1, bytes, file), bytes);
    assert_int_equal(fread(expected, sizeof *expected, (size_t)n, file), n);
    quant_expand_f32(dtype, blocks, n, found);
    for (int64_t i = 0; i < n; i++)
      if (expected[i] != found[i])
        fail_msg("%s weight %d: %.9g, expected %.9g", dtype_name(dtype), (int)i, (double)found[i], (double)expected[i]);
  }
  assert_int_equal(fgetc(file), EOF);
  fclose(file);
}

/* Every half is exact in f32, so there and back is the identity; a NaN stays one. */
static void test_every_half_survives(void **state) {
  (void)state;
  for (uint32_t bits = 0; bits < 65536; bits++) {
    float half = f16_to_f32((uint16_t)bits), brain = bf16_to_f32((uint16_t)bits);
    if (isnan(half))
      assert_true(isnan(f16_to_f32(f32_to_f16(half))));
    else
      assert_int_equal(f32_to_f16(half), bits);
    if (isnan(brain))
      assert_true(isnan(bf16_to_f32(f32_to_bf16(brain))));
    else
      assert_int_equal(f32_to_bf16(brain), bits);
  }
}

/* Between two neighbours the nearer one wins, and in the middle the even one. */
static void test_rounding(void **state) {
  (void)state;
  for (uint32_t bits = 0; bits < 0x7bff; bits++) {
    double low = (double)f16_to_f32((uint16_t)bits), high = (double)f16_to_f32((uint16_t)(bits + 1));
    assert_int_equal(f32_to_f16((float)((low + high) / 2)), bits % 2 ? bits + 1 : bits);
    assert_int_equal(f32_to_f16((float)(low + (high - low) * 0.25)), bits);
    assert_int_equal(f32_to_f16((float)(low + (high - low) * 0.75)), bits + 1);
    assert_int_equal(f32_to_f16(-(float)(low + (high - low) * 0.75)), (bits + 1) | 0x8000);
  }
  for (uint32_t bits = 0; bits < 0x7f7f; bits++) {
    double low = (double)bf16_to_f32((uint16_t)bits), high = (double)bf16_to_f32((uint16_t)(bits + 1));
    assert_int_equal(f32_to_bf16((float)((low + high) / 2)), bits % 2 ? bits + 1 : bits);
    assert_int_equal(f32_to_bf16((float)(low + (high - low) * 0.75)), bits + 1);
  }
}

static void test_extremes(void **state) {
  (void)state;
  assert_int_equal(f32_to_f16(65519.996f), 0x7bff);
  assert_int_equal(f32_to_f16(65520.0f), 0x7c00); /* halfway to 65536, which f16 has not */
  assert_int_equal(f32_to_f16(-INFINITY), 0xfc00);
  assert_int_equal(f32_to_f16(-0.0f), 0x8000);
  assert_int_equal(f32_to_f16(2.98e-8f), 0); /* half of the smallest is 2.98023e-8 */
  assert_int_equal(f32_to_f16(2.99e-8f), 1);
  assert_int_equal(f32_to_bf16(3.4e38f), 0x7f80);
  assert_int_equal(f32_to_bf16(INFINITY), 0x7f80);
}

/* The 254 numbers are in order, are what the format says, and survive; both NaNs stay. */
static void test_every_f8_survives(void **state) {
  (void)state;
  for (int code = 0; code < 0x7f; code++) {
    float value = f8_to_f32((uint8_t)code);
    assert_true(code == 0 ? value == 0 : value > f8_to_f32((uint8_t)(code - 1)));
    assert_true(f8_to_f32((uint8_t)(code | 0x80)) == -value);
    assert_int_equal(f32_to_f8(value), code);
    assert_int_equal(f32_to_f8(-value), code | 0x80);
  }
  assert_true(f8_to_f32(0x01) == 0x1p-9f);
  assert_true(f8_to_f32(0x08) == 0x1p-6f);
  assert_true(f8_to_f32(0x38) == 1.0f);
  assert_true(f8_to_f32(0x7e) == 448.0f);
  assert_true(isnan(f8_to_f32(0x7f)) && isnan(f8_to_f32(0xff)));
  assert_int_equal(f32_to_f8(NAN) & 0x7f, 0x7f);
}

static void test_f8_rounding(void **state) {
  (void)state;
  for (int code = 0; code < 0x7e; code++) {
    float low = f8_to_f32((uint8_t)code), high = f8_to_f32((uint8_t)(code + 1)), middle = (low + high) / 2;
    assert_int_equal(f32_to_f8(middle), code % 2 ? code + 1 : code);
    assert_int_equal(f32_to_f8(nextafterf(middle, 0)), code);
    assert_int_equal(f32_to_f8(nextafterf(middle, 500)), code + 1);
    assert_int_equal(f32_to_f8(-nextafterf(middle, 500)), (code + 1) | 0x80);
  }
  assert_int_equal(f32_to_f8(1e-30f), 0);
  assert_int_equal(f32_to_f8(449), 0x7e);
  assert_int_equal(f32_to_f8(3e38f), 0x7e);
  assert_int_equal(f32_to_f8(-INFINITY), 0xfe);
}

/* Weights of one block and back. */
static void f8_block(const float *x, float *found) {
  uint8_t block[36];
  assert_int_equal(dtype_bytes(DTYPE_F8, 32), sizeof block);
  quant_pack_f8(x, 32, block);
  quant_expand_f32(DTYPE_F8, block, 32, found);
}

static void test_f8_blocks(void **state) {
  (void)state;
  float x[32] = {0}, found[32];
  f8_block(x, found);
  assert_memory_equal(found, x, sizeof x);
  /* With the largest magnitude 448 times a power of two, e4m3's own numbers come back exactly. */
  for (int j = 0; j < 32; j++) x[j] = -f8_to_f32((uint8_t)(4 * j)) * 0x1p-12f;
  x[7] = 448 * 0x1p-12f;
  f8_block(x, found);
  assert_memory_equal(found, x, sizeof x);
  /* What is not finite is NaN and leaves its neighbours alone. */
  x[3] = INFINITY;
  x[4] = -NAN;
  f8_block(x, found);
  for (int j = 0; j < 32; j++) assert_true(j == 3 || j == 4 ? isnan(found[j]) : found[j] == x[j]);
  /* Near both ends of f32, in which scales are then not exact or 0, nothing overflows. */
  for (int j = 0; j < 32; j++) x[j] = 3.4e38f * ((float)(j - 16) / 16);
  f8_block(x, found);
  for (int j = 0; j < 32; j++) assert_true(fabsf(found[j] - x[j]) <= fabsf(x[j]) / 15);
  for (int j = 0; j < 32; j++) x[j] = 0x1p-149f * (float)(j - 16);
  f8_block(x, found);
  for (int j = 0; j < 32; j++) assert_true(fabsf(found[j]) <= 0x1p-144f);
}

/* Weights as models have them, normally distributed: the error is 2.4 % of their root mean square. */
static void test_f8_error(void **state) {
  (void)state;
  enum { N = 1 << 16 };
  static float x[N], found[N];
  static uint8_t blocks[N / 32 * 36];
  uint64_t seed = 1;
  double square = 0, error = 0;
  for (int i = 0; i < N; i++) {
    double sum = -6; /* of 12 uniform numbers: variance 1 */
    for (int k = 0; k < 12; k++)
      sum += (double)((seed = seed * 6364136223846793005u + 1442695040888963407u) >> 40) / 0x1p24;
    x[i] = 0.02f * (float)sum;
  }
  quant_pack_f8(x, N, blocks);
  quant_expand_f32(DTYPE_F8, blocks, N, found);
  for (int i = 0; i < N; i++) {
    square += (double)x[i] * (double)x[i];
    error += ((double)found[i] - (double)x[i]) * ((double)found[i] - (double)x[i]);
  }
  double relative = sqrt(error / square);
  print_message("f8: error %.4f of the weights, root mean square\n", relative);
  assert_true(relative > 0.023 && relative < 0.025);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_blocks_equal_reference),
      cmocka_unit_test(test_every_half_survives),
      cmocka_unit_test(test_rounding),
      cmocka_unit_test(test_extremes),
      cmocka_unit_test(test_every_f8_survives),
      cmocka_unit_test(test_f8_rounding),
      cmocka_unit_test(test_f8_blocks),
      cmocka_unit_test(test_f8_error),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
