#include "io/text_tokens.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* To be raised whenever the same input would yield other ids. */
#define TOKENS_VERSION 1

void text_tokens_key(const struct text_file *file, const struct sample_encoder *encoder, uint64_t key[2]) {
  char text[256];
  int chat = file->format == RECORD_MESSAGES ? (int)encoder->chat : -1;
  int n = snprintf(text, sizeof text, "%d %016llx%016llx %s %d %d %d %s", TOKENS_VERSION,
                   (unsigned long long)file->digest[0], (unsigned long long)file->digest[1],
                   record_format_name(file->format), chat, encoder->bos, encoder->eos,
                   tokenizer_digest(encoder->tokenizer));
  XXH128_hash_t hash = XXH3_128bits(text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
  key[0] = hash.low64;
  key[1] = hash.high64;
}

/* Lists reused from sample to sample. */
struct scratch {
  struct token_list ids, mask;
};

static enum status add_record(const struct text_file *file, const struct sample_encoder *encoder, struct text_span line,
                              struct scratch *scratch, struct token_builder *builder) {
  struct record record = {0};
  if (file->format == RECORD_E2E)
    TRY(record_parse_e2e(line.text, line.length, &record));
  else
    TRY(record_parse_json(line.text, line.length, file->format, &record));
  scratch->ids.n = scratch->mask.n = 0;
  enum status status = sample_encode(encoder, &record, &scratch->ids, &scratch->mask);
  record_free(&record);
  TRY(status);
  TRY(token_builder_add(builder, &scratch->ids, &scratch->mask));
  return token_builder_end_document(builder);
}

static enum status add_lines(const struct text_file *file, const struct sample_encoder *encoder, int number,
                             const char *data, size_t length, struct token_builder *builder) {
  struct scratch scratch = {0};
  struct text_span line;
  int64_t line_number = file->chunks[number].first_line;
  enum status status = STATUS_OK;
  for (size_t at = 0; status == STATUS_OK && text_next_line(data, length, &at, &line); line_number++) {
    if (text_blank(line)) continue;
    status = add_record(file, encoder, line, &scratch, builder);
    if (status != STATUS_OK) status_prefix(status, "%s:%lld", file->path, (long long)line_number);
  }
  token_list_free(&scratch.ids);
  token_list_free(&scratch.mask);
  return status;
}

/* CRLF to LF in place, so that a file means the same from either system. */
static size_t unify_line_ends(char *data, size_t length) {
  size_t out = 0;
  for (size_t i = 0; i < length; i++) {
    if (data[i] == '\r' && i + 1 < length && data[i + 1] == '\n') continue;
    data[out++] = data[i];
  }
  return out;
}

/* Plain text: BOS before the file's first chunk, EOS after its last. */
static enum status add_stream(const struct text_file *file, const struct sample_encoder *encoder, int number,
                              char *data, size_t length, struct token_builder *builder) {
  struct scratch scratch = {0};
  enum status status = STATUS_OK;
  struct text_span text = {data, unify_line_ends(data, length)};
  if (number == 0 && encoder->bos >= 0) TRY_OUT(sample_push(encoder->bos, 0, &scratch.ids, &scratch.mask));
  TRY_OUT(sample_encode_text(encoder, text, &scratch.ids, &scratch.mask));
  if (number == file->n_chunks - 1) TRY_OUT(sample_push(encoder->eos, 1, &scratch.ids, &scratch.mask));
  TRY_OUT(token_builder_add(builder, &scratch.ids, &scratch.mask));
out:
  token_list_free(&scratch.ids);
  token_list_free(&scratch.mask);
  if (status != STATUS_OK) status_prefix(status, "%s", file->path);
  return status;
}

enum status text_tokens_make(const struct text_file *file, const struct sample_encoder *encoder, const uint64_t key[2],
                             int number, struct token_chunk *chunk) {
  struct token_builder builder = {0};
  char *data = NULL;
  size_t length = 0;
  enum status status = STATUS_OK;
  TRY_OUT(text_file_read(file, number, &data, &length));
  if (file->format == RECORD_STREAM)
    TRY_OUT(add_stream(file, encoder, number, data, length, &builder));
  else
    TRY_OUT(add_lines(file, encoder, number, data, length, &builder));
  TRY_OUT(token_builder_finish(&builder, key, number, chunk));
out:
  free(data);
  token_builder_free(&builder);
  return status;
}
