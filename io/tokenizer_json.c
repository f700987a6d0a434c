/*
 * tokenizer_json.c: Hugging Face's tokenizer.json into the stages of struct
 * tokenizer. Source: the `tokenizers` library's serialisation.
 *
 * The file is untrusted: every field is checked for its type, and whatever is
 * not known is refused by name rather than passed over.
 */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "io/tokenizer_internal.h"

#define MAX_STAGE_NESTING 8

static enum status bad(const struct tokenizer *t, const char *what) {
  return status_set(STATUS_DATA, "%s: %s", t->path, what);
}

static enum status unsupported(const struct tokenizer *t, const char *stage, const char *name) {
  return status_set(STATUS_DATA, "%s: %s \"%s\" is not supported (docs/files.md lists what is)", t->path, stage, name);
}

static bool is_absent(const json_t *value) { return !value || json_is_null(value); }

/* "type" of a stage; every stage but an old file's model has one. */
static enum status stage_type(const struct tokenizer *t, const json_t *stage, const char *what, const char **type) {
  *type = json_string_value(json_object_get(stage, "type"));
  if (!*type) return status_set(STATUS_DATA, "%s: the %s has no type", t->path, what);
  return STATUS_OK;
}

static enum status get_bool(const struct tokenizer *t, const json_t *object, const char *key, bool fallback,
                            bool *value) {
  const json_t *found = json_object_get(object, key);
  if (!is_absent(found) && !json_is_boolean(found))
    return status_set(STATUS_DATA, "%s: \"%s\" is not true or false", t->path, key);
  *value = is_absent(found) ? fallback : json_is_true(found);
  return STATUS_OK;
}

static enum status get_copy(const struct tokenizer *t, const json_t *value, const char *key, char **copy, size_t *n) {
  if (!json_is_string(value)) return status_set(STATUS_DATA, "%s: \"%s\" is not a string", t->path, key);
  *n = json_string_length(value);
  if (!(*copy = malloc(*n + 1))) return status_set(STATUS_SYSTEM, "out of memory for the tokenizer");
  memcpy(*copy, json_string_value(value), *n + 1);
  return STATUS_OK;
}

/* ---- model ---- */

static enum status read_vocab(struct tokenizer *t, const json_t *vocab) {
  if (!json_is_object(vocab)) return bad(t, "the model has no vocab");
  const char *token;
  json_t *id;
  json_object_foreach((json_t *)vocab, token, id) {
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= INT32_MAX)
      return status_set(STATUS_DATA, "%s: the vocabulary's \"%.60s\" has no valid id", t->path, token);
    TRY(token_vocab_add(&t->vocab, token, strlen(token), (int32_t)json_integer_value(id)));
  }
  enum status status = token_vocab_index(&t->vocab);
  return status == STATUS_OK ? status : status_prefix(status, "%s", t->path);
}

struct pair {
  const char *left, *right;
  size_t left_length, right_length;
};

/* "a b" or ["a", "b"]. A line that begins with #version is a comment. */
static enum status merge_pair(const struct tokenizer *t, const json_t *merge, size_t at, struct pair *pair,
                              bool *skip) {
  *skip = false;
  if (json_is_array(merge) && json_array_size(merge) == 2 && json_is_string(json_array_get(merge, 0)) &&
      json_is_string(json_array_get(merge, 1))) {
    const json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);
    *pair = (struct pair){json_string_value(left), json_string_value(right), json_string_length(left),
                          json_string_length(right)};
    return STATUS_OK;
  }
  const char *text = json_string_value(merge), *space = text ? strchr(text, ' ') : NULL;
  if (text && strncmp(text, "#version", 8) == 0) {
    *skip = true;
    return STATUS_OK;
  }
  if (!space || strchr(space + 1, ' '))
    return status_set(STATUS_DATA, "%s: merge %zu is not a pair of tokens", t->path, at);
  *pair = (struct pair){text, space + 1, (size_t)(space - text), strlen(space + 1)};
  return STATUS_OK;
}

