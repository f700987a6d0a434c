#include "launch/accelerator.h"

#include <string.h>

#include "io/log.h"
#include "launch/cores.h"
#include "launch/ranks.h"

static enum status copy_out(void *device, void *dst, const void *src, size_t bytes) {
  return device_copy_out(device, dst, src, bytes);
}

static enum status copy_in(void *device, void *dst, const void *src, size_t bytes) {
  return device_copy_in(device, dst, src, bytes);
}

static enum status host_alloc(void *device, size_t bytes, void **memory_p) {
  return device_host_alloc(device, bytes, "communication buffer", memory_p);
}

static void host_free(void *device, void *memory) { device_host_free(device, memory); }

static void drop_records(void *device) { device_graph_drop(device); }

static enum status watch(void *mesh) { return mesh_check_device(mesh); }

static enum comm_path path_of(const struct config *config) {
  switch (config->dist.collectives) {
    case COLLECTIVES_NCCL:
      return COMM_PATH_NCCL;
    case COLLECTIVES_MPI:
      return COMM_PATH_MPI;
    default:
      return COMM_PATH_AUTO;
  }
}

static enum status open_device(const struct config *config, const struct mesh *mesh, struct device **device_p) {
  const struct device_options options = {
      .name = config->device && *config->device ? config->device : "auto",
      .n_threads = cores_take_share(mesh->node_rank, mesh->node_size),
      .node_rank = mesh->node_rank,
      .tf32 = config->train.tf32,
      .graphs = config->train.graphs,
  };
  return device_open(&options, device_p);
}

/* With "auto" one machine might have no GPU: ranks on different kinds would not meet in a collective. */
static enum status same_kind(const struct mesh *mesh, const struct device *device) {
  double kinds[2] = {device->host_memory, !device->host_memory};
  TRY(comm_all_reduce_f64(mesh->control, kinds, 2, REDUCE_SUM));
  if (kinds[0] == 0 || kinds[1] == 0) return STATUS_OK;
  return status_set(STATUS_USAGE,
                    "%.0f ranks have a GPU and %.0f have none: set device: cuda to hear why, or device: cpu", kinds[1],
                    kinds[0]);
}

/* Graphs and the MPI path exclude each other: MPI cannot be recorded. */
static enum status check_graphs(const struct config *config, const struct mesh *mesh) {
  if (config->train.graphs && mesh->n_pp > 1) log_warn("train.graphs has no effect with pipeline stages");
  if (!config->train.graphs || mesh->n_tp == 1 || strncmp(mesh_path(mesh), "NCCL", 4) == 0) return STATUS_OK;
  return status_set(STATUS_USAGE, "train.graphs with parallel.tp %d needs NCCL, but GPU memory travels by %s",
                    mesh->n_tp, mesh_path(mesh));
}

enum status accelerator_connect(struct mesh *mesh, struct device *device, enum comm_path path, bool share,
                                double timeout_s) {
  char identity[DEVICE_IDENTITY];
  int sharers;
  if (device->host_memory) return STATUS_OK;
  device_identity(device, identity);
  TRY(mesh_device_sharers(mesh, identity, &sharers));
  double most = sharers;
  TRY(comm_all_reduce_f64(mesh->control, &most, 1, REDUCE_MAX));
  if (most > 1 && !share)
    return ranks_agree(
        sharers == 1 ? STATUS_OK
                     : status_set(STATUS_USAGE,
                                  "%d of this machine's %d ranks would share GPU %s: start one rank per GPU (look at "
                                  "CUDA_VISIBLE_DEVICES too), or set dist.share_gpus: true",
                                  sharers, mesh->node_size, identity));
  const struct comm_device comm = {
      .context = device,
      .stream = device_stream(device),
      .copy_out = copy_out,
      .copy_in = copy_in,
      .host_alloc = host_alloc,
      .host_free = host_free,
      .drop_records = drop_records,
  };
  TRY(ranks_agree(mesh_use_device(mesh, &comm, path, most > 1, timeout_s)));
  device_set_watch(device, watch, mesh);
  return STATUS_OK;
}

enum status accelerator_open(const struct config *config, struct mesh *mesh, struct device **device_p) {
  TRY(ranks_agree(open_device(config, mesh, device_p)));
  TRY(ranks_agree(same_kind(mesh, *device_p)));
  if ((*device_p)->host_memory) return STATUS_OK;
  TRY(accelerator_connect(mesh, *device_p, path_of(config), config->dist.share_gpus, config->dist.timeout_s));
  return ranks_agree(check_graphs(config, mesh));
}

enum status accelerator_describe(const struct mesh *mesh, const struct device *device) {
  char own[DEVICE_IDENTITY] = "", of_rank[DEVICE_IDENTITY];
  device_identity(device, own);
  for (int rank = 0; rank < mesh->world; rank++) {
    memcpy(of_rank, own, sizeof of_rank);
    TRY(comm_broadcast(mesh->control, of_rank, sizeof of_rank, rank));
    log_info("          rank %d on GPU %s", rank, of_rank);
  }
  if (mesh->world > 1) log_info("          GPU memory travels by %s", mesh_path(mesh));
  return STATUS_OK;
}
