#include "dist/mesh.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dist/comm_internal.h"
#include "dist/watchdog.h"
#include "dist/watchdog_internal.h"

#define HOST 64

static bool mpi_running;
static char (*hosts)[HOST]; /* [n_hosts], by world rank */
static int n_hosts;

/* The world size that launchers put into the environment, or 0. */
static int launcher_size(const char **variable) {
  static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE",    "PMIX_SIZE", "MPI_LOCALNRANKS",
                                      "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    const char *value = getenv(names[i]);
    if (value && atoi(value) > 0) {
      *variable = names[i];
      return atoi(value);
    }
  }
  return 0;
}

int mesh_launcher_rank(void) {
  static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    const char *value = getenv(names[i]);
    if (value) return atoi(value);
  }
  return 0;
}

static enum status gather_hosts(int world) {
  char own[HOST] = "";
  enum status status = STATUS_OK;
  bool speaker;
  gethostname(own, sizeof own - 1);
  own[strcspn(own, ".")] = 0;
  hosts = calloc((size_t)world, sizeof *hosts);
  if (!hosts) status = status_set(STATUS_SYSTEM, "out of memory for the names of %d ranks' hosts", world);
  /* A rank that cannot take part must not be waited for. */
  status = mesh_agree(status, &speaker);
  if (status != STATUS_OK) return speaker ? status : status_set(status, "%s", "");
  n_hosts = world;
  return comm_check(MPI_Allgather(own, HOST, MPI_CHAR, hosts, HOST, MPI_CHAR, MPI_COMM_WORLD), "MPI_Allgather");
}

const char *mesh_host(int rank) { return rank >= 0 && rank < n_hosts ? hosts[rank] : ""; }

void mesh_name_rank(int rank, const char *host, char *text, size_t size) {
  snprintf(text, size, "rank %d%s%s%s", rank, *host ? " (host " : "", host, *host ? ")" : "");
}

enum status mesh_start(int *world_p, int *rank_p) {
  const char *variable = "";
  int expected = launcher_size(&variable);
  if (expected == 0) {
    *world_p = 1;
    *rank_p = 0;
    return STATUS_OK;
  }
  /* Copies through shared memory beat the kernel's process-to-process copy at
   * our message sizes; the user's own setting wins. */
  setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
  int provided = 0;
  /* Collectives are called by one thread; the watchdog's asks other ranks where they are. */
  TRY(comm_check(MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread"));
  mpi_running = true;
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_size(MPI_COMM_WORLD, world_p);
  MPI_Comm_rank(MPI_COMM_WORLD, rank_p);
  if (*world_p != expected && *world_p == 1)
    return status_set(STATUS_USAGE,
                      "%s is %d but MPI sees a world of 1: start lorashard through mpirun or srun of the MPI it was "
                      "built with (or unset %s for a single rank)",
                      variable, expected, variable);
  TRY(gather_hosts(*world_p));
  watchdog_peers_open();
  return STATUS_OK;
}

/* Ranks with equal color form a group, ordered by world rank. */
static enum status make_group(const char *name, int color, int rank, struct comm **comm_p) {
  struct comm *comm = calloc(1, sizeof *comm);
  if (!comm) return status_set(STATUS_SYSTEM, "out of memory for group %s", name);
  comm->name = name;
  comm->size = 1;
  comm->ops = &comm_mpi_ops;
  comm->mpi = MPI_COMM_NULL;
  *comm_p = comm;
  if (!mpi_running) return STATUS_OK;
  TRY(comm_check(MPI_Comm_split(MPI_COMM_WORLD, color, rank, &comm->mpi), "MPI_Comm_split"));
  MPI_Comm_size(comm->mpi, &comm->size);
  MPI_Comm_rank(comm->mpi, &comm->rank);
  watchdog_set_group(name, color, comm->rank);
  return STATUS_OK;
}

/* The ranks of this machine. */
static enum status split_node(int rank, MPI_Comm *node_p) {
  return comm_check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, node_p),
                    "MPI_Comm_split_type");
}

static enum status find_node(struct mesh *mesh) {
  mesh->node_size = 1;
  mesh->node_rank = 0;
  if (!mpi_running) return STATUS_OK;
  MPI_Comm node;
  TRY(split_node(mesh->rank, &node));
  MPI_Comm_size(node, &mesh->node_size);
  MPI_Comm_rank(node, &mesh->node_rank);
  return comm_check(MPI_Comm_free(&node), "MPI_Comm_free");
}

enum status mesh_device_sharers(const struct mesh *mesh, const char *identity, int *sharers_p) {
  enum status status = STATUS_OK;
  char own[64] = "", other[sizeof own];
  int sharers = mpi_running ? 0 : 1;
  if (mpi_running) {
    MPI_Comm node;
    TRY(split_node(mesh->rank, &node));
    snprintf(own, sizeof own, "%s", identity);
    for (int r = 0; r < mesh->node_size && status == STATUS_OK; r++) {
      memcpy(other, own, sizeof own);
      status = comm_check(MPI_Bcast(other, sizeof other, MPI_BYTE, r, node), "MPI_Bcast");
      sharers += strcmp(other, own) == 0;
    }
    MPI_Comm_free(&node);
  }
  if (status == STATUS_OK) *sharers_p = sharers;
  return status;
}

