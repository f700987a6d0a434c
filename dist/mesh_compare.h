/*
 * mesh_compare.h: whether all ranks were given the same inputs. A rank with another
 * program, configuration or base would spoil the result without a word.
 */
#ifndef LORASHARD_DIST_MESH_COMPARE_H
#define LORASHARD_DIST_MESH_COMPARE_H

#include <stddef.h>
#include <stdint.h>

#include "dist/mesh.h"

#define MESH_MAX_INPUTS 8

struct mesh_input {
  const char *name;   /* as a sentence has it: "program version" */
  uint64_t hash;      /* of its content: mesh_hash, or a digest's first eight bytes */
  const char *remedy; /* "install the same build on every host"; NULL for none */
};

/* Of bytes, or with `hash` that of an earlier call for what follows them; 0 begins. Source: FNV-1a, 64 bits. */
uint64_t mesh_hash(uint64_t hash, const void *bytes, size_t n);

/* Collective, over control: every rank gives its inputs, the same ones in the same
 * order, n <= MESH_MAX_INPUTS. STATUS_USAGE on all ranks, with the same message, if
 * they differ: the first input that does, the ranks that have another one than most,
 * and their hosts. Name first what explains the others. */
enum status mesh_compare(const struct mesh *mesh, const struct mesh_input *inputs, int n);

#endif
