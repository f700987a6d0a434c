/*
 * Tokenizers from GGUF keys: the same ids as the tokenizer.json that holds the
 * same tables. The stories260K model gives the SentencePiece kind; byte-level
 * ones are written here from the fixtures' tables. No tolerance.
 */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* keep after the headers above: cmocka needs them */
#include <cmocka.h>

#include "tokenizer_corpus.h"

enum { GGUF_I32 = 5, GGUF_BOOL = 7, GGUF_STRING = 8, GGUF_ARRAY = 9 };

static struct corpus corpus;
static char path[64];

static int load(void **state) {
  (void)state;
  corpus_load(&corpus);
  strcpy(path, "/tmp/lorashard-gguf-XXXXXX.gguf");
  int fd = mkstemps(path, 5);
  return fd < 0 ? -1 : close(fd);
}

static int unload(void **state) {
  (void)state;
  corpus_free(&corpus);
  return unlink(path);
}

static void compare(const struct tokenizer *a, const struct tokenizer *b, bool (*leave_out)(const char *),
                    size_t at_least, bool with_special) {
  size_t compared = 0;
  for (size_t i = 0; i < corpus.n; i++) {
    if (leave_out && leave_out(corpus.lines[i])) continue;
    for (int special = 0; special <= with_special; special++) {
      char *left = ids_text(a, corpus.lines[i], corpus.lengths[i], special);
      char *right = ids_text(b, corpus.lines[i], corpus.lengths[i], special);
      if (strcmp(left, right) != 0) fail_msg("line %zu: %s\ninstead of %s", i + 1, left, right);
      free(left);
      free(right);
    }
    compared++;
  }
  assert_true(compared >= at_least);
}

/* In a GGUF the unknown token is not searched for in the text. */
static bool has_unk(const char *line) { return strstr(line, "<unk>") != NULL; }

static void test_sentencepiece(void **state) {
  (void)state;
  struct tokenizer *a = NULL, *b = NULL;
  assert_int_equal(tokenizer_open(FIXTURES "/stories260K-q.gguf", &a), STATUS_OK);
  assert_int_equal(tokenizer_open(FIXTURES "/stories260K", &b), STATUS_OK);
  compare(a, b, has_unk, 1900, true);
  assert_int_equal(tokenizer_bos(a), 1);
  assert_int_equal(tokenizer_eos(a), 2);
  assert_true(tokenizer_adds_bos(a) && tokenizer_is_end(a, 2));
  struct token_list list = {0};
  const char *text = " two  spaces\nand \xF0\x9F\x98\x80";
  char *decoded;
  size_t n;
  assert_int_equal(tokenizer_encode(a, text, strlen(text), true, true, &list), STATUS_OK);
  assert_int_equal(tokenizer_decode(a, list.ids, list.n, true, &decoded, &n), STATUS_OK);
  assert_string_equal(decoded, text);
  free(decoded);
  token_list_free(&list);
  tokenizer_close(&a);
  tokenizer_close(&b);
}

/* ---- writing a GGUF without tensors ---- */

static void put(FILE *file, const void *data, size_t n) { assert_int_equal(fwrite(data, 1, n, file), n); }

static void put_u32(FILE *file, uint32_t value) { put(file, &value, sizeof value); }

static void put_string(FILE *file, const char *text, uint64_t n) {
  put(file, &n, sizeof n);
  put(file, text, n);
}

static void put_key(FILE *file, const char *key, uint32_t type) {
  put_string(file, key, strlen(key));
  put_u32(file, type);
}

static void put_text_key(FILE *file, const char *key, const char *text) {
  put_key(file, key, GGUF_STRING);
  put_string(file, text, strlen(text));
}

static void put_array(FILE *file, const char *key, uint32_t type, uint64_t n) {
  put_key(file, key, GGUF_ARRAY);
  put_u32(file, type);
  put(file, &n, sizeof n);
}

static int32_t type_of(const json_t *added, size_t id) {
  for (size_t i = 0; i < json_array_size(added); i++) {
    const json_t *item = json_array_get(added, i);
    if ((size_t)json_integer_value(json_object_get(item, "id")) == id)
      return json_is_true(json_object_get(item, "special")) ? 3 : 4;
  }
  return 1;
}

