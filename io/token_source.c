#include "io/token_source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/text_tokens.h"

static bool ends_with(const char *text, const char *ending) {
  size_t n = strlen(text), m = strlen(ending);
  return n >= m && strcmp(text + n - m, ending) == 0;
}

/* What an option's format means for a file that ends in .jsonl, .txt or .bin; a
 * file of another ending is read as the format says. */
static enum status choose_format(const char *path, const char *name, enum record_format *format_p, bool *json_p) {
  static const struct {
    const char *name, *ending;
    enum record_format format;
  } known[] = {
      {"auto", ".jsonl", RECORD_AUTO},
      {"auto", ".txt", RECORD_AUTO},
      {"auto", ".bin", RECORD_TOKENS},
      {"text", ".txt", RECORD_STREAM},
      {"text", ".jsonl", RECORD_TEXT},
      {"prompt_completion", ".jsonl", RECORD_PROMPT_COMPLETION},
      {"messages", ".jsonl", RECORD_MESSAGES},
      {"alpaca", ".jsonl", RECORD_ALPACA},
      {"e2e", ".txt", RECORD_E2E},
      {"tokens", ".bin", RECORD_TOKENS},
  };
  const int n = sizeof known / sizeof *known;
  bool known_ending = ends_with(path, ".jsonl") || ends_with(path, ".txt") || ends_with(path, ".bin");
  bool known_name = false;
  for (int i = 0; i < n; i++) {
    if (strcmp(name, known[i].name) != 0) continue;
    known_name = true;
    if (known_ending ? !ends_with(path, known[i].ending) : known[i].format == RECORD_AUTO) continue;
    if (!known_ending && known[i].format == RECORD_TOKENS && strcmp(name, "auto") == 0) continue;
    *format_p = known[i].format;
    *json_p = strcmp(known[i].ending, ".jsonl") == 0;
    return STATUS_OK;
  }
  if (!known_name)
    return status_set(STATUS_USAGE,
                      "data.format: unknown format '%s'; known are auto, text, prompt_completion, "
                      "messages, alpaca, e2e, tokens",
                      name);
  if (!known_ending)
    return status_set(STATUS_USAGE, "%s: unknown ending; use .jsonl, .txt or .bin, or say what it is with data.format",
                      path);
  return status_set(STATUS_USAGE, "%s: data.format is %s, which such a file cannot hold; use auto", path, name);
}

enum status token_source_open(const char *path, const char *format, const struct sample_encoder *encoder,
                              struct token_source *source) {
  enum record_format kind = RECORD_AUTO;
  bool lines_of_json = false;
  TRY(choose_format(path, format, &kind, &lines_of_json));
  source->path = strdup(path);
  if (!source->path) return status_set(STATUS_SYSTEM, "%s: no memory to open", path);
  if (kind == RECORD_TOKENS) return megatron_bin_open(path, &source->bin);
  if (!encoder)
    return status_set(STATUS_USAGE, "%s: the base has no tokenizer; use .bin data, or add its tokenizer.json", path);
  TRY(text_file_open(source->path, kind, lines_of_json, &source->text));
  source->is_text = true;
  return STATUS_OK;
}

void token_source_close(struct token_source *source) {
  if (source->chunks)
    for (int i = 0; i < source->text.n_chunks; i++) token_chunk_free(&source->chunks[i]);
  free(source->chunks);
  free(source->chunk_first);
  if (source->is_text) text_file_close(&source->text);
  megatron_bin_close(&source->bin);
  free(source->folder);
  free(source->path);
  *source = (struct token_source){0};
}

int token_source_chunks(const struct token_source *source) { return source->is_text ? source->text.n_chunks : 0; }

enum status token_source_set_encoder(struct token_source *source, const struct sample_encoder *encoder,
                                     const char *cache_dir) {
  if (!source->is_text) return STATUS_OK;
  text_tokens_key(&source->text, encoder, source->key);
  if (!cache_dir) return STATUS_OK;
  TRY(token_cache_folder(cache_dir, source->key, &source->folder));
  return token_cache_make_folder(source->folder);
}

