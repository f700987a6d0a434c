#include <sys/wait.h>
#include <unistd.h>

#include "tests/model/opcheck_activation.h"
#include "tests/model/opcheck_weights.h"

struct linear_case {
  int64_t M, K, N;
  enum dtype x, weight, y;
  bool bias, accumulate;
};

/* The weight as the product sees it: in the type of its other operand. */
static double seen(const struct opcheck_weights *w, int64_t n, int64_t k, enum dtype operand) {
  float value = w->value[n * w->weight.n_in + k];
  return operand == DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(value)) : value;
}

/* Tolerance: a sum of n products in f32 in any order is off by at most
 * n 2^-24 sum |a b| (opcheck_rounding), to first order; storing adds half a unit of the result's
 * last place, 2^-24 or 2^-9 (twice that where an old bf16 y is added). */
static double store_error(enum dtype dtype) { return dtype == DTYPE_BF16 ? 0x1p-8 : 0x1p-23; }

/* A GPU's library takes a bias in the result's type: rounded by half a last place. */
static double bias_error(enum dtype y, float bias) {
  return !opcheck_on_cpu() && y == DTYPE_BF16 ? 0x1p-8 * fabs((double)bias) : 0;
}

static void check_forward(struct device *d, const struct linear_case *c) {
  struct opcheck_weights w = opcheck_weights(c->weight, c->N, c->K, 1);
  struct opcheck_matrix x = opcheck_random(c->x, c->M, c->K, 5, 1, 2);
  struct opcheck_matrix y = opcheck_random(c->y, c->M, c->N, 3, 1, 3), old = opcheck_copy(&y);
  float *bias = opcheck_random_floats(c->N, 1, 4);
  opcheck_run(d, linear_forward, c->M, x.view, &w.weight, c->bias ? bias : NULL, y.view, c->accumulate);
  opcheck_guard("y", &y);
  struct opcheck_worst worst = {.name = "y"};
  for (int64_t m = 0; m < c->M; m++) {
    for (int64_t n = 0; n < c->N; n++) {
      double sum = (c->bias ? bias[n] : 0) + (c->accumulate ? opcheck_get(old.view, m, n) : 0), size = fabs(sum);
      double lost = c->bias ? bias_error(c->y, bias[n]) : 0;
      for (int64_t k = 0; k < c->K; k++) {
        double product = opcheck_get(x.view, m, k) * seen(&w, n, k, c->x);
        sum += product;
        size += fabs(product);
      }
      lost += (double)(c->K + 2) * opcheck_rounding(c->x) * size;
      opcheck_compare(&worst, m, n, opcheck_get(y.view, m, n), sum, lost, store_error(c->y));
    }
  }
  opcheck_report(&worst);
  opcheck_release(bias);
  opcheck_free(&x);
  opcheck_free(&y);
  opcheck_free(&old);
  opcheck_weights_free(&w);
}

static void check_backward(struct device *d, const struct linear_case *c) {
  struct opcheck_weights w = opcheck_weights(c->weight, c->N, c->K, 5);
  struct opcheck_matrix dy = opcheck_random(c->x, c->M, c->N, 1, 1, 6);
  struct opcheck_matrix dx = opcheck_random(c->y, c->M, c->K, 7, 1, 7), old = opcheck_copy(&dx);
  opcheck_run(d, linear_backward, c->M, dy.view, &w.weight, dx.view, c->accumulate);
  opcheck_guard("dx", &dx);
  struct opcheck_worst worst = {.name = "dx"};
  for (int64_t m = 0; m < c->M; m++) {
    for (int64_t k = 0; k < c->K; k++) {
      double sum = c->accumulate ? opcheck_get(old.view, m, k) : 0, size = fabs(sum);
      for (int64_t n = 0; n < c->N; n++) {
        double product = opcheck_get(dy.view, m, n) * seen(&w, n, k, c->x);
        sum += product;
        size += fabs(product);
      }
      opcheck_compare(&worst, m, k, opcheck_get(dx.view, m, k), sum, (double)(c->N + 2) * opcheck_rounding(c->x) * size,
                      store_error(c->y));
    }
  }
  opcheck_report(&worst);
  opcheck_free(&dy);
  opcheck_free(&dx);
  opcheck_free(&old);
  opcheck_weights_free(&w);
}

static void check_both(struct device *d, struct linear_case c) {
  for (int i = 0; i < 4; i++) {
    c.bias = i & 1;
    c.accumulate = i & 2;
    check_forward(d, &c);
    if (!c.bias) check_backward(d, &c);
  }
}

