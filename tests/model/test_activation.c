/*
 * Activations against double references, whose derivatives are checked by
 * central differences; and additions to the residual.
 */
#include "tests/model/opcheck_activation.h"

static void test_reference_gradient(void **state) {
  (void)state;
  for (int kind = ACTIVATION_GELU; kind <= ACTIVATION_SILU; kind++) {
    for (double x = -6.01; x < 6; x += 0.1) { /* never at relu's corner */
      double step = 1e-5, difference = (opcheck_act(kind, x + step) - opcheck_act(kind, x - step)) / (2 * step);
      assert_true(fabs(difference - opcheck_act_slope(kind, x)) < 1e-9); /* step^2, and 1e-16 x / step */
    }
  }
}

struct problem {
  enum activation kind;
  enum dtype dtype;
  int64_t M, n;
  float range;
  bool gated, in_place;
};

static void solve(const struct problem *p, int n_threads, struct opcheck_matrix out[3]) {
  struct device *d = opcheck_device(n_threads);
  struct opcheck_matrix gate = opcheck_random(p->dtype, p->M, p->n, 3, p->range, 1);
  struct opcheck_matrix up = opcheck_random(p->dtype, p->M, p->n, 1, p->gated ? 2 : p->range, 2);
  struct opcheck_matrix dh = opcheck_random(p->dtype, p->M, p->n, 2, 1, 3), h = opcheck_matrix(p->dtype, p->M, p->n, 5);
  struct opcheck_matrix dgate = p->in_place ? opcheck_copy(&gate) : opcheck_matrix(p->dtype, p->M, p->n, 4);
  struct opcheck_matrix dup = p->in_place ? opcheck_copy(&up) : opcheck_matrix(p->dtype, p->M, p->n, 0);
  struct tensor_view none = {.data = NULL};
  opcheck_run(d, activation_forward, p->kind, p->M, p->n, p->gated ? gate.view : none, up.view, h.view);
  struct tensor_view gate_in = p->in_place ? dgate.view : gate.view, up_in = p->in_place ? dup.view : up.view;
  opcheck_run(d, activation_backward, p->kind, p->M, p->n, p->gated ? gate_in : none, up_in, dh.view,
              p->gated ? dgate.view : none, dup.view);
  struct opcheck_worst worst[] = {{.name = "h"}, {.name = "dgate"}, {.name = "dup"}};
  /* The exponential is good to 2e-7, Phi to 6e-8 absolute, times x and the other factor (< 2); the cubic inside of
   * tanh costs some roundings of an argument up to 6 where the slope is not flat. bf16: half a last place more. */
  double relative = 1e-6 + (p->dtype == DTYPE_BF16 ? 0x1p-8 : 0), absolute = 4e-6;
  for (int64_t m = 0; m < p->M; m++) {
    for (int64_t i = 0; i < p->n; i++) {
      double x = opcheck_get(p->gated ? gate.view : up.view, m, i), right = p->gated ? opcheck_get(up.view, m, i) : 1;
      double slope = opcheck_get(dh.view, m, i), a = opcheck_act(p->kind, x), da = opcheck_act_slope(p->kind, x);
      opcheck_compare(&worst[0], m, i, opcheck_get(h.view, m, i), a * right, absolute, relative);
      if (p->gated) {
        opcheck_compare(&worst[1], m, i, opcheck_get(dgate.view, m, i), slope * right * da, absolute, relative);
      }
      double want = p->gated ? slope * a : slope * da;
      opcheck_compare(&worst[2], m, i, opcheck_get(dup.view, m, i), want, absolute, relative);
    }
  }
  for (int i = 0; i < 3; i++) opcheck_report(&worst[i]);
  struct opcheck_matrix *all[] = {&gate, &up, &dh, &h, &dgate, &dup};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) opcheck_guard("activation", all[i]);
  for (int i = 0; i < 3; i++) opcheck_free(all[i]);
  out[0] = h, out[1] = dgate, out[2] = dup;
  opcheck_close(&d);
}

