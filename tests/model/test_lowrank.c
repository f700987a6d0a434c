#include "dist/rng.h"
#include "tests/model/opcheck.h"

/* --- the reference, in double ---------------------------------------------- */

struct problem {
  int64_t M, K, N, r;
  enum dtype x_dtype, y_dtype;
  float p;
  bool halves; /* by the slots of one half each */
  struct opcheck_matrix x, dy;
  float *A, *B, *h, *dA, *dB;
  int64_t *row_ids;
  struct lowrank pair;
};

static struct problem problem(int64_t M, int64_t K, int64_t N, int64_t r, enum dtype x, enum dtype y, float p) {
  struct problem t = {.M = M, .K = K, .N = N, .r = r, .x_dtype = x, .y_dtype = y, .p = p};
  t.x = opcheck_random(x, M, K, 3, 1, 1);
  t.dy = opcheck_random(y, M, N, 2, 1, 2);
  t.A = opcheck_random_floats(r * K, 1, 3);
  t.B = opcheck_random_floats(r * N, 1, 4);
  t.dA = opcheck_random_floats(r * K, 1, 5);
  t.dB = opcheck_random_floats(r * N, 1, 6);
  t.h = opcheck_floats(M * r);
  t.row_ids = opcheck_alloc((size_t)M * sizeof *t.row_ids);
  for (int64_t m = 0; m < M; m++) t.row_ids[m] = 1000000007 * m + 5;
  t.pair = (struct lowrank){
      t.A,  t.B,   t.dA,
      t.dB, r,     K,
      N,    0.75f, {.p = p, .seed = 77, .step = 9, .layer = 4, .module = 2, .row_ids = t.row_ids, .feature = 3}};
  return t;
}

static void problem_free(struct problem *t) {
  opcheck_free(&t->x);
  opcheck_free(&t->dy);
  void *placed[] = {t->A, t->B, t->h, t->dA, t->dB, t->row_ids};
  for (size_t i = 0; i < sizeof placed / sizeof *placed; i++) opcheck_release(placed[i]);
}

/* The mask's definition, one element at a time (model/cpu/lowrank_kernels.h). */
static double keep(const struct lowrank_dropout *dropout, int64_t m, int64_t k) {
  if (dropout->p == 0) return 1;
  uint64_t feature = (uint64_t)(dropout->feature + k);
  uint32_t word = rng_u32(dropout->seed, RNG_DROPOUT, (uint32_t)dropout->step, (uint32_t)dropout->layer,
                          (uint32_t)dropout->module, ((uint64_t)dropout->row_ids[m] << 19) + feature / 2);
  uint32_t bits = feature % 2 ? word >> 16 : word & 0xffff, threshold = (uint32_t)lrint(dropout->p * 65536.0);
  return bits >= threshold ? 65536.0 / (65536.0 - threshold) : 0;
}

/* Sums with the sum of the terms' sizes, which bounds the rounding of an f32
 * sum of n terms in any order: (n + 2) 2^-24 size. */
struct sum {
  double value, size;
};
static void add(struct sum *s, double term, double term_size) {
  s->value += term;
  s->size += term_size;
}

static struct sum *sums(int64_t n) {
  struct sum *s = calloc((size_t)n + 1, sizeof *s);
  assert_non_null(s);
  return s;
}

/* h[m, j] of drop(x) A', and u[m, j] of scale dy B. */
static struct sum *reference_h(const struct problem *t) {
  struct sum *h = sums(t->M * t->r);
  for (int64_t m = 0; m < t->M; m++) {
    for (int64_t k = 0; k < t->K; k++) {
      double x = keep(&t->pair.dropout, m, k) * opcheck_get(t->x.view, m, k);
      for (int64_t j = 0; j < t->r; j++) add(&h[m * t->r + j], x * t->A[j * t->K + k], fabs(x * t->A[j * t->K + k]));
    }
  }
  return h;
}

