/*
 * checkpoint.h: adapter state in HDF5.
 *
 * A step is a directory `step-000100/` with one shard file per owner,
 * `adapter.h5` whose datasets are virtual over the shards, and `manifest.json`
 * (a digest per file). It appears by rename, whole or not at all; then the text
 * file `latest` names it. `adapter.h5` made by gather is one self-contained
 * file of the same layout. This file knows named arrays, not A and B.
 */
#ifndef LORASHARD_IO_CHECKPOINT_H
#define LORASHARD_IO_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/dtype.h"
#include "io/model_facts.h"
#include "io/status.h"

#define CHECKPOINT_NAME   64
#define CHECKPOINT_FORMAT 1

/* One named matrix [rows, cols], f32 in memory, and the part of it that someone holds. */
struct checkpoint_array {
  char group[CHECKPOINT_NAME];  /* "layers/12/q" */
  char name[CHECKPOINT_NAME];   /* "A", "B", "A.m", "A.v", "B.m", "B.v" */
  int64_t rows, cols;           /* whole */
  int64_t row, col;             /* where the part begins */
  int64_t part_rows, part_cols; /* size of the part; 0 = nothing held here */
  float *data;                  /* [part_rows, part_cols], contiguous */
};

/* Attributes of a module group. */
struct checkpoint_module {
  char group[CHECKPOINT_NAME]; /* "layers/12/q" */
  int64_t r, in, out;
  double alpha;
  bool rslora;
};

/* Root attributes. */
struct checkpoint_header {
  char method[16]; /* "lora" */
  char program_version[32];
  char base_fingerprint[40];
  char base_path[1024];
  char base_family[16];
  int64_t step, epoch, cursor; /* cursor: rows of this epoch already used */
  int64_t tokens_seen;
  uint64_t seed;
  char data_digest[40];
  int64_t extra_skipped_steps;
  /* Sizes of the base, so that an adapter can be exported without it. */
  int64_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ffn;
};

/* The base's family and sizes, in and out: other fields of `facts` become 0. */
void checkpoint_set_facts(struct checkpoint_header *header, const struct model_facts *facts);
void checkpoint_get_facts(const struct checkpoint_header *header, struct model_facts *facts);

struct checkpoint; /* an open adapter.h5, or the adapter.h5 of a step directory */

/* --- reading --- */

/* Open a gathered adapter.h5, or a step directory (its manifest is checked
 * first: every file present, size and digest right). Everything in the file is
 * checked before anything is allocated from it. STATUS_DATA names file and
 * fault. */
enum status checkpoint_open(const char *path, struct checkpoint **checkpoint_p);
void checkpoint_close(struct checkpoint **checkpoint_p);
const struct checkpoint_header *checkpoint_header(const struct checkpoint *checkpoint);
const char *checkpoint_config(const struct checkpoint *checkpoint); /* resolved YAML text */
int checkpoint_modules(const struct checkpoint *checkpoint, const struct checkpoint_module **modules_p);
/* All arrays (whole sizes; no data), group by group. */
int checkpoint_arrays(const struct checkpoint *checkpoint, const struct checkpoint_array **arrays_p);

/* Read the part that `array` describes into array->data. Group, name, rows and
 * cols must agree with the file. */
enum status checkpoint_read(const struct checkpoint *checkpoint, const struct checkpoint_array *array);

/* --- writing a step (per rank: shard; then one rank: publish) --- */

/* Write this owner's arrays as DIRECTORY/FILE, fsynced. Arrays without a part
 * are left out. */
enum status checkpoint_write_shard(const char *directory, const char *file, const struct checkpoint_header *header,
                                   const struct checkpoint_module *modules, int n_modules,
                                   const struct checkpoint_array *arrays, int n_arrays);

/* Make OUTPUT/step-NNNNNN.tmp/ anew (removing a stale one), for the shards. */
enum status checkpoint_begin(const char *output, int64_t step, char *directory, size_t directory_size);

/* After all shards are written: build the virtual adapter.h5 over the files
 * shard-*.h5 of the directory, the manifest, fsync, rename to step-NNNNNN,
 * fsync OUTPUT, replace `latest`, prune to the newest keep_last steps (0: keep
 * all). */
enum status checkpoint_publish(const char *output, int64_t step, const struct checkpoint_header *header,
                               const struct checkpoint_module *modules, int n_modules, const char *config_text,
                               int keep_last);

/* The step of a directory entry "step-000100", or with `temporary` of
 * "step-000100.tmp"; -1 for any other name. */
int64_t checkpoint_step_number(const char *name, bool temporary);

/* True for "step-000100.tmp" and the like, which an ended process left. */
bool checkpoint_is_leftover(const char *name);

/* Newest whole step directory under OUTPUT: path and step; *step_p = -1 when
 * there is none. Broken ones are skipped with a warning that says why. */
enum status checkpoint_find_latest(const char *output, char *path, size_t path_size, int64_t *step_p);

/* The adapter that a path stands for: an output directory (no step itself)
 * stands for its newest whole step, anything else for itself. STATUS_USAGE if
 * such a directory has no whole step. */
enum status checkpoint_resolve(const char *path, char *resolved, size_t size);

/* True if the directory is a step, or holds steps. */
bool checkpoint_is_directory(const char *path);

/* --- one file --- */

/* Write arrays (all whole) as one self-contained file through a temporary
 * name; an existing file is replaced. */
enum status checkpoint_write_file(const char *path, const struct checkpoint_header *header,
                                  const struct checkpoint_module *modules, int n_modules, const char *config_text,
                                  const struct checkpoint_array *arrays, int n_arrays);

/* Copy a step directory (or file) into one self-contained file, array by array,
 * one of them in memory at a time. Weights are stored as `dtype`: f32, or f16 or
 * bf16 rounded to nearest even (a number beyond the type is STATUS_DATA); the
 * optimizer's state is always f32. Readers take either and see f32. */
enum status checkpoint_gather(const char *from, const char *to, bool with_optimizer, enum dtype dtype);

#endif
