/*
 * checkpoint_internal.h: what the files of the HDF5 checkpoint share. No other
 * file includes it, and no other file knows HDF5.
 */
#ifndef LORASHARD_IO_CHECKPOINT_INTERNAL_H
#define LORASHARD_IO_CHECKPOINT_INTERNAL_H

#include <hdf5.h>

#include "io/checkpoint.h"
#include "io/durable.h"

/* --- hdf5_border.c: locking, errors, opening and closing --- */

/* HDF5 serves one thread at a time: every public function holds this
 * process-wide lock while it calls HDF5. Recursive, so that public functions
 * may call each other. hdf5_enter also silences HDF5's own printing and turns
 * off the loading of plugins. */
void hdf5_enter(void);
void hdf5_leave(void);

/* Turn HDF5's error stack into one line: "PATH: H5Dread at file:line: innermost
 * reason". Clears the stack. */
enum status hdf5_fail(enum status code, const char *path, const char *call, const char *file, int line);

/* The border macro: `call` is an HDF5 call that gives a negative value on
 * failure; jumps to `out:`. */
#define H5_TRY_OUT(code, path, call)                                 \
  do {                                                               \
    if ((call) < 0) {                                                \
      status = hdf5_fail((code), (path), #call, __FILE__, __LINE__); \
      goto out;                                                      \
    }                                                                \
  } while (0)

/* Release any id; negative ones are ignored. For clean-up: errors are not
 * reported, a writer closes what it wrote with a checked call first. */
void hdf5_release(hid_t id);

/* Open to read. Refuses what is not a regular file with the checksummed
 * metadata format that this program writes (superblock 2 or 3 at byte 0).
 * *size_p is the file's size. */
enum status hdf5_open(const char *path, hid_t *file_p, int64_t *size_p);

/* A file being written under a temporary name. It must not move while open. */
struct hdf5_output {
  char path[DURABLE_PATH], temporary[DURABLE_PATH];
  hid_t file;
  int fd;
  int error; /* errno of the first failed write or read, 0 = none */
};

/* hdf5_driver.c: let the files of this access list be written through output's
 * descriptor, errors going to output->error. */
herr_t hdf5_use_driver(hid_t access_list, struct hdf5_output *output);

/* STATUS_SYSTEM if a write has failed so far. To be asked after each array, as
 * HDF5 itself does not see such errors. */
enum status hdf5_check(const struct hdf5_output *output);

/* Create PATH.tmp. Disk space for data_bytes is reserved where the file system
 * can, so that a full disk shows before anything is written. */
enum status hdf5_create(const char *path, int64_t data_bytes, struct hdf5_output *output);

/* Flush, close, fsync, rename to the final name. With `status` not good (the
 * writer failed) the temporary file is removed and `status` returned. */
enum status hdf5_finish(struct hdf5_output *output, enum status status);

/* --- hdf5_attributes.c --- */

/* `where` names the object in messages ("layers/0/q/A" or "root"). Reading
 * checks class, size and extent first; texts with control characters are
 * refused. */
enum status hdf5_put_int(hid_t object, const char *path, const char *name, int64_t value);
enum status hdf5_put_uint(hid_t object, const char *path, const char *name, uint64_t value);
enum status hdf5_put_double(hid_t object, const char *path, const char *name, double value);
enum status hdf5_put_text(hid_t object, const char *path, const char *name, const char *text);
enum status hdf5_get_int(hid_t object, const char *path, const char *where, const char *name, int64_t *value);
enum status hdf5_get_uint(hid_t object, const char *path, const char *where, const char *name, uint64_t *value);
enum status hdf5_get_double(hid_t object, const char *path, const char *where, const char *name, double *value);
enum status hdf5_get_text(hid_t object, const char *path, const char *where, const char *name, char *text, size_t size);

/* The one kind of string type that is written: fixed length with its final zero,
 * UTF-8. */
hid_t hdf5_text_type(size_t size);

/* Length of a fixed-length string as read: null- and space-padding left out. */
size_t hdf5_text_length(hid_t type, const char *text, size_t size);

/* --- hdf5_float.c: f32, f16 and bf16 matrices --- */

/* The file type of a dtype of these three; the caller's, to be released. */
hid_t hdf5_float_type(enum dtype dtype);

/* Which of them a type is; false: none. */
bool hdf5_float_dtype(hid_t type, enum dtype *dtype_p);

/* bits[part_rows, part_cols] = array's data as f16 or bf16, rounded to nearest
 * even. A finite number that becomes infinite is STATUS_DATA. */
enum status hdf5_float_pack(enum dtype dtype, const char *path, const struct checkpoint_array *array, uint16_t *bits);

/* Block [count] at `from` of a matrix of any of the types to `to`, whose rows are
 * `stride` numbers apart. */
enum status hdf5_float_read(hid_t dataset, const char *path, const hsize_t from[2], const hsize_t count[2], float *to,
                            hsize_t stride);

/* --- checkpoint_header.c: root and module attributes --- */

enum status header_write(hid_t file, const char *path, const struct checkpoint_header *header);
enum status header_read(hid_t file, const char *path, struct checkpoint_header *header);
enum status module_write(hid_t group, const char *path, const struct checkpoint_module *module);
enum status module_read(hid_t group, const char *path, struct checkpoint_module *module);

/* The dataset `config`: one string in a chunk, so that it is checksummed. */
enum status config_write(hid_t file, const char *path, const char *text);

/* *text_p is malloc'ed; NULL if the file has no configuration. */
enum status config_read_text(hid_t file, const char *path, int64_t file_size, char **text_p);

/* --- checkpoint_write.c --- */

/* Create all module groups with their attributes, in canonical order (so that
 * equal content gives equal bytes whatever the caller's order), and the header. */
enum status write_skeleton(hid_t file, const char *path, const struct checkpoint_header *header,
                           const struct checkpoint_module *modules, int n_modules);

/* Create the dataset of array's part as f32, f16 or bf16, with the attributes
 * rows, cols, row and col, and write its data. */
enum status write_array(hid_t file, const char *path, const struct checkpoint_array *array, enum dtype dtype);

/* Attributes that say which part of which whole a dataset holds. */
enum status write_extent(hid_t dataset, const char *path, const struct checkpoint_array *array);

/* Property list for creating any object: no time stamps. */
hid_t hdf5_untimed(hid_t class_id);

/* Canonical order: groups by number-aware comparison, then names. */
int array_order(const char *group_a, const char *name_a, const char *group_b, const char *name_b);

/* --- checkpoint_scan.c: what a file holds, all of it checked --- */

struct scan_array {
  struct checkpoint_array array; /* data NULL */
  bool is_virtual;
};

struct scan {
  struct checkpoint_header header;
  struct checkpoint_module *modules; /* in canonical order */
  int n_modules, modules_capacity;
  struct scan_array *arrays; /* in canonical order */
  int n_arrays, arrays_capacity;
  int64_t stored_bytes; /* of all datasets that hold data */
};

/* Layout, filters and external storage of one dataset: refuses whatever this
 * program does not write, and chunks or sizes that the file cannot hold.
 * *is_virtual_p NULL: a virtual dataset is refused too. */
enum status dataset_check_storage(hid_t dataset, const char *path, const char *where, int64_t file_size,
                                  bool *is_virtual_p);

/* Walk the whole file. Every link must be a hard link to a group or dataset,
 * every dataset a chunked, contiguous or virtual f32, f16 or bf16 matrix whose size its
 * attributes confirm and the file can hold. */
enum status scan_file(hid_t file, const char *path, int64_t file_size, struct scan *scan);
void scan_free(struct scan *scan);

/* --- checkpoint_cover.c --- */

/* A rectangle of an array and who holds it. */
struct piece {
  int64_t row, col, rows, cols;
  int source;
};

/* Where pieces fail to tile [rows, cols] exactly. */
struct cover_fault {
  enum { COVER_WHOLE, COVER_GAP, COVER_OVERLAP } kind;
  int first, second; /* sources that overlap */
  int64_t missing;   /* elements that no piece holds */
};

/* Sorts the pieces and checks that they cover [rows, cols] without gap or
 * overlap. */
void cover_check(struct piece *pieces, int n, int64_t rows, int64_t cols, struct cover_fault *fault);

/* --- checkpoint_virtual.c: adapter.h5 over the shards --- */

#define CHECKPOINT_MAX_SHARDS 4096

/* The shards of a step and what each holds, merged: each array with its pieces. */
struct shard_set {
  char (*files)[CHECKPOINT_NAME]; /* "shard-tp0000-pp0000.h5", sorted */
  int n_files;
  struct checkpoint_array *arrays; /* whole; in canonical order */
  int n_arrays;
  struct piece *pieces; /* of all arrays, one array after the other */
  int *first_piece;     /* [n_arrays + 1] */
};

/* Scan all shard-*.h5 of a directory; gaps, overlaps and contradictions are
 * STATUS_DATA naming array and shard. */
enum status shard_set_read(const char *directory, const struct checkpoint_header *header,
                           const struct checkpoint_module *modules, int n_modules, struct shard_set *set);
void shard_set_free(struct shard_set *set);

/* Write DIRECTORY/adapter.h5 with a virtual dataset per array. */
enum status shard_set_publish(const struct shard_set *set, const char *directory,
                              const struct checkpoint_header *header, const struct checkpoint_module *modules,
                              int n_modules, const char *config_text);

/* The pieces of a virtual dataset of an open file, checked: plain file names,
 * one rectangle each, the same dataset path in the source. files is a growing
 * list of source names, *pieces_p malloc'ed. */
struct source_list {
  char (*files)[CHECKPOINT_NAME];
  int n, capacity;
};
enum status virtual_pieces(hid_t file, const char *path, const struct checkpoint_array *array,
                           struct source_list *sources, struct piece **pieces_p, int *n_pieces_p);

/* --- checkpoint_manifest.c --- */

/* Write DIRECTORY/manifest.json over all files of the directory. */
enum status manifest_write(const char *directory, int64_t step);

/* Check DIRECTORY against its manifest: each file present, size and digest
 * right, adapter.h5 among them. *step_p is the step it states. */
enum status manifest_check(const char *directory, int64_t *step_p);

#endif
