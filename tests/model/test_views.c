/*
 * Views into rows that hold several matrices side by side, as [x | h] of
 * sequence parallelism: a view may begin at any column, and the distance of its
 * rows may be any. A slot gives on such views what it gives on dense ones, whose
 * results the other tests check, and writes nothing beside them. What lies
 * beside them is NaN, so that reading it shows too.
 */
#include "tests/model/opcheck_weights.h"

/* Columns in front of a view and behind it. With rows of 64 or 48 elements: rows at odd addresses, at multiples of 4,
 * 8 and 16 bytes, rows that are aligned though the first is not, and the other way round. */
static const int64_t layouts[][2] = {{0, 1}, {0, 2}, {0, 4}, {0, 8}, {1, 0}, {1, 15}, {2, 6}, {4, 12}, {8, 8}, {16, 5}};
enum { N_LAYOUTS = sizeof layouts / sizeof *layouts };

/* Another one, for operands that are not to be aligned alike. */
static const int64_t *other(const int64_t layout[2]) { return layouts[(layout - layouts[0] + 6) / 2 % N_LAYOUTS]; }

/* The same numbers twice: dense, and within wider rows. */
struct twins {
  struct opcheck_matrix as[2];
};

static struct twins twins(enum dtype dtype, int64_t rows, int64_t columns, const int64_t layout[2], uint64_t seed) {
  struct twins t;
  t.as[0] = opcheck_random(dtype, rows, columns, 0, 1, seed);
  t.as[1] = opcheck_columns(dtype, rows, columns, layout[0], layout[0] + columns + layout[1]);
  for (int64_t m = 0; m < rows; m++) {
    for (int64_t n = 0; n < columns; n++) opcheck_set(t.as[1].view, m, n, opcheck_get(t.as[0].view, m, n));
  }
  return t;
}

static void twins_free(struct twins *t) {
  opcheck_free(&t->as[0]);
  opcheck_free(&t->as[1]);
}

/* The view's numbers against the dense ones', and what is beside it. Frees both. */
static void twins_agree(const char *name, struct twins *t, double absolute) {
  const double relative = absolute > 0 && t->as[0].view.dtype == DTYPE_BF16 ? 0x1p-7 : 0; /* the next number */
  struct opcheck_worst worst = {.name = name};
  opcheck_guard(name, &t->as[1]);
  for (int64_t m = 0; m < t->as[0].rows; m++) {
    for (int64_t n = 0; n < t->as[0].columns; n++) {
      opcheck_compare(&worst, m, n, opcheck_get(t->as[1].view, m, n), opcheck_get(t->as[0].view, m, n), absolute,
                      relative);
    }
  }
  opcheck_report(&worst);
  twins_free(t);
}

/* Plain f32 results, likewise. */
static void arrays_agree(const char *name, float *as[2], int64_t n, double absolute) {
  struct opcheck_worst worst = {.name = name};
  for (int64_t i = 0; i < n; i++) opcheck_compare(&worst, 0, i, as[1][i], as[0][i], absolute, 0);
  opcheck_report(&worst);
  for (int i = 0; i < 2; i++) opcheck_release(as[i]);
}

static enum dtype type_of(int bit) { return bit ? DTYPE_BF16 : DTYPE_F32; }

/* Aligned and odd widths; 3 rows go through gemv.c on the CPU. */
static const int64_t shapes[][3] = {{3, 64, 48}, {21, 64, 48}, {21, 37, 41}}; /* M, K, N */
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* A library may choose another kernel for another distance: sums of at most 64 products of size < 0.5 each, in another
 * order, twice off by (64 + 2) 2^-23 of the sum of sizes. */
static const double sum_error = 2 * 66 * 0x1p-23 * 64 * 0.5;

static void linear_case(struct device *d, const int64_t shape[3], const int64_t layout[2], enum dtype in,
                        enum dtype out, enum dtype weight) {
  const int64_t M = shape[0], K = shape[1], N = shape[2];
  struct opcheck_weights w = opcheck_weights(weight, N, K, 1);
  float *bias = opcheck_random_floats(N, 1, 2);
  for (int accumulate = 0; accumulate < 2; accumulate++) {
    struct twins x = twins(in, M, K, layout, 3), y = twins(out, M, N, other(layout), 4);
    struct twins dy = twins(in, M, N, layout, 5), dx = twins(out, M, K, other(layout), 6);
    for (int i = 0; i < 2; i++) {
      opcheck_run(d, linear_forward, M, x.as[i].view, &w.weight, accumulate ? NULL : bias, y.as[i].view, accumulate);
      opcheck_run(d, linear_backward, M, dy.as[i].view, &w.weight, dx.as[i].view, accumulate);
    }
    twins_agree("y", &y, sum_error);
    twins_agree("dx", &dx, sum_error);
    twins_free(&x);
    twins_free(&dy);
  }
  struct twins x = twins(in, M, K, layout, 3), pre = twins(in, M, N, other(layout), 7), h = twins(in, M, N, layout, 8);
  for (int i = 0; i < 2; i++) {
    opcheck_run(d, linear_activation_forward, ACTIVATION_GELU_TANH, M, x.as[i].view, &w.weight, bias, pre.as[i].view,
                h.as[i].view);
  }
  twins_agree("pre", &pre, sum_error);
  /* The slope of an activation is below 1.2; a GPU's library may take tanh itself or leave it to us, whose own is
   * better: its error is below 2^-10. */
  twins_agree("h", &h, 1.2 * sum_error + (opcheck_on_cpu() || in == DTYPE_F32 ? 0 : 0x1p-10));
  twins_free(&x);
  opcheck_release(bias);
  opcheck_weights_free(&w);
}