static struct sum *reference_u(const struct problem *t) {
  struct sum *u = sums(t->M * t->r);
  for (int64_t m = 0; m < t->M; m++) {
    for (int64_t n = 0; n < t->N; n++) {
      double dy = t->pair.scale * (double)opcheck_get(t->dy.view, m, n);
      for (int64_t j = 0; j < t->r; j++) add(&u[m * t->r + j], dy * t->B[n * t->r + j], fabs(dy * t->B[n * t->r + j]));
    }
  }
  return u;
}

/* A product of a computed factor (itself a sum of `inner` terms) and an exact
 * one, summed over `outer`: both roundings, and what is added to. A GPU
 * multiplies bf16 x on tensor cores, whose other operands are then rounded to
 * bf16 as well: half a last place, 2^-8, for each of `factors` on the way to s. */
static double tolerance(const struct problem *t, const struct sum *s, int64_t inner, int64_t outer, int factors) {
  bool bf16 = t->x_dtype == DTYPE_BF16 || (t->halves && t->y_dtype == DTYPE_BF16); /* a half has its own type */
  double rounding = (double)(inner + outer + 6) * opcheck_rounding(bf16 ? DTYPE_BF16 : DTYPE_F32);
  bool rounded = !opcheck_on_cpu() && bf16;
  return (rounding + (rounded ? factors * 0x1p-8 : 0)) * s->size;
}
/* h: drop(x) and A; y: those, h and B. u: dy (if it is f32) and B; dA: those, u and drop(x); dB: those of h, h and dy;
 * dx: those of u, u and A, and u A itself before the mask. */
enum { FACTORS_H = 2, FACTORS_Y = 4, FACTORS_DA = 4, FACTORS_DB = 4, FACTORS_DX = 5 };

/* Storing bf16: half a unit in the last place. */
static double store_error(enum dtype dtype) { return dtype == DTYPE_BF16 ? 0x1p-8 : 0x1p-23; }

static void run_forward(struct device *d, struct problem *t, struct tensor_view y) {
  if (!t->halves) {
    opcheck_run(d, lowrank_forward, t->M, t->x.view, &t->pair, t->h, y);
    return;
  }
  opcheck_run(d, lowrank_project_forward, t->M, t->x.view, &t->pair, t->h);
  opcheck_run(d, lowrank_expand_forward, t->M, t->h, &t->pair, y);
}

static void run_backward(struct device *d, struct problem *t, struct tensor_view dx) {
  if (!t->halves) {
    opcheck_run(d, lowrank_backward, t->M, t->x.view, t->h, t->dy.view, &t->pair, dx);
    return;
  }
  float *u = opcheck_floats(t->M * t->r);
  opcheck_run(d, lowrank_expand_backward, t->M, t->h, t->dy.view, &t->pair, u);
  opcheck_run(d, lowrank_project_backward, t->M, t->x.view, u, &t->pair, dx);
  opcheck_release(u);
}

static void check_forward(struct device *d, struct problem *t, const struct sum *h) {
  struct opcheck_matrix y = opcheck_random(t->y_dtype, t->M, t->N, 5, 1, 7), old = opcheck_copy(&y);
  run_forward(d, t, y.view);
  opcheck_guard("y", &y);
  struct opcheck_worst worst_h = {.name = "h"}, worst_y = {.name = "y"};
  for (int64_t m = 0; m < t->M; m++) {
    for (int64_t j = 0; j < t->r; j++) {
      const struct sum *s = &h[m * t->r + j];
      opcheck_compare(&worst_h, m, j, t->h[m * t->r + j], s->value, tolerance(t, s, 0, t->K, FACTORS_H), 0x1p-23);
    }
    for (int64_t n = 0; n < t->N; n++) {
      struct sum s = {0};
      add(&s, opcheck_get(old.view, m, n), fabs(opcheck_get(old.view, m, n)));
      for (int64_t j = 0; j < t->r; j++) {
        double b = t->pair.scale * (double)t->B[n * t->r + j];
        add(&s, b * h[m * t->r + j].value, fabs(b) * h[m * t->r + j].size);
      }
      opcheck_compare(&worst_y, m, n, opcheck_get(y.view, m, n), s.value, tolerance(t, &s, t->K, t->r, FACTORS_Y),
                      store_error(t->y_dtype));
    }
  }
  opcheck_report(&worst_h);
  opcheck_report(&worst_y);
  opcheck_free(&y);
  opcheck_free(&old);
}

