/*
 * tokenizer_gguf.c: the tokenizer tables of a GGUF into the same stages as
 * tokenizer.json's, with the splits and rules of llama.cpp.
 *
 * "gpt2" is byte-level BPE whose split tokenizer.ggml.pre names. "llama" is
 * SentencePiece: the adjacent pair whose union is the token with the highest
 * score is merged, leftmost first. That is BPE with merges ranked by score, so
 * the merges are worked out once here.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "io/gguf.h"
#include "io/tokenizer_internal.h"

/* Longer tokens take part as they are, but are not searched for splits: the
 * search is quadratic in the length, and real tokens are short. */
#define MAX_SPLIT_LENGTH 512

enum token_type { TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE };

struct tables {
  struct gguf_string *tokens, *merges;
  float *scores;
  int32_t *types;
  int64_t n_tokens, n_merges, n_scores, n_types;
};

static enum status bad(const struct tokenizer *t, const char *what) {
  return status_set(STATUS_DATA, "%s: %s", t->path, what);
}

static enum status read_tables(const struct gguf *gguf, const struct tokenizer *t, bool is_llama,
                               struct tables *tables) {
  TRY(gguf_get_strings(gguf, "tokenizer.ggml.tokens", &tables->tokens, &tables->n_tokens));
  if (gguf_has(gguf, "tokenizer.ggml.token_type"))
    TRY(gguf_get_i32s(gguf, "tokenizer.ggml.token_type", &tables->types, &tables->n_types));
  if (tables->types && tables->n_types != tables->n_tokens)
    return bad(t, "tokenizer.ggml.token_type and tokens have different lengths");
  if (!is_llama) return gguf_get_strings(gguf, "tokenizer.ggml.merges", &tables->merges, &tables->n_merges);
  TRY(gguf_get_f32s(gguf, "tokenizer.ggml.scores", &tables->scores, &tables->n_scores));
  if (tables->n_scores != tables->n_tokens) return bad(t, "tokenizer.ggml.scores and tokens have different lengths");
  return STATUS_OK;
}

static void free_tables(struct tables *tables) {
  free(tables->tokens);
  free(tables->merges);
  free(tables->scores);
  free(tables->types);
}

static int32_t type_of(const struct tables *tables, int64_t id) {
  return tables->types ? tables->types[id] : TOKEN_NORMAL;
}

static enum status read_vocab(struct tokenizer *t, const struct tables *tables) {
  if (tables->n_tokens >= INT32_MAX) return bad(t, "too many tokens");
  for (int64_t i = 0; i < tables->n_tokens; i++) {
    const struct gguf_string *token = &tables->tokens[i];
    if (!utf8_is_valid(token->text, token->length))
      return status_set(STATUS_DATA, "%s: token %lld is not valid UTF-8", t->path, (long long)i);
    /* Of two tokens with one text the first counts. */
    if (token_vocab_find(&t->vocab, token->text, token->length) < 0)
      TRY(token_vocab_add(&t->vocab, token->text, token->length, (int32_t)i));
  }
  enum status status = token_vocab_index(&t->vocab);
  return status == STATUS_OK ? status : status_prefix(status, "%s", t->path);
}

static enum status read_merges(struct tokenizer *t, const struct tables *tables) {
  for (int64_t i = 0; i < tables->n_merges && i < INT32_MAX; i++) {
    const struct gguf_string *merge = &tables->merges[i];
    const char *space = merge->length > 1 ? memchr(merge->text + 1, ' ', merge->length - 1) : NULL;
    if (!space) return status_set(STATUS_DATA, "%s: merge %lld is not a pair of tokens", t->path, (long long)i);
    size_t left_length = (size_t)(space - merge->text), right_length = merge->length - left_length - 1;
    int32_t left = token_vocab_find(&t->vocab, merge->text, left_length);
    int32_t right = token_vocab_find(&t->vocab, space + 1, right_length);
    struct text_buffer joined = {0};
    enum status status = text_append(&joined, merge->text, left_length);
    if (status == STATUS_OK) status = text_append(&joined, space + 1, right_length);
    int32_t whole = status == STATUS_OK ? token_vocab_find(&t->vocab, joined.data, joined.n) : -1;
    text_free(&joined);
    TRY(status);
    if (left < 0 || right < 0 || whole < 0)
      return status_set(STATUS_DATA, "%s: merge %lld names a token that is not in the vocabulary", t->path,
                        (long long)i);
    TRY(merge_table_add(&t->merges, left, right, (int32_t)i, whole));
  }
  return STATUS_OK;
}