static enum status add_merge(struct tokenizer *t, const struct pair *pair, int32_t rank, struct text_buffer *joined) {
  int32_t left = token_vocab_find(&t->vocab, pair->left, pair->left_length);
  int32_t right = token_vocab_find(&t->vocab, pair->right, pair->right_length);
  joined->n = 0;
  TRY(text_append(joined, pair->left, pair->left_length));
  TRY(text_append(joined, pair->right, pair->right_length));
  int32_t whole = token_vocab_find(&t->vocab, joined->data, joined->n);
  if (left < 0 || right < 0 || whole < 0)
    return status_set(STATUS_DATA, "%s: merge %d (\"%.40s\", \"%.40s\") names a token that is not in the vocabulary",
                      t->path, (int)rank, pair->left, pair->right);
  return merge_table_add(&t->merges, left, right, rank, whole);
}

static enum status read_merges(struct tokenizer *t, const json_t *merges) {
  if (!json_is_array(merges)) return bad(t, "the model has no list of merges");
  if (json_array_size(merges) >= INT32_MAX) return bad(t, "too many merges");
  struct text_buffer joined = {0};
  enum status status = STATUS_OK;
  for (size_t i = 0; i < json_array_size(merges); i++) {
    struct pair pair = {0};
    bool skip;
    TRY_OUT(merge_pair(t, json_array_get(merges, i), i, &pair, &skip));
    if (!skip) TRY_OUT(add_merge(t, &pair, (int32_t)i, &joined));
  }
out:
  text_free(&joined);
  return status;
}

static enum status read_model(struct tokenizer *t, const json_t *model) {
  if (!json_is_object(model)) return bad(t, "there is no model");
  const json_t *type = json_object_get(model, "type");
  bool is_bpe = type ? json_is_string(type) && strcmp(json_string_value(type), "BPE") == 0
                     : json_object_get(model, "vocab") && json_object_get(model, "merges");
  if (!is_bpe) return unsupported(t, "model", json_is_string(type) ? json_string_value(type) : "(without type)");
  const json_t *dropout = json_object_get(model, "dropout");
  if (!is_absent(dropout) && json_number_value(dropout) != 0) return bad(t, "BPE dropout is not supported");
  static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
  for (int i = 0; i < 2; i++) {
    const json_t *affix = json_object_get(model, affixes[i]);
    if (!is_absent(affix) && (!json_is_string(affix) || json_string_length(affix) > 0))
      return unsupported(t, "model option", affixes[i]);
  }
  TRY(get_bool(t, model, "fuse_unk", false, &t->fuse_unk));
  TRY(get_bool(t, model, "byte_fallback", false, &t->byte_fallback));
  TRY(get_bool(t, model, "ignore_merges", false, &t->ignore_merges));
  TRY(read_vocab(t, json_object_get(model, "vocab")));
  const json_t *unk = json_object_get(model, "unk_token");
  if (!is_absent(unk)) {
    if (!json_is_string(unk)) return bad(t, "\"unk_token\" is not a string");
    t->unk = token_vocab_find(&t->vocab, json_string_value(unk), json_string_length(unk));
    t->unk_named = t->unk < 0;
  }
  return read_merges(t, json_object_get(model, "merges"));
}

/* ---- normalizers ---- */

static enum status read_pattern(const struct tokenizer *t, const json_t *stage, const char *what, char **pattern,
                                size_t *n) {
  const json_t *object = json_object_get(stage, "pattern");
  if (json_object_get(object, "Regex")) return unsupported(t, what, "Regex");
  TRY(get_copy(t, json_object_get(object, "String"), "pattern", pattern, n));
  return *n ? STATUS_OK : bad(t, "a Replace has an empty pattern");
}

