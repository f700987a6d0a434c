#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dist/order.h"

static void check_permutation(uint64_t seed, int64_t epoch, int64_t n) {
  unsigned char *seen = calloc((size_t)n, 1);
  assert_non_null(seen);
  for (int64_t i = 0; i < n; i++) {
    int64_t x = order_index(seed, epoch, n, i);
    assert_true(x >= 0 && x < n);
    assert_int_equal(seen[x], 0);
    seen[x] = 1;
  }
  free(seen);
}

static void test_permutation(void **state) {
  (void)state;
  for (int64_t n = 1; n <= 300; n++) check_permutation(1234, n % 7, n);
  const int64_t edges[] = {1023, 1024, 1025, 4095, 4096, 4097, 100003};
  for (size_t i = 0; i < sizeof edges / sizeof *edges; i++) check_permutation(5, 2, edges[i]);
}

/* Places where two orders of n agree: about one for random permutations. */
static int agreements(uint64_t seed1, int64_t epoch1, uint64_t seed2, int64_t epoch2, int64_t n) {
  int same = 0;
  for (int64_t i = 0; i < n; i++) same += order_index(seed1, epoch1, n, i) == order_index(seed2, epoch2, n, i);
  return same;
}

static void test_differs(void **state) {
  (void)state;
  const int64_t n = 1000;
  assert_int_equal(agreements(1, 0, 1, 0, n), n);
  /* Poisson with mean 1: more than 8 has probability 1e-6, and is fixed here. */
  assert_true(agreements(1, 0, 1, 1, n) <= 8);
  assert_true(agreements(1, 0, 2, 0, n) <= 8);
  assert_true(agreements(1, 0, 1 + ((uint64_t)1 << 32), 0, n) <= 8);
  int fixed = 0;
  for (int64_t i = 0; i < n; i++) fixed += order_index(1, 0, n, i) == i;
  assert_true(fixed <= 8);
}

/* All 24 orders of four samples occur, each about equally often: chi-square
 * with 23 degrees of freedom stays below 49.7 (probability 0.999). */
static void test_small_orders(void **state) {
  (void)state;
  enum { N = 4, EPOCHS = 4800 };
  int count[256] = {0};
  for (int64_t epoch = 0; epoch < EPOCHS; epoch++) {
    int code = 0;
    for (int64_t i = 0; i < N; i++) code = code * 4 + (int)order_index(9, epoch, N, i);
    count[code]++;
  }
  double chi = 0;
  int orders = 0;
  for (int code = 0; code < 256; code++) {
    if (!count[code]) continue;
    orders++;
    chi += (count[code] - 200.0) * (count[code] - 200.0) / 200.0;
  }
  assert_int_equal(orders, 24);
  assert_true(chi < 49.7);
}

static void test_largest(void **state) {
  (void)state;
  const int64_t n = (int64_t)1 << 40;
  int64_t high = 0;
  for (int64_t i = 0; i < 1000; i++) {
    int64_t x = order_index(3, UINT32_MAX, n, i);
    assert_true(x >= 0 && x < n);
    high += x >= n / 2;
  }
  assert_true(high > 400 && high < 600); /* six standard deviations */
  assert_int_not_equal(order_index(3, 0, n - 1, 0), order_index(3, 0, n - 1, n - 2));
}

/* The order is part of a checkpoint's meaning: these values must not change. */
static void test_pinned(void **state) {
  (void)state;
  int64_t got[10];
  for (int64_t i = 0; i < 10; i++) got[i] = order_index(42, 1, 10, i);
  const int64_t want[10] = {7, 6, 4, 9, 8, 2, 5, 1, 3, 0};
  assert_memory_equal(got, want, sizeof got);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_permutation), cmocka_unit_test(test_differs), cmocka_unit_test(test_small_orders),
      cmocka_unit_test(test_largest),     cmocka_unit_test(test_pinned),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
