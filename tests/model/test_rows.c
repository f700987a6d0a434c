#include "tests/model/opcheck_weights.h"

/* Look-ups and copies are exact: no tolerance anywhere in this file. */

static void embedding(void **state) {
  (void)state;
  struct device *d = opcheck_device(2);
  /* Below, at both ends of, and above the shard [100, 107); and far outside. */
  static const int32_t ids[] = {100, 106, 99, 107, 103, 103, 0, INT32_MAX, -1, INT32_MIN};
  enum { M = 10, N = 7, K = 512, FIRST = 100 };
  for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
    struct opcheck_weights w = opcheck_weights((enum dtype)dtype, N, K, 1);
    struct opcheck_matrix x = opcheck_matrix(DTYPE_F32, M, K, 3);
    opcheck_ok(d->ops->embedding(d, M, ids, FIRST, &w.weight, x.view));
    opcheck_guard("x", &x);
    for (int64_t m = 0; m < M; m++) {
      for (int64_t k = 0; k < K; k++) {
        int64_t row = (int64_t)ids[m] - FIRST;
        float want = row >= 0 && row < N ? w.value[row * K + k] : 0;
        assert_true(opcheck_get(x.view, m, k) == want);
      }
    }
    opcheck_free(&x);
    opcheck_weights_free(&w);
  }
  device_close(&d);
}

static float converted(float value, enum dtype dtype) {
  return dtype == DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(value)) : value;
}

static void cast_gather_scatter(void **state) {
  (void)state;
  struct device *d = opcheck_device(3);
  enum { M = 5, N = 37, TALL = 9 };
  static const int32_t rows[M] = {8, 0, 3, 4, 7};
  for (int t = 0; t < 4; t++) {
    enum dtype from = t & 1 ? DTYPE_BF16 : DTYPE_F32, to = t & 2 ? DTYPE_BF16 : DTYPE_F32;
    struct opcheck_matrix x = opcheck_random(from, TALL, N, 2, 1, 2), y = opcheck_matrix(to, M, N, 5);
    struct opcheck_matrix z = opcheck_random(to, TALL, N, 1, 1, 3), old = opcheck_copy(&z);
    opcheck_ok(d->ops->cast(d, M, N, x.view, y.view));
    opcheck_guard("cast", &y);
    for (int m = 0; m < M; m++) {
      for (int n = 0; n < N; n++) {
        assert_true(opcheck_get(y.view, m, n) == converted(opcheck_get(x.view, m, n), to));
      }
    }
    opcheck_ok(d->ops->gather_rows(d, M, N, rows, x.view, y.view));
    opcheck_ok(d->ops->scatter_rows(d, M, N, rows, x.view, z.view));
    opcheck_guard("gather", &y);
    opcheck_guard("scatter", &z);
    for (int m = 0; m < M; m++) {
      for (int n = 0; n < N; n++) {
        assert_true(opcheck_get(y.view, m, n) == converted(opcheck_get(x.view, rows[m], n), to));
        assert_true(opcheck_get(z.view, rows[m], n) == converted(opcheck_get(x.view, m, n), to));
        assert_true(opcheck_get(z.view, 1 + m % 2, n) == opcheck_get(old.view, 1 + m % 2, n)); /* not in rows */
      }
    }
    opcheck_ok(d->ops->gather_rows(d, 0, N, rows, x.view, y.view));
    opcheck_free(&x);
    opcheck_free(&y);
    opcheck_free(&z);
    opcheck_free(&old);
  }
  device_close(&d);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(embedding), cmocka_unit_test(cast_gather_scatter)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
