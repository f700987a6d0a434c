/*
 * tokenizer_bpe.c: one pre-token to ids by byte-pair encoding.
 *
 * The symbols of a word form a linked list; a heap holds the possible merges,
 * lowest rank first, leftmost first among equals. A merge adds at most two
 * entries, so a word of n characters takes O(n log n), however long it is.
 */
#include <stdlib.h>

#include "io/tokenizer_internal.h"

struct symbol {
  int32_t id;         /* -1: merged into its left neighbour */
  int32_t prev, next; /* -1: none */
};

struct candidate {
  int32_t rank, position, id;
};

struct bpe_scratch {
  struct symbol *symbols;
  struct candidate *heap;
  size_t n_symbols, symbol_capacity, n_heap, heap_capacity;
};

void bpe_scratch_destroy(struct bpe_scratch **scratch_p) {
  if (!*scratch_p) return;
  free((*scratch_p)->symbols);
  free((*scratch_p)->heap);
  free(*scratch_p);
  *scratch_p = NULL;
}

static enum status no_memory(void) { return status_set(STATUS_SYSTEM, "out of memory while encoding"); }

static enum status push_symbol(struct bpe_scratch *scratch, int32_t id) {
  if (scratch->n_symbols == scratch->symbol_capacity) {
    size_t capacity = scratch->symbol_capacity ? 2 * scratch->symbol_capacity : 256;
    struct symbol *symbols = realloc(scratch->symbols, capacity * sizeof *symbols);
    if (!symbols) return no_memory();
    scratch->symbols = symbols;
    scratch->symbol_capacity = capacity;
  }
  int32_t n = (int32_t)scratch->n_symbols++;
  scratch->symbols[n] = (struct symbol){.id = id, .prev = n - 1, .next = n + 1};
  return STATUS_OK;
}

static bool before(const struct candidate *a, const struct candidate *b) {
  return a->rank != b->rank ? a->rank < b->rank : a->position < b->position;
}

static enum status heap_push(struct bpe_scratch *scratch, struct candidate item) {
  if (scratch->n_heap == scratch->heap_capacity) {
    size_t capacity = scratch->heap_capacity ? 2 * scratch->heap_capacity : 256;
    struct candidate *heap = realloc(scratch->heap, capacity * sizeof *heap);
    if (!heap) return no_memory();
    scratch->heap = heap;
    scratch->heap_capacity = capacity;
  }
  size_t i = scratch->n_heap++;
  for (; i > 0 && before(&item, &scratch->heap[(i - 1) / 2]); i = (i - 1) / 2)
    scratch->heap[i] = scratch->heap[(i - 1) / 2];
  scratch->heap[i] = item;
  return STATUS_OK;
}

static struct candidate heap_pop(struct bpe_scratch *scratch) {
  struct candidate top = scratch->heap[0], last = scratch->heap[--scratch->n_heap];
  size_t i = 0;
  for (;;) {
    size_t child = 2 * i + 1;
    if (child >= scratch->n_heap) break;
    if (child + 1 < scratch->n_heap && before(&scratch->heap[child + 1], &scratch->heap[child])) child++;
    if (!before(&scratch->heap[child], &last)) break;
    scratch->heap[i] = scratch->heap[child];
    i = child;
  }
  if (scratch->n_heap) scratch->heap[i] = last;
  return top;
}

/* Offer the pair that begins at `position` to the heap. */
static enum status offer(const struct tokenizer *tokenizer, struct bpe_scratch *scratch, int32_t position) {
  const struct symbol *left = &scratch->symbols[position];
  if (left->next < 0) return STATUS_OK;
  const struct merge_slot *merge = merge_table_find(&tokenizer->merges, left->id, scratch->symbols[left->next].id);
  if (!merge) return STATUS_OK;
  return heap_push(scratch, (struct candidate){.rank = merge->rank, .position = position, .id = merge->id});
}

