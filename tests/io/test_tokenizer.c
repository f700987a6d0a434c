/*
 * Encoding and decoding against the `tokenizers` library: every line of the
 * corpus with every fixture. No tolerance: ids are integers.
 */
#include <jansson.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
/* keep after the headers above: cmocka needs them */
#include <cmocka.h>

#include "tokenizer_corpus.h"

static struct corpus corpus;

static int load(void **state) {
  (void)state;
  corpus_load(&corpus);
  return 0;
}

static int unload(void **state) {
  (void)state;
  corpus_free(&corpus);
  return 0;
}

/* CRC-32 as in zlib. */
static uint32_t crc32_of(uint32_t crc, const char *data, size_t n) {
  crc = ~crc;
  for (size_t i = 0; i < n; i++) {
    crc ^= (unsigned char)data[i];
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0xEDB88320u & -(crc & 1));
  }
  return ~crc;
}

static void check_line(const char *name, const struct tokenizer *tokenizer, size_t i, const char *expected) {
  struct token_list list = {0};
  char *text, *ids = ids_text(tokenizer, corpus.lines[i], corpus.lengths[i], true);
  char *plain = ids_text(tokenizer, corpus.lines[i], corpus.lengths[i], false);
  size_t n;
  assert_int_equal(tokenizer_encode(tokenizer, corpus.lines[i], corpus.lengths[i], true, true, &list), STATUS_OK);
  assert_int_equal(tokenizer_decode(tokenizer, list.ids, list.n, false, &text, &n), STATUS_OK);
  uint32_t crc = crc32_of(0, ids, strlen(ids));
  crc = crc32_of(crc, "|", 1);
  crc = crc32_of(crc, plain, strlen(plain));
  crc = crc32_of(crc, "|", 1);
  crc = crc32_of(crc, text, n);
  if (expected[8] == ' ' && strcmp(expected + 9, ids) != 0)
    fail_msg("%s line %zu: ids\n%s\ninstead of\n%s", name, i + 1, ids, expected + 9);
  if (strtoul(expected, NULL, 16) != crc)
    fail_msg("%s line %zu differs:\nids %s\nplain %s\ndecoded %s", name, i + 1, ids, plain, text);
  token_list_free(&list);
  free(text);
  free(ids);
  free(plain);
}

static void check_fixture(const char *name) {
  char path[512];
  size_t n, i = 0;
  snprintf(path, sizeof path, TOKENIZER_FIXTURES "%s/expected.txt", name);
  char *expected = read_whole(path, &n);
  struct tokenizer *tokenizer = open_fixture(name);
  for (char *line = expected, *end; (end = strchr(line, '\n')); line = end + 1, i++) {
    *end = 0;
    assert_true(i < corpus.n && end - line >= 8);
    check_line(name, tokenizer, i, line);
  }
  assert_int_equal(i, corpus.n);
  tokenizer_close(&tokenizer);
  assert_null(tokenizer);
  free(expected);
}

static void test_families(void **state) {
  (void)state;
  static const char *const names[] = {"gpt2",    "opt",   "neox",   "llama3", "qwen2",
                                      "smollm2", "bloom", "llama2", "mistral"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) check_fixture(names[i]);
}

static void test_settings(void **state) {
  (void)state;
  static const char *const names[] = {"added",
                                      "nfkc",
                                      "digits",
                                      "split-removed",
                                      "split-removed-invert",
                                      "split-contiguous",
                                      "split-contiguous-invert",
                                      "split-merged-with-previous",
                                      "split-merged-with-previous-invert",
                                      "split-merged-with-next",
                                      "split-merged-with-next-invert",
                                      "split-string",
                                      "llama-cpp-default",
                                      "metaspace-always",
                                      "metaspace-never",
                                      "metaspace-first",
                                      "no-decoder"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) check_fixture(names[i]);
}

