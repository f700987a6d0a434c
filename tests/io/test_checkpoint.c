/*
 * Adapter checkpoints: what is written is what is read, whatever happens to the
 * files in between is noticed, and nothing half-written is ever taken for whole.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/checkpoint.h"
#include "io/log.h"

/* HDF5 1.10 itself leaks what it had decoded when a checksum fails
 * (test_corrupt_file); ours would show as ids left open. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:libhdf5"; }

#define N_MODULES 3
#define N_ARRAYS  12 /* A, B, A.m, B.m of each */
#define BIG_IN    300000
static const char *const groups[N_MODULES] = {"layers/0/q", "layers/2/o", "layers/10/down"};
static const int64_t ranks[N_MODULES] = {4, 3, 5}, ins[N_MODULES] = {32, 48, BIG_IN}, outs[N_MODULES] = {48, 32, 7};

struct world {
  char root[64], output[128];
  struct checkpoint_header header;
  struct checkpoint_module modules[N_MODULES];
  struct checkpoint_array arrays[N_ARRAYS]; /* whole */
};

static float element(int array, int64_t i) {
  return (float)((i * 2654435761u + (unsigned)array * 40503u) % 9973) / 97.0f;
}

static int setup(void **state) {
  struct world *w = calloc(1, sizeof *w);
  strcpy(w->root, "/tmp/test_checkpoint_XXXXXX");
  assert_non_null(mkdtemp(w->root));
  snprintf(w->output, sizeof w->output, "%s/out", w->root);
  w->header = (struct checkpoint_header){.method = "lora",
                                         .program_version = "0.1.0",
                                         .base_fingerprint = "0123456789abcdef0123456789abcdef",
                                         .base_path = "/models/gpt2 \xc3\xa9",
                                         .base_family = "gpt2",
                                         .step = 100,
                                         .epoch = 2,
                                         .cursor = 77,
                                         .tokens_seen = INT64_C(5000000000),
                                         .seed = UINT64_C(0xfedcba9876543210),
                                         .data_digest = "feed",
                                         .extra_skipped_steps = 1,
                                         .n_layers = 12,
                                         .d_model = 32,
                                         .n_heads = 4,
                                         .n_kv_heads = 4,
                                         .head_dim = 8,
                                         .d_ffn = 128};
  static const char *const names[4] = {"A", "B", "A.m", "B.m"};
  for (int m = 0; m < N_MODULES; m++) {
    struct checkpoint_module *module = &w->modules[m];
    strcpy(module->group, groups[m]);
    module->r = ranks[m];
    module->in = ins[m];
    module->out = outs[m];
    module->alpha = 8.5 + m;
    module->rslora = m == 1;
    for (int k = 0; k < 4; k++) {
      struct checkpoint_array *array = &w->arrays[4 * m + k];
      strcpy(array->group, groups[m]);
      strcpy(array->name, names[k]);
      array->rows = array->part_rows = k % 2 ? outs[m] : ranks[m];
      array->cols = array->part_cols = k % 2 ? ranks[m] : ins[m];
      array->data = malloc((size_t)(array->rows * array->cols) * sizeof(float));
      for (int64_t i = 0; i < array->rows * array->cols; i++) array->data[i] = element(4 * m + k, i);
    }
  }
  *state = w;
  return 0;
}

static int teardown(void **state) {
  struct world *w = *state;
  char command[128];
  for (int i = 0; i < N_ARRAYS; i++) free(w->arrays[i].data);
  snprintf(command, sizeof command, "rm -rf %s", w->root);
  free(w);
  return system(command);
}

static void ok(enum status status) {
  if (status != STATUS_OK) fail_msg("%s", status_message());
}

/* The call failed with this code and a message that holds all the given words. */
static void refused(enum status status, enum status expected, const char *a, const char *b) {
  assert_int_equal(status, expected);
  if (!strstr(status_message(), a) || (b && !strstr(status_message(), b)))
    fail_msg("message lacks \"%s\" or \"%s\": %s", a, b ? b : "", status_message());
}

/* A part of a whole array, with its own data. */
static struct checkpoint_array cut(const struct checkpoint_array *whole, int64_t row, int64_t rows, int64_t col,
                                   int64_t cols) {
  struct checkpoint_array part = *whole;
  part.row = row;
  part.col = col;
  part.part_rows = rows;
  part.part_cols = cols;
  part.data = malloc((size_t)(rows * cols + 1) * sizeof(float));
  for (int64_t i = 0; i < rows; i++)
    memcpy(part.data + i * cols, whole->data + (row + i) * whole->cols + col, (size_t)cols * sizeof(float));
  return part;
}

