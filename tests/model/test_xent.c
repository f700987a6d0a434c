/*
 * Cross-entropy in vocabulary shards against a double reference over the whole
 * row; its gradient is checked by central differences of the loss.
 */
#include "opcheck.h"

enum { MAX_RANKS = 3 };

/* loss of a row, and its gradient g (p - [target]). */
static double reference_row(int64_t V, const double *x, int64_t target, double g, double *slope) {
  double max = -INFINITY, sum = 0;
  for (int64_t i = 0; i < V; i++) max = fmax(max, x[i]);
  for (int64_t i = 0; i < V; i++) sum += exp(x[i] - max);
  for (int64_t i = 0; slope && i < V; i++) slope[i] = g * (exp(x[i] - max) / sum - (i == target));
  return max + log(sum) - x[target];
}

static void test_reference_gradient(void **state) {
  (void)state;
  double x[5] = {0.3, -1, 2, 0.1, 0.5}, slope[5];
  reference_row(5, x, 3, 1, slope);
  for (int i = 0; i < 5; i++) {
    double step = 1e-5, value = x[i], loss[2];
    for (int side = 0; side < 2; side++) {
      x[i] = value + (side ? step : -step);
      loss[side] = reference_row(5, x, 3, 1, NULL);
    }
    x[i] = value;
    assert_true(fabs((loss[1] - loss[0]) / (2 * step) - slope[i]) < 1e-9); /* step^2, and 1e-16 / step */
  }
}

struct problem {
  int64_t M, V[MAX_RANKS]; /* columns of each rank */
  int ranks;
  float range;
  enum dtype out;
  bool in_place;
};

/* Rank r's gradient in out[r]; loss and gradient are compared with the reference. */
static void solve(const struct problem *p, int n_threads, struct opcheck_matrix out[MAX_RANKS]) {
  struct device *d = opcheck_device(n_threads);
  int64_t total = 0, M = p->M;
  for (int r = 0; r < p->ranks; r++) total += p->V[r];
  struct opcheck_matrix logits[MAX_RANKS];
  float *max = opcheck_floats(M), *part = opcheck_floats(M), *sum = opcheck_floats(M), *target = opcheck_floats(M);
  float *sums = opcheck_floats(M), *target_sums = opcheck_floats(M);
  int32_t *targets = opcheck_alloc((size_t)M * sizeof *targets);
  double *row = malloc((size_t)(2 * total) * sizeof *row);
  assert_non_null(row);
  uint64_t seed = 5;
  for (int64_t m = 0; m < M; m++) {
    targets[m] = m % 4 == 2 ? -1 : (int32_t)(opcheck_next(&seed) % (uint64_t)total);
    max[m] = -INFINITY;
    sums[m] = target_sums[m] = 0;
  }
  for (int r = 0; r < p->ranks; r++) {
    logits[r] = opcheck_random(DTYPE_F32, M, p->V[r], 3, p->range, 10 + (uint64_t)r);
    opcheck_run(d, xent_max, M, p->V[r], logits[r].view, part);
    for (int64_t m = 0; m < M; m++) {
      assert_true(p->V[r] > 0 || part[m] == -INFINITY);
      max[m] = fmaxf(max[m], part[m]);
    }
  }
  int64_t first = 0;
  for (int r = 0; r < p->ranks; first += p->V[r++]) {
    opcheck_run(d, xent_sum, M, p->V[r], logits[r].view, max, targets, first, sum, target);
    for (int64_t m = 0; m < M; m++) sums[m] += sum[m], target_sums[m] += target[m];
  }
  float g = 0.37f;
  struct opcheck_worst loss = {.name = "loss"}, slope = {.name = "slope"};
  struct opcheck_matrix given[MAX_RANKS];
  first = 0;
  for (int r = 0; r < p->ranks; first += p->V[r++]) {
    given[r] = opcheck_copy(&logits[r]);
    out[r] = p->in_place ? logits[r] : opcheck_matrix(p->out, M, p->V[r], 5);
    opcheck_run(d, xent_backward, M, p->V[r], logits[r].view, max, sums, targets, first, g, out[r].view);
    opcheck_guard("out", &out[r]);
  }
  for (int64_t m = 0; m < M; m++) {
    int64_t c = 0;
    for (int r = 0; r < p->ranks; r++) {
      for (int64_t i = 0; i < p->V[r]; i++) row[c++] = opcheck_get(given[r].view, m, i);
    }
    double want = targets[m] < 0 ? 0 : reference_row(total, row, targets[m], (double)g, row + total);
    /* the exponential is good to 2e-7; max and logit are rounded at their own size */
    if (targets[m] >= 0) opcheck_compare(&loss, 0, m, log(sums[m]) - target_sums[m], want, 1e-6, 2e-7);
    c = 0;
    for (int r = 0; r < p->ranks; r++) {
      for (int64_t i = 0; i < p->V[r]; i++, c++) {
        /* logit - max is rounded at its own size, at most 2 range, and p relatively by as much, besides 1e-6 at most;
         * p - 1 absolutely; bf16 rounds once, half a last place */
        opcheck_compare(&slope, m, c, opcheck_get(out[r].view, m, i), targets[m] < 0 ? 0 : row[total + c],
                        c == targets[m] ? 1e-7 : 1e-37,
                        1e-6 + p->range * 0x1p-23 + (p->out == DTYPE_BF16 ? 0x1p-8 : 0));
      }
    }
  }
  opcheck_report(&loss);
  opcheck_report(&slope);
  for (int r = 0; r < p->ranks; r++) {
    opcheck_free(&given[r]);
    if (!p->in_place) opcheck_free(&logits[r]);
  }
  void *placed[] = {max, part, sum, target, sums, target_sums, targets};
  for (size_t i = 0; i < sizeof placed / sizeof *placed; i++) opcheck_release(placed[i]);
  free(row);
  opcheck_close(&d);
}

