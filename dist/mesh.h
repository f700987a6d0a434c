/*
 * mesh.h: the grid of ranks, world = PP x DP x TP, and its groups.
 *
 * TP varies fastest (neighbours, usually one node), then DP, then PP. A stage is
 * the tp x dp ranks of one pipeline stage. "control" is the world: it carries
 * what keeps the ranks in step (loss and norm sums, stop requests, failures),
 * never activations or gradients.
 */
#ifndef LORASHARD_DIST_MESH_H
#define LORASHARD_DIST_MESH_H

#include <stdbool.h>

#include "dist/comm.h"
#include "dist/comm_device.h"

struct mesh_device; /* mesh_device.c */

struct mesh {
  int world, rank;
  int n_tp, n_dp, n_pp;          /* sizes */
  int tp_rank, dp_rank, pp_rank; /* this rank's place */
  int node_rank, node_size;      /* among the ranks of this machine */
  struct comm *tp, *dp, *stage, *pp, *control;
  struct mesh_device *device; /* NULL: host memory */
};

/* Start MPI if the process was launched as one of several (or under a launcher
 * at all); otherwise the world is one rank and MPI is left alone. Checks the
 * launcher's idea of the world against MPI's: STATUS_USAGE when they differ.
 * *world_p and *rank_p: size and own rank. */
enum status mesh_start(int *world_p, int *rank_p);

/* The rank that the launcher put into the environment, 0 without one: for a
 * command that runs on the first rank only and needs no MPI. */
int mesh_launcher_rank(void);

/* The host that a rank of the world runs on, by its own short name; "" without MPI.
 * Valid until mesh_stop. */
const char *mesh_host(int rank);

/* "rank 3 (host b)"; "rank 3" if `host` is "". */
void mesh_name_rank(int rank, const char *host, char *text, size_t size);

/* Cut the world into groups; dp = world / (tp pp). STATUS_USAGE when it does not
 * divide. On success the mesh is the caller's, to be destroyed before the device
 * that it uses. */
enum status mesh_create(int n_tp, int n_pp, struct mesh **mesh_p);
void mesh_destroy(struct mesh **mesh_p);

/* Collective. `identity` names this rank's accelerator within its machine (a PCI
 * bus id). *sharers_p: ranks of this machine that have the same one, this included. */
enum status mesh_device_sharers(const struct mesh *mesh, const char *identity, int *sharers_p);

/* Collective, after mesh_create and before the first collective on device memory:
 * tp, dp, stage and pp take device memory from now on (control stays with MPI).
 * `device` is copied. `shared`: some rank shares its accelerator, so NCCL cannot
 * be used (the same on all ranks). NCCL communicators that are not complete in
 * timeout_s are an error. STATUS_PEER, STATUS_DEVICE, STATUS_USAGE (path is NCCL
 * and that is not possible). */
enum status mesh_use_device(struct mesh *mesh, const struct comm_device *device, enum comm_path path, bool shared,
                            double timeout_s);

/* How device memory travels, for the start-up table: "NCCL 2.28.3", "MPI over
 * pinned host buffers (two ranks share a GPU)", "host memory over MPI", "nothing to
 * send: one rank". Valid until the mesh is destroyed or uses another device. */
const char *mesh_path(const struct mesh *mesh);

/* Asynchronous errors of the device's collectives (ncclCommGetAsyncError) as
 * STATUS_PEER with group and reason, and the watchdog's time for what this rank
 * waits for. For device_set_watch. */
enum status mesh_check_device(struct mesh *mesh);

/* This rank has waited for its device, which has done all that was queued: the
 * watchdog has nothing to watch until the next collective. To be called before
 * work of the host that takes longer than dist.timeout_s with no collective in it. */
void mesh_waited(void);

/* Every rank calls with its own status. Returns STATUS_OK if all are; otherwise
 * the failing status of the lowest failing rank on every rank, and *speaker_p
 * says whether this rank is that one and should print its message. */
enum status mesh_agree(enum status own, bool *speaker_p);

/* Collective: all[world][bytes] = every rank's `own`, in rank order. */
enum status mesh_gather(const void *own, size_t bytes, void *all);

/* End MPI in good order (all ranks), or end the whole job at once. */
void mesh_stop(void);
void mesh_abort(int exit_code) __attribute__((noreturn));

#endif