static void linear(void **state) {
  (void)state;
  struct device *d = opcheck_device(2);
  for (int l = 0; l < N_LAYOUTS; l++) {
    for (int t = 0; t < 4 * N_SHAPES; t++) {
      const int64_t *shape = shapes[t / 4];
      enum dtype in = type_of(t & 1), out = type_of(t & 2);
      linear_case(d, shape, layouts[l], in, out, in);
      if (shape[1] % 32 == 0) linear_case(d, shape, layouts[l], in, out, DTYPE_Q8_0);
    }
  }
  opcheck_close(&d);
}

/* h and u may round to the next bf16 number on their way to what follows (a GPU in bf16): 2^-8 of numbers below 64, in
 * sums of 5 or 21 products with numbers below 1 that are scaled by 1/4. */
static double lowrank_error(enum dtype act) {
  return opcheck_on_cpu() || act == DTYPE_F32 ? 64 * sum_error : 0.25 * 64 * 0x1p-8 * 21;
}

static void lowrank_case(struct device *d, const int64_t shape[3], const int64_t layout[2], enum dtype act, float p) {
  enum { R = 5 };
  const int64_t M = shape[0], K = shape[1], N = shape[2];
  float *A = opcheck_random_floats(R * K, 1, 1), *B = opcheck_random_floats(R * N, 1, 2);
  float *h[2], *u[2], *dA[2], *dB[2];
  int64_t *row_ids = opcheck_alloc((size_t)M * sizeof *row_ids);
  for (int64_t m = 0; m < M; m++) row_ids[m] = 3 * m;
  struct twins x = twins(act, M, K, layout, 3), y = twins(act, M, N, other(layout), 4);
  struct twins dy = twins(act, M, N, layout, 5), dx = twins(DTYPE_F32, M, K, other(layout), 6);
  for (int i = 0; i < 2; i++) {
    h[i] = opcheck_floats(M * R), u[i] = opcheck_floats(M * R);
    dA[i] = opcheck_random_floats(R * K, 1, 7), dB[i] = opcheck_random_floats(R * N, 1, 8);
    struct lowrank pair = {A, B, dA[i], dB[i], R, K, N, 0.25f, {.p = p, .row_ids = row_ids}};
    opcheck_run(d, lowrank_project_forward, M, x.as[i].view, &pair, h[i]);
    opcheck_run(d, lowrank_expand_forward, M, h[i], &pair, y.as[i].view);
    opcheck_run(d, lowrank_expand_backward, M, h[i], dy.as[i].view, &pair, u[i]);
    opcheck_run(d, lowrank_project_backward, M, x.as[i].view, u[i], &pair, dx.as[i].view);
  }
  arrays_agree("h", h, M * R, 2 * sum_error);
  arrays_agree("u", u, M * R, lowrank_error(act));
  arrays_agree("dA", dA, R * K, lowrank_error(act));
  arrays_agree("dB", dB, R * N, lowrank_error(act));
  twins_agree("y", &y, lowrank_error(act));
  twins_agree("dx", &dx, lowrank_error(act));
  twins_free(&x);
  twins_free(&dy);
  opcheck_release(A), opcheck_release(B), opcheck_release(row_ids);
}

static void lowrank(void **state) {
  (void)state;
  struct device *d = opcheck_device(2);
  for (int l = 0; l < N_LAYOUTS; l++) {
    for (int t = 0; t < 4 * N_SHAPES; t++) {
      lowrank_case(d, shapes[t / 4], layouts[l], type_of(t & 1), t & 2 ? 0.25f : 0);
    }
  }
  opcheck_close(&d);
}

/* A GPU sums a row in another order where its vectors are not aligned: some roundings of numbers of about 1. */
static const double norm_error = 4e-6;