static void test_stories260k(void **state) {
  (void)state;
  struct tokenizer *tokenizer = NULL;
  json_t *golden = json_load_file(FIXTURES "/stories260K/golden.json", 0, NULL);
  assert_non_null(golden);
  assert_int_equal(tokenizer_open(FIXTURES "/stories260K", &tokenizer), STATUS_OK);
  const json_t *scores = json_object_get(golden, "score");
  assert_int_equal(json_array_size(scores), 2);
  for (size_t i = 0; i < json_array_size(scores); i++) {
    const json_t *item = json_array_get(scores, i), *ids = json_object_get(item, "ids");
    const char *text = json_string_value(json_object_get(item, "text"));
    struct token_list list = {0};
    char *decoded;
    size_t n;
    assert_int_equal(tokenizer_encode(tokenizer, text, strlen(text), true, true, &list), STATUS_OK);
    assert_int_equal(list.n, json_array_size(ids));
    for (int64_t j = 0; j < list.n; j++)
      assert_int_equal(list.ids[j], json_integer_value(json_array_get(ids, (size_t)j)));
    assert_int_equal(tokenizer_decode(tokenizer, list.ids, list.n, true, &decoded, &n), STATUS_OK);
    assert_string_equal(decoded, text);
    free(decoded);
    token_list_free(&list);
  }
  assert_int_equal(tokenizer_bos(tokenizer), 1);
  assert_int_equal(tokenizer_eos(tokenizer), 2);
  assert_int_equal(tokenizer_size(tokenizer), 512);
  tokenizer_close(&tokenizer);
  json_decref(golden);
}

static void test_invalid_utf8_is_replaced(void **state) {
  (void)state;
  static const struct {
    const char *bytes, *means;
  } rows[] = {
      {"a\xFFz", "a\xEF\xBF\xBDz"},
      {"\xC3", "\xEF\xBF\xBD"},
      {"\xE2\x82z", "\xEF\xBF\xBDz"},                                           /* cut short: one replacement */
      {"\xC0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD"},                                 /* overlong: one for each byte */
      {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},                 /* a surrogate */
      {"\xF4\x90\x80\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"}, /* past U+10FFFF */
      {"\xF0\x9F\x98", "\xEF\xBF\xBD"},
  };
  struct tokenizer *tokenizer = open_fixture("gpt2");
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    char *got = ids_text(tokenizer, rows[i].bytes, strlen(rows[i].bytes), true);
    char *want = ids_text(tokenizer, rows[i].means, strlen(rows[i].means), true);
    assert_string_equal(got, want);
    free(got);
    free(want);
  }
  tokenizer_close(&tokenizer);
}

static void test_special_ids(void **state) {
  (void)state;
  static const struct {
    const char *name, *bos, *eos;
    bool adds_bos;
  } rows[] = {
      {"gpt2", "<|endoftext|>", "<|endoftext|>", false},
      {"opt", "</s>", "</s>", true},
      {"llama3", "<|begin_of_text|>", "<|eot_id|>", true},
      {"qwen2", NULL, "<|im_end|>", false},
      {"llama2", "<s>", "</s>", true},
      {"neox", NULL, "<|endoftext|>", false},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    struct tokenizer *t = open_fixture(rows[i].name);
    assert_int_equal(tokenizer_bos(t), rows[i].bos ? tokenizer_find(t, rows[i].bos) : -1);
    assert_int_equal(tokenizer_eos(t), tokenizer_find(t, rows[i].eos));
    assert_int_equal(tokenizer_adds_bos(t), rows[i].adds_bos);
    assert_true(tokenizer_is_end(t, tokenizer_eos(t)));
    assert_false(tokenizer_is_end(t, tokenizer_find(t, "a")));
    tokenizer_close(&t);
  }
  struct tokenizer *t = open_fixture("llama3");
  assert_true(tokenizer_is_end(t, tokenizer_find(t, "<|end_of_text|>")));
  assert_int_equal(tokenizer_find(t, "no such token"), -1);
  assert_int_equal(strlen(tokenizer_digest(t)), 32);
  tokenizer_close(&t);
}

