#include "dist/mesh_compare.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ranks that are told one by one. */
#define TOLD 6

/* What a rank gives. Its size does not depend on the number of inputs, which another program's ranks may not share. */
struct given {
  uint64_t n;
  uint64_t hashes[MESH_MAX_INPUTS];
};

uint64_t mesh_hash(uint64_t hash, const void *bytes, size_t n) {
  const unsigned char *byte = bytes;
  if (hash == 0) hash = 0xcbf29ce484222325;
  for (size_t i = 0; i < n; i++) hash = (hash ^ byte[i]) * 0x100000001b3;
  return hash;
}

/* The lowest rank that has what most have. */
static int most_common(const struct given *all, int world, int input) {
  int best = 0, best_count = 0;
  for (int r = 0; r < world; r++) {
    const uint64_t hash = all[r].hashes[input];
    int count = 0;
    if (r > 0 && hash == all[r - 1].hashes[input]) continue; /* as good as the rank before */
    for (int other = 0; other < world; other++) count += all[other].hashes[input] == hash;
    if (count > best_count) {
      best = r;
      best_count = count;
    }
    if (2 * best_count > world) break;
  }
  return best;
}

static int find_difference(const struct given *all, int world, int n) {
  for (int i = 0; i < n; i++)
    for (int r = 1; r < world; r++)
      if (all[r].hashes[i] != all[0].hashes[i]) return i;
  return -1;
}

static enum status tell(const struct given *all, int world, int input, const struct mesh_input *what) {
  char others[TOLD * 96] = "", name[96], most[96], more[48] = "";
  const int reference = most_common(all, world, input);
  int differing = 0;
  for (int r = 0; r < world; r++) {
    if (all[r].hashes[input] == all[reference].hashes[input]) continue;
    if (differing++ >= TOLD) continue;
    mesh_name_rank(r, mesh_host(r), name, sizeof name);
    const size_t length = strlen(others);
    snprintf(others + length, sizeof others - length, "%s%s", length ? ", " : "", name);
  }
  if (differing > TOLD) snprintf(more, sizeof more, " and %d more", differing - TOLD);
  mesh_name_rank(reference, mesh_host(reference), most, sizeof most);
  return status_set(STATUS_USAGE, "%s%s %s another %s than %s%s%s", others, more, differing > 1 ? "have" : "has",
                    what->name, most, what->remedy ? ": " : "", what->remedy ? what->remedy : "");
}

enum status mesh_compare(const struct mesh *mesh, const struct mesh_input *inputs, int n) {
  enum status status = STATUS_OK;
  struct given own = {.n = (uint64_t)n};
  assert(n >= 0 && n <= MESH_MAX_INPUTS);
  for (int i = 0; i < n; i++)
    own.hashes[i] =
        mesh_hash(mesh_hash(0, inputs[i].name, strlen(inputs[i].name) + 1), &inputs[i].hash, sizeof inputs[i].hash);
  struct given *all = calloc((size_t)mesh->world, sizeof *all);
  if (!all) status = status_set(STATUS_SYSTEM, "out of memory for the inputs of %d ranks", mesh->world);
  bool speaker;
  /* A rank that cannot take part must not be waited for. */
  if (mesh_agree(status, &speaker) != STATUS_OK) {
    free(all);
    return status != STATUS_OK ? status : status_set(STATUS_PEER, "another rank has no memory to compare inputs");
  }
  TRY_OUT(comm_all_gather(mesh->control, &own, sizeof own, all));
  int differs = find_difference(all, mesh->world, n);
  if (differs >= 0) status = tell(all, mesh->world, differs, &inputs[differs]);
  for (int r = 0; r < mesh->world && status == STATUS_OK; r++)
    if (all[r].n != all[0].n)
      status = status_set(STATUS_USAGE,
                          "rank %d gives %d inputs to compare, rank 0 %d: install the same build on every host", r,
                          (int)all[r].n, (int)all[0].n);
out:
  free(all);
  return status;
}
