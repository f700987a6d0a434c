/*
 * tokenizer.h: text to token ids and back, exactly as the Hugging Face
 * `tokenizers` library (tokenizer.json) or llama.cpp (GGUF tables) do.
 */
#ifndef LORASHARD_IO_TOKENIZER_H
#define LORASHARD_IO_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/status.h"

struct tokenizer;

/* A growing list of ids; zero-initialise, free with token_list_free. */
struct token_list {
  int32_t *ids;
  int64_t n, capacity;
};
enum status token_list_push(struct token_list *list, int32_t id);
void token_list_free(struct token_list *list);

/* Open the tokenizer that belongs to a base model: a folder with
 * tokenizer.json (and tokenizer_config.json, special_tokens_map.json,
 * generation_config.json, chat_template.jinja where present) or a .gguf file.
 * Without a tokenizer there: *tokenizer_p = NULL and STATUS_OK. Whatever is
 * not supported is refused by name (STATUS_DATA). */
enum status tokenizer_open(const char *path, struct tokenizer **tokenizer_p);
void tokenizer_close(struct tokenizer **tokenizer_p);

/* Append the ids of text[0, length) to list. With `add_special`, what the
 * tokenizer's post-processor adds (BOS for the Llama class). With
 * `parse_special`, added tokens inside the text are recognised, as tokenizers
 * does; without, special tokens in the text are plain characters (use it for
 * user content). Invalid UTF-8 is replaced by U+FFFD. Thread-safe. */
enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t length, bool add_special,
                             bool parse_special, struct token_list *list);

/* Text of ids; *text_p is malloc'ed, zero-terminated, the caller's. Special
 * tokens are left out when skip_special. */
enum status tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, int64_t n, bool skip_special,
                             char **text_p, size_t *length_p);

/* Id of a token by its exact text, or -1. */
int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *token);

/* Special ids; -1 where the tokenizer has none. */
int32_t tokenizer_bos(const struct tokenizer *tokenizer);
int32_t tokenizer_eos(const struct tokenizer *tokenizer);
bool tokenizer_adds_bos(const struct tokenizer *tokenizer);

/* True if generation ends at this id (eos, generation_config's eos list,
 * end-of-turn tokens such as <|im_end|>, <|eot_id|>, <|endoftext|>). */
bool tokenizer_is_end(const struct tokenizer *tokenizer, int32_t id);

int64_t tokenizer_size(const struct tokenizer *tokenizer);

/* The Jinja chat template, or NULL. */
const char *tokenizer_chat_template(const struct tokenizer *tokenizer);

/* Digest of everything that decides the ids, 32 hexadecimal digits. */
const char *tokenizer_digest(const struct tokenizer *tokenizer);

#endif
