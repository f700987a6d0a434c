#include "document_batch.h"

#include <string.h>

#include "dist/rng.h"

void document_fill(struct document *document, int64_t length, int64_t n_vocab, uint32_t number, bool mute) {
  document->length = length;
  document->row_id = (int64_t)number * DOCUMENT_MAX_LENGTH;
  for (int64_t t = 0; t < length; t++) {
    uint32_t random[3];
    for (uint32_t k = 0; k < 3; k++) random[k] = rng_u32(4, RNG_SYNTHETIC, number, 0, k, (uint64_t)t);
    document->ids[t] = (int32_t)(random[0] % (uint32_t)n_vocab);
    document->labels[t] = mute || random[2] % 3 == 0 ? -1 : (int32_t)(random[1] % (uint32_t)n_vocab);
  }
  if (!mute) document->labels[length - 1] = (int32_t)(number % (uint32_t)n_vocab);
}

void document_batch_fill(struct document_batch *b, const struct document *documents, int n, int64_t unit) {
  int64_t M = 0;
  b->n_targets = 0;
  for (int i = 0; i < n; i++) {
    const struct document *d = &documents[i];
    b->segments[i] = (struct segment){(int32_t)M, (int32_t)d->length, (int32_t)M, (int32_t)d->length};
    for (int64_t t = 0; t < d->length; t++, M++) {
      b->ids[M] = d->ids[t];
      b->labels[M] = d->labels[t];
      b->positions[M] = (int32_t)t;
      b->row_ids[M] = d->row_id + t;
      b->n_targets += d->labels[t] >= 0;
    }
  }
  for (; M % unit; M++) {
    b->ids[M] = b->positions[M] = 0;
    b->labels[M] = -1;
    b->row_ids[M] = -1;
  }
  b->batch = (struct batch){.M = M,
                            .ids = b->ids,
                            .positions = b->positions,
                            .labels = b->labels,
                            .row_ids = b->row_ids,
                            .segments = b->segments,
                            .n_segments = n,
                            .training = true};
}