static enum status check_sizes(int n_tp, int n_pp, int world) {
  if (n_tp >= 1 && n_pp >= 1 && n_tp <= world && n_pp <= world && world % ((int64_t)n_tp * n_pp) == 0) return STATUS_OK;
  if (n_pp <= 1)
    return status_set(STATUS_USAGE,
                      "parallel.tp %d does not divide the number of ranks, %d: start %d of them or a multiple "
                      "(mpirun -n), or set another parallel.tp",
                      n_tp, world, n_tp);
  return status_set(STATUS_USAGE,
                    "parallel.tp %d x parallel.pp %d does not divide the number of ranks, %d: start %lld of them or a "
                    "multiple (mpirun -n), or set another parallel.tp or parallel.pp",
                    n_tp, n_pp, world, (long long)n_tp * n_pp);
}

enum status mesh_create(int n_tp, int n_pp, struct mesh **mesh_p) {
  enum status status = STATUS_OK;
  struct mesh *mesh = calloc(1, sizeof *mesh);
  if (!mesh) return status_set(STATUS_SYSTEM, "out of memory for the mesh");
  mesh->world = 1;
  if (mpi_running) {
    MPI_Comm_size(MPI_COMM_WORLD, &mesh->world);
    MPI_Comm_rank(MPI_COMM_WORLD, &mesh->rank);
  }
  TRY_OUT(check_sizes(n_tp, n_pp, mesh->world));
  mesh->n_tp = n_tp;
  mesh->n_pp = n_pp;
  mesh->n_dp = mesh->world / (n_tp * n_pp);
  mesh->tp_rank = mesh->rank % n_tp;
  mesh->dp_rank = mesh->rank / n_tp % mesh->n_dp;
  mesh->pp_rank = mesh->rank / (n_tp * mesh->n_dp);
  int rank = mesh->rank;
  TRY_OUT(make_group("tp", rank / n_tp, rank, &mesh->tp));
  TRY_OUT(make_group("dp", mesh->pp_rank * n_tp + mesh->tp_rank, rank, &mesh->dp));
  TRY_OUT(make_group("stage", mesh->pp_rank, rank, &mesh->stage));
  TRY_OUT(make_group("pp", rank % (n_tp * mesh->n_dp), rank, &mesh->pp));
  TRY_OUT(make_group("control", 0, rank, &mesh->control));
  TRY_OUT(find_node(mesh));
  *mesh_p = mesh;
  return STATUS_OK;
out:
  mesh_destroy(&mesh);
  return status;
}

static void free_group(struct comm *comm) {
  if (comm && comm->mpi != MPI_COMM_NULL) MPI_Comm_free(&comm->mpi);
  free(comm);
}

void mesh_destroy(struct mesh **mesh_p) {
  struct mesh *mesh = *mesh_p;
  if (!mesh) return;
  mesh_device_close(mesh);
  free_group(mesh->tp);
  free_group(mesh->dp);
  free_group(mesh->stage);
  free_group(mesh->pp);
  free_group(mesh->control);
  free(mesh);
  *mesh_p = NULL;
}

static enum status agree(enum status own, bool *speaker_p) {
  int world, rank;
  MPI_Comm_size(MPI_COMM_WORLD, &world);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  /* A peer's complaint about someone else's failure (STATUS_PEER) is worth less
   * than the failure itself: causes sort before consequences. */
  int mine[2] = {own == STATUS_OK ? 2 * world : own == STATUS_PEER ? world + rank : rank, 0};
  int first = mine[0];
  TRY(comm_check(MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD), "MPI_Allreduce"));
  if (first == 2 * world) return STATUS_OK;
  *speaker_p = first == mine[0];
  int code = own;
  TRY(comm_check(MPI_Bcast(&code, 1, MPI_INT, first % world, MPI_COMM_WORLD), "MPI_Bcast"));
  return (enum status)code;
}

enum status mesh_agree(enum status own, bool *speaker_p) {
  *speaker_p = true; /* of a failure here: nobody can be told */
  if (!mpi_running) return own;
  watchdog_enter("agreement", "control");
  enum status all = agree(own, speaker_p);
  watchdog_leave();
  return all;
}

enum status mesh_gather(const void *own, size_t bytes, void *all) {
  if (!mpi_running) {
    memcpy(all, own, bytes);
    return STATUS_OK;
  }
  return comm_check(MPI_Allgather(own, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, MPI_COMM_WORLD),
                    "MPI_Allgather");
}

bool mesh_speaks_mpi(void) { return mpi_running; }

void mesh_stop(void) {
  if (mpi_running) {
    watchdog_peers_close();
    MPI_Finalize();
  }
  mpi_running = false;
  free(hosts);
  hosts = NULL;
  n_hosts = 0;
}

void mesh_abort(int exit_code) {
  if (mpi_running) MPI_Abort(MPI_COMM_WORLD, exit_code);
  _exit(exit_code);
}