static void shapes_and_types(void **state) {
  (void)state;
  /* No rows, one, odd, several row tiles with a rest, several column tiles with a rest; empty shards. */
  static const int64_t shapes[][3] = {{0, 8, 8},    {1, 1, 1},     {1, 97, 700},  {3, 37, 41}, {17, 64, 96},
                                      {130, 33, 7}, {300, 48, 65}, {5, 700, 600}, {4, 0, 6},   {4, 6, 0}};
  static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16};
  struct device *d = opcheck_device(2);
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
    for (int t = 0; t < 8; t++) {
      check_both(d, (struct linear_case){.M = shapes[s][0],
                                         .K = shapes[s][1],
                                         .N = shapes[s][2],
                                         .x = types[t & 1],
                                         .weight = types[t >> 1 & 1],
                                         .y = types[t >> 2 & 1]});
    }
  }
  opcheck_close(&d);
}

static void stored_types(void **state) {
  (void)state;
  struct device *d = opcheck_device(2);
  for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
    for (int t = 0; t < 2; t++) {
      enum dtype act = t ? DTYPE_BF16 : DTYPE_F32;
      struct linear_case c = {.M = 7, .K = 512, .N = 40, .x = act, .weight = (enum dtype)dtype, .y = act};
      check_both(d, c);
      c.K = 45;
      if (dtype_block(c.weight) == 1) check_both(d, c);
    }
  }
  opcheck_close(&d);
}

/* 1 to 4 rows go through gemv.c, 5 do not: both within the tolerance of the reference, for every stored type, with
 * columns left over after whole groups of 32 where a type can have them, and an odd number of outputs. */
static void few_rows(void **state) {
  (void)state;
  static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16};
  struct device *d = opcheck_device(2);
  for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
    for (int64_t M = 1; M <= 5; M++) {
      for (int t = 0; t < 4; t++) {
        struct linear_case c = {.M = M, .K = 512, .N = 37, .x = types[t & 1], .weight = (enum dtype)dtype};
        c.y = types[t >> 1];
        c.bias = (M + t) % 2;
        c.accumulate = M & 2;
        check_forward(d, &c);
        c.K = 45;
        if (dtype_block(c.weight) == 1) check_forward(d, &c);
      }
    }
  }
  opcheck_close(&d);
}

/* A row of y has the same bits whichever of 1 to 4 rows it is made with, and for 1, 2 and 3 threads. */
static void few_rows_alike(void **state) {
  (void)state;
  if (!opcheck_on_cpu()) skip(); /* not promised: another number of rows may be another kernel of the library */
  enum { K = 512, N = 71 };
  for (int i = 0; i < 2 * DTYPE_COUNT; i++) {
    enum dtype act = i & 1 ? DTYPE_BF16 : DTYPE_F32;
    struct opcheck_weights w = opcheck_weights((enum dtype)(i / 2), N, K, 14);
    struct opcheck_matrix x = opcheck_random(act, 4, K, 3, 1, 15), want = opcheck_matrix(DTYPE_F32, 4, N, 0);
    for (int threads = 1; threads <= 3; threads++) {
      struct device *d = opcheck_device(threads);
      for (int64_t M = 4; M >= 1; M--) {
        struct opcheck_matrix y = opcheck_matrix(DTYPE_F32, M, N, 5), first = want;
        first.rows = M;
        bool reference = threads == 1 && M == 4;
        opcheck_run(d, linear_forward, M, x.view, &w.weight, NULL, reference ? want.view : y.view, false);
        if (!reference) opcheck_same_bits("y", &y, &first);
        opcheck_free(&y);
      }
      opcheck_close(&d);
    }
    opcheck_free(&x);
    opcheck_free(&want);
    opcheck_weights_free(&w);
  }
}

/* More weights than one expanded tile holds (2 M): both directions cut. */
static void several_weight_tiles(void **state) {
  (void)state;
  struct device *d = opcheck_device(2);
  struct linear_case forward = {
      .M = 5, .K = 1024, .N = 2100, .x = DTYPE_F32, .weight = DTYPE_Q8_0, .y = DTYPE_F32, .bias = true};
  check_forward(d, &forward);
  check_backward(d, &forward);
  forward.weight = DTYPE_NF4;
  check_forward(d, &forward);
  check_backward(d, &forward);
  forward.weight = DTYPE_F32;
  forward.x = forward.y = DTYPE_BF16;
  check_forward(d, &forward);
  check_backward(d, &forward);
  opcheck_close(&d);
}

/* On the CPU the two operations themselves. */
static void check_same_as_two(struct device *d, const struct linear_case *c, enum activation kind,
                              const struct opcheck_matrix *x, const struct weight *W, const float *bias,
                              const struct opcheck_matrix *pre, const struct opcheck_matrix *h) {
  struct opcheck_matrix y = opcheck_matrix(c->y, c->M, c->N, 0), a = opcheck_matrix(c->y, c->M, c->N, 0);
  opcheck_run(d, linear_forward, c->M, x->view, W, bias, y.view, false);
  opcheck_run(d, activation_forward, kind, c->M, c->N, (struct tensor_view){0}, y.view, a.view);
  opcheck_same_bits("pre", pre, &y);
  opcheck_same_bits("h", h, &a);
  opcheck_free(&y);
  opcheck_free(&a);
}