static enum status read_normalizer(struct tokenizer *t, const json_t *stage, int depth) {
  if (is_absent(stage)) return STATUS_OK;
  const char *type;
  TRY(stage_type(t, stage, "normalizer", &type));
  if (strcmp(type, "Sequence") == 0) {
    const json_t *list = json_object_get(stage, "normalizers");
    if (!json_is_array(list) || depth == MAX_STAGE_NESTING) return bad(t, "the normalizer Sequence is malformed");
    for (size_t i = 0; i < json_array_size(list); i++) TRY(read_normalizer(t, json_array_get(list, i), depth + 1));
    return STATUS_OK;
  }
  if (t->n_normalizers == TOKENIZER_MAX_STAGES) return bad(t, "too many normalizers");
  struct normalizer *row = &t->normalizers[t->n_normalizers++];
  *row = (struct normalizer){.kind = NORMALIZE_NFC};
  if (strcmp(type, "NFC") == 0) return STATUS_OK;
  row->kind = NORMALIZE_NFKC;
  if (strcmp(type, "NFKC") == 0) return STATUS_OK;
  row->kind = NORMALIZE_LOWERCASE;
  if (strcmp(type, "Lowercase") == 0) return STATUS_OK;
  row->kind = NORMALIZE_PREPEND;
  if (strcmp(type, "Prepend") == 0)
    return get_copy(t, json_object_get(stage, "prepend"), "prepend", &row->content, &row->content_length);
  row->kind = NORMALIZE_REPLACE;
  if (strcmp(type, "Replace") == 0) {
    TRY(read_pattern(t, stage, "normalizer Replace's pattern", &row->pattern, &row->pattern_length));
    return get_copy(t, json_object_get(stage, "content"), "content", &row->content, &row->content_length);
  }
  return unsupported(t, "normalizer", type);
}

/* ---- pre-tokenizers ---- */

static const char bytelevel_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static enum status compile(const struct tokenizer *t, const char *pattern, size_t n, struct pretokenizer *row) {
  enum status status = token_regex_create(pattern, n, &row->regex);
  return status == STATUS_OK ? status : status_prefix(status, "%s", t->path);
}

/* A String pattern is a regular expression of itself, as in the library. */
static enum status compile_literal(const struct tokenizer *t, const json_t *value, struct pretokenizer *row) {
  struct text_buffer escaped = {0};
  enum status status = STATUS_OK;
  const char *text = json_string_value(value);
  for (size_t i = 0; i < json_string_length(value); i++) {
    bool special = text[i] > ' ' && text[i] < 0x7f && strchr("\\.+*?()|[]{}^$#&-~", text[i]);
    if (special) TRY_OUT(text_append(&escaped, "\\", 1));
    TRY_OUT(text_append(&escaped, text + i, 1));
  }
  status = escaped.n ? compile(t, escaped.data, escaped.n, row) : bad(t, "a Split has an empty pattern");
out:
  text_free(&escaped);
  return status;
}

static enum status read_split(const struct tokenizer *t, const json_t *stage, struct pretokenizer *row) {
  static const char *const names[] = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"};
  const char *behavior = json_string_value(json_object_get(stage, "behavior"));
  const json_t *pattern = json_object_get(stage, "pattern");
  const json_t *regex = json_object_get(pattern, "Regex"), *literal = json_object_get(pattern, "String");
  TRY(get_bool(t, stage, "invert", false, &row->invert));
  int i = 0;
  while (i < 5 && (!behavior || strcmp(behavior, names[i]) != 0)) i++;
  if (i == 5) return unsupported(t, "Split behavior", behavior ? behavior : "(none)");
  row->behavior = (enum split_behavior)i;
  if (json_is_string(regex)) return compile(t, json_string_value(regex), json_string_length(regex), row);
  if (json_is_string(literal)) return compile_literal(t, literal, row);
  return bad(t, "a Split has no pattern");
}

