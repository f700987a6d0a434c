/* lorashard probe: rates of this machine and of the links between its ranks, as a cluster file. */
#include <errno.h>
#include <libgen.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/config.h"
#include "io/durable.h"
#include "launch/accelerator.h"
#include "launch/cli.h"
#include "launch/probe.h"
#include "launch/ranks.h"

static const struct cli_help help = {
    .usage = "probe [-o CLUSTER.yaml] [--name NAME] [--quick] [--set KEY=VALUE ...] [--overwrite]",
    .summary = "Measure matrix products, memory and the links between the ranks, as a cluster file for plan.",
    .details =
        "Start it as the job will be started: with as many ranks a node, on two nodes or more if the network is to be "
        "measured. Nothing else should run meanwhile. The file holds what was measured; data that cannot be (peak "
        "rates, which only MFU refers to) may be added by hand. Without -o it goes to standard output.\n\n"
        "Example: mpirun -n 8 lorashard probe -o cluster-configs/mine.yaml",
};

struct arguments {
  const char *output, *name;
  struct cli_values set;
  bool quick, overwrite, done;
};

/* Before anything is measured. */
static enum status check_output(const struct arguments *a) {
  char parent[DURABLE_PATH];
  struct stat info;
  size_t length = strlen(a->output);
  if (length == 0 || a->output[length - 1] == '/')
    return status_set(STATUS_USAGE, "-o '%s' names no file; write FOLDER/CLUSTER.yaml", a->output);
  TRY(durable_path(parent, sizeof parent, "%s", a->output));
  if (stat(a->output, &info) != 0)
    return access(dirname(parent), W_OK) == 0
               ? STATUS_OK
               : status_set(STATUS_USAGE, "%s: cannot be written: %s", a->output, strerror(errno));
  if (!S_ISREG(info.st_mode)) return status_set(STATUS_USAGE, "%s: exists and is not a file", a->output);
  if (!a->overwrite) return status_set(STATUS_USAGE, "%s: exists; name another file or give --overwrite", a->output);
  return STATUS_OK;
}

static enum status parse(int argc, char **argv, struct arguments *a) {
  const struct cli_option options[] = {
      {.name = "output,o", .arg = "CLUSTER.yaml", .doc = "file to write", .value = &a->output},
      {.name = "name", .arg = "NAME", .doc = "what to call the cluster (default: measured)", .value = &a->name},
      {.name = "quick", .doc = "small sizes, few repeats: to try it, not to plan with", .flag = &a->quick},
      {.name = "set", .arg = "KEY=VALUE", .doc = "set device or a dist.* key; may be repeated", .values = &a->set},
      {.name = "overwrite", .doc = "replace the file if it exists", .flag = &a->overwrite},
      {NULL},
  };
  int n;
  TRY(cli_parse(&help, options, argc, argv, NULL, 0, 0, &n, &a->done));
  return a->done || !a->output ? STATUS_OK : check_output(a);
}

static enum status configure(const struct arguments *a, struct config *config) {
  TRY(config_init(config));
  for (int i = 0; i < a->set.n; i++) TRY(config_set(config, a->set.items[i]));
  return STATUS_OK;
}

/* A mesh whose tp groups are the nodes. */
static enum status mesh_of_nodes(struct mesh **mesh_p) {
  struct mesh *mesh = NULL;
  TRY(ranks_agree(mesh_create(1, 1, &mesh)));
  const int size = mesh->node_size;
  double uneven[1] = {mesh->rank % size != mesh->node_rank}, sizes[2] = {size, -size};
  enum status status = comm_all_reduce_f64(mesh->control, uneven, 1, REDUCE_MAX);
  if (status == STATUS_OK) status = comm_all_reduce_f64(mesh->control, sizes, 2, REDUCE_MAX);
  mesh_destroy(&mesh);
  TRY(ranks_agree(status));
  if (uneven[0] != 0 || sizes[0] != -sizes[1])
    return ranks_agree(
        status_set(STATUS_USAGE, "the ranks must lie node by node, equally many on each: mpirun --map-by ppr:N:node"));
  return ranks_agree(mesh_create(size, 1, mesh_p));
}

/* Digits beyond what a measurement is good for. */
static double rounded(double value) {
  char text[32];
  snprintf(text, sizeof text, "%.3g", value);
  return strtod(text, NULL);
}