static void check_activation(struct device *d, const struct linear_case *c, enum activation kind) {
  struct opcheck_weights w = opcheck_weights(c->weight, c->N, c->K, 16);
  struct opcheck_matrix x = opcheck_random(c->x, c->M, c->K, 5, 1, 17);
  struct opcheck_matrix pre[2], h[2]; /* the second is a repetition */
  float *bias = c->bias ? opcheck_random_floats(c->N, 1, 18) : NULL;
  for (int i = 0; i < 2; i++) {
    pre[i] = opcheck_matrix(c->y, c->M, c->N, 3);
    h[i] = opcheck_matrix(c->y, c->M, c->N, 8);
    opcheck_run(d, linear_activation_forward, kind, c->M, x.view, &w.weight, bias, pre[i].view, h[i].view);
    opcheck_guard("pre", &pre[i]);
    opcheck_guard("h", &h[i]);
  }
  opcheck_same_bits("pre", &pre[1], &pre[0]);
  opcheck_same_bits("h", &h[1], &h[0]);
  if (opcheck_on_cpu()) check_same_as_two(d, c, kind, &x, &w.weight, bias, &pre[0], &h[0]);
  struct opcheck_worst worst_pre = {.name = "pre"}, worst_h = {.name = "h"};
  for (int64_t m = 0; m < c->M; m++) {
    for (int64_t n = 0; n < c->N; n++) {
      double sum = bias ? bias[n] : 0, size = fabs(sum);
      for (int64_t k = 0; k < c->K; k++) {
        double product = opcheck_get(x.view, m, k) * seen(&w, n, k, c->x);
        sum += product;
        size += fabs(product);
      }
      double lost = (double)(c->K + 2) * opcheck_rounding(c->x) * size + (bias ? bias_error(c->y, bias[n]) : 0);
      opcheck_compare(&worst_pre, m, n, opcheck_get(pre[0].view, m, n), sum, lost, store_error(c->y));
      /* The slope of an activation is below 1.2, and it may begin at the stored pre; then as in test_activation.c. */
      opcheck_compare(&worst_h, m, n, opcheck_get(h[0].view, m, n), opcheck_act(kind, sum),
                      1.2 * (lost + store_error(c->y) * fabs(sum)) + 4e-6, 1e-6 + store_error(c->y));
    }
  }
  opcheck_report(&worst_pre);
  opcheck_report(&worst_h);
  opcheck_release(bias);
  opcheck_free(&x);
  for (int i = 0; i < 2; i++) opcheck_free(&pre[i]), opcheck_free(&h[i]);
  opcheck_weights_free(&w);
}

static void with_activation(void **state) {
  (void)state;
  static const int64_t shapes[][3] = {{0, 8, 8},    {1, 97, 70}, {3, 37, 41}, {17, 64, 96},
                                      {130, 32, 8}, {5, 0, 6},   {4, 6, 0}};
  struct device *d = opcheck_device(2);
  for (size_t s = 0; s <= sizeof shapes / sizeof *shapes; s++) {
    for (int t = 0; t < 16; t++) {
      enum dtype act = t & 1 ? DTYPE_BF16 : DTYPE_F32;
      struct linear_case c = {.M = 33, .K = 256, .N = 40, .x = act, .weight = DTYPE_Q4_0, .y = act, .bias = t & 2};
      if (s > 0) {
        c.M = shapes[s - 1][0], c.K = shapes[s - 1][1], c.N = shapes[s - 1][2];
        c.weight = (s + (size_t)t / 4) % 2 ? act : DTYPE_BF16;
      }
      check_activation(d, &c, (enum activation)(ACTIVATION_GELU + t / 4));
    }
  }
  opcheck_close(&d);
}

/* dx of the loss sum(c y) against central differences of the loss in f64. The
 * loss is linear in x, so the quotient has rounding only; the tolerance is
 * dx's own: a sum of N = 29 products of size < 0.5, 29 * 29 * 0.5 * 2^-24. */
