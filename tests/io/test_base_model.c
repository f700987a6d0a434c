#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/base_model.h"
#include "io/quant.h"
#include "io/safetensors.h"

#define HF   FIXTURES "/stories260K"
#define GGUF FIXTURES "/stories260K-q.gguf"

static char folder[] = "/tmp/test_base_model.XXXXXX";

static const char *in_folder(const char *name) {
  static char paths[4][512];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

static int setup(void **state) {
  (void)state;
  return mkdtemp(folder) ? 0 : -1;
}

static const char *const made[] = {"config.json",        "model.safetensors", "model.safetensors.index.json",
                                   "a.safetensors",      "b.safetensors",     "pytorch_model.bin",
                                   "adapter_config.json"};

static void clear(void) {
  for (size_t i = 0; i < sizeof made / sizeof made[0]; i++) unlink(in_folder(made[i]));
}

static int teardown(void **state) {
  (void)state;
  clear();
  return rmdir(folder);
}

static struct tensor_source *open_ok(const char *path) {
  struct tensor_source *source = NULL;
  if (base_model_open(path, &source) != STATUS_OK) fail_msg("%s", status_message());
  return source;
}

static void test_tensors_listed_and_found(void **state) {
  (void)state;
  const char *const paths[] = {HF, GGUF};
  for (int p = 0; p < 2; p++) {
    struct tensor_source *source = open_ok(paths[p]);
    assert_int_equal(source->n_tensors, 5 * 9 + 2); /* 5 layers of 9, embedding, norm; tied */
    int64_t parameters = 0;
    for (int64_t i = 0; i < source->n_tensors; i++) {
      const struct tensor_info *info = source->at(source, i);
      if (i > 0) assert_true(strcmp(source->at(source, i - 1)->name, info->name) < 0);
      assert_ptr_equal(source->find(source, info->name), info);
      parameters += info->shape[0] * (info->n_dims == 2 ? info->shape[1] : 1);
    }
    assert_int_equal(parameters, 260032);
    assert_null(source->find(source, "model.layers.5.self_attn.q_proj.weight"));
    assert_int_equal(source->bytes_read, 0);
    assert_true(source->facts.n_layers == 5 && source->facts.n_kv_heads == 4 && source->facts.d_ffn == 172);
    assert_true(source->facts.n_vocab == 512 && source->facts.tied_head && source->facts.head_dim == 8);
    assert_true(source->facts.rotary_dim == 8 && source->facts.rope_theta == 10000);
    base_model_close(&source);
    assert_null(source);
  }
}

/* Largest error that a format may make on a value of a block whose largest
 * magnitude is `most` and whose range is `range`: half a step for the rounding
 * of the value, plus what rounding d (and m) to f16 moves (2^-11 relative, at
 * most the full scale times that). Q4_0 and Q5_0 put the largest magnitude on
 * one end of -8..7 (-16..15), so the other end may be clipped by a whole step. */
static double error_limit(enum dtype dtype, double most, double range) {
  double f16 = (most + range) * 0x1p-10;
  switch (dtype) {
    case DTYPE_F32:
      return 0;
    case DTYPE_F16:
      return fmax(most * 0x1p-11, 0x1p-25); /* below 2^-14 steps are 2^-24 */
    case DTYPE_BF16:
      return most * 0x1p-8;
    case DTYPE_Q8_0:
      return most / 127 / 2 + f16;
    case DTYPE_Q4_0:
      return most / 8 + f16;
    case DTYPE_Q5_0:
      return most / 16 + f16;
    case DTYPE_Q4_1:
      return range / 15 / 2 + f16;
    default:
      return range / 31 / 2 + f16; /* Q5_1 */
  }
}

/* The GGUF was made from the folder's weights with q and k re-ordered, so each
 * row must come back in its place, as close as its format can be. Rows in a
 * wrong place are off by about the weights' own size. */
static void test_gguf_equals_folder(void **state) {
  (void)state;
  struct tensor_source *hf = open_ok(HF), *gguf = open_ok(GGUF);
  unsigned seen = 0;
  for (int64_t t = 0; t < hf->n_tensors; t++) {
    const struct tensor_info *a = hf->at(hf, t), *b = gguf->find(gguf, a->name);
    assert_non_null(b);
    assert_memory_equal(a->shape, b->shape, sizeof a->shape);
    int64_t rows = a->n_dims == 2 ? a->shape[0] : 1, cols = a->shape[a->n_dims - 1];
    float *x = malloc((size_t)(rows * cols) * sizeof *x), *y = malloc((size_t)(rows * cols) * sizeof *y);
    assert_int_equal(base_model_read_f32(hf, a, 0, rows, 0, cols, x, cols), STATUS_OK);
    assert_int_equal(base_model_read_f32(gguf, b, 0, rows, 0, cols, y, cols), STATUS_OK);
    int64_t block = dtype_block(b->dtype);
    for (int64_t i = 0; i < rows * cols; i += block) {
      double most = 0, low = INFINITY, high = -INFINITY;
      for (int64_t j = i; j < i + block; j++) {
        most = fmax(most, fabs((double)x[j]));
        low = fmin(low, (double)x[j]);
        high = fmax(high, (double)x[j]);
      }
      for (int64_t j = i; j < i + block; j++)
        if (fabs((double)x[j] - (double)y[j]) > error_limit(b->dtype, most, high - low))
          fail_msg("%s (%s) weight %d: %g, expected %g", a->name, dtype_name(b->dtype), (int)j, (double)y[j],
                   (double)x[j]);
    }
    seen |= 1u << b->dtype;
    free(x);
    free(y);
  }
  assert_int_equal(seen, 0xff); /* all but the 256-wide blocks, which no row of this model holds */
  base_model_close(&hf);
  base_model_close(&gguf);
}

/* Any slice equals that part of the whole, and costs its own bytes exactly. */
static void test_slices_equal_whole(void **state) {
  (void)state;
  const char *const paths[] = {HF, GGUF};
  for (int p = 0; p < 2; p++) {
    struct tensor_source *source = open_ok(paths[p]);
    for (int64_t t = 0; t < 11; t++) { /* embedding, a whole layer, one more */
      const struct tensor_info *info = source->at(source, t);
      int64_t rows = info->n_dims == 2 ? info->shape[0] : 1, cols = info->shape[info->n_dims - 1];
      int64_t block = dtype_block(info->dtype), row_bytes = (int64_t)dtype_bytes(info->dtype, cols);
      char *whole = malloc((size_t)(rows * row_bytes)), *part = malloc((size_t)(rows * (row_bytes + 3)));
      source->bytes_read = 0;
      assert_int_equal(source->read(source, info, 0, rows, 0, cols, whole, (size_t)row_bytes), STATUS_OK);
      assert_int_equal(source->bytes_read, rows * row_bytes);
      for (int64_t trial = 0; trial < 8; trial++) {
        int64_t row = rows * trial / 16, n_rows = rows - row - rows * trial / 20;
        int64_t col = cols / block * (trial % 3) / 4 * block, n_cols = (cols - col) / block / (1 + trial % 2) * block;
        size_t n = dtype_bytes(info->dtype, n_cols), stride = n + (size_t)(trial % 4);
        source->bytes_read = 0;
        assert_int_equal(source->read(source, info, row, n_rows, col, n_cols, part, stride), STATUS_OK);
        assert_int_equal(source->bytes_read, (size_t)n_rows * n);
        for (int64_t i = 0; i < n_rows; i++)
          assert_memory_equal(part + (size_t)i * stride,
                              whole + (row + i) * row_bytes + (int64_t)dtype_bytes(info->dtype, col), n);
      }
      free(whole);
      free(part);
    }
    base_model_close(&source);
  }
}

/* Columns that begin and end inside blocks: the covering blocks are read. */
static void test_f32_any_columns(void **state) {
  (void)state;
  struct tensor_source *source = open_ok(GGUF);
  const struct tensor_info *info = source->find(source, "model.layers.2.self_attn.k_proj.weight"); /* q4_1 [32, 64] */
  assert_int_equal(info->dtype, DTYPE_Q4_1);
  float whole[32 * 64], part[32 * 7];
  assert_int_equal(base_model_read_f32(source, info, 0, 32, 0, 64, whole, 64), STATUS_OK);
  for (int64_t col = 0; col < 64; col += 5) {
    int64_t n_cols = col + 7 < 64 ? 7 : 64 - col;
    source->bytes_read = 0;
    assert_int_equal(base_model_read_f32(source, info, 3, 20, col, n_cols, part, 7), STATUS_OK);
    int64_t blocks = (col + n_cols - 1) / 32 - col / 32 + 1;
    assert_int_equal(source->bytes_read, 20 * blocks * 20);
    for (int64_t i = 0; i < 20; i++)
      assert_memory_equal(part + i * 7, whole + (3 + i) * 64 + col, (size_t)n_cols * sizeof *part);
  }
  base_model_close(&source);
}

static void test_bad_slices_refused(void **state) {
  (void)state;
  struct tensor_source *source = open_ok(GGUF);
  const struct tensor_info *info = source->find(source, "model.embed_tokens.weight"); /* q8_0 [512, 64] */
  char bytes[68];
  static const int64_t bad[][4] = {{512, 1, 0, 64}, {-1, 1, 0, 64}, {0, 513, 0, 64}, {0, 1, 0, 65},  {0, 1, 64, 32},
                                   {0, 1, 1, 32},   {0, 1, 0, 31},  {0, -1, 0, 64},  {0, 1, 32, -32}};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
    assert_int_equal(source->read(source, info, bad[i][0], bad[i][1], bad[i][2], bad[i][3], bytes, 68), STATUS_DATA);
  assert_int_equal(source->bytes_read, 0);
  base_model_close(&source);
}

/* --- folders that are not in order --- */

static void put(const char *name, const char *text) {
  FILE *file = fopen(in_folder(name), "wb");
  assert_non_null(file);
  fputs(text, file);
  fclose(file);
}

static void put_tensors(const char *name, const struct safetensors_entry *entries, int64_t n, float value) {
  struct safetensors_writer *writer = NULL;
  assert_int_equal(safetensors_writer_create(in_folder(name), entries, n, &writer), STATUS_OK);
  for (int64_t i = 0; i < n; i++) assert_int_equal(safetensors_writer_append(writer, &value, 4), STATUS_OK);
  assert_int_equal(safetensors_writer_finish(&writer), STATUS_OK);
}

static void expect_refused(const char *path, enum status expected, const char *says) {
  struct tensor_source *source = NULL;
  enum status status = base_model_open(path, &source);
  assert_null(source);
  if (status != expected || !strstr(status_message(), says))
    fail_msg("status %d, \"%s\" does not say \"%s\"", (int)status, status_message(), says);
}

static const char *const config = "{\"model_type\":\"llama\"}";

static void test_wrong_paths_refused(void **state) {
  (void)state;
  clear();
  expect_refused(in_folder("nothing"), STATUS_USAGE, "no such base model");
  expect_refused(folder, STATUS_USAGE, "no config.json");
  put("adapter_config.json", "{}");
  expect_refused(folder, STATUS_USAGE, "an adapter, not a base model");
  put("config.json", config);
  expect_refused(folder, STATUS_USAGE, "no model.safetensors");
  put("pytorch_model.bin", "");
  expect_refused(folder, STATUS_USAGE, "save_pretrained");
  put("config.json", "{");
  expect_refused(folder, STATUS_DATA, "config.json:1");
  expect_refused(FIXTURES "/make_gguf.py", STATUS_USAGE, "not a GGUF file");
}

static const struct safetensors_entry t1 = {"t1", DTYPE_F32, 1, {1}}, t2 = {"t2", DTYPE_F32, 1, {1}};
static const struct safetensors_entry both[] = {{"t1", DTYPE_F32, 1, {1}}, {"t2", DTYPE_F32, 1, {1}}};

static void test_sharded(void **state) {
  (void)state;
  const char *map = "{\"weight_map\":{\"t1\":\"a.safetensors\",\"t2\":\"b.safetensors\"}}";
  clear();
  put("config.json", config);
  put("model.safetensors.index.json", map);
  put_tensors("a.safetensors", &t1, 1, 1);
  expect_refused(folder, STATUS_DATA, "b.safetensors is not in the folder (it holds tensor t2)");
  put_tensors("b.safetensors", &t1, 1, 2);
  expect_refused(folder, STATUS_DATA, "tensor t2 should be in b.safetensors");
  put_tensors("b.safetensors", both, 2, 2); /* t1 is in both: the map decides */
  struct tensor_source *source = open_ok(folder);
  float value = 0;
  assert_int_equal(source->n_tensors, 2);
  assert_int_equal(base_model_read_f32(source, source->find(source, "t1"), 0, 1, 0, 1, &value, 1), STATUS_OK);
  assert_true(value == 1);
  assert_int_equal(base_model_read_f32(source, source->find(source, "t2"), 0, 1, 0, 1, &value, 1), STATUS_OK);
  assert_true(value == 2);
  base_model_close(&source);

  put("model.safetensors.index.json", "{\"weight_map\":{\"t2\":\"b.safetensors\"}}"); /* t1 unmapped, but once */
  source = open_ok(folder);
  assert_int_equal(source->n_tensors, 2);
  base_model_close(&source);
  put_tensors("a.safetensors", both, 2, 1);
  put("model.safetensors.index.json", map);
  put_tensors("b.safetensors", both, 2, 1);
  source = open_ok(folder);
  assert_int_equal(source->n_tensors, 2);
  base_model_close(&source);

  put("model.safetensors.index.json", "{\"weight_map\":{\"t1\":\"../a.safetensors\"}}");
  expect_refused(folder, STATUS_DATA, "same folder");
  put("model.safetensors.index.json", "{\"weight_map\":{\"t1\":7}}");
  expect_refused(folder, STATUS_DATA, "same folder");
  put("model.safetensors.index.json", "{}");
  expect_refused(folder, STATUS_DATA, "weight_map");

  put("model.safetensors.index.json", map);
  assert_int_equal(truncate(in_folder("b.safetensors"), 100), 0);
  expect_refused(folder, STATUS_DATA, "b.safetensors");
}

/* A tensor in two files of which the map names neither. */
static void test_ambiguous_tensor_refused(void **state) {
  (void)state;
  static const struct safetensors_entry a[] = {{"m", DTYPE_F32, 1, {1}}, {"x", DTYPE_F32, 1, {1}}};
  static const struct safetensors_entry b[] = {{"n", DTYPE_F32, 1, {1}}, {"x", DTYPE_F32, 1, {1}}};
  clear();
  put("config.json", config);
  put("model.safetensors.index.json", "{\"weight_map\":{\"m\":\"a.safetensors\",\"n\":\"b.safetensors\"}}");
  put_tensors("a.safetensors", a, 2, 1);
  put_tensors("b.safetensors", b, 2, 1);
  expect_refused(folder, STATUS_DATA, "tensor x is in");
}

/* The single file wins over an index; buffers are left out; other dtypes of
 * what could be a weight are refused by name. */
static void test_single_file(void **state) {
  (void)state;
  clear();
  put("config.json", config);
  put("model.safetensors.index.json", "broken");
  put_tensors("model.safetensors", (struct safetensors_entry[]){{"h.0.attn.bias", DTYPE_F32, 4, {1, 1, 1, 1}}, t1, t2},
              3, 1);
  struct tensor_source *source = open_ok(folder);
  assert_int_equal(source->n_tensors, 2);
  assert_null(source->find(source, "h.0.attn.bias"));
  base_model_close(&source);

  const char *header = "{\"w\":{\"dtype\":\"I8\",\"shape\":[0],\"data_offsets\":[0,0]}}";
  FILE *file = fopen(in_folder("model.safetensors"), "wb");
  for (int i = 0; i < 8; i++) fputc(i == 0 ? (int)strlen(header) : 0, file);
  fputs(header, file);
  fclose(file);
  expect_refused(folder, STATUS_USAGE, "tensor w is I8");
}

static void test_fingerprint(void **state) {
  (void)state;
  char first[FINGERPRINT_SIZE], again[FINGERPRINT_SIZE], other[FINGERPRINT_SIZE];
  struct tensor_source *source = open_ok(HF);
  assert_int_equal(base_model_fingerprint(source, first), STATUS_OK);
  assert_int_equal(source->bytes_read, 0);
  base_model_close(&source);
  source = open_ok(HF "/"); /* the same base by another path */
  assert_int_equal(base_model_fingerprint(source, again), STATUS_OK);
  base_model_close(&source);
  assert_string_equal(first, again);
  assert_int_equal(strlen(first), 32);
  source = open_ok(GGUF);
  assert_int_equal(base_model_fingerprint(source, other), STATUS_OK);
  base_model_close(&source);
  assert_string_not_equal(first, other);

  clear(); /* one weight, one fact, one name changed: another base each time */
  const char *configs[] = {config, config, "{\"model_type\":\"llama\",\"rope_theta\":5}", config};
  char prints[4][FINGERPRINT_SIZE];
  for (int i = 0; i < 4; i++) {
    put("config.json", configs[i]);
    put_tensors("model.safetensors", i == 3 ? &t2 : &t1, 1, i == 1 ? 2.0f : 1.0f);
    source = open_ok(folder);
    assert_int_equal(base_model_fingerprint(source, prints[i]), STATUS_OK);
    base_model_close(&source);
    for (int j = 0; j < i; j++) assert_string_not_equal(prints[i], prints[j]);
  }
}

static void test_close_null(void **state) {
  (void)state;
  struct tensor_source *source = NULL;
  base_model_close(&source);
  assert_null(source);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_tensors_listed_and_found),
      cmocka_unit_test(test_gguf_equals_folder),
      cmocka_unit_test(test_slices_equal_whole),
      cmocka_unit_test(test_f32_any_columns),
      cmocka_unit_test(test_bad_slices_refused),
      cmocka_unit_test(test_wrong_paths_refused),
      cmocka_unit_test(test_sharded),
      cmocka_unit_test(test_ambiguous_tensor_refused),
      cmocka_unit_test(test_single_file),
      cmocka_unit_test(test_fingerprint),
      cmocka_unit_test(test_close_null),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
