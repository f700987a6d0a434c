/*
 * tokenizer_regex.c: the regular expressions of tokenizers, which are written
 * for Oniguruma, run by PCRE2.
 *
 * A pattern is translated token by token, and whatever the two engines read
 * differently is rewritten (nested classes, \v, \u) or refused by name (\h, \w,
 * \b, {n,m}+, scripts, ...). Unicode versions are levelled by matching against
 * a copy of the text with stand-ins (token_regex_subject).
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/tokenizer_internal.h"

#define MAX_PATTERN 65536
#define MAX_DEPTH   100 /* nested groups or classes */

struct token_regex {
  pcre2_code *code;
};

struct regex_scratch {
  pcre2_match_data *match;
  pcre2_match_context *context;
  pcre2_jit_stack *stack;
};

struct translation {
  const char *pattern;
  size_t n, i;
  int depth;
  struct text_buffer out;
};

static enum status refuse(const struct translation *t, size_t at, const char *what) {
  int shown = (int)(t->n - at < 12 ? t->n - at : 12);
  return status_set(STATUS_DATA, "regular expression: %s is not supported (at byte %zu: \"%.*s\")", what, at, shown,
                    t->pattern + at);
}

static bool ahead(const struct translation *t, const char *text) {
  size_t n = strlen(text);
  return t->n - t->i >= n && memcmp(t->pattern + t->i, text, n) == 0;
}

static enum status copy(struct translation *t, size_t n) {
  TRY(text_append(&t->out, t->pattern + t->i, n));
  t->i += n;
  return STATUS_OK;
}

/* \x{H..}, \xHH, \uHHHH: as \x{H..}. */
static enum status code_point(struct translation *t) {
  size_t at = t->i;
  bool braces = t->n - t->i > 2 && t->pattern[t->i + 1] == 'x' && t->pattern[t->i + 2] == '{';
  size_t limit = braces ? 8 : t->pattern[t->i + 1] == 'u' ? 4 : 2, digits = 0;
  t->i += braces ? 3 : 2;
  uint32_t value = 0;
  for (; t->i < t->n && digits < limit; t->i++, digits++) {
    char c = t->pattern[t->i], low = (char)(c | 32);
    if (c >= '0' && c <= '9')
      value = value << 4 | (uint32_t)(c - '0');
    else if (low >= 'a' && low <= 'f')
      value = value << 4 | (uint32_t)(low - 'a' + 10);
    else
      break;
  }
  bool closed = !braces || (t->i < t->n && t->pattern[t->i++] == '}');
  if (!closed || digits == 0 || (t->pattern[at + 1] == 'u' && digits != 4)) return refuse(t, at, "this escape");
  /* \x80 .. \xFF are raw bytes for Oniguruma. */
  if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000) || (!braces && limit == 2 && value > 0x7F))
    return refuse(t, at, "this code point");
  char text[16];
  int n = snprintf(text, sizeof text, "\\x{%X}", (unsigned)value);
  return text_append(&t->out, text, (size_t)n);
}

/* \p{..}: general categories only. Script names mean different sets in the two
 * engines, and Oniguruma's other names are unknown to PCRE2. */
static enum status property(struct translation *t) {
  size_t at = t->i, i = t->i + 2, first;
  if (i >= t->n || t->pattern[i] != '{') return refuse(t, at, "\\p without braces");
  i++;
  if (i < t->n && t->pattern[i] == '^') i++;
  first = i;
  while (i < t->n && t->pattern[i] != '}') i++;
  static const char *const names[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd",
                                      "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm",
                                      "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Cn", "Co"};
  for (size_t k = 0; i < t->n && k < sizeof names / sizeof names[0]; k++)
    if (strlen(names[k]) == i - first && memcmp(names[k], t->pattern + first, i - first) == 0)
      return copy(t, i + 1 - at);
  return refuse(t, at, "this property");
}

static enum status escape(struct translation *t, bool in_class) {
  size_t at = t->i;
  if (t->i + 1 >= t->n) return refuse(t, at, "a trailing backslash");
  char c = t->pattern[t->i + 1];
  if (c == 'p' || c == 'P') return property(t);
  if (c == 'x' || c == 'u') return code_point(t);
  if (c == 'v') { /* the vertical tab alone; in PCRE2 any vertical space */
    t->i += 2;
    return text_append(&t->out, "\\x{B}", 5);
  }
  if (strchr("sSdDrntfae", c) && c) return copy(t, 2);
  if (!in_class && strchr("AzZ", c) && c) return copy(t, 2);
  bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  if (letter) return refuse(t, at, "this escape");
  if ((unsigned char)c >= 0x80) { /* an escaped character outside ASCII is itself */
    t->i++;
    uint32_t cp;
    return copy(t, utf8_next(t->pattern + t->i, t->n - t->i, &cp));
  }
  return copy(t, 2);
}