static void test_xent(void **state) {
  (void)state;
  struct problem problems[] = {
      {.M = 1, .ranks = 1, .V = {1}, .range = 1},           {.M = 3, .ranks = 1, .V = {97}, .range = 5},
      {.M = 17, .ranks = 3, .V = {33, 0, 64}, .range = 80}, /* one rank has no columns */
      {.M = 5, .ranks = 2, .V = {4096, 4097}, .range = 10}, {.M = 1, .ranks = 2, .V = {64000, 64000}, .range = 3},
      {.M = 256, .ranks = 1, .V = {501}, .range = 1},
  };
  for (size_t i = 0; i < sizeof problems / sizeof *problems; i++) {
    for (int variant = 0; variant < 3; variant++) {
      struct problem p = problems[i];
      p.out = variant == 1 ? DTYPE_BF16 : DTYPE_F32;
      p.in_place = variant == 2;
      struct opcheck_matrix out[OPCHECK_MOST_THREADS][MAX_RANKS];
      int counts = opcheck_thread_counts();
      for (int threads = 1; threads <= counts; threads++) solve(&p, threads, out[threads - 1]);
      for (int r = 0; r < p.ranks; r++) {
        for (int t = 1; t < counts; t++) opcheck_same_bits("threads", &out[t][r], &out[0][r]);
        for (int t = 0; t < counts; t++) opcheck_free(&out[t][r]);
      }
    }
  }
}

/* A NaN among the logits shows in the sum, wherever it stands. */
static void test_nan(void **state) {
  (void)state;
  struct device *d = opcheck_device(2);
  float *max = opcheck_floats(1), *sum = opcheck_floats(1), *target = opcheck_floats(1);
  int32_t *targets = opcheck_place(&(int32_t){1}, sizeof *targets);
  for (int64_t at = 0; at < 50; at += 7) {
    struct opcheck_matrix x = opcheck_random(DTYPE_F32, 1, 50, 0, 1, 3);
    opcheck_set(x.view, 0, at, NAN);
    opcheck_run(d, xent_max, 1, 50, x.view, max);
    opcheck_run(d, xent_sum, 1, 50, x.view, max, targets, 0, sum, target);
    assert_true(isnan(*sum));
    opcheck_free(&x);
  }
  opcheck_release(max), opcheck_release(sum), opcheck_release(target), opcheck_release(targets);
  opcheck_close(&d);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_reference_gradient),
      cmocka_unit_test(test_xent),
      cmocka_unit_test(test_nan),
  };
  return opcheck_run_group(tests);
}