static void round_all(struct cluster *cluster) {
  for (int i = 0; i < CLUSTER_MATRICES; i++)
    cluster->device.matrix[i].achieved = rounded(cluster->device.matrix[i].achieved);
  cluster->device.bandwidth = rounded(cluster->device.bandwidth);
  for (int level = 0; level < CLUSTER_LEVELS; level++)
    for (int pattern = 0; pattern < CLUSTER_PATTERNS; pattern++) {
      struct cluster_line *line = &cluster->links[level].line[pattern];
      *line = (struct cluster_line){rounded(line->alpha), rounded(line->beta)};
    }
}

static void describe(const struct mesh *mesh, const struct device *device, const struct arguments *a,
                     struct cluster *cluster) {
  const bool cpu = device->host_memory;
  cluster_init(cluster);
  snprintf(cluster->name, sizeof cluster->name, "%s", a->name ? a->name : "measured");
  snprintf(cluster->note, sizeof cluster->note, "%s",
           a->quick ? "made by lorashard probe --quick: too short to plan with"
                    : "made by lorashard probe; peak rates are not known to it");
  cluster->nodes = mesh->n_dp;
  cluster->launcher = getenv("SLURM_JOB_ID") ? CLUSTER_SLURM : CLUSTER_MPIRUN;
  device_describe(device, cluster->device.name, sizeof cluster->device.name);
  cluster->device.kind = cpu ? CLUSTER_CPU : CLUSTER_GPU;
  cluster->device.per_node = mesh->n_tp;
  cluster->device.cores = cpu ? device->n_threads : 0;
  cluster->device.memory = floor((double)device_memory(device) / (cpu ? mesh->n_tp : 1));
  /* On a CPU the system and its cache of files, on a GPU driver, NCCL and workspaces: as in cluster-configs/. */
  cluster->device.reserved = rounded((cpu ? 0.10 : 0.04) * cluster->device.memory);
  snprintf(cluster->device.source, sizeof cluster->device.source,
           "measured with %d x %d ranks, all at work at once; reserved memory is assumed", mesh->n_dp, mesh->n_tp);
  for (int level = 0; level < CLUSTER_LEVELS; level++)
    if ((level == CLUSTER_NODE ? mesh->n_tp : mesh->n_dp) > 1)
      snprintf(cluster->links[level].source, sizeof cluster->links[level].source, "measured over %d ranks: %s",
               level == CLUSTER_NODE ? mesh->n_tp : mesh->n_dp, mesh_path(mesh));
}

/* TF32 is a mode of the device that f32 products are measured without. */
static enum status probe_tf32(const struct probe *probe, struct cluster *cluster) {
  const struct device_options options = {
      .name = probe->device->ops->name, .node_rank = probe->mesh->node_rank, .tf32 = true};
  struct device *device = NULL;
  if (probe->device->host_memory) return STATUS_OK;
  TRY(device_open(&options, &device));
  enum status status = probe_products(probe, device, DTYPE_F32, "tf32", &cluster->device.matrix[CLUSTER_TF32].achieved);
  device_close(&device);
  return status;
}

static enum status put(const struct arguments *a, const struct mesh *mesh, const struct cluster *cluster) {
  char *text = NULL;
  if (mesh->rank != 0) return STATUS_OK;
  TRY(cluster_print(cluster, &text));
  enum status status = a->output ? durable_write(a->output, text, strlen(text)) : STATUS_OK;
  if (!a->output) fputs(text, stdout);
  free(text);
  return status;
}

static enum status measure(const struct arguments *a, struct mesh *mesh, struct device *device) {
  const struct probe probe = {mesh, device, a->quick};
  struct cluster cluster;
  describe(mesh, device, a, &cluster);
  ranks_must(probe_device(&probe, &cluster));
  ranks_must(probe_tf32(&probe, &cluster));
  ranks_must(probe_links(&probe, &cluster));
  round_all(&cluster);
  return ranks_agree(put(a, mesh, &cluster));
}

static enum status run(int argc, char **argv) {
  struct arguments a = {0};
  struct config config = {0};
  struct mesh *mesh = NULL;
  struct device *device = NULL;
  TRY(ranks_agree(parse(argc, argv, &a)));
  if (a.done) return STATUS_OK;
  enum status status = ranks_agree(configure(&a, &config));
  if (status == STATUS_OK) status = mesh_of_nodes(&mesh);
  if (status == STATUS_OK) status = accelerator_open(&config, mesh, &device);
  if (status == STATUS_OK) status = measure(&a, mesh, device);
  mesh_destroy(&mesh); /* its buffers are the device's */
  if (device) device_set_watch(device, NULL, NULL);
  device_close(&device);
  config_free(&config);
  return status;
}

enum status cmd_probe(int argc, char **argv) { return ranks_run(argc, argv, run); }