static enum status class_members(struct translation *t);

/* At the inner brackets a hyphen would become a range once they are gone. */
static enum status inner_class(struct translation *t) {
  size_t first = t->i;
  bool hyphen = first >= 2 && t->pattern[first - 2] == '-';
  hyphen = hyphen || ahead(t, "-");
  TRY(class_members(t));
  if (hyphen || t->pattern[t->i - 2] == '-' || ahead(t, "-"))
    return refuse(t, first - 1, "a hyphen at the edge of a class within a class");
  return STATUS_OK;
}

/* A class within a class adds its members: Oniguruma nests them, PCRE2 would
 * take '[' for itself. Inner negations and intersections have no equivalent. */
static enum status class_members(struct translation *t) {
  if (++t->depth > MAX_DEPTH) return refuse(t, t->i, "nesting this deep");
  size_t begin = t->i;
  for (; t->i < t->n && t->pattern[t->i] != ']';) {
    if (ahead(t, "[:")) return refuse(t, t->i, "a POSIX class");
    if (ahead(t, "&&")) return refuse(t, t->i, "an intersection of classes");
    if (ahead(t, "[^")) return refuse(t, t->i, "a negated class within a class");
    if (t->pattern[t->i] == '[') {
      t->i++;
      TRY(inner_class(t));
    } else if (t->pattern[t->i] == '\\') {
      TRY(escape(t, true));
    } else {
      TRY(copy(t, 1));
    }
  }
  if (t->i == t->n) return refuse(t, begin, "a class without end");
  if (t->i == begin) return refuse(t, begin, "an empty class");
  t->i++;
  t->depth--;
  return STATUS_OK;
}

static enum status class(struct translation *t) {
  TRY(copy(t, ahead(t, "[^") ? 2 : 1));
  /* A caret that begins a nested class' members would now negate the whole. */
  if (ahead(t, "^") || ahead(t, "[^")) return refuse(t, t->i, "this class");
  TRY(class_members(t));
  return text_append(&t->out, "]", 1);
}

/* {n}, {n,}, {n,m}. Oniguruma reads {n}? and {n,m}+ otherwise than PCRE2. */
static enum status interval(struct translation *t) {
  size_t at = t->i, i = t->i + 1, digits = i;
  while (i < t->n && t->pattern[i] >= '0' && t->pattern[i] <= '9') i++;
  bool good = i > digits && i - digits <= 4, comma = i < t->n && t->pattern[i] == ',';
  if (comma)
    for (digits = ++i; i < t->n && t->pattern[i] >= '0' && t->pattern[i] <= '9'; i++) good = good && i - digits < 4;
  if (!good || i == t->n || t->pattern[i] != '}') return refuse(t, at, "this repetition");
  i++;
  if (i < t->n && (t->pattern[i] == '+' || (t->pattern[i] == '?' && !comma))) return refuse(t, at, "this repetition");
  return copy(t, i - at);
}

static enum status group(struct translation *t) {
  static const char *const known[] = {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:"};
  if (++t->depth > MAX_DEPTH) return refuse(t, t->i, "nesting this deep");
  if (ahead(t, "(*")) return refuse(t, t->i, "this group");
  if (!ahead(t, "(?")) return copy(t, 1);
  if (t->i == 0 && ahead(t, "(?i)")) {
    t->depth--;
    return copy(t, 4);
  }
  for (size_t k = 0; k < sizeof known / sizeof known[0]; k++)
    if (ahead(t, known[k])) return copy(t, strlen(known[k]));
  return refuse(t, t->i, "this group");
}

static enum status translate(struct translation *t) {
  while (t->i < t->n) {
    switch (t->pattern[t->i]) {
      case '\\':
        TRY(escape(t, false));
        break;
      case '[':
        TRY(class(t));
        break;
      case '(':
        TRY(group(t));
        break;
      case ')':
        t->depth--;
        TRY(copy(t, 1));
        break;
      case '{':
        TRY(interval(t));
        break;
      default:
        TRY(copy(t, 1));
    }
  }
  return STATUS_OK;
}

enum status token_regex_create(const char *pattern, size_t n, struct token_regex **regex_p) {
  struct translation t = {.pattern = pattern, .n = n};
  enum status status = STATUS_OK;
  struct token_regex *regex = NULL;
  if (n > MAX_PATTERN || !utf8_is_valid(pattern, n) || memchr(pattern, 0, n))
    return status_set(STATUS_DATA, "regular expression: malformed or longer than %d bytes", MAX_PATTERN);
  TRY_OUT(translate(&t));
  if (!(regex = calloc(1, sizeof *regex))) {
    status = status_set(STATUS_SYSTEM, "out of memory for a regular expression");
    goto out;
  }
  int error;
  size_t offset;
  /* Oniguruma's ^ and $ always mean lines. */
  regex->code = pcre2_compile((PCRE2_SPTR)(t.out.data ? t.out.data : ""), t.out.n,
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, NULL);
  if (!regex->code) {
    char text[128] = "";
    pcre2_get_error_message(error, (PCRE2_UCHAR *)text, sizeof text);
    status = status_set(STATUS_DATA, "regular expression: %s", text);
    goto out;
  }
  pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE); /* without a JIT the interpreter runs it */
out:
  text_free(&t.out);
  if (status == STATUS_OK)
    *regex_p = regex;
  else
    token_regex_destroy(&regex);
  return status;
}

