/*
 * AdamW against a double reference, its independence of how the elements are
 * split, and the sum of squares.
 */
#include "opcheck.h"

enum { N = 10007 };

struct parameters {
  float w[N], m[N], v[N], g[N];
};

static struct adamw_args arguments(struct parameters *p, int64_t begin, int64_t n, int64_t t) {
  return (struct adamw_args){.w = p->w + begin,
                             .m = p->m + begin,
                             .v = p->v + begin,
                             .g = p->g + begin,
                             .n = n,
                             .lr = 1e-3f,
                             .beta1 = 0.9f,
                             .beta2 = 0.999f,
                             .eps = 1e-8f,
                             .weight_decay = 0.1f,
                             .g_scale = 0.5f,
                             .t = t};
}

static struct parameters *parameters_make(void) {
  struct parameters *p = opcheck_alloc(sizeof *p);
  memset(p, 0, sizeof *p);
  opcheck_fill(p->w, N, 1, 1);
  return p;
}

/* Gradients from 1e-6 to 1, another at each step. */
static void gradient(struct parameters *p, int64_t t) {
  opcheck_fill(p->g, N, 1, 100 + (uint64_t)t);
  for (int64_t i = 0; i < N; i++) p->g[i] *= powf(10, -(float)(i % 7));
}

static void test_adamw(void **state) {
  (void)state;
  struct device *d = opcheck_device(2);
  struct parameters *p = parameters_make();
  double *w = calloc(3 * N, sizeof *w), *m = w + N, *v = w + 2 * N;
  for (int i = 0; i < N; i++) w[i] = p->w[i];
  for (int64_t t = 1; t <= 20; t++) {
    gradient(p, t);
    struct adamw_args args = arguments(p, 0, N, t);
    opcheck_run(d, adamw, &args);
    for (int i = 0; i < N; i++) { /* betas as their writer meant them: decimals */
      double g = 0.5 * p->g[i];
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.999 * v[i] + 0.001 * g * g;
      double step = m[i] / (1 - pow(0.9, (double)t)) / (sqrt(v[i] / (1 - pow(0.999, (double)t))) + 1e-8);
      w[i] -= 1e-3 * (step + 0.1 * w[i]);
    }
  }
  /* w of size 1 is rounded to 6e-8 at each of 20 steps; m and v to a few parts in 1e7 of themselves, where m may
   * cancel against a term of size 1 */
  opcheck_near_array("w", p->w, w, N, 20 * 6e-8, 0);
  opcheck_near_array("m", p->m, m, N, 1e-7, 1e-6);
  opcheck_near_array("v", p->v, v, N, 1e-20, 2e-6);
  free(w), opcheck_release(p);
  opcheck_close(&d);
}

/* Whole, in uneven pieces, with 1, 2 and 3 threads: the same bits. */
static void test_adamw_split(void **state) {
  (void)state;
  struct parameters *whole = parameters_make(), *pieces = parameters_make();
  for (int threads = 1; threads <= 3; threads++) {
    struct device *d = opcheck_device(threads);
    gradient(whole, threads);
    gradient(pieces, threads);
    struct adamw_args args = arguments(whole, 0, N, threads);
    opcheck_run(d, adamw, &args);
    opcheck_close(&d);
    d = opcheck_device(4 - threads);
    for (int64_t begin = 0, n = 1; begin < N; begin += n, n = n * 3 + 1) {
      args = arguments(pieces, begin, begin + n < N ? n : N - begin, threads);
      opcheck_run(d, adamw, &args);
    }
    opcheck_close(&d);
    assert_memory_equal(whole, pieces, sizeof *whole);
  }
  opcheck_release(whole), opcheck_release(pieces);
}

/* No gradient and no decay: nothing moves. */
static void test_adamw_zero(void **state) {
  (void)state;
  struct device *d = opcheck_device(1);
  struct parameters *p = parameters_make(), *before = parameters_make();
  struct adamw_args args = arguments(p, 0, N, 1);
  args.weight_decay = 0;
  opcheck_run(d, adamw, &args);
  assert_memory_equal(p, before, sizeof *p);
  args.n = 0;
  opcheck_run(d, adamw, &args);
  opcheck_release(p), opcheck_release(before);
  opcheck_close(&d);
}

static void test_sum_squares(void **state) {
  (void)state;
  float *x = opcheck_random_floats(100003, 3, 8);
  x[77] = 1e20f;     /* squares beyond the range of f32 */
  x[99999] = 1e-30f; /* and below it */
  int64_t sizes[] = {0, 1, 15, 17, 77, 4096, 4097, 100003};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    double want = 0, sum[OPCHECK_MOST_THREADS];
    for (int64_t j = 0; j < sizes[i]; j++) want += (double)x[j] * (double)x[j];
    for (int threads = 1; threads <= opcheck_thread_counts(); threads++) {
      struct device *d = opcheck_device(threads);
      opcheck_ok(d->ops->sum_squares(d, x, sizes[i], &sum[threads - 1])); /* the one slot that waits itself */
      opcheck_close(&d);
      assert_true(sum[threads - 1] == sum[0]);
    }
    assert_true(fabs(sum[0] - want) <= 1e-13 * want); /* f64 in another order */
  }
  opcheck_release(x);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_adamw),
      cmocka_unit_test(test_adamw_split),
      cmocka_unit_test(test_adamw_zero),
      cmocka_unit_test(test_sum_squares),
  };
  return opcheck_run_group(tests);
}
