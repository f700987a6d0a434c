/*
 * checkpoint_world.h: a small adapter of three modules, ways to write it as a
 * file or as a step of several shards, and to compare what is read with it.
 */
#ifndef LORASHARD_TESTS_IO_CHECKPOINT_WORLD_H
#define LORASHARD_TESTS_IO_CHECKPOINT_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <cmocka.h>

#include "io/checkpoint.h"
#include "scratch.h"

#define N_MODULES 3
#define N_ARRAYS  12 /* A, B, A.m, B.m of each */

extern const char *const world_groups[N_MODULES];
extern const int64_t world_ranks[N_MODULES], world_ins[N_MODULES], world_outs[N_MODULES];

struct world {
  char root[64], output[128];
  struct checkpoint_header header;
  struct checkpoint_module modules[N_MODULES];
  struct checkpoint_array arrays[N_ARRAYS]; /* whole */
};

/* cmocka's set-up and tear-down: a temporary directory and a struct world. */
int world_setup(void **state);
int world_teardown(void **state);

/* NAME under the world's directory; the last four results stay valid. */
const char *world_path(const struct world *w, const char *name);

/* A part of a whole array, with its own data (free it). */
struct checkpoint_array world_cut(const struct checkpoint_array *whole, int64_t row, int64_t rows, int64_t col,
                                  int64_t cols);

/* The parts that rank t of tp holds: B of q by rows, A of o and down by columns,
 * the others whole on rank 0 only. Uneven on purpose. */
void world_shard_arrays(const struct world *w, int t, int tp, struct checkpoint_array parts[N_ARRAYS]);

void world_write_shards(const struct world *w, const char *directory, int tp);

/* The same from tp x pp owners: stage 0 of pp stages holds the first module, the
 * last stage the others, those between them nothing. */
void world_write_stages(const struct world *w, const char *directory, int tp, int pp);
void world_publish_step(struct world *w, int64_t step, int tp, int keep_last);
void world_write_whole(struct world *w, const char *path);

bool world_has(const struct checkpoint *checkpoint, const char *group, const char *name);

/* Everything in the file or step equals the world. */
void world_check_content(const struct world *w, const char *path, bool with_optimizer);

/* Files: content (free it), equality, one byte changed by xor, size, number of
 * names in a directory that hold `part`. */
char *world_slurp(const char *path, size_t *size_p);
void world_assert_same_bytes(const char *a, const char *b);
void world_patch(const char *path, off_t offset, char value);
off_t world_file_size(const char *path);
int world_count_entries(const char *directory, const char *part);

#endif