static void put_tokens(FILE *file, const json_t *root) {
  const json_t *vocab = json_object_get(json_object_get(root, "model"), "vocab"),
               *added = json_object_get(root, "added_tokens");
  const char *tokens[4096] = {0}, *text;
  size_t n = 0;
  json_t *id;
  json_object_foreach((json_t *)vocab, text, id) {
    tokens[json_integer_value(id)] = text;
    if ((size_t)json_integer_value(id) >= n) n = (size_t)json_integer_value(id) + 1;
  }
  for (size_t i = 0; i < json_array_size(added); i++) {
    const json_t *item = json_array_get(added, i);
    size_t at = (size_t)json_integer_value(json_object_get(item, "id"));
    tokens[at] = json_string_value(json_object_get(item, "content"));
    if (at >= n) n = at + 1;
  }
  put_array(file, "tokenizer.ggml.tokens", GGUF_STRING, n);
  for (size_t i = 0; i < n; i++) {
    assert_non_null(tokens[i]);
    put_string(file, tokens[i], strlen(tokens[i]));
  }
  put_array(file, "tokenizer.ggml.token_type", GGUF_I32, n);
  for (size_t i = 0; i < n; i++) put_u32(file, (uint32_t)type_of(added, i));
}

static void put_merges(FILE *file, const json_t *merges) {
  put_array(file, "tokenizer.ggml.merges", GGUF_STRING, json_array_size(merges));
  for (size_t i = 0; i < json_array_size(merges); i++) {
    const json_t *merge = json_array_get(merges, i);
    char text[512];
    if (json_is_string(merge))
      snprintf(text, sizeof text, "%s", json_string_value(merge));
    else
      snprintf(text, sizeof text, "%s %s", json_string_value(json_array_get(merge, 0)),
               json_string_value(json_array_get(merge, 1)));
    put_string(file, text, strlen(text));
  }
}

static void write_gguf(const char *fixture, const char *model, const char *pre) {
  char json_path[512];
  snprintf(json_path, sizeof json_path, TOKENIZER_FIXTURES "%s/tokenizer.json", fixture);
  json_t *root = json_load_file(json_path, 0, NULL);
  assert_non_null(root);
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  uint64_t n_tensors = 0, n_keys = pre ? 7 : 6;
  put(file, "GGUF", 4);
  put_u32(file, 3);
  put(file, &n_tensors, sizeof n_tensors);
  put(file, &n_keys, sizeof n_keys);
  put_text_key(file, "general.architecture", "llama");
  put_text_key(file, "tokenizer.ggml.model", model);
  if (pre) put_text_key(file, "tokenizer.ggml.pre", pre);
  put_tokens(file, root);
  put_merges(file, json_object_get(json_object_get(root, "model"), "merges"));
  put_text_key(file, "tokenizer.chat_template", "{{ x }}");
  char zeros[64] = {0};
  put(file, zeros, sizeof zeros); /* so that the aligned start of the data lies inside */
  assert_int_equal(fclose(file), 0);
  json_decref(root);
}

/* llama.cpp does not normalise, and does not fold a long s to s. */
static bool differs(const char *line) {
  for (; *line; line++)
    if ((unsigned char)*line >= 0x80) return true;
  return false;
}

static bool has_long_s(const char *line) { return strstr(line, "\xC5\xBF") != NULL; }

static void test_byte_level(void **state) {
  (void)state;
  static const struct {
    const char *fixture, *pre;
    bool (*leave_out)(const char *);
    size_t at_least;
  } rows[] = {
      {"gpt2", "gpt-2", NULL, 2100},
      {"smollm2", "smollm", NULL, 2100},
      {"llama3", "llama-bpe", has_long_s, 2090},
      {"qwen2", "qwen2", differs, 350},
      {"llama-cpp-default", "default", NULL, 2100},
      {"llama-cpp-default", NULL, NULL, 2100},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    struct tokenizer *a = NULL, *b = open_fixture(rows[i].fixture);
    write_gguf(rows[i].fixture, "gpt2", rows[i].pre);
    if (tokenizer_open(path, &a) != STATUS_OK) fail_msg("%s: %s", rows[i].fixture, status_message());
    assert_non_null(a);
    assert_string_equal(tokenizer_chat_template(a), "{{ x }}");
    /* This GGUF names no BOS; llama3's tokenizer.json adds one. */
    compare(a, b, rows[i].leave_out, rows[i].at_least, !tokenizer_adds_bos(b));
    tokenizer_close(&a);
    tokenizer_close(&b);
  }
}

static void test_refusals(void **state) {
  (void)state;
  struct tokenizer *t = NULL;
  write_gguf("gpt2", "gpt2", "deepseek-llm");
  assert_int_equal(tokenizer_open(path, &t), STATUS_DATA);
  assert_non_null(strstr(status_message(), "deepseek-llm"));
  write_gguf("gpt2", "bert", "gpt-2");
  assert_int_equal(tokenizer_open(path, &t), STATUS_DATA);
  assert_non_null(strstr(status_message(), "bert"));
  write_gguf("gpt2", "llama", NULL); /* no scores */
  assert_int_equal(tokenizer_open(path, &t), STATUS_DATA);
  assert_non_null(strstr(status_message(), "scores"));
  assert_null(t);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sentencepiece),
      cmocka_unit_test(test_byte_level),
      cmocka_unit_test(test_refusals),
  };
  return cmocka_run_group_tests(tests, load, unload);
}
