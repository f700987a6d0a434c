#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "dist/rng.h"

/* Known answers published with Random123 (tests/kat_vectors, "philox4x32 10"). */
static void test_known_answers(void **state) {
  (void)state;
  static const struct {
    uint32_t counter[4], key[2], out[4];
  } cases[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0xffffffff, 0xffffffff},
       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    uint32_t out[4];
    philox4x32(cases[i].counter, cases[i].key, out);
    assert_memory_equal(out, cases[i].out, sizeof out);
  }
}

static void test_mapping(void **state) {
  (void)state;
  const uint64_t seed = 0x0123456789abcdefu, index = ((uint64_t)0xfedcba98 << 32 | 0x76543210u) * 4 + 3;
  const uint32_t counter[4] = {0x76543210u, 0x3edcba98u, 77, 1u << 28 | 4095u << 16 | 65535u};
  const uint32_t key[2] = {0x89abcdefu, 0x01234567u};
  uint32_t out[4];
  philox4x32(counter, key, out);
  assert_int_equal(rng_u32(seed, RNG_DROPOUT, 77, 65535, 4095, index), out[3]);
  rng_block(seed, RNG_DROPOUT, 77, 65535, 4095, index >> 2, out);
  for (uint64_t i = 0; i < 4; i++) assert_int_equal(rng_u32(seed, RNG_DROPOUT, 77, 65535, 4095, index - 3 + i), out[i]);
}

/* Each argument matters: changing one alone changes the number. */
static void test_arguments(void **state) {
  (void)state;
  const uint32_t base = rng_u32(7, RNG_INIT, 1, 2, 3, 4);
  assert_int_not_equal(base, rng_u32(8, RNG_INIT, 1, 2, 3, 4));
  assert_int_not_equal(base, rng_u32(7 + ((uint64_t)1 << 32), RNG_INIT, 1, 2, 3, 4));
  assert_int_not_equal(base, rng_u32(7, RNG_SAMPLE, 1, 2, 3, 4));
  assert_int_not_equal(base, rng_u32(7, RNG_INIT, 2, 2, 3, 4));
  assert_int_not_equal(base, rng_u32(7, RNG_INIT, 1, 3, 3, 4));
  assert_int_not_equal(base, rng_u32(7, RNG_INIT, 1, 2, 4, 4));
  assert_int_not_equal(base, rng_u32(7, RNG_INIT, 1, 2, 3, 5));
  assert_int_not_equal(base, rng_u32(7, RNG_INIT, 1, 2, 3, 4 + ((uint64_t)1 << 34)));
}

static void test_open_interval(void **state) {
  (void)state;
  assert_true(rng_to_double(0) > 0 && rng_to_double(UINT32_MAX) < 1);
  assert_true(rng_to_double(0x80000000u) > 0.5 && rng_to_double(0x7fffffffu) < 0.5);
  /* Exact: half a step above zero, half a step below one. */
  assert_true(rng_to_double(UINT32_MAX) == 1 - 0x1p-33);
}

/* Moments of n fixed draws; the bounds are five standard errors, and as the
 * draws are fixed the test cannot fail by chance. */
static void test_moments(void **state) {
  (void)state;
  const int n = 200000;
  double sum = 0, sum2 = 0, sum4 = 0, flat = 0, product = 0;
  for (int i = 0; i < n; i++) {
    double z = rng_gaussian(1, RNG_SYNTHETIC, 0, 0, 0, (uint64_t)i);
    sum += z;
    sum2 += z * z;
    sum4 += z * z * z * z;
    product += z * rng_gaussian(1, RNG_SYNTHETIC, 0, 0, 0, (uint64_t)(i ^ 1));
    flat += rng_uniform(1, RNG_SYNTHETIC, 0, 1, 0, (uint64_t)i);
  }
  const double error = 1 / sqrt(n);
  assert_true(fabs(sum / n) < 5 * error);
  assert_true(fabs(sum2 / n - 1) < 5 * sqrt(2) * error);
  assert_true(fabs(sum4 / n - 3) < 5 * sqrt(96) * error);
  assert_true(fabs(product / n) < 5 * sqrt(2) * error); /* each pair counts twice */
  assert_true(fabs(flat / n - 0.5) < 5 * sqrt(1.0 / 12) * error);
}

static void test_box_muller(void **state) {
  (void)state;
  uint32_t out[4];
  rng_block(3, RNG_INIT, 0, 5, 6, 10, out);
  double u = rng_to_double(out[2]), v = rng_to_double(out[3]);
  double cosine = rng_gaussian(3, RNG_INIT, 0, 5, 6, 42), sine = rng_gaussian(3, RNG_INIT, 0, 5, 6, 43);
  /* Rounding of a few operations on numbers of size 1. */
  assert_true(fabs(cosine * cosine + sine * sine + 2 * log(u)) < 1e-13);
  assert_true(fabs(remainder(atan2(sine, cosine) / (2 * acos(-1.0)) - v, 1)) < 1e-13);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_known_answers), cmocka_unit_test(test_mapping), cmocka_unit_test(test_arguments),
      cmocka_unit_test(test_open_interval), cmocka_unit_test(test_moments), cmocka_unit_test(test_box_muller),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