void token_regex_destroy(struct token_regex **regex_p) {
  if (!*regex_p) return;
  pcre2_code_free((*regex_p)->code);
  free(*regex_p);
  *regex_p = NULL;
}

enum status regex_scratch_create(struct regex_scratch **scratch_p) {
  struct regex_scratch *scratch = calloc(1, sizeof *scratch);
  if (scratch) {
    scratch->match = pcre2_match_data_create(1, NULL);
    scratch->context = pcre2_match_context_create(NULL);
    scratch->stack = pcre2_jit_stack_create(32 * 1024, 1024 * 1024, NULL); /* NULL where there is no JIT */
  }
  if (!scratch || !scratch->match || !scratch->context) {
    regex_scratch_destroy(&scratch);
    return status_set(STATUS_SYSTEM, "out of memory for a regular expression");
  }
  if (scratch->stack) pcre2_jit_stack_assign(scratch->context, NULL, scratch->stack);
  *scratch_p = scratch;
  return STATUS_OK;
}

void regex_scratch_destroy(struct regex_scratch **scratch_p) {
  if (!*scratch_p) return;
  pcre2_match_data_free((*scratch_p)->match);
  pcre2_match_context_free((*scratch_p)->context);
  pcre2_jit_stack_free((*scratch_p)->stack);
  free(*scratch_p);
  *scratch_p = NULL;
}

enum status token_regex_subject(struct text_buffer *out, const char *text, size_t n) {
  TRY(text_reserve(out, n));
  char *copy_of = out->data + out->n;
  if (n) memcpy(copy_of, text, n);
  out->n += n;
  for (size_t i = 0; i < n;) {
    if ((unsigned char)text[i] < 0xE0) { /* no stand-in is shorter than three bytes */
      i++;
      continue;
    }
    uint32_t cp;
    size_t length = utf8_next(text + i, n - i, &cp);
    uint32_t stand_in = unicode_stand_in(cp);
    if (stand_in != cp) utf8_put(stand_in, copy_of + i);
    i += length;
  }
  return STATUS_OK;
}

enum status token_regex_find(const struct token_regex *regex, struct regex_scratch *scratch, const char *subject,
                             size_t n, size_t from, bool *found, size_t *start, size_t *end) {
  /* Backtracking is bounded by a multiple of the text, so that a hostile
   * pattern ends in an error instead of hanging. */
  size_t limit = 1000000 + 16 * (n - from);
  pcre2_set_match_limit(scratch->context, limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX);
  int result =
      pcre2_match(regex->code, (PCRE2_SPTR)subject, n, from, PCRE2_NO_UTF_CHECK, scratch->match, scratch->context);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter keeps its frames on the heap */
    result = pcre2_match(regex->code, (PCRE2_SPTR)subject, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scratch->match,
                         scratch->context);
  *found = result >= 0;
  if (result == PCRE2_ERROR_NOMATCH) return STATUS_OK;
  if (result < 0) {
    char text[128] = "";
    pcre2_get_error_message(result, (PCRE2_UCHAR *)text, sizeof text);
    return status_set(STATUS_DATA, "the tokenizer's regular expression fails on this text: %s", text);
  }
  const size_t *offsets = pcre2_get_ovector_pointer(scratch->match);
  *start = offsets[0];
  *end = offsets[1];
  return STATUS_OK;
}
