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

struct mesh {
  int world, rank;
  int n_tp, n_dp, n_pp;          /* sizes */
  int tp_rank, dp_rank, pp_rank; /* this rank's place */
  int node_rank, node_size;      /* among the ranks of this machine */
  struct comm *tp, *dp, *stage, *pp, *control;
};

/* Start MPI if the process was launched as one of several (or under a launcher
 * at all); otherwise the world is one rank and MPI is left alone. Checks the
 * launcher's idea of the world against MPI's: STATUS_USAGE when they differ.
 * *world_p and *rank_p: size and own rank. */
enum status mesh_start(int *world_p, int *rank_p);

/* The rank that the launcher put into the environment, 0 without one: for a
 * command that runs on the first rank only and needs no MPI. */
int mesh_launcher_rank(void);

/* Cut the world into groups; dp = world / (tp pp). STATUS_USAGE when it does not
 * divide. On success the mesh is the caller's. */
enum status mesh_create(int n_tp, int n_pp, struct mesh **mesh_p);
void mesh_destroy(struct mesh **mesh_p);

/* Every rank calls with its own status. Returns STATUS_OK if all are; otherwise
 * the failing status of the lowest failing rank on every rank, and *speaker_p
 * says whether this rank is that one and should print its message. */
enum status mesh_agree(enum status own, bool *speaker_p);

/* End MPI in good order (all ranks), or end the whole job at once. */
void mesh_stop(void);
void mesh_abort(int exit_code) __attribute__((noreturn));

#endif
