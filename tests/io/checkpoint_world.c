#include "checkpoint_world.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BIG_IN 300000 /* A of the last module takes several chunks */

const char *const world_groups[N_MODULES] = {"layers/0/q", "layers/2/o", "layers/10/down"};
const int64_t world_ranks[N_MODULES] = {4, 3, 5};
const int64_t world_ins[N_MODULES] = {32, 48, BIG_IN};
const int64_t world_outs[N_MODULES] = {48, 32, 7};

static float element(int array, int64_t i) {
  return (float)((i * 2654435761u + (unsigned)array * 40503u) % 9973) / 97.0f;
}

int world_setup(void **state) {
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
    strcpy(module->group, world_groups[m]);
    module->r = world_ranks[m];
    module->in = world_ins[m];
    module->out = world_outs[m];
    module->alpha = 8.5 + m;
    module->rslora = m == 1;
    for (int k = 0; k < 4; k++) {
      struct checkpoint_array *array = &w->arrays[4 * m + k];
      strcpy(array->group, world_groups[m]);
      strcpy(array->name, names[k]);
      array->rows = array->part_rows = k % 2 ? world_outs[m] : world_ranks[m];
      array->cols = array->part_cols = k % 2 ? world_ranks[m] : world_ins[m];
      array->data = malloc((size_t)(array->rows * array->cols) * sizeof(float));
      for (int64_t i = 0; i < array->rows * array->cols; i++) array->data[i] = element(4 * m + k, i);
    }
  }
  *state = w;
  return 0;
}

int world_teardown(void **state) {
  struct world *w = *state;
  char command[128];
  for (int i = 0; i < N_ARRAYS; i++) free(w->arrays[i].data);
  snprintf(command, sizeof command, "rm -rf %s", w->root);
  free(w);
  return system(command);
}