struct scored {
  float score;
  int32_t id;
};

static int higher_first(const void *a, const void *b) {
  const struct scored *left = a, *right = b;
  if (left->score != right->score) return left->score > right->score ? -1 : 1;
  return left->id < right->id ? -1 : left->id > right->id;
}

/* Every way to put a token together from two, at the rank of its score. */
static enum status splits_of(struct tokenizer *t, int32_t id, int32_t rank) {
  size_t n;
  const char *text = token_vocab_text(&t->vocab, id, &n);
  if (!text || n > MAX_SPLIT_LENGTH) return STATUS_OK;
  for (size_t i = 1; i < n; i++) {
    if (((unsigned char)text[i] & 0xC0) == 0x80) continue;
    int32_t left = token_vocab_find(&t->vocab, text, i);
    int32_t right = left < 0 ? -1 : token_vocab_find(&t->vocab, text + i, n - i);
    if (right >= 0) TRY(merge_table_add(&t->merges, left, right, rank, id));
  }
  return STATUS_OK;
}

/* Equal scores get one rank, so that position decides between them. */
static enum status rank_scores(struct tokenizer *t, const struct tables *tables) {
  struct scored *order = malloc((size_t)(tables->n_tokens + 1) * sizeof *order);
  if (!order) return status_set(STATUS_SYSTEM, "out of memory for the tokenizer");
  for (int64_t i = 0; i < tables->n_tokens; i++) {
    float score = tables->scores[i];
    order[i] = (struct scored){isnan(score) ? -INFINITY : score, (int32_t)i};
  }
  qsort(order, (size_t)tables->n_tokens, sizeof *order, higher_first);
  enum status status = STATUS_OK;
  int32_t rank = 0;
  for (int64_t i = 0; status == STATUS_OK && i < tables->n_tokens; i++) {
    if (i && order[i].score != order[i - 1].score) rank = (int32_t)i;
    size_t n;
    const char *text = token_vocab_text(&t->vocab, order[i].id, &n);
    if (text && token_vocab_find(&t->vocab, text, n) == order[i].id) status = splits_of(t, order[i].id, rank);
  }
  free(order);
  return status;
}

/* ---- splits ---- */

#define GPT2_SPLIT "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LLAMA3_SPLIT(NUMBER)                                                                        \
  "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" NUMBER \
  "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static const struct {
  const char *name;
  const char *patterns[4];
  bool ignore_merges, add_bos;
} splits[] = {
    {"default", {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2_SPLIT, "\\p{N}+", "[0-9][0-9][0-9]"}, false, false},
    {"gpt-2", {GPT2_SPLIT}, false, false},
    {"llama-bpe", {LLAMA3_SPLIT("\\p{N}{1,3}")}, true, true},
    {"qwen2", {LLAMA3_SPLIT("\\p{N}")}, false, false},
    {"smollm", {"\\p{N}", GPT2_SPLIT}, false, false},
};

static enum status read_pre(struct tokenizer *t, const struct gguf *gguf, bool *add_bos) {
  struct gguf_string pre = {"default", 7};
  if (gguf_has(gguf, "tokenizer.ggml.pre")) TRY(gguf_get_string(gguf, "tokenizer.ggml.pre", &pre));
  size_t k = 0, n = sizeof splits / sizeof splits[0];
  while (k < n && (strlen(splits[k].name) != pre.length || memcmp(splits[k].name, pre.text, pre.length) != 0)) k++;
  if (k == n)
    return status_set(STATUS_DATA,
                      "%s: tokenizer.ggml.pre \"%.*s\" is not supported (default, gpt-2, llama-bpe, qwen2, smollm)",
                      t->path, (int)(pre.length < 60 ? pre.length : 60), pre.text);
  t->ignore_merges = splits[k].ignore_merges;
  *add_bos = splits[k].add_bos;
  for (int i = 0; i < 4 && splits[k].patterns[i]; i++) {
    struct pretokenizer *row = &t->pretokenizers[t->n_pretokenizers++];
    *row = (struct pretokenizer){.kind = PRETOKENIZE_SPLIT, .behavior = SPLIT_ISOLATED};
    TRY(token_regex_create(splits[k].patterns[i], strlen(splits[k].patterns[i]), &row->regex));
  }
  t->pretokenizers[t->n_pretokenizers++] = (struct pretokenizer){.kind = PRETOKENIZE_BYTELEVEL};
  t->decoders[t->n_decoders++] = (struct decoder){.kind = DECODE_BYTELEVEL};
  return STATUS_OK;
}

