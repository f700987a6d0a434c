/*
 * Norms against a double reference, whose gradient is checked by central
 * differences.
 */
#include "opcheck.h"

/* y and stats of one row. */
static void reference_forward(enum norm_kind kind, int64_t n, const double *x, const double *w, const double *b,
                              double eps, double *y, double stats[2]) {
  double mean = 0, square = 0;
  for (int64_t i = 0; i < n; i++) mean += kind == NORM_LAYER ? x[i] / (double)n : 0;
  for (int64_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean) / (double)n;
  stats[0] = mean;
  stats[1] = 1 / sqrt(square + eps);
  for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * stats[1] * w[i] + (b ? b[i] : 0);
}

static void reference_backward(enum norm_kind kind, int64_t n, const double *x, const double *w, const double stats[2],
                               const double *dy, double *dx) {
  double sum = 0, product = 0;
  for (int64_t i = 0; i < n; i++) {
    sum += kind == NORM_LAYER ? dy[i] * w[i] / (double)n : 0;
    product += dy[i] * w[i] * (x[i] - stats[0]) * stats[1] / (double)n;
  }
  for (int64_t i = 0; i < n; i++) dx[i] += stats[1] * (dy[i] * w[i] - sum - (x[i] - stats[0]) * stats[1] * product);
}

static void row_doubles(struct tensor_view x, int64_t row, int64_t n, double *y) {
  for (int64_t i = 0; i < n; i++) y[i] = opcheck_get(x, row, i);
}

static double *doubles(int64_t n) {
  double *x = calloc((size_t)n, sizeof *x);
  assert_non_null(x);
  return x;
}

static void test_reference_gradient(void **state) {
  (void)state;
  enum { N = 7 };
  double x[N], w[N], dy[N], y[N], dx[N] = {0}, stats[2];
  uint64_t seed = 4;
  for (int i = 0; i < N; i++)
    x[i] = opcheck_uniform(&seed), w[i] = opcheck_uniform(&seed), dy[i] = opcheck_uniform(&seed);
  for (int kind = 0; kind < 2; kind++) {
    memset(dx, 0, sizeof dx);
    reference_forward(kind ? NORM_RMS : NORM_LAYER, N, x, w, NULL, 1e-2, y, stats);
    reference_backward(kind ? NORM_RMS : NORM_LAYER, N, x, w, stats, dy, dx);
    for (int i = 0; i < N; i++) {
      double loss[2] = {0}, value = x[i], step = 1e-5;
      for (int side = 0; side < 2; side++) {
        x[i] = value + (side ? step : -step);
        reference_forward(kind ? NORM_RMS : NORM_LAYER, N, x, w, NULL, 1e-2, y, stats);
        for (int j = 0; j < N; j++) loss[side] += y[j] * dy[j];
      }
      x[i] = value;
      /* step^2 times a third derivative of order 10, and 1e-16 / step */
      assert_true(fabs((loss[1] - loss[0]) / (2 * step) - dx[i]) < 1e-8);
    }
  }
}

struct problem {
  enum norm_kind kind;
  enum dtype dtype;
  int64_t M, n;
  float spread, shift; /* x is uniform in shift +- spread */
  bool bias;
};

