/*
 * tokenizer_pretok.c: the pre-tokenizers: each turns a list of pieces into a
 * list of smaller ones, on occasion with other text (byte alphabet, prefix
 * space).
 */
#include <stdlib.h>
#include <string.h>

#include "io/tokenizer_internal.h"

enum status piece_push(struct piece_list *list, size_t start, size_t n, bool at_start) {
  if (n == 0) return STATUS_OK;
  if (list->n == list->capacity) {
    size_t capacity = list->capacity ? 2 * list->capacity : 64;
    struct piece *items = realloc(list->items, capacity * sizeof *items);
    if (!items) return status_set(STATUS_SYSTEM, "out of memory while encoding");
    list->items = items;
    list->capacity = capacity;
  }
  list->items[list->n++] = (struct piece){.start = start, .n = n, .at_start = at_start};
  return STATUS_OK;
}

void piece_list_free(struct piece_list *list) {
  text_free(&list->text);
  free(list->items);
  *list = (struct piece_list){0};
}

/* GPT-2's alphabet: bytes that are visible characters in Latin-1 stand for
 * themselves, the other 68, in rising order, for U+0100 .. U+0143. */
static bool is_visible(int byte) { return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174; }

uint32_t byte_alphabet(unsigned char byte) {
  if (is_visible(byte)) return byte;
  return byte <= 32 ? 0x100u + byte : byte <= 160 ? 0x100u + byte - 94 : 0x143u;
}

int byte_of_alphabet(uint32_t cp) {
  if (cp < 0x100) return is_visible((int)cp) ? (int)cp : -1;
  if (cp <= 0x120) return (int)cp - 0x100;
  if (cp <= 0x142) return (int)cp - 0x100 + 94;
  return cp == 0x143 ? 173 : -1;
}

/* Where a splitter puts the parts of one piece, by the behaviour's rules. */
struct splitter {
  struct piece_list *out;
  struct piece piece; /* in out->text */
  enum split_behavior behavior;
  bool invert, last_match;
  size_t start, end; /* part that may still grow; equal: none */
};

static enum status flush(struct splitter *s) {
  size_t start = s->start, end = s->end;
  s->start = s->end;
  return piece_push(s->out, s->piece.start + start, end - start, s->piece.at_start && start == 0);
}

/* Parts come in order and cover the piece. */
static enum status part(struct splitter *s, size_t start, size_t end, bool match) {
  match = match != s->invert;
  bool grow = false;
  switch (s->behavior) {
    case SPLIT_ISOLATED:
      break;
    case SPLIT_REMOVED:
      break;
    case SPLIT_CONTIGUOUS:
      grow = match == s->last_match;
      break;
    case SPLIT_PREVIOUS:
      grow = match && !s->last_match;
      break;
    case SPLIT_NEXT:
      grow = !match && s->last_match;
      break;
  }
  if (!grow) TRY(flush(s));
  if (!grow) s->start = start;
  s->end = end;
  s->last_match = match;
  if (s->behavior == SPLIT_REMOVED && match) s->start = end;
  return STATUS_OK;
}

static enum status split_by_regex(const struct token_regex *regex, struct regex_scratch *scratch, const char *subject,
                                  struct splitter *s) {
  size_t n = s->piece.n, from = 0, done = 0, last_end = SIZE_MAX;
  while (from <= n) {
    bool found;
    size_t start, end;
    TRY(token_regex_find(regex, scratch, subject, n, from, &found, &start, &end));
    if (!found) break;
    if (start == end && end == last_end) { /* an empty match where the last one ended: step on */
      uint32_t cp;
      from += from < n ? utf8_next(subject + from, n - from, &cp) : 1;
      continue;
    }
    if (done != start) TRY(part(s, done, start, false));
    TRY(part(s, start, end, true));
    done = from = last_end = end;
  }
  if (done != n) TRY(part(s, done, n, false));
  return flush(s);
}

static enum status split_digits(const char *text, struct splitter *s) {
  size_t done = 0, n = s->piece.n;
  for (size_t i = 0; i < n;) {
    uint32_t cp;
    size_t length = utf8_next(text + i, n - i, &cp);
    if (unicode_is_numeric(cp)) {
      if (done != i) TRY(part(s, done, i, false));
      TRY(part(s, i, i + length, true));
      done = i + length;
    }
    i += length;
  }
  if (done != n) TRY(part(s, done, n, false));
  return flush(s);
}

static enum status split_before(const char *text, const char *mark, struct splitter *s) {
  size_t done = 0, n = s->piece.n, length = strlen(mark);
  for (const char *found; (found = memmem(text + done, n - done, mark, length));) {
    size_t start = (size_t)(found - text);
    if (done != start) TRY(part(s, done, start, false));
    TRY(part(s, start, start + length, true));
    done = start + length;
  }
  if (done != n) TRY(part(s, done, n, false));
  return flush(s);
}

static bool begins_with(const char *text, size_t n, const char *mark) {
  size_t length = strlen(mark);
  return n >= length && memcmp(text, mark, length) == 0;
}