struct checkpoint_array world_cut(const struct checkpoint_array *whole, int64_t row, int64_t rows, int64_t col,
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

void world_shard_arrays(const struct world *w, int t, int tp, struct checkpoint_array parts[N_ARRAYS]) {
  for (int i = 0; i < N_ARRAYS; i++) {
    const struct checkpoint_array *whole = &w->arrays[i];
    bool is_a = whole->name[0] == 'A', by_row = i < 4 && !is_a, by_col = i >= 4 && is_a;
    int64_t n = by_row ? whole->rows : whole->cols;
    int64_t begin = n * t * (t + 1) / (tp * (tp + 1)), end = n * (t + 1) * (t + 2) / (tp * (tp + 1));
    if (by_row)
      parts[i] = world_cut(whole, begin, end - begin, 0, whole->cols);
    else if (by_col)
      parts[i] = world_cut(whole, 0, whole->rows, begin, end - begin);
    else
      parts[i] = world_cut(whole, 0, t == 0 ? whole->rows : 0, 0, t == 0 ? whole->cols : 0);
  }
}

void world_write_shards(const struct world *w, const char *directory, int tp) {
  for (int t = 0; t < tp; t++) {
    struct checkpoint_array parts[N_ARRAYS];
    char file[32];
    world_shard_arrays(w, t, tp, parts);
    snprintf(file, sizeof file, "shard-%05d.h5", t);
    expect_ok(checkpoint_write_shard(directory, file, &w->header, w->modules, N_MODULES, parts, N_ARRAYS));
    for (int i = 0; i < N_ARRAYS; i++) free(parts[i].data);
  }
}

void world_write_stages(const struct world *w, const char *directory, int tp, int pp) {
  for (int s = 0; s < pp; s++)
    for (int t = 0; t < tp; t++) {
      struct checkpoint_array parts[N_ARRAYS];
      char file[32];
      world_shard_arrays(w, t, tp, parts);
      for (int i = 0; i < N_ARRAYS; i++)
        if (s != (i < 4 ? 0 : pp - 1)) parts[i].part_rows = parts[i].part_cols = 0;
      snprintf(file, sizeof file, "shard-tp%04d-pp%04d.h5", t, s);
      expect_ok(checkpoint_write_shard(directory, file, &w->header, w->modules, N_MODULES, parts, N_ARRAYS));
      for (int i = 0; i < N_ARRAYS; i++) free(parts[i].data);
    }
}

void world_publish_step(struct world *w, int64_t step, int tp, int keep_last) {
  char directory[256];
  w->header.step = step;
  expect_ok(checkpoint_begin(w->output, step, directory, sizeof directory));
  world_write_shards(w, directory, tp);
  expect_ok(checkpoint_publish(w->output, step, &w->header, w->modules, N_MODULES, "lora:\n  r: 4\n", keep_last));
}

bool world_has(const struct checkpoint *checkpoint, const char *group, const char *name) {
  const struct checkpoint_array *arrays;
  int n = checkpoint_arrays(checkpoint, &arrays);
  for (int i = 0; i < n; i++)
    if (strcmp(arrays[i].group, group) == 0 && strcmp(arrays[i].name, name) == 0) return true;
  return false;
}

void world_check_content(const struct world *w, const char *path, bool with_optimizer) {
  struct checkpoint *checkpoint = NULL;
  expect_ok(checkpoint_open(path, &checkpoint));
  assert_memory_equal(checkpoint_header(checkpoint), &w->header, sizeof w->header);
  assert_string_equal(checkpoint_config(checkpoint), "lora:\n  r: 4\n");
  const struct checkpoint_module *modules;
  assert_int_equal(checkpoint_modules(checkpoint, &modules), N_MODULES);
  for (int m = 0; m < N_MODULES; m++) {
    assert_string_equal(modules[m].group, world_groups[m]); /* layer 10 after layer 2 */
    assert_memory_equal(&modules[m], &w->modules[m], sizeof modules[m]);
  }
  for (int i = 0; i < N_ARRAYS; i++) {
    const struct checkpoint_array *whole = &w->arrays[i];
    bool expected = with_optimizer || !strchr(whole->name, '.');
    assert_int_equal(world_has(checkpoint, whole->group, whole->name), expected);
    if (!expected) continue;
    struct checkpoint_array read = *whole;
    read.data = malloc((size_t)(whole->rows * whole->cols) * sizeof(float));
    expect_ok(checkpoint_read(checkpoint, &read));
    assert_memory_equal(read.data, whole->data, (size_t)(whole->rows * whole->cols) * sizeof(float));
    free(read.data);
    /* A part that crosses every shard's edge. */
    int64_t row = whole->rows / 3, col = whole->cols / 3, rows = whole->rows - row, cols = whole->cols - col - 1;
    struct checkpoint_array want = world_cut(whole, row, rows, col, cols), got = want;
    got.data = calloc((size_t)(rows * cols + 1), sizeof(float));
    expect_ok(checkpoint_read(checkpoint, &got));
    assert_memory_equal(got.data, want.data, (size_t)(rows * cols) * sizeof(float));
    free(got.data);
    free(want.data);
  }
  checkpoint_close(&checkpoint);
  assert_null(checkpoint);
}

char *world_slurp(const char *path, size_t *size_p) {
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

void world_assert_same_bytes(const char *a, const char *b) {
  size_t size_a, size_b;
  char *bytes_a = world_slurp(a, &size_a), *bytes_b = world_slurp(b, &size_b);
  assert_int_equal(size_a, size_b);
  assert_memory_equal(bytes_a, bytes_b, size_a);
  free(bytes_a);
  free(bytes_b);
}

const char *world_path(const struct world *w, const char *name) {
  static char paths[4][256];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", w->root, name);
  return path;
}

void world_write_whole(struct world *w, const char *path) {
  expect_ok(checkpoint_write_file(path, &w->header, w->modules, N_MODULES, "lora:\n  r: 4\n", w->arrays, N_ARRAYS));
}

void world_patch(const char *path, off_t offset, char value) {
  int fd = open(path, O_RDWR);
  char byte;
  assert_true(fd >= 0);
  assert_int_equal(pread(fd, &byte, 1, offset), 1);
  byte = (char)(byte ^ value);
  assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
  close(fd);
}

off_t world_file_size(const char *path) {
  struct stat info;
  assert_int_equal(stat(path, &info), 0);
  return info.st_size;
}

int world_count_entries(const char *directory, const char *part) {
  int n = 0;
  DIR *stream = opendir(directory);
  assert_non_null(stream);
  for (struct dirent *entry; (entry = readdir(stream));) n += strstr(entry->d_name, part) != NULL;
  closedir(stream);
  return n;
}