static void check_gradients(const struct problem *t, const float *old_dA, const float *old_dB, const struct sum *h,
                            const struct sum *u) {
  struct opcheck_worst worst_A = {.name = "dA"}, worst_B = {.name = "dB"};
  for (int64_t j = 0; j < t->r; j++) {
    for (int64_t k = 0; k < t->K; k++) {
      struct sum s = {0};
      add(&s, old_dA[j * t->K + k], fabs(old_dA[j * t->K + k]));
      for (int64_t m = 0; m < t->M; m++) {
        double x = keep(&t->pair.dropout, m, k) * opcheck_get(t->x.view, m, k);
        add(&s, x * u[m * t->r + j].value, fabs(x) * u[m * t->r + j].size);
      }
      opcheck_compare(&worst_A, j, k, t->dA[j * t->K + k], s.value, tolerance(t, &s, t->N, t->M, FACTORS_DA), 0x1p-23);
    }
    for (int64_t n = 0; n < t->N; n++) {
      struct sum s = {0};
      add(&s, old_dB[n * t->r + j], fabs(old_dB[n * t->r + j]));
      for (int64_t m = 0; m < t->M; m++) {
        double dy = t->pair.scale * (double)opcheck_get(t->dy.view, m, n);
        add(&s, dy * h[m * t->r + j].value, fabs(dy) * h[m * t->r + j].size);
      }
      opcheck_compare(&worst_B, n, j, t->dB[n * t->r + j], s.value, tolerance(t, &s, t->K, t->M, FACTORS_DB), 0x1p-23);
    }
  }
  opcheck_report(&worst_A);
  opcheck_report(&worst_B);
}

static void check_backward(struct device *d, struct problem *t, const struct sum *h) {
  struct opcheck_matrix dx = opcheck_random(DTYPE_F32, t->M, t->K, 4, 1, 8), old = opcheck_copy(&dx);
  struct sum *u = reference_u(t);
  float *old_dA = opcheck_place(t->dA, (size_t)(t->r * t->K) * sizeof *old_dA);
  float *old_dB = opcheck_place(t->dB, (size_t)(t->r * t->N) * sizeof *old_dB);
  run_backward(d, t, dx.view);
  opcheck_guard("dx", &dx);
  check_gradients(t, old_dA, old_dB, h, u);
  struct opcheck_worst worst = {.name = "dx"};
  for (int64_t m = 0; m < t->M; m++) {
    for (int64_t k = 0; k < t->K; k++) {
      struct sum s = {0};
      double kept = keep(&t->pair.dropout, m, k);
      add(&s, opcheck_get(old.view, m, k), fabs(opcheck_get(old.view, m, k)));
      for (int64_t j = 0; j < t->r; j++) {
        double a = kept * t->A[j * t->K + k];
        add(&s, a * u[m * t->r + j].value, fabs(a) * u[m * t->r + j].size);
      }
      opcheck_compare(&worst, m, k, opcheck_get(dx.view, m, k), s.value, tolerance(t, &s, t->N, t->r, FACTORS_DX),
                      0x1p-23);
    }
  }
  opcheck_report(&worst);
  opcheck_free(&dx);
  opcheck_free(&old);
  free(u);
  opcheck_release(old_dA);
  opcheck_release(old_dB);
}

static void check_problem(struct device *d, struct problem t) {
  struct sum *h = reference_h(&t);
  check_forward(d, &t, h);
  check_backward(d, &t, h);
  free(h);
  problem_free(&t);
}

/* --- tests ------------------------------------------------------------------ */

