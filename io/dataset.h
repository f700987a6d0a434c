/*
 * dataset.h: training and evaluation data as rows of token ids.
 *
 * Files (.jsonl, .txt, .bin with .idx) become documents (ids and a target flag
 * per id), documents become rows of seq_len positions by packing (several
 * documents a row, kept apart) or one a row. The rows do not depend on the
 * number of ranks. A position t of a document predicts its id t + 1: input
 * ids[0..n-2], labels ids[1..n-1] where flagged, else -1.
 */
#ifndef LORASHARD_IO_DATASET_H
#define LORASHARD_IO_DATASET_H

#include <stdbool.h>
#include <stdint.h>

#include "io/chat_template.h"
#include "io/status.h"
#include "io/tokenizer.h"

struct dataset;

struct dataset_options {
  const char *const *files;
  int n_files;
  const char *format;        /* auto text prompt_completion messages alpaca e2e tokens */
  const char *chat_template; /* see chat_template_choose */
  int64_t seq_len;           /* positions a row */
  bool packing;
  const struct tokenizer *tokenizer; /* may be NULL if all files are .bin */
  int64_t n_vocab;                   /* ids are checked against it */
  const char *cache_dir;             /* NULL: no cache, tokenise in memory */
  /* Tokenising is dealt over workers; worker w of n writes its chunks into the
   * cache, then calls meet(context, key), in which it waits for the others, then
   * all map all chunks. `key` is the same on workers that read the same files the
   * same way; 0: this one failed, and others get STATUS_PEER. With cache_dir and
   * meet set, meet is called exactly once. Without cache_dir each tokenises all. */
  int worker, n_workers;
  enum status (*meet)(void *context, uint64_t key);
  void *meet_context;
};

struct dataset_counts {
  int64_t documents;      /* read */
  int64_t tokens;         /* positions in use over all rows, after truncation */
  int64_t targets;        /* flagged labels */
  int64_t truncated;      /* longer than seq_len + 1 ids, cut */
  int64_t without_target; /* skipped: nothing to learn */
  int64_t rows;
};

/* Open, tokenise, pack. An empty result is STATUS_DATA. On success the dataset
 * is the caller's; options' strings need not outlive the call. */
enum status dataset_open(const struct dataset_options *options, struct dataset **dataset_p);
void dataset_close(struct dataset **dataset_p);

const struct dataset_counts *dataset_counts(const struct dataset *dataset);
int64_t dataset_rows(const struct dataset *dataset);

/* Number of targets (labels that are not -1) and of used positions in a row. */
int64_t dataset_row_targets(const struct dataset *dataset, int64_t row);
int64_t dataset_row_tokens(const struct dataset *dataset, int64_t row);

/* Fill one row. ids, labels, positions: [seq_len]; unused positions at the end
 * have id 0, label -1, position 0. doc_starts: at least seq_len entries; gets
 * the first position of each document in the row, rising, then *n_docs_p their
 * number; *n_used_p the positions in use (the last document ends there). */
void dataset_row(const struct dataset *dataset, int64_t row, int32_t *ids, int32_t *labels, int32_t *positions,
                 int32_t *doc_starts, int *n_docs_p, int64_t *n_used_p);

/* Digest of the rows' content, 32 hexadecimal digits: two runs with equal
 * digests see the same samples. */
const char *dataset_digest(const struct dataset *dataset);

#endif
