#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/file_read.h"
#include "io/gguf.h"
#include "io/gguf_model.h"

static char folder[] = "/tmp/test_gguf.XXXXXX";
static char path[64];

static int setup(void **state) {
  (void)state;
  if (!mkdtemp(folder)) return -1;
  snprintf(path, sizeof path, "%s/file.gguf", folder);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  unlink(path);
  return rmdir(folder);
}

/* --- a file built value by value --- */

static unsigned char bytes[8192];
static size_t n_bytes;

static void add(uint64_t value, size_t n) {
  for (size_t i = 0; i < n; i++) bytes[n_bytes++] = (unsigned char)(value >> (8 * i));
}
static void add_string(const char *text) {
  add(strlen(text), 8);
  memcpy(bytes + n_bytes, text, strlen(text));
  n_bytes += strlen(text);
}
static void begin(uint32_t version, uint64_t n_tensors, uint64_t n_keys) {
  n_bytes = 0;
  add(0x46554747, 4);
  add(version, 4);
  add(n_tensors, 8);
  add(n_keys, 8);
}
static void add_u32(const char *key, uint32_t value) {
  add_string(key);
  add(4, 4);
  add(value, 4);
}
static void add_tensor(const char *name, uint64_t ne0, uint64_t ne1, uint32_t type, uint64_t offset) {
  add_string(name);
  add(2, 4);
  add(ne0, 8);
  add(ne1, 8);
  add(type, 4);
  add(offset, 8);
}
static void end(size_t n_data) {
  while (n_bytes % 32) add(0, 1);
  for (size_t i = 0; i < n_data; i++) add(i, 1);
}
static void put(void) {
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(bytes, 1, n_bytes, file), n_bytes);
  fclose(file);
}

static void expect_refused(enum status expected, const char *says) {
  struct gguf *gguf = NULL;
  put();
  enum status status = gguf_open(path, &gguf);
  assert_null(gguf);
  if (status != expected || !strstr(status_message(), says) || !strstr(status_message(), path))
    fail_msg("status %d, \"%s\" does not say \"%s\"", (int)status, status_message(), says);
}

static void test_good_file(void **state) {
  (void)state;
  begin(2, 2, 6);
  add_u32("a", 7);
  add_string("b"), add(11, 4), add((uint64_t)-3, 8);                  /* i64 */
  add_string("c"), add(9, 4), add(9, 4), add(1, 8);                   /* array of arrays */
  add(5, 4), add(2, 8), add(1, 4), add(2, 4);                         /* of two i32 */
  add_string("d"), add(9, 4), add(0, 4), add(3, 8), add(0xff0201, 3); /* u8 array */
  add_string("e"), add(7, 4), add(1, 1);                              /* bool */
  add_string("empty"), add(9, 4), add(8, 4), add(0, 8);
  add_tensor("w", 32, 2, 8, 32);
  add_tensor("v", 4, 2, 0, 0);
  end(32 + 68);
  size_t data = n_bytes - 100;
  put();
  struct gguf *gguf = NULL;
  if (gguf_open(path, &gguf) != STATUS_OK) fail_msg("%s", status_message());
  int64_t i64 = 0;
  float f32 = 0;
  bool flag = false;
  assert_int_equal(gguf_get_i64(gguf, "b", &i64), STATUS_OK);
  assert_int_equal(i64, -3);
  assert_int_equal(gguf_get_f32(gguf, "a", &f32), STATUS_OK);
  assert_true(f32 == 7);
  assert_int_equal(gguf_get_bool(gguf, "e", &flag), STATUS_OK);
  assert_true(flag);
  assert_int_equal(gguf_get_bool(gguf, "a", &flag), STATUS_DATA);
  assert_int_equal(gguf_get_i64(gguf, "none", &i64), STATUS_DATA);
  assert_non_null(strstr(status_message(), "key none is missing"));
  assert_true(gguf_has(gguf, "c") && !gguf_has(gguf, "cc") && !gguf_has(gguf, ""));
  int32_t *integers = NULL;
  struct gguf_string *strings = NULL;
  int64_t n = 0;
  assert_int_equal(gguf_get_i32s(gguf, "c", &integers, &n), STATUS_DATA);
  assert_int_equal(gguf_get_i32s(gguf, "d", &integers, &n), STATUS_OK);
  assert_true(n == 3 && integers[0] == 1 && integers[1] == 2 && integers[2] == 255);
  free(integers);
  assert_int_equal(gguf_get_strings(gguf, "empty", &strings, &n), STATUS_OK);
  assert_int_equal(n, 0);
  free(strings);

  assert_int_equal(gguf_n_tensors(gguf), 2);
  const struct gguf_tensor *w = gguf_tensor_at(gguf, 0);
  assert_string_equal(w->name, "w");
  assert_true(w->dtype == DTYPE_Q8_0 && w->shape[0] == 2 && w->shape[1] == 32 && w->bytes == 68);
  assert_int_equal(w->offset, data + 32);
  gguf_close(&gguf);
  assert_null(gguf);
}