static void test_skip_special(void **state) {
  (void)state;
  struct tokenizer *t = open_fixture("smollm2");
  const char *text = "<|im_start|>Hi there<|im_end|>";
  struct token_list list = {0};
  char *decoded;
  size_t n;
  assert_int_equal(tokenizer_encode(t, text, strlen(text), false, true, &list), STATUS_OK);
  assert_int_equal(tokenizer_decode(t, list.ids, list.n, true, &decoded, &n), STATUS_OK);
  assert_string_equal(decoded, "Hi there");
  free(decoded);
  int32_t beyond[] = {list.ids[1], -5, 1 << 30}; /* padding rows of the embedding have no text */
  assert_int_equal(tokenizer_decode(t, beyond, 3, false, &decoded, &n), STATUS_OK);
  assert_int_equal(n, 1);
  free(decoded);
  token_list_free(&list);
  tokenizer_close(&t);
}

/* 400,000 characters without a split: a quadratic merge takes minutes, this
 * well under a second; 20 seconds leave room for sanitizers and slow machines. */
static void test_long_words_take_no_quadratic_time(void **state) {
  (void)state;
  enum { N = 400000 };
  static const struct {
    const char *fixture, *unit;
  } rows[] = {{"gpt2", "th"}, {"gpt2", "\n"}, {"llama3", " "}, {"qwen2", "e\xCC\x81\xCC\xA3"}, {"llama2", "ab"}};
  char *text = malloc(N + 8);
  for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
    struct tokenizer *t = open_fixture(rows[k].fixture);
    struct token_list list = {0};
    size_t unit = strlen(rows[k].unit), n = 0;
    for (; n + unit <= N; n += unit) memcpy(text + n, rows[k].unit, unit);
    clock_t start = clock();
    assert_int_equal(tokenizer_encode(t, text, n, false, true, &list), STATUS_OK);
    assert_true((double)(clock() - start) / CLOCKS_PER_SEC < 20);
    assert_true(list.n > 0);
    token_list_free(&list);
    tokenizer_close(&t);
  }
  free(text);
}

struct job {
  const struct tokenizer *tokenizer;
  struct token_list list;
  enum status status;
};

static void *encode_corpus(void *argument) {
  struct job *job = argument;
  for (size_t i = 0; i < corpus.n && job->status == STATUS_OK; i++)
    job->status = tokenizer_encode(job->tokenizer, corpus.lines[i], corpus.lengths[i], true, true, &job->list);
  return NULL;
}

static void test_threads_share_a_tokenizer(void **state) {
  (void)state;
  enum { N = 4 };
  struct tokenizer *tokenizer = open_fixture("llama3");
  struct job jobs[N + 1] = {0};
  pthread_t threads[N];
  for (int i = 0; i <= N; i++) jobs[i].tokenizer = tokenizer;
  for (int i = 0; i < N; i++) assert_int_equal(pthread_create(&threads[i], NULL, encode_corpus, &jobs[i]), 0);
  for (int i = 0; i < N; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
  encode_corpus(&jobs[N]);
  for (int i = 0; i <= N; i++) {
    assert_int_equal(jobs[i].status, STATUS_OK);
    assert_int_equal(jobs[i].list.n, jobs[N].list.n);
    assert_memory_equal(jobs[i].list.ids, jobs[N].list.ids, (size_t)jobs[N].list.n * sizeof(int32_t));
  }
  for (int i = 0; i <= N; i++) token_list_free(&jobs[i].list);
  tokenizer_close(&tokenizer);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_families),
      cmocka_unit_test(test_settings),
      cmocka_unit_test(test_stories260k),
      cmocka_unit_test(test_invalid_utf8_is_replaced),
      cmocka_unit_test(test_special_ids),
      cmocka_unit_test(test_skip_special),
      cmocka_unit_test(test_long_words_take_no_quadratic_time),
      cmocka_unit_test(test_threads_share_a_tokenizer),
  };
  return cmocka_run_group_tests(tests, load, unload);
}