/* The parts that rank t of tp holds: B of q by rows, A of o and down by columns,
 * the others whole on rank 0 only. Uneven on purpose. */
static void shard_arrays(const struct world *w, int t, int tp, struct checkpoint_array parts[N_ARRAYS]) {
  for (int i = 0; i < N_ARRAYS; i++) {
    const struct checkpoint_array *whole = &w->arrays[i];
    bool is_a = whole->name[0] == 'A', by_row = i < 4 && !is_a, by_col = i >= 4 && is_a;
    int64_t n = by_row ? whole->rows : whole->cols;
    int64_t begin = n * t * (t + 1) / (tp * (tp + 1)), end = n * (t + 1) * (t + 2) / (tp * (tp + 1));
    if (by_row)
      parts[i] = cut(whole, begin, end - begin, 0, whole->cols);
    else if (by_col)
      parts[i] = cut(whole, 0, whole->rows, begin, end - begin);
    else
      parts[i] = cut(whole, 0, t == 0 ? whole->rows : 0, 0, t == 0 ? whole->cols : 0);
  }
}

static void write_shards(const struct world *w, const char *directory, int tp) {
  for (int t = 0; t < tp; t++) {
    struct checkpoint_array parts[N_ARRAYS];
    char file[32];
    shard_arrays(w, t, tp, parts);
    snprintf(file, sizeof file, "shard-%05d.h5", t);
    ok(checkpoint_write_shard(directory, file, &w->header, w->modules, N_MODULES, parts, N_ARRAYS));
    for (int i = 0; i < N_ARRAYS; i++) free(parts[i].data);
  }
}

static void publish_step(struct world *w, int64_t step, int tp, int keep_last) {
  char directory[256];
  w->header.step = step;
  ok(checkpoint_begin(w->output, step, directory, sizeof directory));
  write_shards(w, directory, tp);
  ok(checkpoint_publish(w->output, step, &w->header, w->modules, N_MODULES, "lora:\n  r: 4\n", keep_last));
}

/* Everything in the file or step equals the world. */
static void check_content(const struct world *w, const char *path, bool with_optimizer) {
  struct checkpoint *checkpoint = NULL;
  ok(checkpoint_open(path, &checkpoint));
  assert_memory_equal(checkpoint_header(checkpoint), &w->header, sizeof w->header);
  assert_string_equal(checkpoint_config(checkpoint), "lora:\n  r: 4\n");
  const struct checkpoint_module *modules;
  assert_int_equal(checkpoint_modules(checkpoint, &modules), N_MODULES);
  for (int m = 0; m < N_MODULES; m++) {
    assert_string_equal(modules[m].group, groups[m]); /* layer 10 after layer 2 */
    assert_memory_equal(&modules[m], &w->modules[m], sizeof modules[m]);
  }
  for (int i = 0; i < N_ARRAYS; i++) {
    const struct checkpoint_array *whole = &w->arrays[i];
    bool expected = with_optimizer || !strchr(whole->name, '.');
    assert_int_equal(checkpoint_has(checkpoint, whole->group, whole->name), expected);
    if (!expected) continue;
    struct checkpoint_array read = *whole;
    read.data = malloc((size_t)(whole->rows * whole->cols) * sizeof(float));
    ok(checkpoint_read(checkpoint, &read));
    assert_memory_equal(read.data, whole->data, (size_t)(whole->rows * whole->cols) * sizeof(float));
    free(read.data);
    /* A part that crosses every shard's edge. */
    int64_t row = whole->rows / 3, col = whole->cols / 3, rows = whole->rows - row, cols = whole->cols - col - 1;
    struct checkpoint_array want = cut(whole, row, rows, col, cols), got = want;
    got.data = calloc((size_t)(rows * cols + 1), sizeof(float));
    ok(checkpoint_read(checkpoint, &got));
    assert_memory_equal(got.data, want.data, (size_t)(rows * cols) * sizeof(float));
    free(got.data);
    free(want.data);
  }
  checkpoint_close(&checkpoint);
  assert_null(checkpoint);
}

static char *slurp(const char *path, size_t *size_p) {
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  fseek(file, 0, SEEK_END);
  long size = ftell(file);
  rewind(file);
  char *bytes = malloc((size_t)size);
  assert_int_equal(fread(bytes, 1, (size_t)size, file), size);
  fclose(file);
  *size_p = (size_t)size;
  return bytes;
}