static void shapes(void **state) {
  (void)state;
  /* No rows, one, odd, rests of every block (12, 8 and 64 rows; 48 and 16 columns), empty shards. */
  static const int64_t list[][3] = {{0, 8, 8},      {1, 1, 1}, {3, 37, 41}, {17, 64, 96},
                                    {77, 261, 131}, {5, 0, 6}, {5, 6, 0}};
  static const int64_t ranks[] = {1, 3, 4, 8, 13, 16, 20, 64};
  struct device *d = opcheck_device(2);
  for (size_t s = 0; s < sizeof list / sizeof *list; s++) {
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++) {
      for (int t = 0; t < 8; t++) {
        enum dtype x = t & 1 ? DTYPE_BF16 : DTYPE_F32, y = t & 2 ? DTYPE_BF16 : DTYPE_F32;
        check_problem(d, problem(list[s][0], list[s][1], list[s][2], ranks[i], x, y, t & 4 ? 0.25f : 0));
      }
    }
  }
  check_problem(d, problem(15, 300, 20, 256, DTYPE_F32, DTYPE_F32, 0));
  opcheck_close(&d);
}

/* The halves in the type of their own activations each: on the CPU that makes no difference, on a GPU these types have
 * no whole to give the bits of. */
static void halves_of_mixed_types(void **state) {
  (void)state;
  static const int64_t list[][4] = {{3, 37, 41, 3}, {17, 64, 96, 8}, {77, 261, 131, 13}, {5, 0, 6, 4}, {5, 6, 0, 4}};
  struct device *d = opcheck_device(2);
  for (size_t s = 0; s < sizeof list / sizeof *list; s++) {
    for (int t = 0; t < 4; t++) {
      enum dtype x = t & 1 ? DTYPE_BF16 : DTYPE_F32, y = t & 1 ? DTYPE_F32 : DTYPE_BF16;
      struct problem p = problem(list[s][0], list[s][1], list[s][2], list[s][3], x, y, t & 2 ? 0.25f : 0);
      p.halves = true;
      check_problem(d, p);
    }
  }
  opcheck_close(&d);
}

/* h, y, u, dx, dA and dB of one way through the slots; h and u with guard zones. */
struct outcome {
  struct opcheck_matrix h, y, u, dx;
  float *dA, *dB;
};

static struct outcome outcome(const struct problem *t) {
  return (struct outcome){opcheck_matrix(DTYPE_F32, 1, t->M * t->r, 0),
                          opcheck_random(t->y_dtype, t->M, t->N, 5, 1, 7),
                          opcheck_matrix(DTYPE_F32, 1, t->M * t->r, 0),
                          opcheck_random(DTYPE_F32, t->M, t->K, 4, 1, 8),
                          opcheck_place(t->dA, (size_t)(t->r * t->K) * sizeof(float)),
                          opcheck_place(t->dB, (size_t)(t->r * t->N) * sizeof(float))};
}

static void outcome_free(struct outcome *o) {
  struct opcheck_matrix *all[] = {&o->h, &o->y, &o->u, &o->dx};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) opcheck_free(all[i]);
  opcheck_release(o->dA);
  opcheck_release(o->dB);
}

/* Each half alone, in an order that has the other pass in between, against the whole. */
static void check_halves(struct device *d, struct problem t, bool with_dx) {
  struct outcome whole = outcome(&t), halves = outcome(&t);
  const size_t dA_bytes = (size_t)(t.r * t.K) * sizeof(float), dB_bytes = (size_t)(t.r * t.N) * sizeof(float);
  const struct tensor_view none = {0};
  struct lowrank pair = t.pair;
  pair.dA = whole.dA, pair.dB = whole.dB;
  opcheck_run(d, lowrank_forward, t.M, t.x.view, &pair, whole.h.view.data, whole.y.view);
  opcheck_run(d, lowrank_backward, t.M, t.x.view, whole.h.view.data, t.dy.view, &pair, with_dx ? whole.dx.view : none);

  pair.dA = halves.dA, pair.dB = halves.dB;
  opcheck_run(d, lowrank_project_forward, t.M, t.x.view, &pair, halves.h.view.data);
  opcheck_run(d, lowrank_expand_backward, t.M, halves.h.view.data, t.dy.view, &pair, halves.u.view.data);
  assert_memory_equal(halves.dA, t.dA, dA_bytes);
  opcheck_run(d, lowrank_expand_forward, t.M, halves.h.view.data, &pair, halves.y.view);
  assert_memory_equal(halves.dB, whole.dB, dB_bytes);
  opcheck_run(d, lowrank_project_backward, t.M, t.x.view, halves.u.view.data, &pair, with_dx ? halves.dx.view : none);
  assert_memory_equal(halves.dA, whole.dA, dA_bytes);
  assert_memory_equal(halves.dB, whole.dB, dB_bytes);
  opcheck_same_bits("h", &halves.h, &whole.h);
  opcheck_same_bits("y", &halves.y, &whole.y);
  opcheck_same_bits("dx", &halves.dx, &whole.dx);
  opcheck_guard("h", &halves.h);
  opcheck_guard("y", &halves.y);
  opcheck_guard("u", &halves.u);
  opcheck_guard("dx", &halves.dx);
  outcome_free(&whole);
  outcome_free(&halves);
  problem_free(&t);
}

