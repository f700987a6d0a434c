#include "lora/replicas.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dist/mesh_compare.h"

/* Ranks that are told one by one. */
#define TOLD 4

/* Of a parameter with its moments, as fetched. */
static uint64_t hash_of(const struct param_list *params, const struct param *p) {
  uint64_t hash = mesh_hash(0, param_host(params, p->w), param_bytes(p));
  hash = mesh_hash(hash, param_host(params, p->m), param_bytes(p));
  return mesh_hash(hash, param_host(params, p->v), param_bytes(p));
}

/* Whether another rank holds what this one holds of the parameter: tp varies fastest, then dp, then pp (dist/mesh.h).
 */
static bool holds_it(const struct mesh *mesh, const struct param *p, int rank) {
  return rank / (mesh->n_tp * mesh->n_dp) == mesh->pp_rank &&
         (p->group == PARAM_STAGE || rank % mesh->n_tp == mesh->tp_rank);
}

/* How many of its holders have the hash. */
static int count(const struct mesh *mesh, const struct param *p, const uint64_t *hashes, uint64_t hash) {
  int n = 0;
  for (int r = 0; r < mesh->world; r++) n += holds_it(mesh, p, r) && hashes[r] == hash;
  return n;
}

/* hashes: [world] of one parameter. */
static enum status compare(const struct mesh *mesh, const struct param *p, const uint64_t *hashes) {
  char names[TOLD * 100] = "", name[96];
  int best = 0, differing = 0;
  uint64_t most = 0;
  for (int r = 0; r < mesh->world; r++) {
    int n = holds_it(mesh, p, r) ? count(mesh, p, hashes, hashes[r]) : 0;
    if (n <= best) continue;
    best = n;
    most = hashes[r];
  }
  for (int r = 0; r < mesh->world; r++) {
    if (!holds_it(mesh, p, r) || hashes[r] == most || differing++ >= TOLD) continue;
    mesh_name_rank(r, mesh_host(r), name, sizeof name);
    size_t length = strlen(names);
    snprintf(names + length, sizeof names - length, "%s%s", length ? ", " : "", name);
  }
  if (differing == 0) return STATUS_OK;
  return status_set(STATUS_SYSTEM,
                    "%s/%s on %s%s is not what it is on the other ranks that hold it: memory, processor or network "
                    "there may be faulty; go on from the last checkpoint without it",
                    p->group_name, p->name, names, differing > TOLD ? " and more" : "");
}

/* own: [n] hashes of this rank; all: [world, n] and [world] beside them. */
static enum status gather_and_compare(const struct param_list *params, const struct mesh *mesh, int n,
                                      const uint64_t *own, uint64_t *all) {
  uint64_t *of_one = all + (int64_t)mesh->world * n;
  TRY(comm_all_gather(mesh->control, own, (size_t)n * sizeof *own, all));
  for (int i = 0; i < params->n; i++) {
    for (int r = 0; r < mesh->world; r++) of_one[r] = all[(int64_t)r * n + i];
    TRY(compare(mesh, &params->items[i], of_one));
  }
  return STATUS_OK;
}

enum status replicas_compare(struct param_list *params, const struct mesh *mesh, struct device *device) {
  double most = params->n;
  bool speaker;
  TRY(comm_all_reduce_f64(mesh->control, &most, 1, REDUCE_MAX)); /* stages have other numbers of them */
  const int n = (int)most;
  uint64_t *own = calloc((size_t)n + 1, sizeof *own), *all = calloc((size_t)mesh->world * (size_t)(n + 1), sizeof *all);
  enum status status = own && all ? param_list_fetch(params, device)
                                  : status_set(STATUS_SYSTEM, "out of memory for hashes of all ranks");
  for (int i = 0; i < params->n && status == STATUS_OK; i++) own[i] = hash_of(params, &params->items[i]);
  /* A rank that cannot take part must not be waited for. */
  if (mesh_agree(status, &speaker) == STATUS_OK)
    status = gather_and_compare(params, mesh, n, own, all);
  else if (status == STATUS_OK)
    status = status_set(STATUS_PEER, "another rank cannot compare its parameters");
  free(own);
  free(all);
  return status;
}
