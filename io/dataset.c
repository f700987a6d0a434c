#include "io/dataset.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "io/row_pack.h"
#include "io/token_source.h"

#define SEQ_LEN_MAX ((int64_t)1 << 30) /* positions are int32 */

/* A document, cut to what fits a row. */
struct piece {
  int64_t first; /* word of its source */
  int32_t n;     /* ids; it takes n - 1 positions */
  int32_t source;
};

struct dataset {
  int64_t seq_len, n_vocab;
  struct token_source *sources;
  int n_sources;
  struct piece *pieces;
  int64_t n_pieces, piece_capacity;
  struct row_table rows;
  int32_t *row_targets, *row_tokens; /* [rows] */
  struct dataset_counts counts;
  char digest[33];
};

static enum status check_options(const struct dataset_options *options) {
  if (options->n_files < 1) return status_set(STATUS_USAGE, "no data files are named; set data.train");
  if (options->seq_len < 1 || options->seq_len > SEQ_LEN_MAX)
    return status_set(STATUS_USAGE, "data.seq_len: %lld is not between 1 and %lld", (long long)options->seq_len,
                      (long long)SEQ_LEN_MAX);
  if (options->n_vocab < 1 || options->n_vocab > INT32_MAX)
    return status_set(STATUS_USAGE, "a vocabulary of %lld is not possible", (long long)options->n_vocab);
  return STATUS_OK;
}

/* Only conversations need a template: a base with an unknown one still trains on
 * everything else. */
static enum status choose_template(const struct dataset_options *options, const struct dataset *dataset,
                                   struct sample_encoder *encoder) {
  for (int i = 0; i < dataset->n_sources; i++) {
    const struct token_source *source = &dataset->sources[i];
    if (!source->is_text || source->text.format != RECORD_MESSAGES) continue;
    const char *name = options->chat_template ? options->chat_template : "auto";
    TRY(chat_template_choose(name, options->tokenizer, &encoder->chat));
    if (encoder->chat == CHAT_NONE)
      return status_set(STATUS_USAGE,
                        "%s: messages need a chat template and the tokenizer has none; set data.chat_template (chatml, "
                        "llama2, llama3, zephyr or alpaca)",
                        source->path);
    break;
  }
  return STATUS_OK;
}

/* Open all files, and with a cache make this worker's share of the chunks: those
 * whose running number over all files is worker modulo n_workers. */
static enum status prepare(const struct dataset_options *options, struct dataset *dataset,
                           struct sample_encoder *encoder) {
  TRY(check_options(options));
  if (options->tokenizer) TRY(sample_encoder_init(options->tokenizer, encoder));
  dataset->seq_len = options->seq_len;
  dataset->n_vocab = options->n_vocab;
  dataset->sources = calloc((size_t)options->n_files, sizeof *dataset->sources);
  if (!dataset->sources) return status_set(STATUS_SYSTEM, "no memory for %d data files", options->n_files);
  const char *format = options->format ? options->format : "auto";
  for (int i = 0; i < options->n_files; i++) {
    dataset->n_sources++;
    TRY(token_source_open(options->files[i], format, options->tokenizer ? encoder : NULL, &dataset->sources[i]));
  }
  TRY(choose_template(options, dataset, encoder));
  const int n_workers = options->n_workers > 1 ? options->n_workers : 1;
  int64_t turn = 0;
  for (int i = 0; i < dataset->n_sources; i++) {
    struct token_source *source = &dataset->sources[i];
    TRY(token_source_set_encoder(source, encoder, options->cache_dir));
    for (int c = 0; source->folder && c < token_source_chunks(source); c++)
      if (turn++ % n_workers == options->worker) TRY(token_source_cache(source, encoder, c));
  }
  return STATUS_OK;
}

/* Of the cache's folders: their names are keys of the files' content and of what becomes of it. Never 0. */
static uint64_t key_of_texts(const struct dataset *dataset) {
  uint64_t key = 1;
  for (int i = 0; i < dataset->n_sources; i++) {
    const char *folder = dataset->sources[i].folder;
    if (folder) key = XXH3_64bits_withSeed(folder, strlen(folder), key);
  }
  return key ? key : 1;
}

/* Wait for the others, also after a failure of our own, which must not leave
 * them waiting; the first failure's message stays. */
static enum status meet(const struct dataset_options *options, const struct dataset *dataset, enum status status) {
  if (!options->cache_dir || !options->meet) return status;
  char *message = status == STATUS_OK ? NULL : strdup(status_message());
  enum status met = options->meet(options->meet_context, status == STATUS_OK ? key_of_texts(dataset) : 0);
  if (status == STATUS_OK) return met;
  status_set(status, "%s", message ? message : "no memory");
  free(message);
  return status;
}