static enum status merge_all(const struct tokenizer *tokenizer, struct bpe_scratch *scratch) {
  struct symbol *symbols = scratch->symbols;
  scratch->n_heap = 0;
  for (size_t i = 0; i + 1 < scratch->n_symbols; i++) TRY(offer(tokenizer, scratch, (int32_t)i));
  while (scratch->n_heap) {
    struct candidate top = heap_pop(scratch);
    struct symbol *left = &symbols[top.position];
    if (left->id < 0 || left->next < 0) continue;
    /* The entry is stale if its neighbours changed since it was pushed. */
    const struct merge_slot *merge = merge_table_find(&tokenizer->merges, left->id, symbols[left->next].id);
    if (!merge || merge->id != top.id) continue;
    struct symbol *right = &symbols[left->next];
    left->id = top.id;
    left->next = right->next;
    right->id = -1;
    if (left->next >= 0) symbols[left->next].prev = top.position;
    if (left->prev >= 0) TRY(offer(tokenizer, scratch, left->prev));
    TRY(offer(tokenizer, scratch, top.position));
  }
  return STATUS_OK;
}

/* A character that is no token: its bytes, if the vocabulary has them all. */
static enum status push_bytes(const struct tokenizer *tokenizer, struct bpe_scratch *scratch, const char *text,
                              size_t n, bool *done) {
  *done = false;
  if (!tokenizer->byte_fallback) return STATUS_OK;
  for (size_t i = 0; i < n; i++)
    if (tokenizer->byte_ids[(unsigned char)text[i]] < 0) return STATUS_OK;
  for (size_t i = 0; i < n; i++) TRY(push_symbol(scratch, tokenizer->byte_ids[(unsigned char)text[i]]));
  *done = true;
  return STATUS_OK;
}

/* One symbol per character. An unknown character waits in `unknown` until the
 * next known one, so that neighbours can fuse; byte fallback does not flush it,
 * which is the order the tokenizers library has. */
static enum status split_characters(const struct tokenizer *tokenizer, struct bpe_scratch *scratch, const char *word,
                                    size_t n) {
  scratch->n_symbols = 0;
  bool unknown = false;
  for (size_t i = 0; i < n;) {
    uint32_t cp;
    size_t length = utf8_next(word + i, n - i, &cp);
    int32_t id = token_vocab_find(&tokenizer->vocab, word + i, length);
    if (id >= 0) {
      if (unknown) TRY(push_symbol(scratch, tokenizer->unk));
      unknown = false;
      TRY(push_symbol(scratch, id));
    } else {
      bool done;
      TRY(push_bytes(tokenizer, scratch, word + i, length, &done));
      if (!done && tokenizer->unk_named)
        return status_set(STATUS_DATA, "%s: a character is not in the vocabulary, and neither is the unk_token",
                          tokenizer->path);
      if (!done && tokenizer->unk >= 0) {
        if (unknown && !tokenizer->fuse_unk) TRY(push_symbol(scratch, tokenizer->unk));
        unknown = true;
      }
    }
    i += length;
  }
  if (unknown) TRY(push_symbol(scratch, tokenizer->unk));
  if (scratch->n_symbols) scratch->symbols[scratch->n_symbols - 1].next = -1;
  return STATUS_OK;
}

enum status bpe_encode_word(const struct tokenizer *tokenizer, const char *word, size_t n,
                            struct bpe_scratch **scratch_p, struct token_list *list) {
  if (n > INT32_MAX / 2) return status_set(STATUS_DATA, "a word of %zu bytes is too long to encode", n);
  if (tokenizer->ignore_merges) {
    int32_t id = token_vocab_find(&tokenizer->vocab, word, n);
    if (id >= 0) return token_list_push(list, id);
  }
  if (!*scratch_p && !(*scratch_p = calloc(1, sizeof **scratch_p))) return no_memory();
  struct bpe_scratch *scratch = *scratch_p;
  TRY(split_characters(tokenizer, scratch, word, n));
  TRY(merge_all(tokenizer, scratch));
  for (size_t i = 0; i < scratch->n_symbols; i++)
    if (scratch->symbols[i].id >= 0) TRY(token_list_push(list, scratch->symbols[i].id));
  return STATUS_OK;
}