/* No tolerance: the same products. Rows and ranks as in shapes, and some that end inside of a block. */
static void halves_give_the_bits_of_the_whole(void **state) {
  (void)state;
  static const int64_t rows[] = {0, 1, 2, 12, 13, 77, 333}, ranks[] = {1, 3, 4, 7, 8, 13, 16, 20, 33};
  struct device *d = opcheck_device(2);
  for (size_t m = 0; m < sizeof rows / sizeof *rows; m++) {
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++) {
      for (int t = 0; t < 4; t++) {
        enum dtype act = t & 1 ? DTYPE_BF16 : DTYPE_F32;
        bool with_dx = (m + i) % 4 != 0;
        check_halves(d, problem(rows[m], 37, 41, ranks[i], act, act, t & 2 ? 0.25f : 0), with_dx);
      }
    }
  }
  for (int t = 0; t < 4; t++) {
    enum dtype act = t & 1 ? DTYPE_BF16 : DTYPE_F32;
    check_halves(d, problem(77, 261, 131, 7, act, act, t & 2 ? 0.25f : 0), true);
    check_halves(d, problem(9, 0, 6, 5, act, act, t & 2 ? 0.25f : 0), true);
    check_halves(d, problem(9, 6, 0, 5, act, act, t & 2 ? 0.25f : 0), true);
  }
  opcheck_close(&d);
}

/* Nothing is allocated after the first call of each half. */
static void halves_allocate_once(void **state) {
  (void)state;
  struct device *d = opcheck_device(2);
  struct problem t = problem(50, 96, 64, 6, DTYPE_BF16, DTYPE_BF16, 0.1f);
  struct opcheck_matrix y = opcheck_random(DTYPE_BF16, t.M, t.N, 0, 1, 7);
  struct opcheck_matrix dx = opcheck_random(DTYPE_F32, t.M, t.K, 0, 1, 8);
  uint64_t allocations = 0;
  t.halves = true;
  for (int repeat = 0; repeat < 3; repeat++) {
    if (repeat == 1) allocations = d->allocations;
    run_forward(d, &t, y.view);
    run_backward(d, &t, dx.view);
  }
  assert_int_equal(d->allocations, allocations);
  opcheck_free(&y);
  opcheck_free(&dx);
  problem_free(&t);
  opcheck_close(&d);
}