static void norm_case(struct device *d, int64_t M, int64_t n, const int64_t layout[2], enum norm_kind kind,
                      enum dtype act) {
  float *w = opcheck_random_floats(n, 1, 1), *b = opcheck_random_floats(n, 1, 2), *stats[2];
  struct twins x = twins(DTYPE_F32, M, n, layout, 3), y = twins(act, M, n, other(layout), 4),
               again = twins(act, M, n, other(layout), 5);
  struct twins dy = twins(DTYPE_F32, M, n, layout, 6), dx = twins(DTYPE_F32, M, n, other(layout), 7);
  for (int i = 0; i < 2; i++) {
    stats[i] = opcheck_floats(2 * M);
    opcheck_run(d, norm_forward, kind, M, n, x.as[i].view, w, b, 1e-5f, y.as[i].view, stats[i]);
    opcheck_run(d, norm_apply, kind, M, n, x.as[i].view, w, b, stats[i], again.as[i].view);
    opcheck_run(d, norm_backward, kind, M, n, x.as[i].view, w, stats[i], dy.as[i].view, dx.as[i].view);
    opcheck_same_bits("norm_apply", &again.as[i], &y.as[i]);
  }
  arrays_agree("stats", stats, 2 * M, norm_error);
  twins_agree("y", &y, norm_error);
  twins_agree("norm_apply", &again, norm_error);
  twins_agree("dx", &dx, norm_error);
  twins_free(&x);
  twins_free(&dy);
  opcheck_release(w), opcheck_release(b);
}

static void norm(void **state) {
  (void)state;
  struct device *d = opcheck_device(2);
  for (int l = 0; l < N_LAYOUTS; l++) {
    for (int t = 0; t < 8; t++) {
      norm_case(d, 7, t & 4 ? 768 : 37, layouts[l], t & 1 ? NORM_RMS : NORM_LAYER, type_of(t & 2));
    }
  }
  opcheck_close(&d);
}

/* Copies, sums of two and look-ups have one way to be right: no tolerance. */
static void rows_case(struct device *d, int64_t n, const int64_t layout[2], enum dtype from, enum dtype to) {
  enum { M = 6, TALL = 11 };
  int32_t *rows = opcheck_place((int32_t[M]){8, 0, 3, 10, 7, 1}, M * sizeof *rows);
  float *bias = opcheck_random_floats(n, 1, 1), *table = opcheck_random_floats(TALL * n, 1, 2);
  struct twins x = twins(from, TALL, n, layout, 3), cast = twins(to, M, n, other(layout), 4),
               gathered = twins(to, M, n, other(layout), 5);
  struct twins scattered = twins(to, TALL, n, other(layout), 6), zero = twins(to, M, n, layout, 7);
  struct twins sum = twins(DTYPE_F32, M, n, other(layout), 8), looked_up = twins(DTYPE_F32, M, n, other(layout), 9);
  struct opcheck_weights w = opcheck_weights(from, TALL, n, 10);
  for (int i = 0; i < 2; i++) {
    opcheck_run(d, cast, M, n, x.as[i].view, cast.as[i].view);
    opcheck_run(d, gather_rows, M, n, rows, x.as[i].view, gathered.as[i].view);
    opcheck_run(d, scatter_rows, M, n, rows, x.as[i].view, scattered.as[i].view);
    opcheck_run(d, zero, M, n, zero.as[i].view);
    opcheck_run(d, add, M, n, x.as[i].view, bias, sum.as[i].view);
    opcheck_run(d, add, M, n, x.as[i].view, NULL, sum.as[i].view);
    opcheck_run(d, add, M, n, (struct tensor_view){0}, bias, sum.as[i].view);
    opcheck_run(d, add_rows, M, n, rows, 0, table, sum.as[i].view);
    opcheck_run(d, embedding, M, rows, 2, &w.weight, looked_up.as[i].view);
  }
  twins_agree("cast", &cast, 0);
  twins_agree("gather_rows", &gathered, 0);
  twins_agree("scatter_rows", &scattered, 0);
  twins_agree("zero", &zero, 0);
  twins_agree("add", &sum, 0);
  twins_agree("embedding", &looked_up, 0);
  twins_free(&x);
  opcheck_weights_free(&w);
  opcheck_release(rows), opcheck_release(bias), opcheck_release(table);
}

static void rows(void **state) {
  (void)state;
  struct device *d = opcheck_device(2);
  for (int l = 0; l < N_LAYOUTS; l++) {
    for (int t = 0; t < 8; t++) rows_case(d, t & 4 ? 64 : 37, layouts[l], type_of(t & 1), type_of(t & 2));
  }
  opcheck_close(&d);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(linear),
      cmocka_unit_test(lowrank),
      cmocka_unit_test(norm),
      cmocka_unit_test(rows),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