static void assert_same_bytes(const char *a, const char *b) {
  size_t size_a, size_b;
  char *bytes_a = slurp(a, &size_a), *bytes_b = slurp(b, &size_b);
  assert_int_equal(size_a, size_b);
  assert_memory_equal(bytes_a, bytes_b, size_a);
  free(bytes_a);
  free(bytes_b);
}

static const char *in(const struct world *w, const char *name) {
  static char paths[4][256];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", w->root, name);
  return path;
}

static void write_whole(struct world *w, const char *path) {
  ok(checkpoint_write_file(path, &w->header, w->modules, N_MODULES, "lora:\n  r: 4\n", w->arrays, N_ARRAYS));
}

static void test_round_trip_file(void **state) {
  struct world *w = *state;
  const char *path = in(w, "adapter.h5");
  write_whole(w, path);
  check_content(w, path, true);
  assert_int_not_equal(access(in(w, "adapter.h5.tmp"), F_OK), 0);
}

static void test_round_trip_step(void **state) {
  struct world *w = *state;
  for (int tp = 1; tp <= 3; tp++) {
    publish_step(w, tp, tp, 0);
    char path[256];
    int64_t step;
    ok(checkpoint_find_latest(w->output, path, sizeof path, &step));
    assert_int_equal(step, tp);
    check_content(w, path, true);
  }
}

/* Time stamps or caller's order in the file would break this; so would the
 * layout that a step was written in. */
static void test_equal_bytes(void **state) {
  struct world *w = *state;
  struct checkpoint_module modules[N_MODULES];
  struct checkpoint_array arrays[N_ARRAYS];
  write_whole(w, in(w, "a.h5"));
  sleep(1); /* HDF5's time stamps have seconds */
  for (int i = 0; i < N_MODULES; i++) modules[i] = w->modules[N_MODULES - 1 - i];
  for (int i = 0; i < N_ARRAYS; i++) arrays[i] = w->arrays[N_ARRAYS - 1 - i];
  ok(checkpoint_write_file(in(w, "b.h5"), &w->header, modules, N_MODULES, "lora:\n  r: 4\n", arrays, N_ARRAYS));
  assert_same_bytes(in(w, "a.h5"), in(w, "b.h5"));
  publish_step(w, 100, 3, 0);
  ok(checkpoint_gather(in(w, "out/step-000100"), in(w, "c.h5"), true));
  assert_same_bytes(in(w, "a.h5"), in(w, "c.h5"));
  ok(checkpoint_gather(in(w, "a.h5"), in(w, "d.h5"), true));
  assert_same_bytes(in(w, "a.h5"), in(w, "d.h5"));
}

static void test_gather_weights_only(void **state) {
  struct world *w = *state;
  publish_step(w, 100, 2, 0);
  ok(checkpoint_gather(in(w, "out/step-000100"), in(w, "weights.h5"), false));
  check_content(w, in(w, "weights.h5"), false);
  refused(checkpoint_gather(in(w, "out/step-000100"), in(w, "out/step-000100/adapter.h5"), false), STATUS_USAGE,
          "step directory", NULL);
}

static void test_moved_step(void **state) {
  struct world *w = *state;
  publish_step(w, 100, 2, 0);
  assert_int_equal(rename(in(w, "out/step-000100"), in(w, "elsewhere")), 0);
  assert_int_equal(rmdir(in(w, "out")) == 0 || errno == ENOTEMPTY, 1);
  check_content(w, in(w, "elsewhere"), true);
  check_content(w, in(w, "elsewhere/adapter.h5"), true);
}

/* Any HDF5 program sees whole arrays: read with plain HDF5, from another
 * working directory than the files'. */