static void rank_out_of_range(void **state) {
  (void)state;
  struct device *d = opcheck_device(1);
  struct problem t = problem(1, 1, 1, 1, DTYPE_F32, DTYPE_F32, 0);
  struct opcheck_matrix y = opcheck_random(DTYPE_F32, 1, 1, 0, 1, 7);
  t.pair.r = 1025;
  assert_int_equal(d->ops->lowrank_forward(d, 1, t.x.view, &t.pair, t.h, y.view), STATUS_USAGE);
  assert_int_equal(d->ops->lowrank_backward(d, 1, t.x.view, t.h, y.view, &t.pair, (struct tensor_view){0}),
                   STATUS_USAGE);
  assert_int_equal(d->ops->lowrank_project_forward(d, 1, t.x.view, &t.pair, t.h), STATUS_USAGE);
  assert_int_equal(d->ops->lowrank_expand_forward(d, 1, t.h, &t.pair, y.view), STATUS_USAGE);
  assert_int_equal(d->ops->lowrank_expand_backward(d, 1, t.h, y.view, &t.pair, t.h), STATUS_USAGE);
  assert_int_equal(d->ops->lowrank_project_backward(d, 1, t.x.view, t.h, &t.pair, (struct tensor_view){0}),
                   STATUS_USAGE);
  opcheck_free(&y);
  problem_free(&t);
  opcheck_close(&d);
}

/* The loss sum(c y) in double, y = scale (drop(x) A') B'. */
static double loss(const struct problem *t, const float *x, const double *A, const double *B) {
  double total = 0;
  for (int64_t m = 0; m < t->M; m++) {
    for (int64_t j = 0; j < t->r; j++) {
      double h = 0, u = 0;
      for (int64_t k = 0; k < t->K; k++) {
        double moved = (double)x[m * t->K + k];
        h += keep(&t->pair.dropout, m, k) * moved * A[j * t->K + k];
      }
      for (int64_t n = 0; n < t->N; n++) u += opcheck_get(t->dy.view, m, n) * B[n * t->r + j];
      total += t->pair.scale * h * u;
    }
  }
  return total;
}

/* The loss is linear in each of A, B and x, so steps of 1/2 either way give the
 * derivative but for rounding in double; the tolerance is the gradients' own:
 * sums of at most 11 x 17 products of size < 2, in f32. */
static void gradients_by_differences(void **state) {
  (void)state;
  enum { M = 5, K = 17, N = 11, R = 3 };
  const double bound = 11 * 17 * 2 * 28 * 0x1p-24;
  struct device *d = opcheck_device(2);
  struct problem t = problem(M, K, N, R, DTYPE_F32, DTYPE_F32, 0.3f);
  struct opcheck_matrix y = opcheck_random(DTYPE_F32, M, N, 0, 1, 7), dx = opcheck_random(DTYPE_F32, M, K, 0, 0, 7);
  memset(t.dA, 0, R * K * sizeof *t.dA);
  memset(t.dB, 0, R * N * sizeof *t.dB);
  opcheck_run(d, lowrank_forward, M, t.x.view, &t.pair, t.h, y.view);
  opcheck_run(d, lowrank_backward, M, t.x.view, t.h, t.dy.view, &t.pair, dx.view);
  double A[R * K], B[R * N], want_A[R * K], want_B[R * N], want_x[M * K];
  float x[M * K];
  for (int i = 0; i < R * K; i++) A[i] = t.A[i];
  for (int i = 0; i < R * N; i++) B[i] = t.B[i];
  for (int i = 0; i < M * K; i++) x[i] = opcheck_get(t.x.view, i / K, i % K);
#define DIFFERENCE(array, n, want) \
  for (int i = 0; i < (n); i++) {  \
    double value = array[i];       \
    array[i] = value + 0.5;        \
    want[i] = loss(&t, x, A, B);   \
    array[i] = value - 0.5;        \
    want[i] -= loss(&t, x, A, B);  \
    array[i] = value;              \
  }
  DIFFERENCE(A, R * K, want_A)
  DIFFERENCE(B, R * N, want_B)
  for (int i = 0; i < M * K; i++) { /* x is f32: from 0 to 1, exactly */
    float value = x[i];
    x[i] = 1;
    want_x[i] = loss(&t, x, A, B);
    x[i] = 0;
    want_x[i] -= loss(&t, x, A, B);
    x[i] = value;
  }
  opcheck_near_array("dA", t.dA, want_A, R * K, bound, 0);
  opcheck_near_array("dB", t.dB, want_B, R * N, bound, 0);
  opcheck_near("dx", &dx, want_x, bound, 0);
  opcheck_free(&y);
  opcheck_free(&dx);
  problem_free(&t);
  opcheck_close(&d);
}

