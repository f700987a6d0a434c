/*
 * tokenizer_added.c: tokens that are found in the text before anything else is
 * done with it. Search is leftmost-longest, as the tokenizers library's.
 */
#include <stdlib.h>
#include <string.h>

#include "io/log.h"
#include "io/tokenizer_internal.h"

/* Bounds the cost of the search at each position. */
#define MAX_ADDED_LENGTH 4096

static enum status no_memory(void) { return status_set(STATUS_SYSTEM, "out of memory for the tokenizer"); }

static enum status new_node(struct token_trie *trie, unsigned char byte, uint32_t *node) {
  if (trie->n == trie->capacity) {
    size_t capacity = trie->capacity ? 2 * trie->capacity : 64;
    struct trie_node *nodes = realloc(trie->nodes, capacity * sizeof *nodes);
    if (!nodes) return no_memory();
    trie->nodes = nodes;
    trie->capacity = capacity;
    if (trie->n == 0) trie->nodes[trie->n++] = (struct trie_node){.token = -1};
  }
  if (trie->n >= UINT32_MAX) return no_memory();
  *node = (uint32_t)trie->n;
  trie->nodes[trie->n++] = (struct trie_node){.token = -1, .byte = byte};
  return STATUS_OK;
}

static uint32_t child_of(const struct token_trie *trie, uint32_t node, unsigned char byte) {
  uint32_t child = trie->nodes[node].child;
  while (child && trie->nodes[child].byte != byte) child = trie->nodes[child].sibling;
  return child;
}

/* Of two tokens with one content, the first wins. */
enum status token_trie_add(struct token_trie *trie, const char *content, size_t n, int32_t token) {
  if (n == 0) return STATUS_OK;
  uint32_t node = trie->first[(unsigned char)content[0]];
  if (!node) {
    TRY(new_node(trie, (unsigned char)content[0], &node));
    trie->first[(unsigned char)content[0]] = node;
  }
  for (size_t i = 1; i < n; i++) {
    uint32_t child = child_of(trie, node, (unsigned char)content[i]);
    if (!child) {
      TRY(new_node(trie, (unsigned char)content[i], &child));
      trie->nodes[child].sibling = trie->nodes[node].child;
      trie->nodes[node].child = child;
    }
    node = child;
  }
  if (trie->nodes[node].token < 0) trie->nodes[node].token = token;
  return STATUS_OK;
}

void token_trie_free(struct token_trie *trie) {
  free(trie->nodes);
  *trie = (struct token_trie){0};
}

/* Longest token at text[0, n), or -1. */
static int32_t longest_at(const struct token_trie *trie, const char *text, size_t n, size_t *length) {
  int32_t token = -1;
  uint32_t node = trie->first[(unsigned char)text[0]];
  for (size_t i = 1; node; i++) {
    if (trie->nodes[node].token >= 0) {
      token = trie->nodes[node].token;
      *length = i;
    }
    if (i == n) break;
    node = child_of(trie, node, (unsigned char)text[i]);
  }
  return token;
}

static enum status push_cut(struct cut_list *cuts, size_t start, size_t end, int32_t token) {
  if (cuts->n == cuts->capacity) {
    size_t capacity = cuts->capacity ? 2 * cuts->capacity : 16;
    struct cut *items = realloc(cuts->items, capacity * sizeof *items);
    if (!items) return no_memory();
    cuts->items = items;
    cuts->capacity = capacity;
  }
  cuts->items[cuts->n++] = (struct cut){.start = start, .end = end, .token = token};
  return STATUS_OK;
}

/* Start of the code point that ends at `end`. */
static size_t previous(const char *text, size_t end) {
  size_t i = end - 1;
  while (i > 0 && ((unsigned char)text[i] & 0xC0) == 0x80) i--;
  return i;
}

static bool word_beside(const char *text, size_t n, size_t start, size_t end) {
  uint32_t cp;
  if (start > 0) {
    utf8_next(text + previous(text, start), start, &cp);
    if (unicode_is_word(cp)) return true;
  }
  if (end == n) return false;
  utf8_next(text + end, n - end, &cp);
  return unicode_is_word(cp);
}

static size_t skip_space_left(const char *text, size_t start, size_t floor) {
  while (start > floor) {
    uint32_t cp;
    size_t before = previous(text, start);
    utf8_next(text + before, start - before, &cp);
    if (!unicode_is_space(cp) || before < floor) break;
    start = before;
  }
  return start;
}

static size_t skip_space_right(const char *text, size_t n, size_t end) {
  while (end < n) {
    uint32_t cp;
    size_t length = utf8_next(text + end, n - end, &cp);
    if (!unicode_is_space(cp)) break;
    end += length;
  }
  return end;
}

/* `done` moves to the end of each cut, even back where a token lies inside the
 * white space that an rstrip token has swallowed: the library does the same. */
enum status tokenizer_cut(const struct tokenizer *tokenizer, const struct token_trie *trie, const char *text, size_t n,
                          bool skip_special, struct cut_list *cuts) {
  size_t done = 0;
  cuts->n = 0;
  for (size_t i = 0; trie->n && i < n;) {
    size_t length = 0;
    int32_t found = longest_at(trie, text + i, n - i, &length);
    if (found < 0) {
      i++;
      continue;
    }
    const struct added_token *token = &tokenizer->added[found];
    size_t start = i, end = i + length;
    i = end;
    if (skip_special && token->special) continue;
    if (token->single_word && word_beside(text, n, start, end)) continue;
    if (token->lstrip && start > done) start = skip_space_left(text, start, done);
    if (token->rstrip) end = skip_space_right(text, n, end);
    if (done < start) TRY(push_cut(cuts, done, start, -1));
    TRY(push_cut(cuts, start, end, found));
    done = end;
  }
  return done < n ? push_cut(cuts, done, n, -1) : STATUS_OK;
}

