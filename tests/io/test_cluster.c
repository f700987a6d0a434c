/* Cluster files: what is read, printed and refused, and the alpha-beta model. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/cluster.h"

static const char whole[] =
    "name: two nodes\n"
    "note: \"a # sign, a \\\" and a: colon\"\n"
    "nodes: 2\n"
    "launcher: slurm\n"
    "device:\n"
    "  name: some GPU\n"
    "  kind: gpu\n"
    "  per_node: 4\n"
    "  cores: 16\n"
    "  memory: 80e9\n"
    "  reserved: 3.3e9\n"
    "  bandwidth: 3.35e12\n"
    "  source: data sheet\n"
    "  f32: {peak: 67e12, achieved: 50e12}\n"
    "  bf16: {peak: 989.4e12, achieved: 600e12}\n"
    "node:\n"
    "  ranks: 1\n"
    "  source: measured\n"
    "  all_reduce: {alpha: 5e-6, beta: 240e9}\n"
    "  all_gather: {alpha: 4e-6, beta: 200e9}\n"
    "  point_to_point: {alpha: 3e-6, beta: 300e9}\n"
    "network:\n"
    "  ranks: 4\n"
    "  all_reduce: {alpha: 20e-6, beta: 10e9}\n"
    "  all_gather: {alpha: 20e-6, beta: 11e9}\n"
    "  point_to_point: {alpha: 10e-6, beta: 12e9}\n";

static void read_whole(struct cluster *cluster) {
  if (cluster_parse(whole, strlen(whole), "c.yaml", cluster) != STATUS_OK) fail_msg("%s", status_message());
}

static void test_every_field(void **state) {
  (void)state;
  struct cluster c;
  read_whole(&c);
  assert_string_equal(c.name, "two nodes");
  assert_string_equal(c.note, "a # sign, a \" and a: colon");
  assert_int_equal(c.nodes, 2);
  assert_int_equal(c.launcher, CLUSTER_SLURM);
  assert_int_equal(c.device.kind, CLUSTER_GPU);
  assert_int_equal(c.device.per_node, 4);
  assert_int_equal(c.device.cores, 16);
  assert_true(c.device.memory == 80e9 && c.device.reserved == 3.3e9 && c.device.bandwidth == 3.35e12);
  assert_true(c.device.matrix[CLUSTER_F32].peak == 67e12 && c.device.matrix[CLUSTER_F32].achieved == 50e12);
  assert_true(c.device.matrix[CLUSTER_TF32].achieved == 0);
  assert_true(c.device.matrix[CLUSTER_BF16].peak == 989.4e12);
  assert_true(c.links[CLUSTER_NODE].line[CLUSTER_ALL_REDUCE].alpha == 5e-6);
  assert_true(c.links[CLUSTER_NODE].line[CLUSTER_ALL_GATHER].beta == 200e9);
  assert_true(c.links[CLUSTER_NETWORK].line[CLUSTER_POINT].beta == 12e9);
  assert_int_equal(c.links[CLUSTER_NETWORK].ranks, 4);
  assert_string_equal(c.links[CLUSTER_NODE].source, "measured");
}

/* What is printed reads back to the same bytes, awkward numbers too. */
static void test_round_trip(void **state) {
  (void)state;
  struct cluster c, again;
  char *text, *text_again;
  read_whole(&c);
  c.device.bandwidth = 1e12 / 3;
  c.links[CLUSTER_NODE].line[CLUSTER_POINT].alpha = 1.0 / 7e5;
  c.links[CLUSTER_NODE].line[CLUSTER_ALL_GATHER].alpha = 0; /* measured, and none */
  strcpy(c.note, "tab\t, backslash \\ and ' quotes \"");
  assert_int_equal(cluster_print(&c, &text), STATUS_OK);
  if (cluster_parse(text, strlen(text), "printed", &again) != STATUS_OK) fail_msg("%s\n%s", status_message(), text);
  assert_int_equal(cluster_print(&again, &text_again), STATUS_OK);
  assert_string_equal(text, text_again);
  assert_non_null(strstr(text, "alpha: 0 "));
  assert_true(again.device.bandwidth == c.device.bandwidth);
  assert_true(again.links[CLUSTER_NODE].line[CLUSTER_POINT].alpha == c.links[CLUSTER_NODE].line[CLUSTER_POINT].alpha);
  assert_string_equal(again.note, c.note);
  free(text);
  free(text_again);
}