static void gradient_by_differences(void **state) {
  (void)state;
  enum { M = 3, K = 19, N = 29 };
  struct device *d = opcheck_device(2);
  struct opcheck_weights w = opcheck_weights(DTYPE_F32, N, K, 8);
  struct opcheck_matrix x = opcheck_random(DTYPE_F32, M, K, 0, 1, 9), c = opcheck_random(DTYPE_F32, M, N, 0, 1, 10);
  struct opcheck_matrix dx = opcheck_matrix(DTYPE_F32, M, K, 2);
  opcheck_run(d, linear_backward, M, c.view, &w.weight, dx.view, false);
  double want[M * K];
  for (int i = 0; i < M * K; i++) {
    double loss[2];
    for (int side = 0; side < 2; side++) {
      loss[side] = 0;
      for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) {
          for (int k = 0; k < K; k++) {
            double moved = opcheck_get(x.view, m, k) + (m * K + k == i ? (side ? 0.5 : -0.5) : 0);
            loss[side] += opcheck_get(c.view, m, n) * moved * (double)w.value[n * K + k];
          }
        }
      }
    }
    want[i] = loss[1] - loss[0];
  }
  opcheck_near("dx", &dx, want, 29 * 29 * 0.5 * 0x1p-24, 0);
  opcheck_free(&x);
  opcheck_free(&c);
  opcheck_free(&dx);
  opcheck_weights_free(&w);
  opcheck_close(&d);
}

/* The same bits with 1, 2 and 3 threads (or once more), and no allocation after the first call. */
static void independent_of_threads(void **state) {
  (void)state;
  static const int64_t shapes[][3] = {{1, 576, 1536}, {40, 300, 130}, {300, 128, 192}, {256, 1000, 600}};
  for (int s = 0; s < 4; s++) {
    for (int t = 0; t < 4; t++) {
      int64_t M = shapes[s][0], K = shapes[s][1], N = shapes[s][2];
      enum dtype act = t & 1 ? DTYPE_BF16 : DTYPE_F32, weight = t & 2 ? DTYPE_BF16 : DTYPE_F32;
      struct opcheck_weights w = opcheck_weights(weight, N, K, 11);
      struct opcheck_matrix x = opcheck_random(act, M, K, 0, 1, 12), dy = opcheck_random(act, M, N, 0, 1, 13);
      struct opcheck_matrix y[OPCHECK_MOST_THREADS + 1], dx[OPCHECK_MOST_THREADS + 1];
      for (int threads = 1; threads <= opcheck_thread_counts(); threads++) {
        struct device *d = opcheck_device(threads);
        y[threads] = opcheck_matrix(act, M, N, 0);
        dx[threads] = opcheck_matrix(DTYPE_F32, M, K, 0);
        uint64_t allocations = 0;
        for (int repeat = 0; repeat < 2; repeat++) {
          if (repeat) allocations = d->allocations;
          opcheck_run(d, linear_forward, M, x.view, &w.weight, NULL, y[threads].view, false);
          opcheck_run(d, linear_backward, M, dy.view, &w.weight, dx[threads].view, false);
        }
        assert_int_equal(d->allocations, allocations);
        opcheck_close(&d);
        opcheck_same_bits("y", &y[1], &y[threads]);
        opcheck_same_bits("dx", &dx[1], &dx[threads]);
      }
      for (int threads = 1; threads <= opcheck_thread_counts(); threads++) {
        opcheck_free(&y[threads]);
        opcheck_free(&dx[threads]);
      }
      opcheck_free(&x);
      opcheck_free(&dy);
      opcheck_weights_free(&w);
    }
  }
}

/* Many numbers of rows, as micro-batches have: the cache of products stays
 * bounded, and a product that was pushed out works again. */
static void many_shapes(void **state) {
  (void)state;
  struct device *d = opcheck_device(2);
  for (int64_t i = 0; i < 600; i++) {
    struct linear_case c = {.M = i % 560 + 1, .K = 3, .N = 5, .x = DTYPE_F32, .weight = DTYPE_F32, .y = DTYPE_F32};
    check_forward(d, &c);
  }
  opcheck_close(&d);
}

/* This program's first tests again, with the library held to AVX2: bf16
 * products then go through f32. */
static void without_bf16_instructions(void **state) {
  (void)state;
  if (!opcheck_on_cpu()) skip();
  pid_t child = fork();
  if (child == 0) {
    setenv("ONEDNN_MAX_CPU_ISA", "AVX2", 1);
    execl("/proc/self/exe", "test_linear", (char *)NULL);
    _exit(127);
  }
  int status = -1;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(shapes_and_types),
      cmocka_unit_test(stored_types),
      cmocka_unit_test(few_rows),
      cmocka_unit_test(few_rows_alike),
      cmocka_unit_test(several_weight_tiles),
      cmocka_unit_test(with_activation),
      cmocka_unit_test(gradient_by_differences),
      cmocka_unit_test(independent_of_threads),
      cmocka_unit_test(many_shapes),
      cmocka_unit_test(without_bf16_instructions),
  };
  const struct CMUnitTest inner[] = {cmocka_unit_test(shapes_and_types), cmocka_unit_test(stored_types)};
  if (getenv("ONEDNN_MAX_CPU_ISA")) return cmocka_run_group_tests(inner, NULL, NULL);
  return opcheck_run_group(tests);
}
