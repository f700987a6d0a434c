/*
 * tokenizer_normalize.c: the normalizers, one after another.
 */
#include <string.h>

#include "io/tokenizer_internal.h"

static enum status replace(const struct normalizer *normalizer, const char *text, size_t n, struct text_buffer *out) {
  size_t done = 0;
  while (done < n) {
    const char *found = memmem(text + done, n - done, normalizer->pattern, normalizer->pattern_length);
    if (!found) break;
    TRY(text_append(out, text + done, (size_t)(found - text) - done));
    TRY(text_append(out, normalizer->content, normalizer->content_length));
    done = (size_t)(found - text) + normalizer->pattern_length;
  }
  return text_append(out, text + done, n - done);
}

static enum status apply(const struct normalizer *normalizer, const char *text, size_t n, bool continues,
                         struct text_buffer *out) {
  switch (normalizer->kind) {
    case NORMALIZE_NFC:
      return unicode_compose(out, text, n, false);
    case NORMALIZE_NFKC:
      return unicode_compose(out, text, n, true);
    case NORMALIZE_LOWERCASE:
      return unicode_lowercase(out, text, n);
    case NORMALIZE_PREPEND:
      if (n && !continues) TRY(text_append(out, normalizer->content, normalizer->content_length));
      return text_append(out, text, n);
    case NORMALIZE_REPLACE:
      return replace(normalizer, text, n, out);
  }
  return STATUS_OK;
}

enum status tokenizer_normalize(const struct tokenizer *tokenizer, const char *text, size_t n, bool continues,
                                struct text_buffer *out) {
  if (tokenizer->n_normalizers == 0) return text_append(out, text, n);
  struct text_buffer from = {0}, to = {0};
  enum status status = text_append(&from, text, n);
  for (int i = 0; status == STATUS_OK && i < tokenizer->n_normalizers; i++) {
    to.n = 0;
    status = apply(&tokenizer->normalizers[i], from.data, from.n, continues, &to);
    struct text_buffer swap = from;
    from = to;
    to = swap;
  }
  if (status == STATUS_OK) status = text_append(out, from.data, from.n);
  text_free(&from);
  text_free(&to);
  return status;
}