static void test_plain_hdf5_reads(void **state) {
  struct world *w = *state;
  publish_step(w, 100, 3, 0);
  hid_t file = H5Fopen(in(w, "out/step-000100/adapter.h5"), H5F_ACC_RDONLY, H5P_DEFAULT);
  assert_true(file >= 0);
  hid_t dataset = H5Dopen2(file, "layers/0/q/B", H5P_DEFAULT);
  assert_true(dataset >= 0);
  float *data = calloc((size_t)(outs[0] * ranks[0]), sizeof(float));
  assert_true(H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
  assert_memory_equal(data, w->arrays[1].data, (size_t)(outs[0] * ranks[0]) * sizeof(float));
  free(data);
  hid_t type = H5Dget_type(dataset);
  assert_true(H5Tequal(type, H5T_IEEE_F32LE) > 0);
  H5Tclose(type);
  H5Dclose(dataset);
  H5Fclose(file);
}

static void patch(const char *path, off_t offset, char value) {
  int fd = open(path, O_RDWR);
  char byte;
  assert_true(fd >= 0);
  assert_int_equal(pread(fd, &byte, 1, offset), 1);
  byte = (char)(byte ^ value);
  assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
  close(fd);
}

static off_t size_of(const char *path) {
  struct stat info;
  assert_int_equal(stat(path, &info), 0);
  return info.st_size;
}

/* In a step the manifest's digest finds any changed byte; the previous step is
 * used then. */
static void test_corrupt_step(void **state) {
  struct world *w = *state;
  char path[256];
  int64_t step;
  struct checkpoint *checkpoint = NULL;
  publish_step(w, 100, 2, 0);
  publish_step(w, 200, 2, 0);
  const char *shard = in(w, "out/step-000200/shard-00001.h5");
  patch(shard, size_of(shard) / 2, 1);
  refused(checkpoint_open(in(w, "out/step-000200"), &checkpoint), STATUS_DATA, "shard-00001.h5", "digest");
  assert_null(checkpoint);
  ok(checkpoint_find_latest(w->output, path, sizeof path, &step));
  assert_int_equal(step, 100);
}

/* In a single file there is no manifest: Fletcher32 finds a changed byte of the
 * data, HDF5's own checksums one of the structure. Every 997th byte is tried;
 * none may be read as something else. */
static void test_corrupt_file(void **state) {
  struct world *w = *state;
  const char *path = in(w, "adapter.h5");
  w->modules[2].in = 600; /* a small file: each byte costs an open */
  for (int i = 8; i < 12; i += 2) w->arrays[i].cols = w->arrays[i].part_cols = 600;
  write_whole(w, path);
  off_t size = size_of(path);
  int noticed = 0, unnoticed = 0;
  for (off_t at = 0; at < size; at += 97) {
    patch(path, at, 0x10);
    struct checkpoint *checkpoint = NULL;
    bool bad = checkpoint_open(path, &checkpoint) != STATUS_OK;
    for (int i = 0; !bad && i < N_ARRAYS; i++) {
      struct checkpoint_array read = w->arrays[i];
      size_t bytes = (size_t)(read.rows * read.cols) * sizeof(float);
      read.data = malloc(bytes);
      bad = checkpoint_read(checkpoint, &read) != STATUS_OK;
      if (!bad && memcmp(read.data, w->arrays[i].data, bytes) != 0) fail_msg("byte %ld: wrong data read", (long)at);
      free(read.data);
    }
    if (!bad && memcmp(checkpoint_header(checkpoint), &w->header, sizeof w->header) != 0)
      fail_msg("byte %ld: wrong header read", (long)at);
    noticed += bad;
    unnoticed += !bad;
    checkpoint_close(&checkpoint);
    patch(path, at, 0x10);
  }
  check_content(w, path, true);
  /* Unnoticed bytes are unused space and heap padding between objects. */
  assert_true(noticed > 2 * unnoticed);
}

static void test_truncated(void **state) {
  struct world *w = *state;
  char path[256];
  int64_t step;
  struct checkpoint *checkpoint = NULL;
  write_whole(w, in(w, "adapter.h5"));
  off_t size = size_of(in(w, "adapter.h5"));
  assert_int_equal(truncate(in(w, "adapter.h5"), size - 1), 0);
  refused(checkpoint_open(in(w, "adapter.h5"), &checkpoint), STATUS_DATA, "adapter.h5", "truncated");
  assert_int_equal(truncate(in(w, "adapter.h5"), 4), 0);
  refused(checkpoint_open(in(w, "adapter.h5"), &checkpoint), STATUS_DATA, "adapter.h5", "not an HDF5 file");
  publish_step(w, 100, 2, 0);
  const char *shard = in(w, "out/step-000100/shard-00000.h5");
  assert_int_equal(truncate(shard, size_of(shard) - 1), 0);
  refused(checkpoint_open(in(w, "out/step-000100"), &checkpoint), STATUS_DATA, "shard-00000.h5", "bytes");
  /* The file alone, past the manifest, is no way around. */
  refused(checkpoint_open(in(w, "out/step-000100/adapter.h5"), &checkpoint), STATUS_DATA, "shard-00000.h5",
          "truncated");
  ok(checkpoint_find_latest(w->output, path, sizeof path, &step));
  assert_int_equal(step, -1);
}

static void test_missing_shard(void **state) {
  struct world *w = *state;
  struct checkpoint *checkpoint = NULL;
  publish_step(w, 100, 2, 0);
  assert_int_equal(unlink(in(w, "out/step-000100/shard-00001.h5")), 0);
  refused(checkpoint_open(in(w, "out/step-000100"), &checkpoint), STATUS_DATA, "shard-00001.h5", "manifest");
  /* HDF5 itself would fill in zeros here. */
  refused(checkpoint_open(in(w, "out/step-000100/adapter.h5"), &checkpoint), STATUS_DATA, "shard-00001.h5", NULL);
  /* A shard of another step, put in its place. */
  publish_step(w, 200, 2, 0);
  assert_int_equal(rename(in(w, "out/step-000200/shard-00001.h5"), in(w, "out/step-000100/shard-00001.h5")), 0);
  refused(checkpoint_open(in(w, "out/step-000100/adapter.h5"), &checkpoint), STATUS_DATA, "shard-00001.h5",
          "does not hold");
}

static void test_latest_points_nowhere(void **state) {
  struct world *w = *state;
  char path[256];
  int64_t step = 5;
  log_setup(1, 2, LOG_ERROR);                                      /* warnings are expected here */
  ok(checkpoint_find_latest(w->output, path, sizeof path, &step)); /* no output directory at all */
  assert_int_equal(step, -1);
  publish_step(w, 100, 1, 0);
  FILE *latest = fopen(in(w, "out/latest"), "w");
  fputs("step-000900\n", latest);
  fclose(latest);
  ok(checkpoint_find_latest(w->output, path, sizeof path, &step));
  assert_int_equal(step, 100);
  assert_string_equal(path, in(w, "out/step-000100"));
  assert_int_equal(unlink(in(w, "out/step-000100/manifest.json")), 0);
  ok(checkpoint_find_latest(w->output, path, sizeof path, &step));
  assert_int_equal(step, -1);
}

static int count_entries(const char *directory, const char *part) {
  int n = 0;
  DIR *stream = opendir(directory);
  assert_non_null(stream);
  for (struct dirent *entry; (entry = readdir(stream));) n += strstr(entry->d_name, part) != NULL;
  closedir(stream);
  return n;
}

static void test_stale_tmp_and_prune(void **state) {
  struct world *w = *state;
  char directory[256], path[256];
  int64_t step;
  ok(checkpoint_begin(w->output, 50, directory, sizeof directory));
  assert_string_equal(directory, in(w, "out/step-000050.tmp"));
  write_shards(w, directory, 1); /* killed here */
  ok(checkpoint_find_latest(w->output, path, sizeof path, &step));
  assert_int_equal(step, -1); /* a .tmp is no step */
  for (int64_t s = 100; s <= 500; s += 100) publish_step(w, s, 1, 2);
  assert_int_equal(count_entries(w->output, ".tmp"), 0);
  assert_int_equal(count_entries(w->output, "step-"), 2);
  check_content(w, in(w, "out/step-000500"), true);
  assert_int_equal(access(in(w, "out/step-000400/manifest.json"), F_OK), 0);
  /* The same step again replaces; one far behind the others is kept if new. */
  w->arrays[0].data[0] = 42;
  publish_step(w, 500, 2, 2);
  check_content(w, in(w, "out/step-000500"), true);
  publish_step(w, 7, 1, 2);
  check_content(w, in(w, "out/step-000007"), true);
  size_t size;
  char *text = slurp(in(w, "out/latest"), &size);
  assert_int_equal(size, 12);
  assert_memory_equal(text, "step-000007\n", 12);
  free(text);
}

/* Publish what the given change makes of two shards. */
static enum status publish_changed(struct world *w,
                                   void (*change)(struct checkpoint_array parts[N_ARRAYS], int shard)) {
  char directory[256];
  w->header.step = 100;
  ok(checkpoint_begin(w->output, 100, directory, sizeof directory));
  for (int t = 0; t < 2; t++) {
    struct checkpoint_array parts[N_ARRAYS];
    shard_arrays(w, t, 2, parts);
    change(parts, t);
    ok(checkpoint_write_shard(directory, t ? "shard-00001.h5" : "shard-00000.h5", &w->header, w->modules, N_MODULES,
                              parts, N_ARRAYS));
    for (int i = 0; i < N_ARRAYS; i++) free(parts[i].data);
  }
  enum status status = checkpoint_publish(w->output, 100, &w->header, w->modules, N_MODULES, "", 0);
  assert_int_not_equal(access(in(w, "out/step-000100"), F_OK), 0);
  return status;
}

static void make_gap(struct checkpoint_array parts[N_ARRAYS], int shard) {
  if (shard == 1) parts[1].part_rows -= 1;
}
static void make_overlap(struct checkpoint_array parts[N_ARRAYS], int shard) {
  if (shard == 0) parts[1].part_rows = parts[1].rows / 3 + 1;
  if (shard == 0) parts[1].data = realloc(parts[1].data, 4096);
}
static void drop_part(struct checkpoint_array parts[N_ARRAYS], int shard) {
  if (shard == 1) parts[4].part_rows = 0;
}
static void drop_array(struct checkpoint_array parts[N_ARRAYS], int shard) {
  (void)shard;
  parts[5].part_rows = 0;
}
static void other_size(struct checkpoint_array parts[N_ARRAYS], int shard) {
  if (shard == 1) parts[1].rows += 1;
}

static void test_gaps_and_overlaps(void **state) {
  struct world *w = *state;
  refused(publish_changed(w, make_gap), STATUS_DATA, "layers/0/q/B: 4 of 192 elements are in no shard",
          "shard-00000.h5");
  refused(publish_changed(w, make_overlap), STATUS_DATA, "layers/0/q/B", "shard-00000.h5 and shard-00001.h5");
  refused(publish_changed(w, drop_part), STATUS_DATA, "layers/2/o/A", "in no shard");
  refused(publish_changed(w, drop_array), STATUS_DATA, "layers/2/o/B is in none", "shard-00001.h5");
  refused(publish_changed(w, other_size), STATUS_DATA, "layers/0/q/B", "disagree");
  char directory[256];
  ok(checkpoint_begin(w->output, 100, directory, sizeof directory));
  refused(checkpoint_publish(w->output, 100, &w->header, w->modules, N_MODULES, "", 0), STATUS_DATA, "no shard-", NULL);
}

/* In a child with a limit on file size every kind of writing fails cleanly. */
static int write_within(struct world *w, rlim_t limit) {
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    struct rlimit size = {limit, limit};
    char directory[256];
    int code = 0;
    signal(SIGXFSZ, SIG_IGN);
    w->header.step = 300;
    if (checkpoint_begin(w->output, 300, directory, sizeof directory) != STATUS_OK) _exit(10);
    if (setrlimit(RLIMIT_FSIZE, &size) != 0) _exit(11);
    enum status status =
        checkpoint_write_shard(directory, "shard-00000.h5", &w->header, w->modules, N_MODULES, w->arrays, N_ARRAYS);
    if (status != STATUS_SYSTEM) code = 12;
    if (!strstr(status_message(), "shard-00000.h5")) code = 13;
    if (count_entries(directory, "shard") != 0) code = 14;
    exit(code); /* runs HDF5's own exit code too: it must not hang or crash */
  }
  int result;
  assert_int_equal(waitpid(child, &result, 0), child);
  return WIFEXITED(result) ? WEXITSTATUS(result) : 100 + WTERMSIG(result);
}

