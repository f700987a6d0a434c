/*
 * tokenizer_corpus.h: the corpus of fixtures/tokenizers and what the tests of
 * tokenizers do with its lines.
 */
#ifndef LORASHARD_TESTS_IO_TOKENIZER_CORPUS_H
#define LORASHARD_TESTS_IO_TOKENIZER_CORPUS_H

#include <stdbool.h>
#include <stddef.h>

#include "io/tokenizer.h"

#define TOKENIZER_FIXTURES FIXTURES "/tokenizers/"

struct corpus {
  char **lines; /* zero-terminated; a line may hold zero bytes: take lengths */
  size_t *lengths;
  size_t n;
};
void corpus_load(struct corpus *corpus);
void corpus_free(struct corpus *corpus);

/* A fixture folder's tokenizer; the test fails if it does not open. */
struct tokenizer *open_fixture(const char *name);

/* A whole file, zero-terminated; the caller's. */
char *read_whole(const char *path, size_t *n);

/* Ids in decimal, separated by spaces; the caller's. */
char *ids_text(const struct tokenizer *tokenizer, const char *text, size_t n, bool special);

#endif