/* prepend_scheme, or, in older files, add_prefix_space. */
static enum status read_scheme(const struct tokenizer *t, const json_t *stage, enum prepend_scheme *scheme) {
  static const char *const names[] = {"always", "first", "never"};
  const json_t *value = json_object_get(stage, "prepend_scheme");
  bool prefix = false;
  TRY(get_bool(t, stage, "add_prefix_space", true, &prefix));
  *scheme = prefix ? PREPEND_ALWAYS : PREPEND_NEVER;
  if (is_absent(value)) return STATUS_OK;
  for (int i = 0; i < 3; i++)
    if (json_is_string(value) && strcmp(json_string_value(value), names[i]) == 0) {
      *scheme = (enum prepend_scheme)i;
      return STATUS_OK;
    }
  return unsupported(t, "prepend_scheme", json_is_string(value) ? json_string_value(value) : "(not a string)");
}

static enum status read_replacement(const struct tokenizer *t, const json_t *stage, const char **text) {
  const json_t *value = json_object_get(stage, "replacement");
  *text = json_string_value(value);
  size_t n = json_string_length(value);
  uint32_t cp;
  if (!*text || n == 0 || utf8_next(*text, n, &cp) != n)
    return bad(t, "a Metaspace's replacement is not one character");
  return STATUS_OK;
}

static enum status read_metaspace(const struct tokenizer *t, const json_t *stage, struct pretokenizer *row) {
  const char *replacement;
  TRY(get_bool(t, stage, "split", true, &row->split));
  TRY(read_scheme(t, stage, &row->scheme));
  TRY(read_replacement(t, stage, &replacement));
  strcpy(row->replacement, replacement);
  return STATUS_OK;
}

static enum status read_pretokenizer(struct tokenizer *t, const json_t *stage, int depth) {
  if (is_absent(stage)) return STATUS_OK;
  const char *type;
  TRY(stage_type(t, stage, "pre_tokenizer", &type));
  if (strcmp(type, "Sequence") == 0) {
    const json_t *list = json_object_get(stage, "pretokenizers");
    if (!json_is_array(list) || depth == MAX_STAGE_NESTING) return bad(t, "the pre_tokenizer Sequence is malformed");
    for (size_t i = 0; i < json_array_size(list); i++) TRY(read_pretokenizer(t, json_array_get(list, i), depth + 1));
    return STATUS_OK;
  }
  if (t->n_pretokenizers == TOKENIZER_MAX_STAGES) return bad(t, "too many pre_tokenizers");
  struct pretokenizer *row = &t->pretokenizers[t->n_pretokenizers++];
  *row = (struct pretokenizer){.kind = PRETOKENIZE_BYTELEVEL};
  if (strcmp(type, "ByteLevel") == 0) {
    bool use_regex = false;
    TRY(get_bool(t, stage, "use_regex", true, &use_regex));
    TRY(get_bool(t, stage, "add_prefix_space", true, &row->add_prefix_space));
    return use_regex ? compile(t, bytelevel_pattern, strlen(bytelevel_pattern), row) : STATUS_OK;
  }
  row->kind = PRETOKENIZE_DIGITS;
  if (strcmp(type, "Digits") == 0) return get_bool(t, stage, "individual_digits", false, &row->individual);
  row->kind = PRETOKENIZE_METASPACE;
  if (strcmp(type, "Metaspace") == 0) return read_metaspace(t, stage, row);
  row->kind = PRETOKENIZE_SPLIT;
  if (strcmp(type, "Split") == 0) return read_split(t, stage, row);
  return unsupported(t, "pre_tokenizer", type);
}

/* ---- decoders ---- */

static enum status read_strip(const struct tokenizer *t, const json_t *stage, struct decoder *row) {
  const json_t *start = json_object_get(stage, "start"), *stop = json_object_get(stage, "stop");
  if (!json_is_integer(start) || !json_is_integer(stop) || json_integer_value(start) < 0 ||
      json_integer_value(stop) < 0 || json_integer_value(start) > 1 << 20 || json_integer_value(stop) > 1 << 20)
    return bad(t, "a Strip has no valid start and stop");
  row->start = (int)json_integer_value(start);
  row->stop = (int)json_integer_value(stop);
  return get_copy(t, json_object_get(stage, "content"), "content", &row->content, &row->content_length);
}