enum status token_source_cache(const struct token_source *source, const struct sample_encoder *encoder, int number) {
  struct token_chunk chunk = {0};
  if (token_cache_load(source->folder, source->key, number, &chunk)) {
    token_chunk_free(&chunk);
    return STATUS_OK;
  }
  TRY(text_tokens_make(&source->text, encoder, source->key, number, &chunk));
  enum status status = token_cache_store(source->folder, number, &chunk);
  token_chunk_free(&chunk);
  return status;
}

enum status token_source_load(struct token_source *source, const struct sample_encoder *encoder) {
  if (!source->is_text) return STATUS_OK;
  const int n = source->text.n_chunks;
  source->chunks = calloc((size_t)n + 1, sizeof *source->chunks);
  source->chunk_first = calloc((size_t)n + 1, sizeof *source->chunk_first);
  if (!source->chunks || !source->chunk_first)
    return status_set(STATUS_SYSTEM, "%s: no memory for %d chunks", source->path, n);
  for (int i = 0; i < n; i++) {
    struct token_chunk *chunk = &source->chunks[i];
    if (!source->folder)
      TRY(text_tokens_make(&source->text, encoder, source->key, i, chunk));
    else if (!token_cache_load(source->folder, source->key, i, chunk))
      return status_set(STATUS_PEER,
                        "%s: token chunk %d is not in %s or damaged: the rank that was to make it failed, "
                        "or the folder is not shared by all ranks",
                        source->path, i, source->folder);
    source->chunk_first[i + 1] = source->chunk_first[i] + chunk->n_words;
  }
  return STATUS_OK;
}

int64_t token_source_documents(const struct token_source *source) {
  if (!source->is_text) return megatron_bin_index(source->bin)->n_documents;
  const int n_chunks = source->text.n_chunks;
  if (source->text.format == RECORD_STREAM) return n_chunks > 0;
  int64_t n = 0;
  for (int i = 0; i < n_chunks; i++) n += source->chunks[i].n_docs;
  return n;
}

typedef enum status (*visit_fn)(void *context, int64_t first, int64_t n);

static enum status visit_stream(int64_t n_words, int64_t seq_len, visit_fn visit, void *context) {
  for (int64_t first = 0; first + 1 < n_words; first += seq_len) {
    int64_t left = n_words - first;
    TRY(visit(context, first, left < seq_len + 1 ? left : seq_len + 1));
  }
  return STATUS_OK;
}

enum status token_source_visit(const struct token_source *source, int64_t seq_len, visit_fn visit, void *context) {
  const int n_chunks = token_source_chunks(source);
  if (!source->is_text) {
    const struct megatron_index *index = megatron_bin_index(source->bin);
    for (int64_t i = 0; i < index->n_documents; i++) {
      int64_t first, n;
      megatron_index_document(index, i, &first, &n);
      TRY(visit(context, first, n));
    }
    return STATUS_OK;
  }
  if (source->text.format == RECORD_STREAM) return visit_stream(source->chunk_first[n_chunks], seq_len, visit, context);
  for (int c = 0; c < n_chunks; c++) {
    const struct token_chunk *chunk = &source->chunks[c];
    int64_t begin = 0;
    for (int64_t i = 0; i < chunk->n_docs; i++) {
      int64_t end = (int64_t)chunk->doc_ends[i];
      TRY(visit(context, source->chunk_first[c] + begin, end - begin));
      begin = end;
    }
  }
  return STATUS_OK;
}

/* The chunk that holds a word. */
static int find_chunk(const struct token_source *source, int64_t word) {
  int low = 0, high = source->text.n_chunks - 1;
  while (low < high) {
    int middle = low + (high - low + 1) / 2;
    if (source->chunk_first[middle] <= word)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

void token_source_read(const struct token_source *source, int64_t first, int64_t n, uint32_t *words) {
  if (n <= 0) return;
  if (!source->is_text) {
    megatron_bin_read(source->bin, first, n, (int32_t *)words);
    for (int64_t i = 0; i < n; i++) words[i] |= TOKEN_TARGET;
    return;
  }
  for (int c = find_chunk(source, first); n > 0; c++) {
    int64_t at = first - source->chunk_first[c], here = source->chunks[c].n_words - at;
    if (here > n) here = n;
    memcpy(words, source->chunks[c].words + at, (size_t)here * sizeof *words);
    words += here;
    first += here;
    n -= here;
  }
}
