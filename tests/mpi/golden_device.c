#include "golden_device.h"

#include "../test_device.h"
#include "golden_case.h"

static struct device *device;
static int world, rank;

static enum status copy_out(void *d, void *dst, const void *src, size_t bytes) {
  return device_copy_out(d, dst, src, bytes);
}
static enum status copy_in(void *d, void *dst, const void *src, size_t bytes) {
  return device_copy_in(d, dst, src, bytes);
}
static enum status host_alloc(void *d, size_t bytes, void **memory_p) {
  return device_host_alloc(d, bytes, "communication buffer", memory_p);
}
static void host_free(void *d, void *memory) { device_host_free(d, memory); }

static enum status watch(void *mesh) { return mesh_check_device(mesh); }

void golden_start(int *world_p, int *rank_p) {
  golden_must(mesh_start(&world, &rank));
  *world_p = world;
  *rank_p = rank;
}

void golden_stop(void) {
  device_close(&device);
  mesh_stop();
}

struct device *golden_device(void) {
  /* All ranks of a test are on one machine. */
  const struct device_options options = {.name = test_device(), .n_threads = 1, .node_rank = rank};
  if (!device) golden_must(device_open(&options, &device));
  return device;
}

struct mesh *golden_mesh(int n_tp) {
  struct mesh *mesh;
  struct device *d = golden_device();
  char identity[DEVICE_IDENTITY];
  int sharers;
  golden_must(mesh_create(n_tp, 1, &mesh));
  if (d->host_memory) return mesh;
  device_identity(d, identity);
  golden_must(mesh_device_sharers(mesh, identity, &sharers));
  double most = sharers;
  golden_must(comm_all_reduce_f64(mesh->control, &most, 1, REDUCE_MAX));
  const struct comm_device comm = {d, device_stream(d), copy_out, copy_in, host_alloc, host_free};
  golden_must(mesh_use_device(mesh, &comm, COMM_PATH_AUTO, most > 1, 60));
  device_set_watch(d, watch, mesh);
  return mesh;
}

void golden_mesh_close(struct mesh **mesh_p) {
  if (device) {
    golden_must(device_synchronize(device));
    device_set_watch(device, NULL, NULL);
  }
  mesh_destroy(mesh_p);
}