static void test_header_refused(void **state) {
  (void)state;
  begin(1, 0, 0), end(0);
  expect_refused(STATUS_USAGE, "version other than 2 and 3");
  begin(0x03000000, 0, 0), end(0);
  expect_refused(STATUS_USAGE, "big-endian");
  begin(3, 0, 0), bytes[0] = 'g', end(0);
  expect_refused(STATUS_USAGE, "not a GGUF file");
  begin(3, 0, 0), n_bytes = 20;
  expect_refused(STATUS_DATA, "too short");
  begin(3, UINT64_MAX, 0), end(0);
  expect_refused(STATUS_DATA, "more tensors");
  begin(3, 0, UINT64_MAX), end(0);
  expect_refused(STATUS_DATA, "more keys");
  begin(3, 0, 2), add_u32("a", 1), add_u32("a", 2), end(0);
  expect_refused(STATUS_DATA, "key occurs twice");
  begin(3, 0, 1), add(UINT64_MAX, 8), end(8);
  expect_refused(STATUS_DATA, "past the end");
  begin(3, 0, 1), add_string("a"), add(13, 4), end(8);
  expect_refused(STATUS_DATA, "unknown type");
  begin(3, 0, 1), add_string("a"), add(9, 4), add(13, 4), add(1, 8), end(8);
  expect_refused(STATUS_DATA, "unknown type");
  begin(3, 0, 1), add_string("a"), add(9, 4), add(4, 4), add(UINT64_MAX / 4, 8), end(8);
  expect_refused(STATUS_DATA, "longer than the file");
  begin(3, 0, 1), add_string("a"), add(9, 4);
  for (int depth = 0; depth < 8; depth++) add(9, 4), add(1, 8);
  end(8);
  expect_refused(STATUS_DATA, "nested too deep");
  begin(3, 0, 1), add_u32("general.alignment", 12), end(0);
  expect_refused(STATUS_DATA, "general.alignment");
  begin(3, 0, 1), add_u32("general.alignment", 0), end(0);
  expect_refused(STATUS_DATA, "general.alignment");
  begin(3, 0, 1), add_u32("split.count", 3), end(0);
  expect_refused(STATUS_USAGE, "split");
}

static void test_tensors_refused(void **state) {
  (void)state;
  begin(3, 1, 0), add_tensor("t", 32, 1, 10, 0), end(128);
  expect_refused(STATUS_USAGE, "GGML type 10");
  begin(3, 1, 0), add_tensor("t", 31, 1, 8, 0), end(128);
  expect_refused(STATUS_DATA, "whole number of blocks");
  begin(3, 1, 0), add_tensor("t", 1ull << 40, 1ull << 40, 0, 0), end(128);
  expect_refused(STATUS_DATA, "too large");
  begin(3, 1, 0), add_tensor("t", 8, 4, 0, 32), end(128);
  expect_refused(STATUS_DATA, "past the end of the file");
  begin(3, 1, 0), add_tensor("t", 8, 4, 0, UINT64_MAX - 31), end(128);
  expect_refused(STATUS_DATA, "past the end of the file");
  begin(3, 1, 0), add_tensor("t", 8, 1, 0, 4), end(128);
  expect_refused(STATUS_DATA, "not aligned");
  begin(3, 2, 0), add_tensor("t", 8, 1, 0, 0), add_tensor("t", 8, 1, 0, 32), end(128);
  expect_refused(STATUS_DATA, "name occurs twice");
  begin(3, 2, 0), add_tensor("t", 8, 2, 0, 0), add_tensor("u", 8, 1, 0, 32), end(128);
  expect_refused(STATUS_DATA, "overlaps");
  begin(3, 1, 0), add_tensor("", 8, 1, 0, 0), end(128);
  expect_refused(STATUS_DATA, "tensor name");
  char name[66];
  memset(name, 'n', 65);
  name[65] = 0;
  begin(3, 1, 0), add_tensor(name, 8, 1, 0, 0), end(128);
  expect_refused(STATUS_DATA, "tensor name");
  begin(3, 1, 0), add_string("t"), add(5, 4), end(128);
  expect_refused(STATUS_DATA, "axes");
}

/* Every shorter file is an error and none a crash: each cut of the header, and
 * the last byte of data. */