/* The same on a file system of 64 KiB of its own, where the reservation of the
 * space already fails. 77: no permission to mount. */
static int write_on_full_tmpfs(struct world *w) {
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    if (mkdir(w->output, 0777) != 0) _exit(10);
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", w->output, "tmpfs", 0, "size=64k") != 0)
      _exit(77);
    enum status status =
        checkpoint_write_shard(w->output, "shard-00000.h5", &w->header, w->modules, N_MODULES, w->arrays, N_ARRAYS);
    if (status != STATUS_SYSTEM || !strstr(status_message(), "No space left")) exit(12);
    exit(count_entries(w->output, "shard") == 0 ? 0 : 14);
  }
  int result;
  assert_int_equal(waitpid(child, &result, 0), child);
  return WIFEXITED(result) ? WEXITSTATUS(result) : 100 + WTERMSIG(result);
}

static void test_full_file_system(void **state) {
  int code = write_on_full_tmpfs(*state);
  if (code == 77) skip();
  assert_int_equal(code, 0);
}

static void test_full_disk(void **state) {
  struct world *w = *state;
  char path[256];
  int64_t step;
  publish_step(w, 200, 1, 0);
  off_t size = size_of(in(w, "out/step-000200/shard-00000.h5"));
  for (int i = 1; i < 20; i++) assert_int_equal(write_within(w, (rlim_t)(size * i / 20)), 0);
  for (int i = 1; i < 10; i++) assert_int_equal(write_within(w, (rlim_t)(size - 1 - 600 * (i - 1))), 0);
  ok(checkpoint_find_latest(w->output, path, sizeof path, &step));
  assert_int_equal(step, 200);
  check_content(w, path, true);
}