static enum status copy_of(const char *text, char **copy, size_t *n) {
  if (!(*copy = strdup(text))) return status_set(STATUS_SYSTEM, "out of memory for the tokenizer");
  *n = strlen(text);
  return STATUS_OK;
}

/* "\xE2\x96\x81" is U+2581, SentencePiece's mark of a space. */
static enum status space_marks(struct tokenizer *t, bool add_space_prefix) {
  struct normalizer *row;
  if (add_space_prefix) {
    row = &t->normalizers[t->n_normalizers++];
    row->kind = NORMALIZE_PREPEND;
    TRY(copy_of("\xE2\x96\x81", &row->content, &row->content_length));
  }
  row = &t->normalizers[t->n_normalizers++];
  row->kind = NORMALIZE_REPLACE;
  TRY(copy_of(" ", &row->pattern, &row->pattern_length));
  TRY(copy_of("\xE2\x96\x81", &row->content, &row->content_length));
  struct decoder *decoder = &t->decoders[t->n_decoders++];
  decoder->kind = DECODE_REPLACE;
  TRY(copy_of("\xE2\x96\x81", &decoder->pattern, &decoder->pattern_length));
  TRY(copy_of(" ", &decoder->content, &decoder->content_length));
  t->decoders[t->n_decoders++].kind = DECODE_BYTE_FALLBACK;
  t->decoders[t->n_decoders++].kind = DECODE_FUSE;
  if (!add_space_prefix) return STATUS_OK;
  decoder = &t->decoders[t->n_decoders++];
  decoder->kind = DECODE_STRIP;
  decoder->start = 1;
  return copy_of(" ", &decoder->content, &decoder->content_length);
}

/* ---- keys ---- */

static enum status read_id(const struct tokenizer *t, const struct gguf *gguf, const char *key, int32_t *id) {
  int64_t value;
  if (!gguf_has(gguf, key)) return STATUS_OK;
  TRY(gguf_get_i64(gguf, key, &value));
  /* llama.cpp passes over an id that is no token; UINT32_MAX stands for none. */
  if (value >= 0 && value < t->vocab.n_ids) *id = (int32_t)value;
  return STATUS_OK;
}

static enum status read_flag(const struct gguf *gguf, const char *key, bool *value) {
  return gguf_has(gguf, key) ? gguf_get_bool(gguf, key, value) : STATUS_OK;
}

static enum status read_special_ids(struct tokenizer *t, const struct gguf *gguf) {
  TRY(read_id(t, gguf, "tokenizer.ggml.bos_token_id", &t->bos));
  TRY(read_id(t, gguf, "tokenizer.ggml.eos_token_id", &t->eos));
  int32_t eot = -1;
  TRY(read_id(t, gguf, "tokenizer.ggml.eot_token_id", &eot));
  tokenizer_add_end(t, eot);
  return STATUS_OK;
}

static enum status read_added(struct tokenizer *t, const struct tables *tables) {
  for (int64_t i = 0; i < tables->n_tokens; i++) {
    int32_t type = type_of(tables, i);
    if (type != TOKEN_CONTROL && type != TOKEN_USER) continue;
    struct added_token token = {.id = (int32_t)i, .special = type == TOKEN_CONTROL};
    TRY(tokenizer_add_token(t, tables->tokens[i].text, tables->tokens[i].length, &token));
  }
  return tokenizer_finish_added(t);
}

static enum status read_template(struct tokenizer *t, const struct gguf *gguf) {
  struct gguf_string text;
  if (!gguf_has(gguf, "tokenizer.chat_template")) return STATUS_OK;
  TRY(gguf_get_string(gguf, "tokenizer.chat_template", &text));
  if (!(t->chat_template = malloc(text.length + 1)))
    return status_set(STATUS_SYSTEM, "out of memory for the chat template");
  memcpy(t->chat_template, text.text, text.length);
  t->chat_template[text.length] = 0;
  return STATUS_OK;
}