static void test_activations(void **state) {
  (void)state;
  int64_t sizes[][2] = {{1, 1}, {3, 17}, {17, 96}, {2, 1000}};
  float ranges[] = {1, 6, 80};
  for (int variant = 0; variant < 4 * 4 * 3 * 8; variant++) {
    struct problem p = {.kind = (enum activation)(variant % 4),
                        .dtype = variant / 4 % 2 ? DTYPE_BF16 : DTYPE_F32,
                        .gated = variant / 8 % 2,
                        .in_place = variant / 16 % 2,
                        .range = ranges[variant / 32 % 3],
                        .M = sizes[variant / 96][0],
                        .n = sizes[variant / 96][1]};
    struct opcheck_matrix one[3], two[3]; /* with other threads, or the same once more */
    solve(&p, 1, one);
    solve(&p, 3, two);
    for (int i = 0; i < 3; i++) {
      if (i != 1 || p.gated) opcheck_same_bits("threads", &one[i], &two[i]);
      opcheck_free(&one[i]), opcheck_free(&two[i]);
    }
  }
}

/* Infinite and NaN inputs: as the mathematics has it, and NaN never becomes a number. */
static void test_extremes(void **state) {
  (void)state;
  struct device *d = opcheck_device(1);
  float *x = opcheck_place((float[]){NAN, INFINITY, 1e30f, -1e4f}, 4 * sizeof(float)), *h = opcheck_floats(4);
  struct tensor_view none = {.data = NULL}, in = {.data = x, .ld = 4}, out = {.data = h, .ld = 4};
  for (int kind = ACTIVATION_GELU; kind <= ACTIVATION_SILU; kind++) {
    opcheck_run(d, activation_forward, kind, 1, 4, none, in, out);
    assert_true(isnan(h[0]) && h[1] == INFINITY && h[2] == 1e30f && h[3] == 0);
  }
  opcheck_release(x), opcheck_release(h);
  opcheck_close(&d);
}

static void test_add(void **state) {
  (void)state;
  for (int variant = 0; variant < 12; variant++) {
    struct device *d = opcheck_device(1 + variant % 3);
    int64_t M = variant % 2 ? 5 : 1, n = variant % 3 ? 37 : 64;
    enum dtype dtype = variant & 4 ? DTYPE_BF16 : DTYPE_F32;
    struct opcheck_matrix x = opcheck_random(DTYPE_F32, M, n, 3, 1, 1), y = opcheck_random(dtype, M, n, 1, 1, 2);
    struct opcheck_matrix bias = opcheck_random(DTYPE_F32, 1, n, 0, 1, 3);
    float *table = opcheck_random_floats(9 * n, 1, 4);
    struct opcheck_matrix before = opcheck_copy(&x);
    int32_t *rows = opcheck_place((int32_t[]){4, 0, 6, 6, 1}, 5 * sizeof *rows);
    struct tensor_view none = {.data = NULL};
    opcheck_run(d, add, M, n, variant & 8 ? none : y.view, variant & 1 ? bias.view.data : NULL, x.view);
    opcheck_run(d, add_rows, M, n, rows, 2, table, x.view);
    struct opcheck_worst worst = {.name = "x"};
    for (int64_t m = 0; m < M; m++) {
      for (int64_t i = 0; i < n; i++) {
        double want = opcheck_get(before.view, m, i) + (variant & 8 ? 0 : opcheck_get(y.view, m, i)) +
                      (variant & 1 ? opcheck_get(bias.view, 0, i) : 0.0) + table[(rows[m] + 2) * n + i];
        opcheck_compare(&worst, m, i, opcheck_get(x.view, m, i), want, 1e-6, 0); /* three roundings of sums below 4 */
      }
    }
    opcheck_report(&worst);
    opcheck_guard("x", &x);
    opcheck_free(&x), opcheck_free(&y), opcheck_free(&bias), opcheck_free(&before);
    opcheck_release(rows), opcheck_release(table);
    opcheck_close(&d);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_reference_gradient),
      cmocka_unit_test(test_activations),
      cmocka_unit_test(test_extremes),
      cmocka_unit_test(test_add),
  };
  return opcheck_run_group(tests);
}