/* Copy a piece to out's text with spaces as marks and the mark in front. */
static enum status mark_spaces(const struct pretokenizer *row, const char *text, const struct piece *piece,
                               bool continues, struct piece_list *out) {
  size_t mark = strlen(row->replacement);
  bool marked = piece->n && (text[0] == ' ' || begins_with(text, piece->n, row->replacement));
  bool wanted = row->scheme == PREPEND_ALWAYS || (row->scheme == PREPEND_FIRST && piece->at_start);
  if (wanted && !marked && !continues) TRY(text_append(&out->text, row->replacement, mark));
  for (size_t i = 0; i < piece->n; i++)
    TRY(text_append(&out->text, text[i] == ' ' ? row->replacement : text + i, text[i] == ' ' ? mark : 1));
  return STATUS_OK;
}

/* Texts before the split: `out` gets, for each piece, what the splitter reads. */
static enum status prepare(const struct pretokenizer *row, const struct piece_list *in, bool continues,
                           struct piece_list *out) {
  for (size_t i = 0; i < in->n; i++) {
    const struct piece *piece = &in->items[i];
    const char *text = in->text.data + piece->start;
    size_t start = out->text.n;
    bool first_of_more = continues && piece->at_start;
    if (row->kind == PRETOKENIZE_METASPACE) {
      TRY(mark_spaces(row, text, piece, first_of_more, out));
    } else {
      if (row->kind == PRETOKENIZE_BYTELEVEL && row->add_prefix_space && text[0] != ' ' && !first_of_more)
        TRY(text_append(&out->text, " ", 1));
      TRY(text_append(&out->text, text, piece->n));
    }
    TRY(piece_push(out, start, out->text.n - start, piece->at_start));
  }
  return STATUS_OK;
}

/* Split the pieces of `in` into `out`; both have the same text. */
static enum status split_all(const struct pretokenizer *row, const struct piece_list *in, const char *subject,
                             struct regex_scratch *scratch, struct piece_list *out) {
  for (size_t i = 0; i < in->n; i++) {
    const struct piece *piece = &in->items[i];
    const char *text = in->text.data + piece->start;
    struct splitter s = {.out = out, .piece = *piece, .behavior = SPLIT_ISOLATED};
    switch (row->kind) {
      case PRETOKENIZE_SPLIT:
        s.behavior = row->behavior;
        s.invert = row->invert;
        TRY(split_by_regex(row->regex, scratch, subject + piece->start, &s));
        break;
      case PRETOKENIZE_BYTELEVEL:
        TRY(split_by_regex(row->regex, scratch, subject + piece->start, &s));
        break;
      case PRETOKENIZE_DIGITS:
        s.behavior = row->individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
        TRY(split_digits(text, &s));
        break;
      case PRETOKENIZE_METASPACE:
        s.behavior = SPLIT_NEXT;
        TRY(split_before(text, row->replacement, &s));
        break;
    }
  }
  return STATUS_OK;
}

static enum status to_byte_alphabet(const struct piece_list *in, struct piece_list *out) {
  for (size_t i = 0; i < in->n; i++) {
    const struct piece *piece = &in->items[i];
    size_t start = out->text.n;
    TRY(text_reserve(&out->text, 2 * piece->n));
    for (size_t j = 0; j < piece->n; j++)
      out->text.n +=
          utf8_put(byte_alphabet((unsigned char)in->text.data[piece->start + j]), out->text.data + out->text.n);
    TRY(piece_push(out, start, out->text.n - start, piece->at_start));
  }
  return STATUS_OK;
}

static void swap_pieces(struct piece_list *a, struct piece_list *b, bool text_too) {
  struct piece_list t = *a;
  *a = *b;
  *b = t;
  if (!text_too) {
    b->text = a->text;
    a->text = t.text;
  }
}

enum status tokenizer_pretokenize(const struct tokenizer *tokenizer, struct piece_list *list, struct piece_list *other,
                                  struct text_buffer *subject, struct regex_scratch **scratch, bool continues) {
  for (int i = 0; i < tokenizer->n_pretokenizers; i++) {
    const struct pretokenizer *row = &tokenizer->pretokenizers[i];
    if (row->kind == PRETOKENIZE_METASPACE || row->add_prefix_space) {
      other->n = other->text.n = 0;
      TRY(prepare(row, list, continues, other));
      swap_pieces(list, other, true);
    }
    if (row->regex) {
      if (!*scratch) TRY(regex_scratch_create(scratch));
      subject->n = 0;
      TRY(token_regex_subject(subject, list->text.data, list->text.n));
    }
    if (row->regex || row->kind == PRETOKENIZE_DIGITS || row->split) {
      other->n = 0;
      TRY(split_all(row, list, subject->data, *scratch, other));
      swap_pieces(list, other, false);
    }
    if (row->kind == PRETOKENIZE_BYTELEVEL) {
      other->n = other->text.n = 0;
      TRY(to_byte_alphabet(list, other));
      swap_pieces(list, other, true);
    }
  }
  return STATUS_OK;
}