static enum status read_decoder(struct tokenizer *t, const json_t *stage, int depth) {
  if (is_absent(stage)) return STATUS_OK;
  const char *type;
  TRY(stage_type(t, stage, "decoder", &type));
  if (strcmp(type, "Sequence") == 0) {
    const json_t *list = json_object_get(stage, "decoders");
    if (!json_is_array(list) || depth == MAX_STAGE_NESTING) return bad(t, "the decoder Sequence is malformed");
    for (size_t i = 0; i < json_array_size(list); i++) TRY(read_decoder(t, json_array_get(list, i), depth + 1));
    return STATUS_OK;
  }
  if (t->n_decoders == TOKENIZER_MAX_STAGES) return bad(t, "too many decoders");
  struct decoder *row = &t->decoders[t->n_decoders++];
  *row = (struct decoder){.kind = DECODE_BYTELEVEL};
  if (strcmp(type, "ByteLevel") == 0) return STATUS_OK;
  row->kind = DECODE_BYTE_FALLBACK;
  if (strcmp(type, "ByteFallback") == 0) return STATUS_OK;
  row->kind = DECODE_FUSE;
  if (strcmp(type, "Fuse") == 0) return STATUS_OK;
  row->kind = DECODE_STRIP;
  if (strcmp(type, "Strip") == 0) return read_strip(t, stage, row);
  row->kind = DECODE_METASPACE;
  if (strcmp(type, "Metaspace") == 0) {
    const char *replacement;
    TRY(read_replacement(t, stage, &replacement));
    TRY(read_scheme(t, stage, &row->scheme));
    return get_copy(t, json_object_get(stage, "replacement"), "replacement", &row->content, &row->content_length);
  }
  row->kind = DECODE_REPLACE;
  if (strcmp(type, "Replace") == 0) {
    TRY(read_pattern(t, stage, "decoder Replace's pattern", &row->pattern, &row->pattern_length));
    return get_copy(t, json_object_get(stage, "content"), "content", &row->content, &row->content_length);
  }
  return unsupported(t, "decoder", type);
}

/* ---- post-processor ---- */

static enum status push_template_ids(struct tokenizer *t, const json_t *ids, bool before) {
  if (!json_is_array(ids)) return bad(t, "a TemplateProcessing names an unknown special token");
  for (size_t i = 0; i < json_array_size(ids); i++) {
    const json_t *id = json_array_get(ids, i);
    int *n = before ? &t->n_prefix : &t->n_suffix;
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= INT32_MAX)
      return bad(t, "a TemplateProcessing has an invalid id");
    if (*n == TOKENIZER_MAX_TEMPLATE) return bad(t, "a TemplateProcessing adds too many tokens");
    (before ? t->prefix : t->suffix)[(*n)++] = (int32_t)json_integer_value(id);
  }
  return STATUS_OK;
}

static enum status read_template(struct tokenizer *t, const json_t *stage) {
  const json_t *single = json_object_get(stage, "single"), *tokens = json_object_get(stage, "special_tokens");
  if (!json_is_array(single)) return bad(t, "a TemplateProcessing has no template for single texts");
  if (t->has_template) return bad(t, "two TemplateProcessing are not supported");
  t->has_template = true;
  int n_texts = 0;
  for (size_t i = 0; i < json_array_size(single); i++) {
    const json_t *item = json_array_get(single, i);
    const char *special = json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));
    const char *text = json_string_value(json_object_get(json_object_get(item, "Sequence"), "id"));
    if (special)
      TRY(push_template_ids(t, json_object_get(json_object_get(tokens, special), "ids"), n_texts == 0));
    else if (text && strcmp(text, "A") == 0)
      n_texts++;
    else
      return bad(t, "a TemplateProcessing is malformed");
  }
  return n_texts == 1 ? STATUS_OK : bad(t, "a TemplateProcessing must hold the text once");
}

