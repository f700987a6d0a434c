/*
 * tokenizer_unicode.c: UTF-8, and the little of Unicode that tokenizers need.
 *
 * The libraries disagree on Unicode's version. tokenizers (0.23) splits with
 * Oniguruma at Unicode 16, tests digits and case with Rust's tables (17), and
 * normalises with tables older than 12; PCRE2 and utf8proc know 14 or 15 or
 * more. The tables below hold the code points on which they differ, so that ids
 * agree with tokenizers whichever versions are installed.
 */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "io/tokenizer_internal.h"

static enum status no_memory(void) { return status_set(STATUS_SYSTEM, "out of memory for text"); }

enum status text_reserve(struct text_buffer *buffer, size_t extra) {
  if (buffer->data && extra <= buffer->capacity - buffer->n) return STATUS_OK;
  if (extra > SIZE_MAX / 4 || buffer->n > SIZE_MAX / 4) return no_memory();
  size_t capacity = buffer->capacity ? 2 * buffer->capacity : 256;
  if (capacity < buffer->n + extra) capacity = buffer->n + extra;
  char *data = realloc(buffer->data, capacity);
  if (!data) return no_memory();
  buffer->data = data;
  buffer->capacity = capacity;
  return STATUS_OK;
}

enum status text_append(struct text_buffer *buffer, const char *data, size_t n) {
  TRY(text_reserve(buffer, n));
  if (n) memcpy(buffer->data + buffer->n, data, n);
  buffer->n += n;
  return STATUS_OK;
}

enum status text_append_cp(struct text_buffer *buffer, uint32_t cp) {
  TRY(text_reserve(buffer, 4));
  buffer->n += utf8_put(cp, buffer->data + buffer->n);
  return STATUS_OK;
}

void text_free(struct text_buffer *buffer) {
  free(buffer->data);
  *buffer = (struct text_buffer){0};
}

/* Lead byte -> sequence length and the range its second byte must be in
 * (Unicode Standard, table 3-7). */
