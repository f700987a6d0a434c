/*
 * token_cache.h: tokenised chunks, in memory or as files that outlive the run.
 *
 * cache_dir/KEY/chunk-00017.tok, KEY = 32 hexadecimal digits of all that decides
 * the ids. Layout, little-endian: u64 magic, u64 key[2], u64 chunk number, u64
 * documents D, u64 words W, u64 digest[2] (xxh3-128 of the 48 bytes before it
 * and of all after it), u64 document ends[D] in words, u32 words[W]. A word is
 * an id with bit 31 set where it is a target. Documents never cross chunks; a
 * chunk of plain text has none. Chunks appear by rename, so a reader sees a
 * whole one or none; the digest finds one that was damaged later.
 */
#ifndef LORASHARD_IO_TOKEN_CACHE_H
#define LORASHARD_IO_TOKEN_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/status.h"
#include "io/tokenizer.h"

#define TOKEN_TARGET ((uint32_t)1 << 31)

/* A finished chunk; zero when there is none. */
struct token_chunk {
  int64_t n_docs, n_words;
  const uint64_t *doc_ends; /* [n_docs] */
  const uint32_t *words;    /* [n_words] */
  void *image;              /* malloc'ed, or mapped */
  size_t size;
  bool mapped;
};
void token_chunk_free(struct token_chunk *chunk);

/* A chunk in the making; zero-initialise. */
struct token_builder {
  uint32_t *words;
  uint64_t *doc_ends;
  int64_t n_words, n_docs, word_capacity, doc_capacity;
};
void token_builder_free(struct token_builder *builder);

/* Append ids with their flags; equal numbers of both. */
enum status token_builder_add(struct token_builder *builder, const struct token_list *ids,
                              const struct token_list *mask);

/* End the document that the words since the last end make up. */
enum status token_builder_end_document(struct token_builder *builder);

/* Turn what was built into a chunk in memory, the caller's. */
enum status token_builder_finish(const struct token_builder *builder, const uint64_t key[2], int number,
                                 struct token_chunk *chunk);

/* Name of the folder for a key, malloc'ed for the caller. */
enum status token_cache_folder(const char *cache_dir, const uint64_t key[2], char **folder_p);

/* Make the folder (and its parents) if it is not there. */
enum status token_cache_make_folder(const char *folder);

/* Write a chunk that lies in memory. */
enum status token_cache_store(const char *folder, int number, const struct token_chunk *chunk);

/* Map a chunk; false if it is not there, damaged, or another's. */
bool token_cache_load(const char *folder, const uint64_t key[2], int number, struct token_chunk *chunk);

/* Check an image and point into it; false if it is not a whole chunk of this
 * key and number. `image` must be aligned to 8 bytes and outlive the chunk. */
bool token_chunk_parse(const void *image, size_t size, const uint64_t key[2], int number, struct token_chunk *chunk);

#endif
