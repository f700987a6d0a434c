/* Which way device memory travels between the ranks of a mesh. */
#include <stdio.h>
#include <stdlib.h>

#include "dist/comm_internal.h"
#include "dist/watchdog.h"

#define TEXT 512

struct mesh_device {
  struct comm_transport transport;
  char path[TEXT];
};

/* The groups that take device memory. */
enum { GROUPS = 4 };
static void device_groups(const struct mesh *mesh, struct comm *groups[GROUPS]) {
  groups[0] = mesh->tp;
  groups[1] = mesh->dp;
  groups[2] = mesh->stage;
  groups[3] = mesh->pp;
}

/* The text of the lowest rank that has one, on every rank; "" if none has. */
static enum status share_text(const struct mesh *mesh, char text[TEXT]) {
  if (!mesh_speaks_mpi()) return STATUS_OK;
  int first = *text ? mesh->rank : mesh->world;
  watchdog_enter("agreement", "control");
  enum status status =
      comm_check(MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD), "MPI_Allreduce");
  if (status == STATUS_OK && first < mesh->world)
    status = comm_check(MPI_Bcast(text, TEXT, MPI_BYTE, first, MPI_COMM_WORLD), "MPI_Bcast");
  watchdog_leave();
  return status;
}

static void own_text(const struct mesh *mesh, const char *message, char text[TEXT]) {
  if (mesh->rank == 0)
    snprintf(text, TEXT, "%s", message);
  else
    snprintf(text, TEXT, "rank %d: %s", mesh->rank, message);
}

/* The failure that the ranks agree on, with its message, on every rank: a rank
 * that is well must not go on to wait for one that is not. */
static enum status share_failure(const struct mesh *mesh, enum status own) {
  char text[TEXT] = "";
  bool speaker;
  if (own != STATUS_OK) own_text(mesh, status_message(), text);
  enum status all = mesh_agree(own, &speaker);
  if (all == STATUS_OK) return STATUS_OK;
  if (!speaker) *text = 0;
  TRY(share_text(mesh, text));
  return *text ? status_set(all, "%s", text) : all;
}

/* Why NCCL cannot be used, the same text on every rank; "" and the backend if it can. `version`: "NCCL 2.28.3". */
static enum status find_backend(const struct mesh *mesh, bool shared, const struct comm_backend **backend_p,
                                char version[TEXT], char reason[TEXT]) {
  *reason = 0;
  if (shared) {
    snprintf(reason, TEXT, "two ranks share a GPU");
    return STATUS_OK;
  }
  enum status status = comm_queued_find(backend_p, version, TEXT);
  if (status == STATUS_USAGE)
    own_text(mesh, "this build has no NCCL", reason);
  else if (status != STATUS_OK)
    own_text(mesh, status_message(), reason);
  return share_text(mesh, reason);
}

static enum status use_backend(struct mesh *mesh, double timeout_s) {
  struct comm_transport *transport = &mesh->device->transport;
  struct comm *groups[GROUPS];
  device_groups(mesh, groups);
  TRY(share_failure(mesh, transport->backend->open(transport->device.stream, timeout_s, &transport->state)));
  for (int g = 0; g < GROUPS; g++) {
    char id[COMM_BACKEND_ID];
    TRY(share_failure(mesh, comm_queued_make_id(groups[g], transport, id)));
    TRY(share_failure(mesh, comm_queued_join(groups[g], transport, id)));
  }
  return STATUS_OK;
}

static void use_staging(struct mesh *mesh) {
  struct comm *groups[GROUPS];
  device_groups(mesh, groups);
  for (int g = 0; g < GROUPS; g++) {
    groups[g]->transport = &mesh->device->transport;
    groups[g]->ops = &comm_staged_ops;
  }
}

static enum status choose_path(struct mesh *mesh, enum comm_path path, bool shared, double timeout_s) {
  struct mesh_device *device = mesh->device;
  const struct comm_backend *backend = NULL;
  char version[TEXT] = "", reason[TEXT] = "";
  if (mesh->world > 1 && path != COMM_PATH_MPI) {
    TRY(find_backend(mesh, shared, &backend, version, reason));
    if (!*reason) {
      device->transport.backend = backend;
      snprintf(device->path, sizeof device->path, "%s", version);
      return use_backend(mesh, timeout_s);
    }
    if (path == COMM_PATH_NCCL) return status_set(STATUS_USAGE, "NCCL cannot be used: %s", reason);
  }
  use_staging(mesh);
  if (mesh->world == 1)
    snprintf(device->path, sizeof device->path, "nothing to send: one rank");
  else if (*reason)
    snprintf(device->path, sizeof device->path, "MPI over pinned host buffers (%s)", reason);
  else
    snprintf(device->path, sizeof device->path, "MPI over pinned host buffers");
  return STATUS_OK;
}

enum status mesh_use_device(struct mesh *mesh, const struct comm_device *device, enum comm_path path, bool shared,
                            double timeout_s) {
  enum status status = STATUS_OK;
  mesh_device_close(mesh);
  mesh->device = calloc(1, sizeof *mesh->device);
  if (!mesh->device) status = status_set(STATUS_SYSTEM, "out of memory for the mesh's device");
  TRY_OUT(share_failure(mesh, status));
  mesh->device->transport.device = *device;
  TRY_OUT(choose_path(mesh, path, shared, timeout_s));
  return STATUS_OK;
out:
  /* Other ranks may not have got as far: nobody waits for them. */
  if (mesh->device && mesh->device->transport.state)
    mesh->device->transport.backend->give_up(mesh->device->transport.state);
  mesh_device_close(mesh);
  return status;
}

void mesh_device_close(struct mesh *mesh) {
  struct mesh_device *device = mesh->device;
  if (!device) return;
  struct comm_transport *transport = &device->transport;
  struct comm *groups[GROUPS];
  if (transport->state && transport->device.drop_records) transport->device.drop_records(transport->device.context);
  device_groups(mesh, groups);
  for (int g = 0; g < GROUPS; g++) comm_close(groups[g]);
  comm_staged_close(transport);
  if (transport->state) transport->backend->close(&transport->state);
  free(device);
  mesh->device = NULL;
}

const char *mesh_path(const struct mesh *mesh) { return mesh->device ? mesh->device->path : "host memory over MPI"; }

enum status mesh_check_device(struct mesh *mesh) {
  struct comm *groups[GROUPS];
  watchdog_waiting();
  device_groups(mesh, groups);
  for (int g = 0; g < GROUPS; g++) TRY(groups[g]->ops->check(groups[g]));
  return STATUS_OK;
}

void mesh_waited(void) { watchdog_waited(); }