/* The product's y, stats and dx (on top of what was there), compared and returned. */
static void solve(const struct problem *p, struct device *d, struct opcheck_matrix *y, struct opcheck_matrix *dx) {
  struct opcheck_matrix x = opcheck_random(DTYPE_F32, p->M, p->n, 3, p->spread, 1);
  struct opcheck_matrix dy = opcheck_random(DTYPE_F32, p->M, p->n, 1, 1, 2);
  struct opcheck_matrix w = opcheck_random(DTYPE_F32, 1, p->n, 0, 2, 3),
                        b = opcheck_random(DTYPE_F32, 1, p->n, 0, 2, 4);
  for (int64_t r = 0; r < p->M; r++) {
    for (int64_t c = 0; c < p->n; c++) opcheck_set(x.view, r, c, opcheck_get(x.view, r, c) + p->shift);
  }
  *y = opcheck_matrix(p->dtype, p->M, p->n, 5);
  *dx = opcheck_random(DTYPE_F32, p->M, p->n, 2, 1, 5);
  struct opcheck_matrix before = opcheck_copy(dx), again = opcheck_matrix(p->dtype, p->M, p->n, 2);
  float *stats = opcheck_floats(2 * p->M);
  const float *bias = p->bias ? b.view.data : NULL, eps = 1e-5f;
  opcheck_run(d, norm_forward, p->kind, p->M, p->n, x.view, w.view.data, bias, eps, y->view, stats);
  opcheck_run(d, norm_apply, p->kind, p->M, p->n, x.view, w.view.data, bias, stats, again.view);
  opcheck_same_bits("norm_apply", &again, y);
  opcheck_run(d, norm_backward, p->kind, p->M, p->n, x.view, w.view.data, stats, dy.view, dx->view);
  double *row = doubles(7 * p->n), *want_y = doubles(p->M * p->n), *want_dx = doubles(p->M * p->n), exact[2];
  double rstd = 0;
  row_doubles(w.view, 0, p->n, row + p->n);
  row_doubles(b.view, 0, p->n, row + 2 * p->n);
  for (int64_t m = 0; m < p->M; m++) {
    row_doubles(x.view, m, p->n, row);
    row_doubles(dy.view, m, p->n, row + 3 * p->n);
    reference_forward(p->kind, p->n, row, row + p->n, p->bias ? row + 2 * p->n : NULL, (double)eps, want_y + m * p->n,
                      exact);
    /* the mean of f32 numbers of size s is off by some 1e-7 s */
    assert_true(fabs(stats[2 * m] - exact[0]) <= 3e-7 * (fabs(p->shift) + p->spread));
    row_doubles(before.view, m, p->n, want_dx + m * p->n);
    reference_backward(p->kind, p->n, row, row + p->n, exact, row + 3 * p->n, want_dx + m * p->n);
    rstd = fmax(rstd, exact[1]);
  }
  /* x - mean carries the rounding of the mean and 1/std multiplies it; bf16 adds half a last place of y. */
  double lost = 4e-7 * (1 + (fabs(p->shift) + p->spread) * (p->kind == NORM_LAYER ? rstd : 1));
  opcheck_near("y", y, want_y, 4 * lost, 1e-6 + (p->dtype == DTYPE_BF16 ? 0x1p-8 : 0));
  opcheck_near("dx", dx, want_dx, 8 * lost * (1 + rstd), 1e-6);
  opcheck_guard("y", y);
  opcheck_guard("dx", dx);
  struct opcheck_matrix *all[] = {&x, &dy, &w, &b, &before, &again};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) opcheck_free(all[i]);
  free(row), free(want_y), free(want_dx), opcheck_release(stats);
}

static void test_norms(void **state) {
  (void)state;
  int counts = opcheck_thread_counts();
  struct device *d[OPCHECK_MOST_THREADS];
  for (int i = 0; i < counts; i++) d[i] = opcheck_device(i + 1);
  int64_t sizes[][2] = {{1, 1}, {1, 768}, {3, 5}, {17, 100}, {64, 576}, {5, 4097}};
  float ranges[][2] = {{1, 0}, {1e-3f, 0}, {1, 100}, {1000, 0}};
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    for (size_t r = 0; r < sizeof ranges / sizeof *ranges; r++) {
      for (int variant = 0; variant < 8; variant++) {
        struct problem p = {.kind = variant & 1 ? NORM_RMS : NORM_LAYER,
                            .dtype = variant & 2 ? DTYPE_BF16 : DTYPE_F32,
                            .M = sizes[s][0],
                            .n = sizes[s][1],
                            .spread = ranges[r][0],
                            .shift = ranges[r][1],
                            .bias = (variant & 4) != 0};
        struct opcheck_matrix y[OPCHECK_MOST_THREADS], dx[OPCHECK_MOST_THREADS];
        for (int i = 0; i < counts; i++) solve(&p, d[i], &y[i], &dx[i]);
        for (int i = 1; i < counts; i++) {
          opcheck_same_bits("y", &y[i], &y[0]);
          opcheck_same_bits("dx", &dx[i], &dx[0]);
        }
        for (int i = 0; i < counts; i++) opcheck_free(&y[i]), opcheck_free(&dx[i]);
      }
    }
  }
  for (int i = 0; i < counts; i++) opcheck_close(&d[i]);
}