/* The same bits with 1, 2 and 3 threads (or once more); nothing allocated after
 * the first call; dx may be absent. */
static void independent_of_threads(void **state) {
  (void)state;
  for (int t = 0; t < 8; t++) {
    enum dtype dtype = t & 1 ? DTYPE_BF16 : DTYPE_F32;
    float *dA[OPCHECK_MOST_THREADS + 1], *dB[OPCHECK_MOST_THREADS + 1], *h[OPCHECK_MOST_THREADS + 1];
    struct opcheck_matrix y[OPCHECK_MOST_THREADS + 1], dx[OPCHECK_MOST_THREADS + 1];
    enum { M = 333, K = 290, N = 200 };
    int64_t r = t & 4 ? 8 : 7;
    for (int threads = 1; threads <= opcheck_thread_counts(); threads++) {
      struct device *d = opcheck_device(threads);
      struct problem p = problem(M, K, N, r, dtype, dtype, t & 2 ? 0.1f : 0);
      y[threads] = opcheck_random(dtype, M, N, 0, 1, 7);
      dx[threads] = opcheck_random(DTYPE_F32, M, K, 0, 1, 8);
      opcheck_run(d, lowrank_forward, M, p.x.view, &p.pair, p.h, y[threads].view);
      opcheck_run(d, lowrank_backward, M, p.x.view, p.h, p.dy.view, &p.pair, (struct tensor_view){0});
      uint64_t allocations = d->allocations;
      opcheck_run(d, lowrank_backward, M, p.x.view, p.h, p.dy.view, &p.pair, dx[threads].view);
      opcheck_run(d, lowrank_forward, M, p.x.view, &p.pair, p.h, y[threads].view);
      assert_int_equal(d->allocations, allocations);
      dA[threads] = p.dA, dB[threads] = p.dB, h[threads] = p.h;
      p.dA = p.dB = p.h = NULL;
      problem_free(&p);
      opcheck_close(&d);
      assert_memory_equal(h[1], h[threads], (size_t)(M * r) * sizeof(float));
      assert_memory_equal(dA[1], dA[threads], (size_t)(r * K) * sizeof(float));
      assert_memory_equal(dB[1], dB[threads], (size_t)(r * N) * sizeof(float));
      opcheck_same_bits("y", &y[1], &y[threads]);
      opcheck_same_bits("dx", &dx[1], &dx[threads]);
    }
    for (int threads = 1; threads <= opcheck_thread_counts(); threads++) {
      opcheck_release(dA[threads]);
      opcheck_release(dB[threads]);
      opcheck_release(h[threads]);
      opcheck_free(&y[threads]);
      opcheck_free(&dx[threads]);
    }
  }
}

/* With x = 1 and A the unit matrix, h is the mask itself: 0 or 1 / (1 - p). */
enum { MASK_ROWS = 200, MASK_WIDTH = 64 };

static void mask_of(struct device *d, struct lowrank_dropout dropout, int64_t M, int64_t K, const int64_t *row_ids,
                    float *mask) {
  struct opcheck_matrix x = opcheck_matrix(DTYPE_F32, M, K, 0), y = opcheck_random(DTYPE_F32, M, 1, 0, 1, 2);
  float *A = opcheck_random_floats(K * K, 0, 1), *B = opcheck_random_floats(K, 0, 1), *h = opcheck_floats(M * K);
  int64_t *ids = opcheck_place(row_ids, (size_t)M * sizeof *ids);
  dropout.row_ids = ids;
  for (int64_t k = 0; k < K; k++) {
    A[k * K + k] = 1;
    for (int64_t m = 0; m < M; m++) opcheck_set(x.view, m, k, 1);
  }
  struct lowrank pair = {A, B, NULL, NULL, K, K, 1, 1, dropout};
  opcheck_run(d, lowrank_forward, M, x.view, &pair, h, y.view);
  memcpy(mask, h, (size_t)(M * K) * sizeof *mask);
  opcheck_release(A), opcheck_release(B), opcheck_release(h), opcheck_release(ids);
  opcheck_free(&x);
  opcheck_free(&y);
}

