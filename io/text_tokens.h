/*
 * text_tokens.h: a text file's chunks as tokens, from the cache or made now.
 */
#ifndef LORASHARD_IO_TEXT_TOKENS_H
#define LORASHARD_IO_TEXT_TOKENS_H

#include "io/sample.h"
#include "io/text_file.h"
#include "io/token_cache.h"

/* Key of all that decides the ids of a file's chunks: its content, the
 * tokenizer, the format, the chat template. */
void text_tokens_key(const struct text_file *file, const struct sample_encoder *encoder, uint64_t key[2]);

/* Tokenise one chunk into memory; the caller's. Errors name file and line. */
enum status text_tokens_make(const struct text_file *file, const struct sample_encoder *encoder, const uint64_t key[2],
                             int number, struct token_chunk *chunk);

#endif
