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
  for (enum dtype dtype = DTYPE_Q4_0; dtype < DTYPE_COUNT; dtype++) {
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

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_blocks_equal_reference),
      cmocka_unit_test(test_every_half_survives),
      cmocka_unit_test(test_rounding),
      cmocka_unit_test(test_extremes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
