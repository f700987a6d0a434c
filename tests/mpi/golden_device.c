#include "golden_device.h"

#include "../test_device.h"
#include "golden_case.h"
#include "launch/accelerator.h"

static struct device *device;
static int world, rank;

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
  return golden_mesh_stages(n_tp, 1);
}

struct mesh *golden_mesh_stages(int n_tp, int n_pp) {
  struct mesh *mesh;
  golden_must(mesh_create(n_tp, n_pp, &mesh));
  golden_must(accelerator_connect(mesh, golden_device(), COMM_PATH_AUTO, true, 60));
  return mesh;
}

void golden_mesh_close(struct mesh **mesh_p) {
  if (device) {
    golden_must(device_synchronize(device));
    device_set_watch(device, NULL, NULL);
  }
  mesh_destroy(mesh_p);
}
