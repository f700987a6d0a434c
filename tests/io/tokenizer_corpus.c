#include "tokenizer_corpus.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* keep after the headers above: cmocka needs them */
#include <cmocka.h>

char *read_whole(const char *path, size_t *n) {
  FILE *file = fopen(path, "rb");
  if (!file) fail_msg("cannot open %s", path);
  assert_int_equal(fseek(file, 0, SEEK_END), 0);
  long size = ftell(file);
  rewind(file);
  char *text = malloc((size_t)size + 1);
  assert_non_null(text);
  assert_int_equal(fread(text, 1, (size_t)size, file), size);
  fclose(file);
  text[size] = 0;
  *n = (size_t)size;
  return text;
}

void corpus_load(struct corpus *corpus) {
  size_t n;
  char *text = read_whole(TOKENIZER_FIXTURES "corpus.jsonl", &n);
  *corpus = (struct corpus){.lines = calloc(4096, sizeof(char *)), .lengths = calloc(4096, sizeof(size_t))};
  for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
    json_t *value = json_loadb(line, (size_t)(end - line), JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    assert_true(json_is_string(value) && corpus->n < 4096);
    size_t length = json_string_length(value);
    char *copy = malloc(length + 1);
    memcpy(copy, json_string_value(value), length + 1);
    corpus->lines[corpus->n] = copy;
    corpus->lengths[corpus->n++] = length;
    json_decref(value);
  }
  free(text);
  assert_true(corpus->n >= 2000);
}

void corpus_free(struct corpus *corpus) {
  for (size_t i = 0; i < corpus->n; i++) free(corpus->lines[i]);
  free(corpus->lines);
  free(corpus->lengths);
}

struct tokenizer *open_fixture(const char *name) {
  char path[512];
  struct tokenizer *tokenizer = NULL;
  snprintf(path, sizeof path, TOKENIZER_FIXTURES "%s", name);
  if (tokenizer_open(path, &tokenizer) != STATUS_OK) fail_msg("%s", status_message());
  assert_non_null(tokenizer);
  return tokenizer;
}

char *ids_text(const struct tokenizer *tokenizer, const char *text, size_t n, bool special) {
  struct token_list list = {0};
  if (tokenizer_encode(tokenizer, text, n, special, special, &list) != STATUS_OK) fail_msg("%s", status_message());
  char *out = malloc((size_t)list.n * 12 + 1), *at = out;
  *at = 0;
  for (int64_t i = 0; i < list.n; i++) at += sprintf(at, i ? " %d" : "%d", list.ids[i]);
  token_list_free(&list);
  return out;
}