static enum status read_postprocessor(struct tokenizer *t, const json_t *stage, int depth) {
  if (is_absent(stage)) return STATUS_OK;
  const char *type;
  TRY(stage_type(t, stage, "post_processor", &type));
  if (strcmp(type, "ByteLevel") == 0) return STATUS_OK; /* moves offsets only */
  if (strcmp(type, "TemplateProcessing") == 0) return read_template(t, stage);
  if (strcmp(type, "Sequence") != 0) return unsupported(t, "post_processor", type);
  const json_t *list = json_object_get(stage, "processors");
  if (!json_is_array(list) || depth == MAX_STAGE_NESTING) return bad(t, "the post_processor Sequence is malformed");
  for (size_t i = 0; i < json_array_size(list); i++) TRY(read_postprocessor(t, json_array_get(list, i), depth + 1));
  return STATUS_OK;
}

/* ---- added tokens ---- */

static enum status read_added(struct tokenizer *t, const json_t *list) {
  if (is_absent(list)) return STATUS_OK;
  if (!json_is_array(list)) return bad(t, "added_tokens is not a list");
  for (size_t i = 0; i < json_array_size(list); i++) {
    const json_t *item = json_array_get(list, i), *content = json_object_get(item, "content");
    const json_t *id = json_object_get(item, "id");
    struct added_token token = {.id = -1};
    if (!json_is_string(content)) return bad(t, "an added token has no content");
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= INT32_MAX)
      return status_set(STATUS_DATA, "%s: added token \"%.60s\" has no valid id", t->path, json_string_value(content));
    token.id = (int32_t)json_integer_value(id);
    TRY(get_bool(t, item, "special", false, &token.special));
    TRY(get_bool(t, item, "single_word", false, &token.single_word));
    TRY(get_bool(t, item, "lstrip", false, &token.lstrip));
    TRY(get_bool(t, item, "rstrip", false, &token.rstrip));
    TRY(get_bool(t, item, "normalized", !token.special, &token.normalized));
    TRY(tokenizer_add_token(t, json_string_value(content), json_string_length(content), &token));
  }
  return tokenizer_finish_added(t);
}

static enum status read_root(struct tokenizer *t, const json_t *root) {
  if (!json_is_object(root)) return bad(t, "the file is not a JSON object");
  TRY(read_model(t, json_object_get(root, "model")));
  TRY(read_normalizer(t, json_object_get(root, "normalizer"), 0));
  TRY(read_pretokenizer(t, json_object_get(root, "pre_tokenizer"), 0));
  TRY(read_postprocessor(t, json_object_get(root, "post_processor"), 0));
  TRY(read_decoder(t, json_object_get(root, "decoder"), 0));
  return read_added(t, json_object_get(root, "added_tokens"));
}

enum status tokenizer_open_json(const char *path, const char *text, size_t n, struct tokenizer **tokenizer_p) {
  struct tokenizer *tokenizer = NULL;
  json_error_t error;
  TRY(tokenizer_create(path, &tokenizer));
  json_t *root = json_loadb(text, n, JSON_ALLOW_NUL, &error);
  enum status status = root
                           ? read_root(tokenizer, root)
                           : status_set(STATUS_DATA, "%s: line %d is not valid JSON: %s", path, error.line, error.text);
  json_decref(root);
  if (status != STATUS_OK) {
    tokenizer_close(&tokenizer);
    return status;
  }
  XXH128_hash_t hash = XXH3_128bits(text, n);
  tokenizer->hash[0] = hash.high64;
  tokenizer->hash[1] = hash.low64;
  tokenizer_finish(tokenizer);
  *tokenizer_p = tokenizer;
  return STATUS_OK;
}