enum status tokenizer_add_token(struct tokenizer *tokenizer, const char *content, size_t n,
                                const struct added_token *flags) {
  if (n > MAX_ADDED_LENGTH)
    return status_set(STATUS_DATA, "%s: an added token of %zu bytes is longer than %d", tokenizer->path, n,
                      MAX_ADDED_LENGTH);
  if (n == 0 || token_vocab_find(&tokenizer->added_vocab, content, n) >= 0) return STATUS_OK;
  TRY(token_vocab_add(&tokenizer->added_vocab, content, n, 0)); /* the id comes with tokenizer_finish_added */
  if (tokenizer->n_added >= 1 << 24) return status_set(STATUS_DATA, "%s: too many added tokens", tokenizer->path);
  if ((tokenizer->n_added & (tokenizer->n_added - 1)) == 0) {
    size_t capacity = tokenizer->n_added ? 2 * (size_t)tokenizer->n_added : 1;
    struct added_token *added = realloc(tokenizer->added, capacity * sizeof *added);
    if (!added) return no_memory();
    tokenizer->added = added;
  }
  char *copy = malloc(n + 1);
  if (!copy) return no_memory();
  memcpy(copy, content, n);
  copy[n] = 0;
  struct added_token *token = &tokenizer->added[tokenizer->n_added++];
  *token = *flags;
  token->content = copy;
  token->length = n;
  return STATUS_OK;
}

/* The library ignores the file's ids: a token of the vocabulary keeps its id,
 * any other takes the next free one. */
static enum status assign_ids(struct tokenizer *tokenizer) {
  int64_t next = (int64_t)tokenizer->vocab.n;
  int moved = 0;
  for (int32_t i = 0; i < tokenizer->n_added; i++) {
    struct added_token *token = &tokenizer->added[i];
    int32_t id = token_vocab_find(&tokenizer->vocab, token->content, token->length);
    if (next > INT32_MAX) return status_set(STATUS_DATA, "%s: too many tokens", tokenizer->path);
    if (id < 0) id = (int32_t)next;
    if (id >= next) next = (int64_t)id + 1;
    TRY(token_vocab_add(&tokenizer->added_vocab, token->content, token->length, id));
    moved += token->id != id;
    token->id = id;
  }
  if (moved)
    log_warn("%s: %d added tokens have other ids than the file says, as in the tokenizers library", tokenizer->path,
             moved);
  return STATUS_OK;
}

struct order_item {
  int32_t id, index;
};

static int by_id(const void *a, const void *b) {
  const struct order_item *left = a, *right = b;
  if (left->id != right->id) return left->id < right->id ? -1 : 1;
  return left->index < right->index ? -1 : 1;
}

static enum status order_by_id(struct tokenizer *tokenizer) {
  size_t n = (size_t)tokenizer->n_added;
  struct order_item *items = malloc((n + 1) * sizeof *items);
  tokenizer->added_order = malloc((n + 1) * sizeof *tokenizer->added_order);
  if (!items || !tokenizer->added_order) {
    free(items);
    return no_memory();
  }
  for (size_t i = 0; i < n; i++) items[i] = (struct order_item){tokenizer->added[i].id, (int32_t)i};
  qsort(items, n, sizeof *items, by_id);
  for (size_t i = 0; i < n; i++) tokenizer->added_order[i] = items[i].index;
  free(items);
  return STATUS_OK;
}

static enum status build_trie(struct tokenizer *tokenizer, bool special) {
  for (int32_t i = 0; i < tokenizer->n_added; i++) {
    struct added_token *token = &tokenizer->added[i];
    if (token->special != special) continue;
    if (!token->normalized) {
      TRY(token_trie_add(&tokenizer->raw, token->content, token->length, i));
      continue;
    }
    struct text_buffer normal = {0};
    enum status status = tokenizer_normalize(tokenizer, token->content, token->length, false, &normal);
    token->normal = normal.data;
    token->normal_length = normal.n;
    TRY(status);
    TRY(token_trie_add(&tokenizer->normalized, token->normal, token->normal_length, i));
  }
  return STATUS_OK;
}

enum status tokenizer_finish_added(struct tokenizer *tokenizer) {
  TRY(assign_ids(tokenizer));
  TRY(order_by_id(tokenizer));
  TRY(build_trie(tokenizer, true));
  return build_trie(tokenizer, false);
}

const struct added_token *tokenizer_added_by_id(const struct tokenizer *tokenizer, int32_t id) {
  int32_t low = 0, high = tokenizer->n_added;
  while (low < high) {
    int32_t middle = low + (high - low) / 2;
    if (tokenizer->added[tokenizer->added_order[middle]].id < id)
      low = middle + 1;
    else
      high = middle;
  }
  if (low == tokenizer->n_added) return NULL;
  const struct added_token *token = &tokenizer->added[tokenizer->added_order[low]];
  return token->id == id ? token : NULL;
}
