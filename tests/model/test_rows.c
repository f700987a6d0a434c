#include "tests/model/opcheck_weights.h"

/* Look-ups and copies are exact: no tolerance anywhere in this file. */

static void embedding(void **state) {
  (void)state;
  struct device *d = opcheck_device(2);
  /* Below, at both ends of, and above the shard [100, 107); and far outside. */
  static const int32_t list[] = {100, 106, 99, 107, 103, 103, 0, INT32_MAX, -1, INT32_MIN};
  int32_t *ids = opcheck_place(list, sizeof list);
  enum { M = 10, N = 7, K = 512, FIRST = 100 };
  for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
    struct opcheck_weights w = opcheck_weights((enum dtype)dtype, N, K, 1);
    struct opcheck_matrix x = opcheck_matrix(DTYPE_F32, M, K, 3);
    opcheck_run(d, embedding, M, ids, FIRST, &w.weight, x.view);
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
  opcheck_release(ids);
  opcheck_close(&d);
}

static float converted(float value, enum dtype dtype) {
  return dtype == DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(value)) : value;
}

static void cast_gather_scatter(void **state) {
  (void)state;
  struct device *d = opcheck_device(3);
  enum { M = 5, N = 37, TALL = 9 };
  int32_t *rows = opcheck_place((int32_t[M]){8, 0, 3, 4, 7}, M * sizeof *rows);
  for (int t = 0; t < 4; t++) {
    enum dtype from = t & 1 ? DTYPE_BF16 : DTYPE_F32, to = t & 2 ? DTYPE_BF16 : DTYPE_F32;
    struct opcheck_matrix x = opcheck_random(from, TALL, N, 2, 1, 2), y = opcheck_matrix(to, M, N, 5);
    struct opcheck_matrix z = opcheck_random(to, TALL, N, 1, 1, 3), old = opcheck_copy(&z);
    opcheck_run(d, cast, M, N, x.view, y.view);
    opcheck_guard("cast", &y);
    for (int m = 0; m < M; m++) {
      for (int n = 0; n < N; n++) {
        assert_true(opcheck_get(y.view, m, n) == converted(opcheck_get(x.view, m, n), to));
      }
    }
    opcheck_run(d, gather_rows, M, N, rows, x.view, y.view);
    opcheck_run(d, scatter_rows, M, N, rows, x.view, z.view);
    opcheck_guard("gather", &y);
    opcheck_guard("scatter", &z);
    for (int m = 0; m < M; m++) {
      for (int n = 0; n < N; n++) {
        assert_true(opcheck_get(y.view, m, n) == converted(opcheck_get(x.view, rows[m], n), to));
        assert_true(opcheck_get(z.view, rows[m], n) == converted(opcheck_get(x.view, m, n), to));
        assert_true(opcheck_get(z.view, 1 + m % 2, n) == opcheck_get(old.view, 1 + m % 2, n)); /* not in rows */
      }
    }
    opcheck_run(d, gather_rows, 0, N, rows, x.view, y.view);
    opcheck_free(&x);
    opcheck_free(&y);
    opcheck_free(&z);
    opcheck_free(&old);
  }
  opcheck_release(rows);
  opcheck_close(&d);
}

static void zero(void **state) {
  (void)state;
  struct device *d = opcheck_device(2);
  static const int64_t shapes[][3] = {{0, 5, 3}, {1, 1, 0}, {3, 37, 2}, {17, 64, 0}, {300, 129, 7}}; /* M, n, pad */
  for (int i = 0; i < 10; i++) {
    int64_t M = shapes[i / 2][0], n = shapes[i / 2][1];
    struct opcheck_matrix x = opcheck_random(i % 2 ? DTYPE_BF16 : DTYPE_F32, M, n, shapes[i / 2][2], 1, 5);
    opcheck_run(d, zero, M, n, x.view);
    opcheck_guard("zero", &x);
    for (int64_t m = 0; m < M; m++) {
      for (int64_t c = 0; c < n; c++) {
        float value = opcheck_get(x.view, m, c);
        assert_true(value == 0 && !signbit(value));
      }
    }
    opcheck_free(&x);
  }
  opcheck_close(&d);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(embedding),
      cmocka_unit_test(cast_gather_scatter),
      cmocka_unit_test(zero),
  };
  return opcheck_run_group(tests);
}