struct gather {
  struct dataset *dataset;
  int source;
};

/* Count targets of a piece and check its ids. */
static enum status scan_piece(const struct dataset *dataset, const struct piece *piece, int64_t *targets_p) {
  uint32_t words[1024];
  const int32_t n_words = sizeof words / sizeof *words;
  const struct token_source *source = &dataset->sources[piece->source];
  int64_t targets = 0;
  for (int32_t at = 0; at < piece->n; at += n_words) {
    int32_t n = piece->n - at < n_words ? piece->n - at : n_words;
    token_source_read(source, piece->first + at, n, words);
    for (int32_t i = 0; i < n; i++) {
      int64_t id = words[i] & ~TOKEN_TARGET;
      if (id >= dataset->n_vocab)
        return status_set(STATUS_DATA,
                          "%s: token %lld has an id outside the base's vocabulary of %lld; use the base's "
                          "own tokenizer",
                          source->path, (long long)(piece->first + at + i), (long long)dataset->n_vocab);
      if (at + i > 0 && (words[i] & TOKEN_TARGET)) targets++;
    }
  }
  *targets_p = targets;
  return STATUS_OK;
}

static enum status add_piece(void *context, int64_t first, int64_t n) {
  const struct gather *gather = context;
  struct dataset *dataset = gather->dataset;
  const bool too_long = n > dataset->seq_len + 1;
  const struct piece piece = {first, (int32_t)(too_long ? dataset->seq_len + 1 : n), gather->source};
  int64_t targets = 0;
  TRY(scan_piece(dataset, &piece, &targets));
  dataset->counts.truncated += too_long;
  if (targets == 0) {
    dataset->counts.without_target++;
    return STATUS_OK;
  }
  if (dataset->n_pieces == dataset->piece_capacity) {
    int64_t capacity = dataset->piece_capacity ? 2 * dataset->piece_capacity : 256;
    struct piece *pieces = realloc(dataset->pieces, (size_t)capacity * sizeof *pieces);
    if (!pieces) return status_set(STATUS_SYSTEM, "no memory for %lld documents", (long long)capacity);
    dataset->pieces = pieces;
    dataset->piece_capacity = capacity;
  }
  dataset->pieces[dataset->n_pieces++] = piece;
  dataset->counts.targets += targets;
  dataset->counts.tokens += piece.n - 1;
  return STATUS_OK;
}

static enum status gather_pieces(struct dataset *dataset) {
  for (int i = 0; i < dataset->n_sources; i++) {
    struct gather gather = {dataset, i};
    dataset->counts.documents += token_source_documents(&dataset->sources[i]);
    TRY(token_source_visit(&dataset->sources[i], dataset->seq_len, add_piece, &gather));
  }
  if (dataset->n_pieces > 0) return STATUS_OK;
  const char *path = dataset->sources[0].path, *more = dataset->n_sources > 1 ? " and the other files" : "";
  if (dataset->counts.documents == 0)
    return status_set(STATUS_DATA, "%s%s: no samples; give a file with at least one record", path, more);
  return status_set(STATUS_DATA,
                    "%s%s: none of %lld samples has a target (%lld are longer than data.seq_len); raise "
                    "data.seq_len or check the data",
                    path, more, (long long)dataset->counts.documents, (long long)dataset->counts.truncated);
}

static enum status make_rows(struct dataset *dataset, bool packing) {
  int32_t *need = malloc((size_t)dataset->n_pieces * sizeof *need);
  if (!need) return status_set(STATUS_SYSTEM, "no memory for %lld documents", (long long)dataset->n_pieces);
  for (int64_t i = 0; i < dataset->n_pieces; i++) need[i] = dataset->pieces[i].n - 1;
  enum status status = row_pack(need, dataset->n_pieces, dataset->seq_len, packing, &dataset->rows);
  free(need);
  dataset->counts.rows = dataset->rows.n_rows;
  return status;
}