/* All tables that decide the ids; the rest (split, flags) is in `options`. */
static void hash_tables(struct tokenizer *t, const struct tables *tables, const char *options, size_t n) {
  XXH3_state_t state;
  XXH3_128bits_reset(&state);
  XXH3_128bits_update(&state, options, n);
  for (int64_t i = 0; i < tables->n_tokens; i++) {
    XXH3_128bits_update(&state, &tables->tokens[i].length, sizeof tables->tokens[i].length);
    XXH3_128bits_update(&state, tables->tokens[i].text, tables->tokens[i].length);
  }
  for (int64_t i = 0; i < tables->n_merges; i++) {
    XXH3_128bits_update(&state, tables->merges[i].text, tables->merges[i].length);
    XXH3_128bits_update(&state, "\n", 1);
  }
  if (tables->scores) XXH3_128bits_update(&state, tables->scores, (size_t)tables->n_scores * sizeof *tables->scores);
  if (tables->types) XXH3_128bits_update(&state, tables->types, (size_t)tables->n_types * sizeof *tables->types);
  XXH128_hash_t hash = XXH3_128bits_digest(&state);
  t->hash[0] = hash.high64;
  t->hash[1] = hash.low64;
}

static enum status fill(struct tokenizer *t, const struct gguf *gguf, bool is_llama, struct tables *tables) {
  TRY(read_tables(gguf, t, is_llama, tables));
  TRY(read_vocab(t, tables));
  bool add_bos = is_llama, add_eos = false, add_space_prefix = is_llama;
  TRY(read_flag(gguf, "tokenizer.ggml.add_space_prefix", &add_space_prefix));
  if (is_llama) {
    t->byte_fallback = true;
    /* Only here: llama.cpp drops a byte that byte-level BPE has no token for. */
    TRY(read_id(t, gguf, "tokenizer.ggml.unknown_token_id", &t->unk));
    TRY(space_marks(t, add_space_prefix));
    TRY(rank_scores(t, tables));
  } else {
    TRY(read_pre(t, gguf, &add_bos));
    TRY(read_merges(t, tables));
  }
  TRY(read_special_ids(t, gguf));
  TRY(read_flag(gguf, "tokenizer.ggml.add_bos_token", &add_bos));
  TRY(read_flag(gguf, "tokenizer.ggml.add_eos_token", &add_eos));
  if (add_bos && t->bos >= 0) t->prefix[t->n_prefix++] = t->bos;
  if (add_eos && t->eos >= 0) t->suffix[t->n_suffix++] = t->eos;
  TRY(read_added(t, tables));
  TRY(read_template(t, gguf));
  struct gguf_string pre = {"", 0};
  if (gguf_has(gguf, "tokenizer.ggml.pre")) TRY(gguf_get_string(gguf, "tokenizer.ggml.pre", &pre));
  char options[80];
  size_t n = pre.length < 64 ? pre.length : 64;
  memcpy(options, pre.text, n);
  options[n++] = is_llama ? 'l' : 'g';
  options[n++] = add_space_prefix ? '1' : '0';
  hash_tables(t, tables, options, n);
  tokenizer_finish(t);
  return STATUS_OK;
}

enum status tokenizer_open_gguf(const char *path, struct tokenizer **tokenizer_p) {
  struct gguf *gguf = NULL;
  struct tokenizer *tokenizer = NULL;
  struct tables tables = {0};
  struct gguf_string model;
  enum status status = STATUS_OK;
  TRY_OUT(gguf_open(path, &gguf));
  if (!gguf_has(gguf, "tokenizer.ggml.model")) goto out;
  TRY_OUT(gguf_get_string(gguf, "tokenizer.ggml.model", &model));
  bool is_llama = model.length == 5 && memcmp(model.text, "llama", 5) == 0;
  if (!is_llama && (model.length != 4 || memcmp(model.text, "gpt2", 4) != 0)) {
    status = status_set(STATUS_DATA, "%s: tokenizer.ggml.model \"%.*s\" is not supported (gpt2, llama)", path,
                        (int)(model.length < 60 ? model.length : 60), model.text);
    goto out;
  }
  TRY_OUT(tokenizer_create(path, &tokenizer));
  TRY_OUT(fill(tokenizer, gguf, is_llama, &tables));
  *tokenizer_p = tokenizer;
  tokenizer = NULL;
out:
  free_tables(&tables);
  gguf_close(&gguf);
  tokenizer_close(&tokenizer);
  return status;
}