/* A hostile adapter.h5: a good one, with one thing put in. */
enum hostile {
  EXTERNAL_LINK,
  SOFT_LINK,
  EXTERNAL_STORAGE,
  VIRTUAL_ABSOLUTE,
  VIRTUAL_PARENT,
  HUGE_EXTENT,
  WRONG_TYPE,
  DEFLATE,
  CYCLE,
  TEXT_CONTROL
};

static void put_attributes(hid_t dataset, int64_t rows, int64_t cols) {
  hid_t space = H5Screate(H5S_SCALAR);
  int64_t zero = 0;
  const char *const names[4] = {"rows", "cols", "row", "col"};
  const int64_t *const values[4] = {&rows, &cols, &zero, &zero};
  for (int i = 0; i < 4; i++) {
    hid_t attribute = H5Acreate2(dataset, names[i], H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Awrite(attribute, H5T_NATIVE_INT64, values[i]) >= 0);
    H5Aclose(attribute);
  }
  H5Sclose(space);
}

static void put_dataset(hid_t file, enum hostile what, int64_t rows, int64_t cols) {
  hsize_t size[2] = {(hsize_t)rows, (hsize_t)cols}, chunk[2] = {1, 1};
  hid_t space = H5Screate_simple(2, size, NULL), list = H5Pcreate(H5P_DATASET_CREATE);
  if (what == EXTERNAL_STORAGE) assert_true(H5Pset_external(list, "/etc/passwd", 0, H5F_UNLIMITED) >= 0);
  if (what == VIRTUAL_ABSOLUTE)
    assert_true(H5Pset_virtual(list, space, "/etc/shard-0.h5", "/layers/0/q/X", space) >= 0);
  if (what == VIRTUAL_PARENT) assert_true(H5Pset_virtual(list, space, "../shard-0.h5", "/layers/0/q/X", space) >= 0);
  if (what == DEFLATE || what == HUGE_EXTENT) assert_true(H5Pset_chunk(list, 2, chunk) >= 0);
  if (what == DEFLATE) assert_true(H5Pset_deflate(list, 9) >= 0);
  hid_t dataset = H5Dcreate2(file, "layers/0/q/X", what == WRONG_TYPE ? H5T_IEEE_F64LE : H5T_IEEE_F32LE, space,
                             H5P_DEFAULT, list, H5P_DEFAULT);
  assert_true(dataset >= 0);
  put_attributes(dataset, rows, cols);
  H5Dclose(dataset);
  H5Pclose(list);
  H5Sclose(space);
}

