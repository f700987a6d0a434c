/*
 * tokenizer_decode.c: ids to text by the decoders, one after another, each over
 * a list of pieces.
 */
#include <stdlib.h>
#include <string.h>

#include "io/tokenizer_internal.h"

static const char *text_of_added(const struct added_token *token, size_t *n) {
  *n = token->normal ? token->normal_length : token->length;
  return token->normal ? token->normal : token->content;
}

/* Without a decoder, tokens are joined by spaces. */
static enum status collect(const struct tokenizer *t, const int32_t *ids, int64_t n, bool skip_special,
                           struct piece_list *list) {
  for (int64_t i = 0; i < n; i++) {
    const struct added_token *added = tokenizer_added_by_id(t, ids[i]);
    if (added && added->special && skip_special) continue;
    size_t length = 0;
    const char *text = added ? text_of_added(added, &length) : token_vocab_text(&t->vocab, ids[i], &length);
    if (!text) continue; /* ids beyond the vocabulary (padding rows) have no text */
    size_t start = list->text.n;
    if (t->n_decoders == 0 && start) TRY(text_append(&list->text, " ", 1));
    TRY(text_append(&list->text, text, length));
    TRY(piece_push(list, start, list->text.n - start, false));
  }
  return STATUS_OK;
}

/* A token with a character outside the byte alphabet (an added token) is taken
 * as it is. */
static enum status bytes_of_token(const char *text, size_t n, struct text_buffer *out) {
  size_t before = out->n;
  for (size_t i = 0; i < n;) {
    uint32_t cp;
    i += utf8_next(text + i, n - i, &cp);
    int byte = byte_of_alphabet(cp);
    if (byte < 0) {
      out->n = before;
      return text_append(out, text, n);
    }
    char c = (char)byte;
    TRY(text_append(out, &c, 1));
  }
  return STATUS_OK;
}

static enum status decode_bytelevel(const struct piece_list *in, struct piece_list *out) {
  struct text_buffer bytes = {0};
  enum status status = STATUS_OK;
  for (size_t i = 0; i < in->n; i++)
    TRY_OUT(bytes_of_token(in->text.data + in->items[i].start, in->items[i].n, &bytes));
  TRY_OUT(utf8_append_lossy(&out->text, bytes.data, bytes.n));
  status = piece_push(out, 0, out->text.n, false);
out:
  text_free(&bytes);
  return status;
}

static int hexadecimal(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c = (char)(c | 32);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Value of "<0xNN>", or -1. */
static int byte_of_token(const char *text, size_t n) {
  if (n != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
  int high = hexadecimal(text[3]), low = hexadecimal(text[4]);
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

/* A run of byte tokens is text if it is valid UTF-8, else one U+FFFD per byte. */
static enum status flush_bytes(struct text_buffer *bytes, struct piece_list *out) {
  size_t start = out->text.n;
  if (utf8_is_valid(bytes->data, bytes->n)) {
    TRY(text_append(&out->text, bytes->data, bytes->n));
    TRY(piece_push(out, start, bytes->n, false));
  } else {
    for (size_t i = 0; i < bytes->n; i++) {
      TRY(text_append_cp(&out->text, 0xFFFD));
      TRY(piece_push(out, out->text.n - 3, 3, false));
    }
  }
  bytes->n = 0;
  return STATUS_OK;
}

static enum status decode_byte_fallback(const struct piece_list *in, struct piece_list *out) {
  struct text_buffer bytes = {0};
  enum status status = STATUS_OK;
  for (size_t i = 0; i < in->n; i++) {
    const char *text = in->text.data + in->items[i].start;
    int value = byte_of_token(text, in->items[i].n);
    if (value >= 0) {
      char c = (char)value;
      TRY_OUT(text_append(&bytes, &c, 1));
      continue;
    }
    TRY_OUT(flush_bytes(&bytes, out));
    size_t start = out->text.n;
    TRY_OUT(text_append(&out->text, text, in->items[i].n));
    TRY_OUT(piece_push(out, start, in->items[i].n, false));
  }
  status = flush_bytes(&bytes, out);
out:
  text_free(&bytes);
  return status;
}

static enum status decode_replace(const char *pattern, size_t length, const char *content, size_t content_length,
                                  const char *text, size_t n, struct text_buffer *out) {
  size_t done = 0;
  for (const char *found; (found = memmem(text + done, n - done, pattern, length));) {
    TRY(text_append(out, text + done, (size_t)(found - text) - done));
    TRY(text_append(out, content, content_length));
    done = (size_t)(found - text) + length;
  }
  return text_append(out, text + done, n - done);
}

static void strip(const struct decoder *row, const char *text, size_t *start, size_t *n) {
  size_t c = row->content_length;
  for (int i = 0; i < row->start && c && *n >= c && memcmp(text + *start, row->content, c) == 0; i++) {
    *start += c;
    *n -= c;
  }
  for (int i = 0; i < row->stop && c && *n >= c && memcmp(text + *start + *n - c, row->content, c) == 0; i++) *n -= c;
}

/* The decoders that look at one piece at a time. */
static enum status decode_piece(const struct decoder *row, const char *text, size_t n, bool is_first,
                                struct text_buffer *out) {
  size_t start = 0;
  switch (row->kind) {
    case DECODE_REPLACE:
      return decode_replace(row->pattern, row->pattern_length, row->content, row->content_length, text, n, out);
    case DECODE_METASPACE: /* the first token loses its marks: they are the prefix */
      return decode_replace(row->content, row->content_length, " ", is_first && row->scheme != PREPEND_NEVER ? 0 : 1,
                            text, n, out);
    case DECODE_STRIP:
      strip(row, text, &start, &n);
      break;
    default:
      break;
  }
  return text_append(out, text + start, n);
}

static enum status run_decoder(const struct decoder *row, const struct piece_list *in, struct piece_list *out) {
  if (row->kind == DECODE_BYTELEVEL) return decode_bytelevel(in, out);
  if (row->kind == DECODE_BYTE_FALLBACK) return decode_byte_fallback(in, out);
  for (size_t i = 0; i < in->n; i++) {
    size_t start = out->text.n;
    TRY(decode_piece(row, in->text.data + in->items[i].start, in->items[i].n, i == 0, &out->text));
    if (row->kind != DECODE_FUSE) TRY(piece_push(out, start, out->text.n - start, false));
  }
  return row->kind == DECODE_FUSE ? piece_push(out, 0, out->text.n, false) : STATUS_OK;
}

enum status tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, int64_t n, bool skip_special,
                             char **text_p, size_t *length_p) {
  struct piece_list list = {0}, next = {0};
  struct text_buffer text = {0};
  enum status status = STATUS_OK;
  TRY_OUT(collect(tokenizer, ids, n, skip_special, &list));
  for (int i = 0; i < tokenizer->n_decoders; i++) {
    next.n = next.text.n = 0;
    TRY_OUT(run_decoder(&tokenizer->decoders[i], &list, &next));
    struct piece_list swap = list;
    list = next;
    next = swap;
  }
  for (size_t i = 0; i < list.n; i++)
    TRY_OUT(text_append(&text, list.text.data + list.items[i].start, list.items[i].n));
  TRY_OUT(text_append(&text, "", 1));
  *text_p = text.data;
  *length_p = text.n - 1;
  text = (struct text_buffer){0};
out:
  piece_list_free(&list);
  piece_list_free(&next);
  text_free(&text);
  return status;
}