size_t utf8_next(const char *text, size_t n, uint32_t *cp) {
  const unsigned char *s = (const unsigned char *)text;
  if (s[0] < 0x80) {
    *cp = s[0];
    return 1;
  }
  size_t length = s[0] >= 0xC2 && s[0] <= 0xDF   ? 2
                  : s[0] >= 0xE0 && s[0] <= 0xEF ? 3
                  : s[0] >= 0xF0 && s[0] <= 0xF4 ? 4
                                                 : 1;
  unsigned char low = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
  unsigned char high = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
  *cp = UINT32_MAX;
  if (length == 1) return 1;
  uint32_t value = s[0] & (0xFFu >> (length + 1));
  for (size_t i = 1; i < length; i++) {
    if (i == n || s[i] < low || s[i] > high) return i;
    value = value << 6 | (s[i] & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  *cp = value;
  return length;
}

size_t utf8_put(uint32_t cp, char *out) {
  if (cp < 0x80) {
    out[0] = (char)cp;
    return 1;
  }
  size_t n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
  for (size_t i = n - 1; i > 0; i--) {
    out[i] = (char)(0x80 | (cp & 0x3F));
    cp >>= 6;
  }
  static const unsigned char lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
  out[0] = (char)(lead[n] | cp);
  return n;
}

bool utf8_is_valid(const char *text, size_t n) {
  uint32_t cp = 0;
  for (size_t i = 0; i < n; i += utf8_next(text + i, n - i, &cp))
    if (cp == UINT32_MAX) return false;
  return cp != UINT32_MAX;
}

enum status utf8_append_lossy(struct text_buffer *out, const char *text, size_t n) {
  size_t copied = 0;
  for (size_t i = 0; i < n;) {
    uint32_t cp;
    size_t length = utf8_next(text + i, n - i, &cp);
    if (cp == UINT32_MAX) {
      TRY(text_append(out, text + copied, i - copied));
      TRY(text_append_cp(out, 0xFFFD));
      copied = i + length;
    }
    i += length;
  }
  return text_append(out, text + copied, n - copied);
}

struct range {
  uint32_t first, last;
  uint32_t with; /* what stands in for them; 0 in a list of code points alone */
};

/* Code points that Unicode 15 and 16 added (and U+1171E, which changed class,
 * and U+180E, which PCRE2 counts as white space), with one that is of the same
 * category in every version and has no case pair in ASCII. Measured: category
 * by category against Oniguruma as tokenizers 0.23.3 ships it. */
static const struct range stand_ins[] = {
    {0x897, 0x897, 0x20d0},      {0xcf3, 0xcf3, 0x903},       {0xece, 0xece, 0x20d0},      {0x180e, 0x180e, 0x200b},
    {0x1b4e, 0x1b4f, 0x2016},    {0x1b7f, 0x1b7f, 0x2016},    {0x1c89, 0x1c89, 0x1e00},    {0x1c8a, 0x1c8a, 0x1e01},
    {0x2427, 0x2429, 0x2300},    {0x2ffc, 0x2fff, 0x2300},    {0x31e4, 0x31e5, 0x2300},    {0x31ef, 0x31ef, 0x2300},
    {0xa7cb, 0xa7cc, 0x1e00},    {0xa7cd, 0xa7cd, 0x1e01},    {0xa7da, 0xa7da, 0x1e00},    {0xa7db, 0xa7db, 0x1e01},
    {0xa7dc, 0xa7dc, 0x1e00},    {0x105c0, 0x105f3, 0x10000}, {0x10d40, 0x10d49, 0x104a0}, {0x10d4a, 0x10d4d, 0x10000},
    {0x10d4e, 0x10d4e, 0x16b40}, {0x10d4f, 0x10d4f, 0x10000}, {0x10d50, 0x10d65, 0x10400}, {0x10d69, 0x10d6d, 0x101fd},
    {0x10d6e, 0x10d6e, 0x10100}, {0x10d6f, 0x10d6f, 0x16b40}, {0x10d70, 0x10d85, 0x10428}, {0x10d8e, 0x10d8f, 0x1f300},
    {0x10ec2, 0x10ec4, 0x10000}, {0x10efc, 0x10eff, 0x101fd}, {0x1123f, 0x11240, 0x10000}, {0x11241, 0x11241, 0x101fd},
    {0x11380, 0x11389, 0x10000}, {0x1138b, 0x1138b, 0x10000}, {0x1138e, 0x1138e, 0x10000}, {0x11390, 0x113b5, 0x10000},
    {0x113b7, 0x113b7, 0x10000}, {0x113b8, 0x113ba, 0x11000}, {0x113bb, 0x113c0, 0x101fd}, {0x113c2, 0x113c2, 0x11000},
    {0x113c5, 0x113c5, 0x11000}, {0x113c7, 0x113ca, 0x11000}, {0x113cc, 0x113cd, 0x11000}, {0x113ce, 0x113ce, 0x101fd},
    {0x113cf, 0x113cf, 0x11000}, {0x113d0, 0x113d0, 0x101fd}, {0x113d1, 0x113d1, 0x10000}, {0x113d2, 0x113d2, 0x101fd},
    {0x113d3, 0x113d3, 0x10000}, {0x113d4, 0x113d5, 0x10100}, {0x113d7, 0x113d8, 0x10100}, {0x113e1, 0x113e2, 0x101fd},
    {0x116d0, 0x116e3, 0x104a0}, {0x1171e, 0x1171e, 0x11000}, {0x11b00, 0x11b09, 0x10100}, {0x11bc0, 0x11be0, 0x10000},
    {0x11be1, 0x11be1, 0x10100}, {0x11bf0, 0x11bf9, 0x104a0}, {0x11f00, 0x11f01, 0x101fd}, {0x11f02, 0x11f02, 0x10000},
    {0x11f03, 0x11f03, 0x11000}, {0x11f04, 0x11f10, 0x10000}, {0x11f12, 0x11f33, 0x10000}, {0x11f34, 0x11f35, 0x11000},
    {0x11f36, 0x11f3a, 0x101fd}, {0x11f3e, 0x11f3f, 0x11000}, {0x11f40, 0x11f40, 0x101fd}, {0x11f41, 0x11f41, 0x11000},
    {0x11f42, 0x11f42, 0x101fd}, {0x11f43, 0x11f4f, 0x10100}, {0x11f50, 0x11f59, 0x104a0}, {0x11f5a, 0x11f5a, 0x101fd},
    {0x1342f, 0x1342f, 0x10000}, {0x13439, 0x1343f, 0x110bd}, {0x13440, 0x13440, 0x101fd}, {0x13441, 0x13446, 0x10000},
    {0x13447, 0x13455, 0x101fd}, {0x13460, 0x143fa, 0x10000}, {0x16100, 0x1611d, 0x10000}, {0x1611e, 0x16129, 0x101fd},
    {0x1612a, 0x1612c, 0x11000}, {0x1612d, 0x1612f, 0x101fd}, {0x16130, 0x16139, 0x104a0}, {0x16d40, 0x16d42, 0x16b40},
    {0x16d43, 0x16d6a, 0x10000}, {0x16d6b, 0x16d6c, 0x16b40}, {0x16d6d, 0x16d6f, 0x10100}, {0x16d70, 0x16d79, 0x104a0},
    {0x18cff, 0x18cff, 0x10000}, {0x1b132, 0x1b132, 0x10000}, {0x1b155, 0x1b155, 0x10000}, {0x1cc00, 0x1ccef, 0x1f300},
    {0x1ccf0, 0x1ccf9, 0x104a0}, {0x1cd00, 0x1ceb3, 0x1f300}, {0x1d2c0, 0x1d2d3, 0x10107}, {0x1df25, 0x1df2a, 0x10428},
    {0x1e030, 0x1e06d, 0x16b40}, {0x1e08f, 0x1e08f, 0x101fd}, {0x1e4d0, 0x1e4ea, 0x10000}, {0x1e4eb, 0x1e4eb, 0x16b40},
    {0x1e4ec, 0x1e4ef, 0x101fd}, {0x1e4f0, 0x1e4f9, 0x104a0}, {0x1e5d0, 0x1e5ed, 0x10000}, {0x1e5ee, 0x1e5ef, 0x101fd},
    {0x1e5f0, 0x1e5f0, 0x10000}, {0x1e5f1, 0x1e5fa, 0x104a0}, {0x1e5ff, 0x1e5ff, 0x10100}, {0x1f6dc, 0x1f6dc, 0x1f300},
    {0x1f774, 0x1f776, 0x1f300}, {0x1f77b, 0x1f77f, 0x1f300}, {0x1f7d9, 0x1f7d9, 0x1f300}, {0x1f8b2, 0x1f8bb, 0x1f300},
    {0x1f8c0, 0x1f8c1, 0x1f300}, {0x1fa75, 0x1fa77, 0x1f300}, {0x1fa87, 0x1fa89, 0x1f300}, {0x1fa8f, 0x1fa8f, 0x1f300},
    {0x1faad, 0x1faaf, 0x1f300}, {0x1fabb, 0x1fabf, 0x1f300}, {0x1fac6, 0x1fac6, 0x1f300}, {0x1face, 0x1facf, 0x1f300},
    {0x1fada, 0x1fadc, 0x1f300}, {0x1fadf, 0x1fadf, 0x1f300}, {0x1fae8, 0x1fae9, 0x1f300}, {0x1faf7, 0x1faf8, 0x1f300},
    {0x1fbcb, 0x1fbef, 0x1f300}, {0x2b739, 0x2b739, 0x10000}, {0x2ebf0, 0x2ee5d, 0x10000}, {0x31350, 0x323af, 0x10000},
};

/* Code points whose decomposition or combining class is newer than the tables
 * tokenizers normalises with: they stay as they are. Measured: utf8proc 2.8
 * (Unicode 15) against tokenizers 0.23.3. Newer ones are among the stand_ins. */
static const struct range inert[] = {
    {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},     {0xc3c, 0xc3c},
    {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},   {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},
    {0x32ff, 0x32ff},   {0xa7f2, 0xa7f4},   {0xa82c, 0xa82c},   {0xab69, 0xab69},   {0x10781, 0x10785},
    {0x10787, 0x107b0}, {0x107b2, 0x107ba}, {0x10d24, 0x10d27}, {0x10eab, 0x10eac}, {0x10f46, 0x10f50},
    {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
    {0x11930, 0x11930}, {0x11935, 0x11935}, {0x11938, 0x11938}, {0x1193d, 0x1193e}, {0x11943, 0x11943},
    {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d42},
    {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x16ff0, 0x16ff1}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae},
    {0x1e2ec, 0x1e2ef}, {0x1f16c, 0x1f16c}, {0x1fbf0, 0x1fbf9},
};

/* Lower case that Unicode 16 and 17 added. */
static const struct {
  uint32_t first, last;
  int32_t offset;
} lower[] = {
    {0x1c89, 0x1c89, 1},      {0xa7cb, 0xa7cb, 0x264 - 0xa7cb},
    {0xa7cc, 0xa7cc, 1},      {0xa7ce, 0xa7ce, 1},
    {0xa7d2, 0xa7d2, 1},      {0xa7d4, 0xa7d4, 1},
    {0xa7da, 0xa7da, 1},      {0xa7dc, 0xa7dc, 0x19b - 0xa7dc},
    {0x10d50, 0x10d65, 0x20}, {0x16ea0, 0x16eb8, 0x1b},
};

#define COUNT(table) (sizeof(table) / sizeof(table)[0])

/* The range of a rising table that holds cp, or NULL. */
static const struct range *find_range(const struct range *table, size_t n, uint32_t cp) {
  if (cp < table[0].first) return NULL; /* most text, at once */
  size_t low = 0, high = n;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (table[middle].last < cp)
      low = middle + 1;
    else
      high = middle;
  }
  return low < n && table[low].first <= cp ? &table[low] : NULL;
}

uint32_t unicode_stand_in(uint32_t cp) {
  const struct range *found = find_range(stand_ins, COUNT(stand_ins), cp);
  return found ? found->with : cp;
}

static bool is_inert(uint32_t cp) {
  if (find_range(inert, COUNT(inert), cp)) return true;
  return cp != 0x1171e && cp != 0x180e && unicode_stand_in(cp) != cp;
}

static utf8proc_category_t category(uint32_t cp) { return utf8proc_category((utf8proc_int32_t)unicode_stand_in(cp)); }

bool unicode_is_space(uint32_t cp) {
  return (cp >= 9 && cp <= 13) || cp == 0x20 || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
         (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

bool unicode_is_word(uint32_t cp) {
  if (cp < 0x80) return (cp >= '0' && cp <= '9') || ((cp | 32) >= 'a' && (cp | 32) <= 'z') || cp == '_';
  switch (category(cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      break;
  }
  /* Join_Control and the symbols that are Other_Alphabetic: circled and squared letters. */
  return cp == 0x200C || cp == 0x200D || (cp >= 0x24B6 && cp <= 0x24E9) || (cp >= 0x1F130 && cp <= 0x1F149) ||
         (cp >= 0x1F150 && cp <= 0x1F169) || (cp >= 0x1F170 && cp <= 0x1F189);
}

bool unicode_is_numeric(uint32_t cp) {
  if (cp < 0x80) return cp >= '0' && cp <= '9';
  if ((cp >= 0x11DE0 && cp <= 0x11DE9) || (cp >= 0x16FF4 && cp <= 0x16FF6)) return true; /* Unicode 17 */
  utf8proc_category_t c = category(cp);
  return c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}

struct cp_list {
  utf8proc_int32_t *items;
  size_t n, capacity;
};

static enum status decompose(struct cp_list *list, uint32_t cp, utf8proc_option_t options) {
  for (;;) {
    size_t room = list->capacity - list->n;
    utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)cp, list->items ? list->items + list->n : NULL,
                                                 (utf8proc_ssize_t)room, options, NULL);
    if (n < 0) return status_set(STATUS_DATA, "cannot normalise U+%04X: %s", (unsigned)cp, utf8proc_errmsg(n));
    if ((size_t)n <= room) {
      list->n += (size_t)n;
      return STATUS_OK;
    }
    size_t capacity = 2 * list->capacity + (size_t)n + 64;
    utf8proc_int32_t *items = realloc(list->items, capacity * sizeof *items);
    if (!items) return no_memory();
    list->items = items;
    list->capacity = capacity;
  }
}

static int combining_class(utf8proc_int32_t cp) { return utf8proc_get_property(cp)->combining_class; }

/* Stable order of marks by combining class. Counting instead of utf8proc's
 * insertion keeps a long run of marks linear. */
static enum status order_marks(struct cp_list *list) {
  utf8proc_int32_t *sorted = NULL;
  for (size_t i = 0; i < list->n;) {
    size_t end = i;
    bool in_order = true;
    for (int last = 0, ccc; end < list->n && (ccc = combining_class(list->items[end])) != 0; end++, last = ccc)
      in_order = in_order && ccc >= last;
    if (!in_order) {
      if (!sorted && !(sorted = malloc(list->n * sizeof *sorted))) return no_memory();
      size_t start_of[256] = {0};
      for (size_t j = i; j < end; j++) start_of[combining_class(list->items[j])]++;
      for (size_t c = 0, sum = 0; c < 256; c++) {
        size_t count = start_of[c];
        start_of[c] = sum;
        sum += count;
      }
      for (size_t j = i; j < end; j++) sorted[start_of[combining_class(list->items[j])]++] = list->items[j];
      memcpy(list->items + i, sorted, (end - i) * sizeof *sorted);
    }
    i = end > i ? end : i + 1;
  }
  free(sorted);
  return STATUS_OK;
}

/* Normalise what is between two inert code points. */
static enum status compose_run(struct cp_list *list, utf8proc_option_t options, struct text_buffer *out) {
  if (!list->n) return STATUS_OK;
  TRY(order_marks(list));
  utf8proc_ssize_t n = utf8proc_normalize_utf32(list->items, (utf8proc_ssize_t)list->n, options);
  if (n < 0) return status_set(STATUS_DATA, "cannot normalise text: %s", utf8proc_errmsg(n));
  for (utf8proc_ssize_t i = 0; i < n; i++) TRY(text_append_cp(out, (uint32_t)list->items[i]));
  list->n = 0;
  return STATUS_OK;
}

enum status unicode_compose(struct text_buffer *out, const char *text, size_t n, bool compatibility) {
  size_t ascii = 0;
  while (ascii < n && (unsigned char)text[ascii] < 0x80) ascii++;
  if (ascii == n) return text_append(out, text, n);
  struct cp_list list = {0};
  enum status status = STATUS_OK;
  utf8proc_option_t compose = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
  if (compatibility) compose |= UTF8PROC_COMPAT;
  for (size_t i = 0; i < n;) {
    uint32_t cp;
    i += utf8_next(text + i, n - i, &cp);
    if (is_inert(cp)) {
      TRY_OUT(compose_run(&list, compose, out));
      TRY_OUT(text_append_cp(out, cp));
    } else {
      TRY_OUT(decompose(&list, cp, compose));
    }
  }
  status = compose_run(&list, compose, out);
out:
  free(list.items);
  return status;
}

enum status unicode_lowercase(struct text_buffer *out, const char *text, size_t n) {
  for (size_t i = 0; i < n;) {
    uint32_t cp;
    i += utf8_next(text + i, n - i, &cp);
    if (cp == 0x130) { /* the only letter whose lower case is two code points */
      TRY(text_append_cp(out, 'i'));
      cp = 0x307;
    } else {
      uint32_t from = cp;
      cp = (uint32_t)utf8proc_tolower((utf8proc_int32_t)from);
      for (size_t j = 0; j < COUNT(lower); j++)
        if (from >= lower[j].first && from <= lower[j].last) cp = (uint32_t)((int32_t)from + lower[j].offset);
    }
    TRY(text_append_cp(out, cp));
  }
  return STATUS_OK;
}