/* `whole` with `from` replaced by `to` is refused with a message that holds `part`. */
static void refused(const char *from, const char *to, const char *part) {
  char text[4096];
  struct cluster c;
  const char *at = strstr(whole, from);
  assert_non_null(at);
  snprintf(text, sizeof text, "%.*s%s%s", (int)(at - whole), whole, to, at + strlen(from));
  assert_int_equal(cluster_parse(text, strlen(text), "c.yaml", &c), STATUS_USAGE);
  if (!strstr(status_message(), part)) fail_msg("'%s' is not in '%s'", part, status_message());
}

static void test_refusals(void **state) {
  (void)state;
  refused("  memory:", "  memroy:", "c.yaml:10: unknown key 'device.memroy'; the nearest is 'device.memory'");
  refused("network:", "netwrok:", "unknown key 'netwrok'");
  refused("kind: gpu", "kind: gpuu", "device.kind: unknown 'gpuu'; the nearest is 'gpu'");
  refused("nodes: 2", "nodes: two", "c.yaml:3: nodes takes a whole number of nodes; found 'two'");
  refused("nodes: 2", "nodes: 0", "nodes: 0 is out of range");
  refused("memory: 80e9", "memory: 80 GB", "device.memory takes a number of bytes");
  refused("reserved: 3.3e9", "reserved: 99e9", "device.reserved is no less than device.memory");
  refused("peak: 67e12", "peak: 49e12", "device.f32.achieved 5e+13 is more than device.f32.peak 4.9e+13");
  refused("launcher: slurm", "launcher: no", "launcher: unknown 'no'; the nearest is 'none'");
  refused("memory: 80e9", "cores: 1", "key 'cores' is here twice");
  refused("  bandwidth: 3.35e12\n", "", "device.bandwidth is missing");
  refused("all_reduce: {alpha: 20e-6, beta: 10e9}", "all_reduce: {alpha: 20e-6}", "network.all_reduce.beta is missing");
  refused("name: two nodes", "name: [a, b]", "name takes one value");
  refused("network:\n", "network: 5\nnode2:\n", "network: is a section");
  struct cluster c;
  assert_int_equal(cluster_parse("", 0, "c.yaml", &c), STATUS_USAGE);
  assert_int_equal(cluster_parse("device.kind: gpu\n", 17, "c.yaml", &c), STATUS_USAGE);
  assert_int_equal(cluster_read("/nonexistent/c.yaml", &c), STATUS_USAGE);
}

/* The last bits of sums in another order. */
static void close_to(double a, double b) {
  if (fabs(a - b) > 1e-12 * fabs(b)) fail_msg("%.17g is not %.17g", a, b);
}

static void test_time(void **state) {
  (void)state;
  struct cluster c;
  read_whole(&c);
  double n = 1e9;
  close_to(cluster_time(&c, CLUSTER_POINT, n, 2, 2, 4), 3e-6 + n / 300e9);
  close_to(cluster_time(&c, CLUSTER_ALL_REDUCE, n, 4, 4, 4), 4 * 5e-6 + 1.5 * n / 240e9);
  close_to(cluster_time(&c, CLUSTER_ALL_GATHER, n, 4, 4, 4), 2 * 4e-6 + 0.75 * n / 200e9);
  /* three ranks need two rounds */
  close_to(cluster_time(&c, CLUSTER_ALL_GATHER, n, 3, 4, 4), 2 * 4e-6 + 2.0 / 3 * n / 200e9);
  /* the network is shared by four: two that are alone have twice the rate each */
  close_to(cluster_time(&c, CLUSTER_POINT, n, 2, 1, 2), 10e-6 + n / 24e9);
  close_to(cluster_time(&c, CLUSTER_ALL_REDUCE, n, 2, 1, 4), 2 * 20e-6 + n / 10e9);
  /* 4 ranks on each of 2 nodes: a quarter of the bytes crosses the network */
  close_to(cluster_time(&c, CLUSTER_ALL_REDUCE, n, 8, 4, 4),
           2 * 20e-6 + n / 4 / 10e9 + 2 * (2 * 4e-6 + 0.75 * n / 200e9));
  assert_true(cluster_time(&c, CLUSTER_ALL_REDUCE, n, 1, 1, 1) == 0);
  assert_true(cluster_time(&c, CLUSTER_ALL_REDUCE, 0, 8, 4, 4) == 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_field),
      cmocka_unit_test(test_round_trip),
      cmocka_unit_test(test_refusals),
      cmocka_unit_test(test_time),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
