/*
 * token_source.h: one data file as words (an id, TOKEN_TARGET set where it is
 * something to learn) and documents, whatever its format.
 */
#ifndef LORASHARD_IO_TOKEN_SOURCE_H
#define LORASHARD_IO_TOKEN_SOURCE_H

#include "io/megatron_bin.h"
#include "io/sample.h"
#include "io/text_file.h"
#include "io/token_cache.h"

struct token_source {
  char *path;
  bool is_text; /* else bin */
  struct text_file text;
  uint64_t key[2];
  char *folder; /* of the cached chunks; NULL: none */
  struct token_chunk *chunks;
  int64_t *chunk_first; /* [n_chunks + 1] words before each chunk */
  struct megatron_bin *bin;
};

/* Zero-initialise `source`; on failure too token_source_close frees it. Find the
 * file's kind by its ending (.jsonl, .txt, .bin) and `format`, an option's name;
 * scan or map it. A text file without tokenizer, an unknown ending or a format
 * that does not fit it is STATUS_USAGE. `encoder`, which may be NULL, is what the
 * samples will be encoded with. */
enum status token_source_open(const char *path, const char *format, const struct sample_encoder *encoder,
                              struct token_source *source);
void token_source_close(struct token_source *source);

/* Number of chunks to make: 0 for .bin. */
int token_source_chunks(const struct token_source *source);

/* Set the key, and with a cache make the folder, for what `encoder` yields. */
enum status token_source_set_encoder(struct token_source *source, const struct sample_encoder *encoder,
                                     const char *cache_dir);

/* Make sure that chunk `number` is in the cache. */
enum status token_source_cache(const struct token_source *source, const struct sample_encoder *encoder, int number);

/* Take all chunks from the cache, or without one make them. A chunk that is not
 * there or damaged is STATUS_PEER. */
enum status token_source_load(struct token_source *source, const struct sample_encoder *encoder);

/* Give each document's place and number of ids, in file order. Plain text is
 * given in pieces of at most seq_len + 1 ids that overlap by one. Stops at the
 * first failure of `visit`. */
enum status token_source_visit(const struct token_source *source, int64_t seq_len,
                               enum status (*visit)(void *context, int64_t first, int64_t n), void *context);

/* Documents in the file; plain text is one. */
int64_t token_source_documents(const struct token_source *source);

/* Words [first, first + n). */
void token_source_read(const struct token_source *source, int64_t first, int64_t n, uint32_t *words);

#endif
