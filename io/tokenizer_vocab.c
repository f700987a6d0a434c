/*
 * tokenizer_vocab.c: the two tables of a byte-pair encoding: tokens by text and
 * by id, and merges by pair of ids.
 */
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "io/tokenizer_internal.h"

/* An id table may be this much longer than the number of tokens. */
#define ID_SLACK 65536

static enum status no_memory(void) { return status_set(STATUS_SYSTEM, "out of memory for the tokenizer"); }

static size_t find_slot(const struct token_vocab *vocab, const char *text, size_t n) {
  size_t slot = XXH3_64bits(text, n) & (vocab->n_slots - 1);
  while (vocab->slots[slot]) {
    const struct vocab_entry *entry = &vocab->entries[vocab->slots[slot] - 1];
    if (entry->length == n && memcmp(vocab->text.data + entry->offset, text, n) == 0) break;
    slot = (slot + 1) & (vocab->n_slots - 1);
  }
  return slot;
}

static enum status grow_slots(struct token_vocab *vocab) {
  size_t n_slots = vocab->n_slots ? 2 * vocab->n_slots : 1024;
  uint32_t *slots = calloc(n_slots, sizeof *slots);
  if (!slots) return no_memory();
  free(vocab->slots);
  vocab->slots = slots;
  vocab->n_slots = n_slots;
  for (size_t i = 0; i < vocab->n; i++) {
    const struct vocab_entry *entry = &vocab->entries[i];
    slots[find_slot(vocab, vocab->text.data + entry->offset, entry->length)] = (uint32_t)i + 1;
  }
  return STATUS_OK;
}

enum status token_vocab_add(struct token_vocab *vocab, const char *text, size_t n, int32_t id) {
  if (n > INT32_MAX || vocab->n >= INT32_MAX - 1) return status_set(STATUS_DATA, "the vocabulary is too large");
  if (2 * (vocab->n + 1) > vocab->n_slots) TRY(grow_slots(vocab));
  size_t slot = find_slot(vocab, text, n);
  if (vocab->slots[slot]) {
    vocab->entries[vocab->slots[slot] - 1].id = id;
    return STATUS_OK;
  }
  if (vocab->n == vocab->capacity) {
    size_t capacity = vocab->capacity ? 2 * vocab->capacity : 512;
    struct vocab_entry *entries = realloc(vocab->entries, capacity * sizeof *entries);
    if (!entries) return no_memory();
    vocab->entries = entries;
    vocab->capacity = capacity;
  }
  size_t offset = vocab->text.n;
  TRY(text_append(&vocab->text, text, n));
  vocab->entries[vocab->n++] = (struct vocab_entry){.offset = offset, .length = (uint32_t)n, .id = id};
  vocab->slots[slot] = (uint32_t)vocab->n;
  return STATUS_OK;
}

int32_t token_vocab_find(const struct token_vocab *vocab, const char *text, size_t n) {
  if (!vocab->n_slots) return -1;
  uint32_t found = vocab->slots[find_slot(vocab, text, n)];
  return found ? vocab->entries[found - 1].id : -1;
}

enum status token_vocab_index(struct token_vocab *vocab) {
  int64_t n_ids = 0;
  for (size_t i = 0; i < vocab->n; i++) {
    if (vocab->entries[i].id < 0) return status_set(STATUS_DATA, "a token has a negative id");
    if (vocab->entries[i].id >= n_ids) n_ids = (int64_t)vocab->entries[i].id + 1;
  }
  if (n_ids > 2 * (int64_t)vocab->n + ID_SLACK)
    return status_set(STATUS_DATA, "token id %lld is far beyond the %zu tokens of the vocabulary", (long long)n_ids - 1,
                      vocab->n);
  int32_t *by_id = malloc((size_t)(n_ids ? n_ids : 1) * sizeof *by_id);
  if (!by_id) return no_memory();
  for (int64_t i = 0; i < n_ids; i++) by_id[i] = -1;
  for (size_t i = 0; i < vocab->n; i++) by_id[vocab->entries[i].id] = (int32_t)i;
  free(vocab->by_id);
  vocab->by_id = by_id;
  vocab->n_ids = n_ids;
  return STATUS_OK;
}

const char *token_vocab_text(const struct token_vocab *vocab, int32_t id, size_t *n) {
  if (id < 0 || id >= vocab->n_ids || vocab->by_id[id] < 0) return NULL;
  const struct vocab_entry *entry = &vocab->entries[vocab->by_id[id]];
  *n = entry->length;
  return vocab->text.data ? vocab->text.data + entry->offset : "";
}

void token_vocab_free(struct token_vocab *vocab) {
  text_free(&vocab->text);
  free(vocab->entries);
  free(vocab->slots);
  free(vocab->by_id);
  *vocab = (struct token_vocab){0};
}

static uint64_t pair_key(int32_t left, int32_t right) { return (uint64_t)(uint32_t)left << 32 | (uint32_t)right; }

/* The multiplier is 2^64 / golden ratio: neighbouring ids spread over the table. */
static size_t pair_slot(const struct merge_table *table, uint64_t pair) {
  uint64_t hash = (pair ^ pair >> 32) * UINT64_C(0x9E3779B97F4A7C15);
  size_t slot = (hash >> 20) & (table->n_slots - 1);
  while (table->slots[slot].pair != UINT64_MAX && table->slots[slot].pair != pair)
    slot = (slot + 1) & (table->n_slots - 1);
  return slot;
}

static enum status grow_merges(struct merge_table *table) {
  struct merge_table grown = {.n_slots = table->n_slots ? 2 * table->n_slots : 1024, .n = table->n};
  grown.slots = malloc(grown.n_slots * sizeof *grown.slots);
  if (!grown.slots) return no_memory();
  for (size_t i = 0; i < grown.n_slots; i++) grown.slots[i].pair = UINT64_MAX;
  for (size_t i = 0; i < table->n_slots; i++)
    if (table->slots[i].pair != UINT64_MAX) grown.slots[pair_slot(&grown, table->slots[i].pair)] = table->slots[i];
  free(table->slots);
  *table = grown;
  return STATUS_OK;
}

enum status merge_table_add(struct merge_table *table, int32_t left, int32_t right, int32_t rank, int32_t id) {
  if (2 * (table->n + 1) > table->n_slots) TRY(grow_merges(table));
  uint64_t pair = pair_key(left, right);
  struct merge_slot *slot = &table->slots[pair_slot(table, pair)];
  table->n += slot->pair == UINT64_MAX;
  *slot = (struct merge_slot){.pair = pair, .rank = rank, .id = id};
  return STATUS_OK;
}

const struct merge_slot *merge_table_find(const struct merge_table *table, int32_t left, int32_t right) {
  if (!table->n_slots) return NULL;
  const struct merge_slot *slot = &table->slots[pair_slot(table, pair_key(left, right))];
  return slot->pair == UINT64_MAX ? NULL : slot;
}

void merge_table_free(struct merge_table *table) {
  free(table->slots);
  *table = (struct merge_table){0};
}
