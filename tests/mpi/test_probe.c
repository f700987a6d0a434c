/* ranks: 4 */
/*
 * The probe over two nodes, which here are pairs of ranks: both levels of links
 * are measured and the result is a cluster file.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "golden_device.h"
#include "golden_step.h"
#include "launch/probe.h"

static void check_link(const struct cluster_link *link, const char *level) {
  golden_check(link->ranks >= 1 && link->ranks <= 2, "%s is shared by %lld ranks", level, (long long)link->ranks);
  for (int pattern = 0; pattern < CLUSTER_PATTERNS; pattern++) {
    const struct cluster_line *line = &link->line[pattern];
    /* A message between processes of one machine: below a second, and no faster than memory. */
    golden_check(line->alpha >= 0 && line->alpha < 1 && line->beta > 1e4 && line->beta < 1e13,
                 "%s, pattern %d: alpha %g, beta %g", level, pattern, line->alpha, line->beta);
  }
}

static void probe_all(struct mesh *mesh, struct device *device) {
  const struct probe probe = {mesh, device, true};
  struct cluster cluster, again;
  char *text = NULL;
  cluster_init(&cluster);
  strcpy(cluster.name, "pairs");
  cluster.nodes = mesh->n_dp;
  cluster.device.per_node = mesh->n_tp;
  cluster.device.memory = 1e9;
  golden_must(probe_device(&probe, &cluster));
  golden_must(probe_links(&probe, &cluster));
  golden_check(cluster.device.matrix[CLUSTER_F32].achieved > 1e6 && cluster.device.matrix[CLUSTER_BF16].achieved > 1e6,
               "products at %g and %g FLOP/s", cluster.device.matrix[CLUSTER_F32].achieved,
               cluster.device.matrix[CLUSTER_BF16].achieved);
  golden_check(cluster.device.bandwidth > 1e6, "memory at %g bytes/s", cluster.device.bandwidth);
  check_link(&cluster.links[CLUSTER_NODE], "node");
  check_link(&cluster.links[CLUSTER_NETWORK], "network");
  golden_must(cluster_print(&cluster, &text));
  golden_must(cluster_parse(text, strlen(text), "measured", &again));
  free(text);
}

int main(void) {
  int world, rank;
  struct mesh *mesh;
  struct device *device;
  golden_must(mesh_start(&world, &rank));
  golden_must(mesh_create(2, 1, &mesh));
  mesh->node_rank = mesh->tp_rank;
  mesh->node_size = mesh->n_tp;
  const struct device_options options = {.name = "cpu", .n_threads = 1};
  golden_must(device_open(&options, &device));
  probe_all(mesh, device);
  mesh_destroy(&mesh);
  device_close(&device);
  mesh_stop();
  return 0;
}