static void make_hostile(struct world *w, const char *path, enum hostile what) {
  ok(checkpoint_write_file(path, &w->header, w->modules, 1, NULL, w->arrays, 2));
  hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_libver_bounds(access, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
  hid_t file = H5Fopen(path, H5F_ACC_RDWR, access);
  assert_true(file >= 0);
  hid_t root = H5Gopen2(file, "/", H5P_DEFAULT);
  switch (what) {
    case EXTERNAL_LINK:
      assert_true(H5Lcreate_external("/etc/other.h5", "/x", root, "layers/1", H5P_DEFAULT, H5P_DEFAULT) >= 0);
      break;
    case SOFT_LINK:
      assert_true(H5Lcreate_soft("/layers/0", root, "layers/1", H5P_DEFAULT, H5P_DEFAULT) >= 0);
      break;
    case CYCLE:
      assert_true(H5Lcreate_hard(root, "/", root, "layers/loop", H5P_DEFAULT, H5P_DEFAULT) >= 0);
      assert_true(H5Lcreate_hard(root, "/", root, "layers/loop2", H5P_DEFAULT, H5P_DEFAULT) >= 0);
      break;
    case TEXT_CONTROL: {
      hid_t attribute = H5Aopen(root, "base_family", H5P_DEFAULT), type = H5Aget_type(attribute);
      assert_true(H5Awrite(attribute, type, "\033[2J") >= 0);
      H5Tclose(type);
      H5Aclose(attribute);
      break;
    }
    case HUGE_EXTENT:
      put_dataset(root, what, INT64_C(1) << 20, INT64_C(1) << 18);
      break;
    default:
      put_dataset(root, what, 4, 4);
      break;
  }
  H5Gclose(root);
  H5Fclose(file);
  H5Pclose(access);
}

static void test_hostile(void **state) {
  struct world *w = *state;
  static const struct {
    enum hostile what;
    const char *word;
  } cases[] = {{EXTERNAL_LINK, "an external link is refused"},
               {SOFT_LINK, "a soft link is refused"},
               {EXTERNAL_STORAGE, "external storage is refused"},
               {VIRTUAL_ABSOLUTE, "virtual source \"/etc/shard-0.h5\" is refused"},
               {VIRTUAL_PARENT, "virtual source \"../shard-0.h5\" is refused"},
               {HUGE_EXTENT, "claims 1099511627776 bytes that the file does not hold"},
               {WRONG_TYPE, "layers/0/q/X: type is not 32-bit"},
               {DEFLATE, "layers/0/q/X: filter 1 is not supported"},
               {CYCLE, "too deeply"},
               {TEXT_CONTROL, "base_family has control characters"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const char *path = in(w, "hostile.h5");
    struct checkpoint *checkpoint = NULL;
    make_hostile(w, path, cases[i].what);
    refused(checkpoint_open(path, &checkpoint), STATUS_DATA, "hostile.h5", cases[i].word);
    assert_null(checkpoint);
  }
}

static void test_wrong_requests(void **state) {
  struct world *w = *state;
  struct checkpoint *checkpoint = NULL;
  refused(checkpoint_open(in(w, "nothing.h5"), &checkpoint), STATUS_USAGE, "nothing.h5", "no such");
  write_whole(w, in(w, "adapter.h5"));
  ok(checkpoint_open(in(w, "adapter.h5"), &checkpoint));
  struct checkpoint_array array = w->arrays[0];
  array.rows = array.part_rows = 5;
  refused(checkpoint_read(checkpoint, &array), STATUS_DATA, "layers/0/q/A is [4, 32], not [5, 32]", NULL);
  array = w->arrays[0];
  array.col = 1;
  refused(checkpoint_read(checkpoint, &array), STATUS_USAGE, "outside", NULL);
  strcpy(array.name, "C");
  refused(checkpoint_read(checkpoint, &array), STATUS_DATA, "layers/0/q/C", NULL);
  checkpoint_close(&checkpoint);
  array = w->arrays[0];
  array.part_cols = 31;
  refused(checkpoint_write_file(in(w, "x.h5"), &w->header, w->modules, N_MODULES, "", &array, 1), STATUS_USAGE,
          "not whole", NULL);
  struct checkpoint_header other = w->header;
  other.step = 1;
  refused(checkpoint_publish(w->output, 100, &other, w->modules, N_MODULES, "", 0), STATUS_USAGE, "step", NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_round_trip_file, setup, teardown),
      cmocka_unit_test_setup_teardown(test_round_trip_step, setup, teardown),
      cmocka_unit_test_setup_teardown(test_equal_bytes, setup, teardown),
      cmocka_unit_test_setup_teardown(test_gather_weights_only, setup, teardown),
      cmocka_unit_test_setup_teardown(test_moved_step, setup, teardown),
      cmocka_unit_test_setup_teardown(test_plain_hdf5_reads, setup, teardown),
      cmocka_unit_test_setup_teardown(test_corrupt_step, setup, teardown),
      cmocka_unit_test_setup_teardown(test_corrupt_file, setup, teardown),
      cmocka_unit_test_setup_teardown(test_truncated, setup, teardown),
      cmocka_unit_test_setup_teardown(test_missing_shard, setup, teardown),
      cmocka_unit_test_setup_teardown(test_latest_points_nowhere, setup, teardown),
      cmocka_unit_test_setup_teardown(test_stale_tmp_and_prune, setup, teardown),
      cmocka_unit_test_setup_teardown(test_gaps_and_overlaps, setup, teardown),
      cmocka_unit_test_setup_teardown(test_full_disk, setup, teardown),
      cmocka_unit_test_setup_teardown(test_full_file_system, setup, teardown),
      cmocka_unit_test_setup_teardown(test_hostile, setup, teardown),
      cmocka_unit_test_setup_teardown(test_wrong_requests, setup, teardown),
  };
  log_setup(0, 1, LOG_ERROR); /* warnings about broken steps are expected */
  return cmocka_run_group_tests(tests, NULL, NULL);
}
