/*
 * document_batch.h: micro-batches put together from single documents.
 */
#ifndef LORASHARD_TESTS_MPI_DOCUMENT_BATCH_H
#define LORASHARD_TESTS_MPI_DOCUMENT_BATCH_H

#include "model/batch.h"

enum { DOCUMENT_MAX_LENGTH = 64, DOCUMENT_MAX_TOKENS = 1024, DOCUMENT_MAX = 16 };

struct document {
  int64_t length;
  int32_t ids[DOCUMENT_MAX_LENGTH], labels[DOCUMENT_MAX_LENGTH];
  int64_t row_id; /* of the first token */
};

/* Random ids; labels on about two thirds of the positions, on none if `mute`. */
void document_fill(struct document *document, int64_t length, int64_t n_vocab, uint32_t number, bool mute);

struct document_batch {
  int32_t ids[DOCUMENT_MAX_TOKENS], labels[DOCUMENT_MAX_TOKENS], positions[DOCUMENT_MAX_TOKENS];
  int64_t row_ids[DOCUMENT_MAX_TOKENS];
  struct segment segments[DOCUMENT_MAX];
  struct batch batch;
  int64_t n_targets;
};

/* n documents after each other, positions restarting, padded with tokens that
 * belong to none to a multiple of `unit`. */
void document_batch_fill(struct document_batch *b, const struct document *documents, int n, int64_t unit);

#endif
