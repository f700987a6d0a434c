/* The fit of measured times to the model that io/cluster.h predicts them with. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "launch/probe.h"

static const double sizes[] = {256, 4096, 32768, 262144, 1 << 20, 4 << 20};
enum { N = sizeof sizes / sizeof sizes[0] };

static void assert_near(double value, double wanted, double relative) {
  if (!(fabs(value - wanted) <= relative * fabs(wanted))) fail_msg("%g is not %g", value, wanted);
}

/* Times that cluster_time predicts give back the line that it predicts them from. */
static void test_lines_come_back(void **state) {
  (void)state;
  static const int64_t ranks[] = {2, 5, 8};
  struct cluster cluster;
  cluster_init(&cluster);
  for (int pattern = 0; pattern < CLUSTER_PATTERNS; pattern++)
    for (int r = 0; r < 3; r++) {
      struct cluster_line *line = &cluster.links[CLUSTER_NODE].line[pattern], found;
      double seconds[N], error, p = (double)ranks[r], rounds = ceil(log2(p)), share = (p - 1) / p;
      *line = (struct cluster_line){3e-6, 7e9};
      for (int i = 0; i < N; i++)
        seconds[i] = cluster_time(&cluster, (enum cluster_pattern)pattern, sizes[i], ranks[r], ranks[r], ranks[r]);
      double way = pattern == CLUSTER_ALL_REDUCE ? 2 : 1;
      bool point = pattern == CLUSTER_POINT;
      probe_fit(sizes, seconds, N, point ? 1 : way * rounds, point ? 1 : way * share, &found, &error);
      assert_near(found.alpha, 3e-6, 1e-9); /* rounding of double */
      assert_near(found.beta, 7e9, 1e-9);
      assert_true(error < 1e-9);
    }
}

/* Times that are 10 % off either way: both constants within 20 %, and the error says 10 % or so. */
static void test_noise(void **state) {
  (void)state;
  struct cluster_line found;
  double seconds[N], error;
  for (int i = 0; i < N; i++) seconds[i] = (2e-6 + sizes[i] / 1e10) * (i % 2 ? 1.1 : 0.9);
  probe_fit(sizes, seconds, N, 1, 1, &found, &error);
  assert_near(found.alpha, 2e-6, 0.2);
  assert_near(found.beta, 1e10, 0.2);
  assert_true(error > 0.05 && error < 0.2);
}

/* What no line with latency and bandwidth explains still gives one that a cluster file may hold. */
static void test_odd_times(void **state) {
  (void)state;
  static const double falling[3] = {3e-3, 2e-3, 1e-3}, steep[3] = {1e-9, 1e-6, 1e-2}, few[3] = {1, 2, 3};
  const double *const all[] = {falling, steep, few};
  for (int i = 0; i < 3; i++) {
    struct cluster_line found;
    double error;
    probe_fit(sizes, all[i], 3, 2, 1.5, &found, &error);
    assert_true(found.alpha >= 0 && isfinite(found.alpha) && found.beta > 0 && isfinite(found.beta) && error >= 0);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_lines_come_back),
      cmocka_unit_test(test_noise),
      cmocka_unit_test(test_odd_times),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
