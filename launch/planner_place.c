/* Where a job's ranks lie: how many on each node, and how the groups of a layout are spread over nodes. */
#include <inttypes.h>

#include "launch/planner_internal.h"

/* Slurm's job scripts start equally many ranks on each node. */
static int64_t ranks_of_a_node(const struct cluster *cluster, int64_t ranks) {
  int64_t n = cluster->device.per_node < ranks ? cluster->device.per_node : ranks;
  while (cluster->launcher == CLUSTER_SLURM && ranks % n != 0) n--;
  return n;
}

struct plan_job planner_job(const struct cluster *cluster, int64_t ranks, int64_t global_batch) {
  return (struct plan_job){.ranks = ranks, .per_node = ranks_of_a_node(cluster, ranks), .global_batch = global_batch};
}

int64_t planner_nodes(const struct plan_job *job) { return (job->ranks + job->per_node - 1) / job->per_node; }

static bool enough_nodes(const struct cluster *cluster, int64_t ranks) {
  const struct plan_job job = planner_job(cluster, ranks, 1);
  return planner_nodes(&job) <= cluster->nodes;
}

enum status planner_check_nodes(const struct cluster *cluster, const struct plan_job *job) {
  int64_t most = cluster->nodes * cluster->device.per_node, below = job->ranks, above = job->ranks;
  if (planner_nodes(job) <= cluster->nodes) return STATUS_OK;
  if (job->ranks > most)
    return status_set(STATUS_USAGE, "%" PRId64 " ranks, but %s has %" PRId64, job->ranks, cluster->name, most);
  do below--;
  while (!enough_nodes(cluster, below)); /* ends at 1 */
  do above++;
  while (!enough_nodes(cluster, above)); /* ends at all ranks */
  return status_set(STATUS_USAGE,
                    "%" PRId64 " ranks need %" PRId64
                    " nodes, since Slurm starts equally many on each, but %s has "
                    "%" PRId64 "; the next numbers that fit are %" PRId64 " and %" PRId64,
                    job->ranks, planner_nodes(job), cluster->name, cluster->nodes, below, above);
}

bool planner_placed_well(const struct plan_job *job, int64_t tp) {
  return tp <= job->per_node ? job->per_node % tp == 0 : tp % job->per_node == 0;
}

static int64_t common_divisor(int64_t a, int64_t b) {
  while (b) {
    int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

/* One group of planner_spread, whose first rank is `first`; stride < per_node. */
static struct plan_spread spread_of_group(int64_t per_node, int64_t first, int64_t n, int64_t stride) {
  int64_t last = first + (n - 1) * stride, nodes = last / per_node - first / per_node + 1;
  if (nodes == 1) return (struct plan_spread){.fewest = n, .nodes = 1};
  int64_t fewest = (per_node - first % per_node + stride - 1) / stride; /* on its first node */
  int64_t on_last = last % per_node / stride + 1, between = per_node / stride;
  if (on_last < fewest) fewest = on_last;
  if (nodes > 2 && between < fewest) fewest = between;
  return (struct plan_spread){.fewest = fewest, .nodes = nodes};
}

struct plan_spread planner_spread(const struct plan_job *job, int64_t n, int64_t stride) {
  struct plan_spread worst = {.fewest = n, .nodes = 1};
  if (n < 2) return worst;
  if (stride >= job->per_node) return (struct plan_spread){.fewest = 1, .nodes = n};
  int64_t size = n * stride, blocks = job->ranks / size;
  int64_t period = job->per_node / common_divisor(job->per_node, size); /* then blocks lie as before */
  for (int64_t block = 0; block < blocks && block < period; block++)
    for (int64_t i = 0; i < stride; i++) {
      struct plan_spread group = spread_of_group(job->per_node, block * size + i, n, stride);
      if (group.fewest < worst.fewest) worst.fewest = group.fewest;
      if (group.nodes > worst.nodes) worst.nodes = group.nodes;
    }
  return worst;
}

bool planner_stages_share_node(const struct plan_job *job, const struct plan_layout *layout, int stage) {
  int64_t ranks = (int64_t)layout->tp * layout->dp, first = stage * ranks, last = first + 2 * ranks - 1;
  return first / job->per_node == last / job->per_node;
}