static void head_norm(enum dtype dtype, int64_t M, int heads, int head_dim, bool in_place) {
  struct device *d = opcheck_device(2);
  int64_t n = (int64_t)heads * head_dim;
  struct opcheck_matrix x = opcheck_random(dtype, M, n, 3, 2, 1), y = opcheck_matrix(dtype, M, n, 1);
  struct opcheck_matrix dy = opcheck_random(dtype, M, n, 2, 1, 2), dx = opcheck_matrix(dtype, M, n, 2);
  struct opcheck_matrix w = opcheck_random(DTYPE_F32, 1, head_dim, 0, 2, 3), given = opcheck_copy(&dy);
  float *stats = opcheck_floats(M * heads);
  double *want_y = doubles(M * n), *want_dx = doubles(M * n), exact[2];
  double *row = doubles(head_dim), *weight = doubles(head_dim), *slope = doubles(head_dim);
  opcheck_run(d, head_norm_forward, M, heads, head_dim, x.view, w.view.data, 1e-6f, y.view, stats);
  opcheck_run(d, head_norm_backward, M, heads, head_dim, x.view, w.view.data, stats, dy.view,
              in_place ? dy.view : dx.view);
  row_doubles(w.view, 0, head_dim, weight);
  for (int64_t m = 0; m < M; m++) {
    for (int h = 0; h < heads; h++) {
      int64_t at = m * n + (int64_t)h * head_dim;
      for (int e = 0; e < head_dim; e++) {
        row[e] = opcheck_get(x.view, m, (int64_t)h * head_dim + e);
        slope[e] = opcheck_get(given.view, m, (int64_t)h * head_dim + e);
      }
      reference_forward(NORM_RMS, head_dim, row, weight, NULL, 1e-6, want_y + at, exact);
      reference_backward(NORM_RMS, head_dim, row, weight, exact, slope, want_dx + at);
      assert_true(fabs(stats[m * heads + h] / exact[1] - 1) < 5e-7); /* a few roundings */
    }
  }
  double relative = 1e-6 + (dtype == DTYPE_BF16 ? 0x1p-8 : 0); /* roundings in f32, and the result's own */
  opcheck_near("y", &y, want_y, 1e-6, relative);
  opcheck_near("dx", in_place ? &dy : &dx, want_dx, 1e-5, relative);
  struct opcheck_matrix again = opcheck_matrix(dtype, M, n, 1), dx_again = opcheck_copy(&given);
  struct device *other = opcheck_device(1);
  opcheck_run(other, head_norm_forward, M, heads, head_dim, x.view, w.view.data, 1e-6f, again.view, stats);
  opcheck_run(other, head_norm_backward, M, heads, head_dim, x.view, w.view.data, stats, given.view, dx_again.view);
  opcheck_same_bits("y", &again, &y);
  opcheck_same_bits("dx", &dx_again, in_place ? &dy : &dx);
  opcheck_close(&other);
  struct opcheck_matrix *all[] = {&x, &y, &dy, &dx, &w, &given, &again, &dx_again};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    opcheck_guard("head norm", all[i]);
    opcheck_free(all[i]);
  }
  opcheck_release(stats), free(want_y), free(want_dx), free(row), free(weight), free(slope);
  opcheck_close(&d);
}

static void test_head_norm(void **state) {
  (void)state;
  for (int variant = 0; variant < 4; variant++) {
    enum dtype dtype = variant & 1 ? DTYPE_BF16 : DTYPE_F32;
    head_norm(dtype, 1, 1, 8, variant & 2);
    head_norm(dtype, 17, 3, 30, variant & 2);
    head_norm(dtype, 3, 5, 128, variant & 2);
  }
}

/* A row of zeros has no direction: y = b, no NaN. */
static void test_zero_row(void **state) {
  (void)state;
  struct device *d = opcheck_device(1);
  struct opcheck_matrix x = opcheck_random(DTYPE_F32, 1, 20, 0, 0, 1), y = opcheck_matrix(DTYPE_F32, 1, 20, 0);
  struct opcheck_matrix w = opcheck_random(DTYPE_F32, 1, 20, 0, 1, 2), b = opcheck_random(DTYPE_F32, 1, 20, 0, 1, 3);
  float *stats = opcheck_floats(2);
  for (int kind = 0; kind < 2; kind++) {
    opcheck_run(d, norm_forward, kind ? NORM_RMS : NORM_LAYER, 1, 20, x.view, w.view.data, b.view.data, 1e-5f, y.view,
                stats);
    opcheck_same_bits("y", &y, &b);
  }
  opcheck_free(&x), opcheck_free(&y), opcheck_free(&w), opcheck_free(&b), opcheck_release(stats);
  opcheck_close(&d);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_reference_gradient),
      cmocka_unit_test(test_norms),
      cmocka_unit_test(test_head_norm),
      cmocka_unit_test(test_zero_row),
  };
  return opcheck_run_group(tests);
}