static double share_different(const float *a, const float *b, int n) {
  int different = 0;
  for (int i = 0; i < n; i++) different += a[i] != b[i];
  return (double)different / n;
}

/* A shard of features, and a part of the rows in another order, see the masks
 * of the whole. */
static void mask_independent_of_sharding(void **state) {
  (void)state;
  struct device *d = opcheck_device(2);
  int64_t ids[MASK_ROWS], part_ids[3] = {150, 3, 77};
  for (int m = 0; m < MASK_ROWS; m++) ids[m] = m;
  static float whole[MASK_ROWS * MASK_WIDTH], part[MASK_ROWS * MASK_WIDTH];
  struct lowrank_dropout dropout = {.p = 0.4f, .seed = 5, .step = 3, .layer = 1, .module = 6};
  mask_of(d, dropout, MASK_ROWS, MASK_WIDTH, ids, whole);
  for (int64_t first = 0; first < 24; first++) {
    int64_t width = MASK_WIDTH - 24 - first % 3;
    dropout.feature = first;
    mask_of(d, dropout, MASK_ROWS, width, ids, part);
    for (int64_t m = 0; m < MASK_ROWS; m++) {
      assert_memory_equal(part + m * width, whole + m * MASK_WIDTH + first, (size_t)width * sizeof(float));
    }
  }
  dropout.feature = 0;
  mask_of(d, dropout, 3, MASK_WIDTH, part_ids, part);
  for (int i = 0; i < 3; i++) {
    assert_memory_equal(part + i * MASK_WIDTH, whole + part_ids[i] * MASK_WIDTH, MASK_WIDTH * sizeof(float));
  }
  opcheck_close(&d);
}

/* The share that is kept lies within 5 standard deviations of 1 - p, the scale
 * is 1 / (1 - p) to a 65536th, and every key changes the mask: two independent
 * masks differ in 2 p (1 - p) = 0.48 of their elements, here > 0.4. */
static void mask_statistics(void **state) {
  (void)state;
  enum { COUNT = MASK_ROWS * MASK_WIDTH };
  struct device *d = opcheck_device(2);
  int64_t ids[MASK_ROWS], far[MASK_ROWS];
  for (int m = 0; m < MASK_ROWS; m++) ids[m] = m, far[m] = m + 100000;
  static float base[COUNT], other[COUNT];
  const struct lowrank_dropout dropout = {.p = 0.4f, .seed = 5, .step = 3, .layer = 1, .module = 6};
  mask_of(d, dropout, MASK_ROWS, MASK_WIDTH, ids, base);
  int kept = 0;
  for (int i = 0; i < COUNT; i++) {
    kept += base[i] != 0;
    if (base[i] != 0) assert_true(fabs(base[i] - 1 / 0.6) < 2.0 / 65536);
  }
  assert_true(fabs((double)kept / COUNT - 0.6) < 5 * sqrt(0.24 / COUNT));
  struct lowrank_dropout changed[6] = {dropout, dropout, dropout, dropout, dropout, dropout};
  changed[0].seed = 6;
  changed[1].seed += (uint64_t)1 << 32;
  changed[2].step = 4;
  changed[3].layer = 2;
  changed[4].module = 5;
  for (int i = 0; i < 6; i++) {
    mask_of(d, changed[i], MASK_ROWS, MASK_WIDTH, i == 5 ? far : ids, other);
    assert_true(share_different(base, other, COUNT) > 0.4);
  }
  opcheck_close(&d);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(shapes),
      cmocka_unit_test(halves_of_mixed_types),
      cmocka_unit_test(halves_give_the_bits_of_the_whole),
      cmocka_unit_test(halves_allocate_once),
      cmocka_unit_test(rank_out_of_range),
      cmocka_unit_test(gradients_by_differences),
      cmocka_unit_test(independent_of_threads),
      cmocka_unit_test(mask_independent_of_sharding),
      cmocka_unit_test(mask_statistics),
  };
  return opcheck_run_group(tests);
}