static void test_truncated_refused(void **state) {
  (void)state;
  char *text = NULL;
  size_t length = 0;
  assert_int_equal(file_read_text(FIXTURES "/stories260K-q.gguf", 1 << 20, &text, &length), STATUS_OK);
  FILE *file = fopen(path, "wb");
  assert_int_equal(fwrite(text, 1, length, file), length);
  fclose(file);
  free(text);
  struct gguf *gguf = NULL;
  assert_int_equal(gguf_open(path, &gguf), STATUS_OK);
  uint64_t first = UINT64_MAX;
  for (int64_t i = 0; i < gguf_n_tensors(gguf); i++)
    if (gguf_tensor_at(gguf, i)->offset < first) first = gguf_tensor_at(gguf, i)->offset;
  gguf_close(&gguf);
  size_t cut = length - 1;
  while (cut > 0) {
    assert_int_equal(truncate(path, (off_t)cut), 0);
    assert_int_equal(gguf_open(path, &gguf), STATUS_DATA);
    cut = cut > first ? first : cut - (cut < 23 ? cut : 23);
  }
}

/* The tokenizer's keys of a file that the gguf package wrote. */
static void test_written_by_gguf_package(void **state) {
  (void)state;
  struct gguf *gguf = NULL;
  assert_int_equal(gguf_open(FIXTURES "/stories260K-q.gguf", &gguf), STATUS_OK);
  struct gguf_string model, *tokens = NULL;
  float *scores = NULL;
  int32_t *types = NULL;
  int64_t n = 0;
  bool bos = false;
  assert_int_equal(gguf_get_string(gguf, "tokenizer.ggml.model", &model), STATUS_OK);
  assert_true(model.length == 5 && memcmp(model.text, "llama", 5) == 0);
  assert_int_equal(gguf_get_strings(gguf, "tokenizer.ggml.tokens", &tokens, &n), STATUS_OK);
  assert_int_equal(n, 512);
  assert_true(tokens[2].length == 4 && memcmp(tokens[2].text, "</s>", 4) == 0);
  assert_true(tokens[258].length == 6 && memcmp(tokens[258].text, "<0xFF>", 6) == 0);
  assert_int_equal(gguf_get_f32s(gguf, "tokenizer.ggml.scores", &scores, &n), STATUS_OK);
  assert_true(n == 512 && scores[260] == -1);
  assert_int_equal(gguf_get_i32s(gguf, "tokenizer.ggml.token_type", &types, &n), STATUS_OK);
  assert_true(n == 512 && types[0] == 2 && types[1] == 3 && types[3] == 6 && types[259] == 1);
  assert_int_equal(gguf_get_bool(gguf, "tokenizer.ggml.add_bos_token", &bos), STATUS_OK);
  assert_true(bos);
  assert_int_equal(gguf_get_strings(gguf, "tokenizer.ggml.scores", &tokens, &n), STATUS_DATA);
  free(tokens);
  free(scores);
  free(types);
  gguf_close(&gguf);
}

static void test_names(void **state) {
  (void)state;
  static const char *const names[][2] = {
      {"token_embd.weight", "model.embed_tokens.weight"},
      {"output.weight", "lm_head.weight"},
      {"output_norm.weight", "model.norm.weight"},
      {"blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"},
      {"blk.12.attn_k.bias", "model.layers.12.self_attn.k_proj.bias"},
      {"blk.3.attn_q_norm.weight", "model.layers.3.self_attn.q_norm.weight"},
      {"blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"},
      {"blk.3.unknown.weight", "blk.3.unknown.weight"},
      {"blk.x.attn_q.weight", "blk.x.attn_q.weight"},
      {"blk.", "blk."},
      {"output", "output"},
  };
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    char hf_name[128];
    gguf_model_name(names[i][0], hf_name, sizeof hf_name);
    assert_string_equal(hf_name, names[i][1]);
  }
  struct model_facts facts = {.family = "llama", .n_heads = 8, .n_kv_heads = 4};
  assert_int_equal(gguf_model_permuted_heads("blk.0.attn_q.weight", &facts), 8);
  assert_int_equal(gguf_model_permuted_heads("blk.0.attn_k.bias", &facts), 4);
  assert_int_equal(gguf_model_permuted_heads("blk.0.attn_v.weight", &facts), 0);
  assert_int_equal(gguf_model_permuted_heads("blk.0.attn_q_norm.weight", &facts), 0);
  strcpy(facts.family, "qwen2");
  assert_int_equal(gguf_model_permuted_heads("blk.0.attn_q.weight", &facts), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_good_file),
      cmocka_unit_test(test_header_refused),
      cmocka_unit_test(test_tensors_refused),
      cmocka_unit_test(test_truncated_refused),
      cmocka_unit_test(test_written_by_gguf_package),
      cmocka_unit_test(test_names),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