/* Go through all rows once for their counts and the digest. */
static enum status digest_rows(struct dataset *dataset) {
  const size_t n_rows = (size_t)dataset->rows.n_rows, size = (size_t)dataset->seq_len * sizeof(int32_t);
  enum status status = STATUS_OK;
  int32_t *ids = malloc(size), *labels = malloc(size), *positions = malloc(size), *starts = malloc(size);
  XXH3_state_t *hash = XXH3_createState();
  dataset->row_targets = malloc(n_rows * sizeof *dataset->row_targets);
  dataset->row_tokens = malloc(n_rows * sizeof *dataset->row_tokens);
  if (!ids || !labels || !positions || !starts || !hash || !dataset->row_targets || !dataset->row_tokens)
    TRY_OUT(status_set(STATUS_SYSTEM, "no memory for %zu rows", n_rows));
  XXH3_128bits_reset(hash);
  XXH3_128bits_update(hash, &dataset->seq_len, sizeof dataset->seq_len);
  for (size_t row = 0; row < n_rows; row++) {
    int n_docs = 0;
    int64_t n_used = 0;
    dataset_row(dataset, (int64_t)row, ids, labels, positions, starts, &n_docs, &n_used);
    XXH3_128bits_update(hash, &n_docs, sizeof n_docs);
    XXH3_128bits_update(hash, &n_used, sizeof n_used);
    XXH3_128bits_update(hash, starts, (size_t)n_docs * sizeof *starts);
    XXH3_128bits_update(hash, ids, (size_t)n_used * sizeof *ids);
    XXH3_128bits_update(hash, labels, (size_t)n_used * sizeof *labels);
    int32_t targets = 0;
    for (int64_t t = 0; t < n_used; t++) targets += labels[t] >= 0;
    dataset->row_targets[row] = targets;
    dataset->row_tokens[row] = (int32_t)n_used;
  }
  XXH128_hash_t digest = XXH3_128bits_digest(hash);
  snprintf(dataset->digest, sizeof dataset->digest, "%016llx%016llx", (unsigned long long)digest.high64,
           (unsigned long long)digest.low64);
out:
  free(ids);
  free(labels);
  free(positions);
  free(starts);
  XXH3_freeState(hash);
  return status;
}

enum status dataset_open(const struct dataset_options *options, struct dataset **dataset_p) {
  assert(options->worker >= 0 && options->worker < (options->n_workers > 1 ? options->n_workers : 1));
  struct sample_encoder encoder = {0};
  struct dataset *dataset = calloc(1, sizeof *dataset);
  enum status status = dataset ? prepare(options, dataset, &encoder) : status_set(STATUS_SYSTEM, "no memory for data");
  TRY_OUT(meet(options, dataset, status));
  for (int i = 0; i < dataset->n_sources; i++) TRY_OUT(token_source_load(&dataset->sources[i], &encoder));
  TRY_OUT(gather_pieces(dataset));
  TRY_OUT(make_rows(dataset, options->packing));
  TRY_OUT(digest_rows(dataset));
  *dataset_p = dataset;
  return STATUS_OK;
out:
  dataset_close(&dataset);
  return status;
}

void dataset_close(struct dataset **dataset_p) {
  struct dataset *dataset = *dataset_p;
  if (!dataset) return;
  for (int i = 0; i < dataset->n_sources; i++) token_source_close(&dataset->sources[i]);
  free(dataset->sources);
  free(dataset->pieces);
  row_table_free(&dataset->rows);
  free(dataset->row_targets);
  free(dataset->row_tokens);
  free(dataset);
  *dataset_p = NULL;
}

const struct dataset_counts *dataset_counts(const struct dataset *dataset) { return &dataset->counts; }

int64_t dataset_rows(const struct dataset *dataset) { return dataset->rows.n_rows; }

int64_t dataset_row_targets(const struct dataset *dataset, int64_t row) {
  assert(row >= 0 && row < dataset->rows.n_rows);
  return dataset->row_targets[row];
}

int64_t dataset_row_tokens(const struct dataset *dataset, int64_t row) {
  assert(row >= 0 && row < dataset->rows.n_rows);
  return dataset->row_tokens[row];
}

void dataset_row(const struct dataset *dataset, int64_t row, int32_t *ids, int32_t *labels, int32_t *positions,
                 int32_t *doc_starts, int *n_docs_p, int64_t *n_used_p) {
  assert(row >= 0 && row < dataset->rows.n_rows);
  int n_docs = 0;
  int64_t at = 0;
  for (int64_t d = dataset->rows.first[row]; d < dataset->rows.first[row + 1]; d++) {
    const struct piece *piece = &dataset->pieces[dataset->rows.documents[d]];
    const struct token_source *source = &dataset->sources[piece->source];
    const int32_t n = piece->n - 1;
    token_source_read(source, piece->first, n, (uint32_t *)ids + at);
    token_source_read(source, piece->first + 1, n, (uint32_t *)labels + at);
    doc_starts[n_docs++] = (int32_t)at;
    for (int32_t i = 0; i < n; i++, at++) {
      uint32_t next = (uint32_t)labels[at];
      ids[at] = (int32_t)((uint32_t)ids[at] & ~TOKEN_TARGET);
      labels[at] = next & TOKEN_TARGET ? (int32_t)(next & ~TOKEN_TARGET) : -1;
      positions[at] = i;
    }
  }
  *n_docs_p = n_docs;
  *n_used_p = at;
  for (; at < dataset->seq_len; at++) {
    ids[at] = 0;
    labels[at] = -1;
    positions[at] = 0;
  }
}

const char *dataset_digest(const struct dataset *dataset) { return dataset->digest; }
