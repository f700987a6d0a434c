/*
 * tokenizer.c: the public face: opening, encoding as the sequence of stages,
 * lookups. The stages are in the tokenizer_*.c files.
 */
#include "io/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "io/file_read.h"
#include "io/synthetic.h"
#include "io/tokenizer_internal.h"

/* The largest known tokenizer.json has 34 MB. */
#define MAX_JSON (256u << 20)

enum status token_list_push(struct token_list *list, int32_t id) {
  if (list->n == list->capacity) {
    int64_t capacity = list->capacity ? 2 * list->capacity : 64;
    int32_t *ids = realloc(list->ids, (size_t)capacity * sizeof *ids);
    if (!ids) return status_set(STATUS_SYSTEM, "out of memory for %lld token ids", (long long)capacity);
    list->ids = ids;
    list->capacity = capacity;
  }
  list->ids[list->n++] = id;
  return STATUS_OK;
}

void token_list_free(struct token_list *list) {
  free(list->ids);
  *list = (struct token_list){0};
}

enum status tokenizer_create(const char *path, struct tokenizer **tokenizer_p) {
  struct tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
  if (!tokenizer || !(tokenizer->path = strdup(path))) {
    free(tokenizer);
    return status_set(STATUS_SYSTEM, "out of memory for the tokenizer");
  }
  tokenizer->unk = tokenizer->bos = tokenizer->eos = -1;
  *tokenizer_p = tokenizer;
  return STATUS_OK;
}

void tokenizer_close(struct tokenizer **tokenizer_p) {
  struct tokenizer *t = *tokenizer_p;
  if (!t) return;
  token_vocab_free(&t->vocab);
  token_vocab_free(&t->added_vocab);
  merge_table_free(&t->merges);
  token_trie_free(&t->raw);
  token_trie_free(&t->normalized);
  for (int32_t i = 0; i < t->n_added; i++) {
    free(t->added[i].content);
    free(t->added[i].normal);
  }
  free(t->added);
  free(t->added_order);
  for (int i = 0; i < t->n_normalizers; i++) {
    free(t->normalizers[i].pattern);
    free(t->normalizers[i].content);
  }
  for (int i = 0; i < t->n_pretokenizers; i++) token_regex_destroy(&t->pretokenizers[i].regex);
  for (int i = 0; i < t->n_decoders; i++) {
    free(t->decoders[i].pattern);
    free(t->decoders[i].content);
  }
  free(t->chat_template);
  free(t->path);
  free(t);
  *tokenizer_p = NULL;
}

static bool is_file(const char *folder, const char *name) {
  char path[4096];
  struct stat info;
  int n = snprintf(path, sizeof path, "%s/%s", folder, name);
  return n > 0 && (size_t)n < sizeof path && stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

static enum status open_folder(const char *folder, struct tokenizer **tokenizer_p) {
  static const char *const others[] = {"tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"};
  if (!is_file(folder, "tokenizer.json")) {
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
      if (is_file(folder, others[i]))
        return status_set(STATUS_DATA,
                          "%s/%s: only tokenizer.json is supported; write it with transformers: "
                          "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
                          folder, others[i]);
    return STATUS_OK;
  }
  char path[4096], *text = NULL;
  size_t n;
  struct tokenizer *tokenizer = NULL;
  if ((size_t)snprintf(path, sizeof path, "%s/tokenizer.json", folder) >= sizeof path)
    return status_set(STATUS_USAGE, "%s: the path is too long", folder);
  TRY(file_read_text(path, MAX_JSON, &text, &n));
  enum status status = tokenizer_open_json(path, text, n, &tokenizer);
  free(text);
  if (status == STATUS_OK) status = tokenizer_read_config(tokenizer, folder);
  if (status != STATUS_OK) {
    tokenizer_close(&tokenizer);
    return status;
  }
  *tokenizer_p = tokenizer;
  return STATUS_OK;
}

enum status tokenizer_open(const char *path, struct tokenizer **tokenizer_p) {
  struct stat info;
  *tokenizer_p = NULL;
  if (synthetic_is_name(path)) return STATUS_OK; /* a base without files has none */
  if (stat(path, &info) != 0) return status_set(STATUS_USAGE, "%s: no such file or folder", path);
  if (S_ISDIR(info.st_mode)) return open_folder(path, tokenizer_p);
  size_t n = strlen(path);
  if (n >= 5 && strcmp(path + n - 5, ".gguf") == 0) return tokenizer_open_gguf(path, tokenizer_p);
  return STATUS_OK;
}

/* ---- encoding ---- */

struct encode_work {
  struct cut_list raw, normalized;
  struct text_buffer text, subject;
  struct piece_list pieces, other;
  struct regex_scratch *regex;
  struct bpe_scratch *bpe;
};

static void free_work(struct encode_work *work) {
  free(work->raw.items);
  free(work->normalized.items);
  text_free(&work->text);
  text_free(&work->subject);
  piece_list_free(&work->pieces);
  piece_list_free(&work->other);
  regex_scratch_destroy(&work->regex);
  bpe_scratch_destroy(&work->bpe);
}

/* Normalised text between added tokens: pre-tokenizers and model. */
static enum status encode_plain(const struct tokenizer *t, struct encode_work *work, const char *text, size_t n,
                                bool at_start, bool continues, struct token_list *list) {
  work->pieces.n = work->pieces.text.n = 0;
  TRY(text_append(&work->pieces.text, text, n));
  TRY(piece_push(&work->pieces, 0, n, at_start));
  TRY(tokenizer_pretokenize(t, &work->pieces, &work->other, &work->subject, &work->regex, continues));
  for (size_t i = 0; i < work->pieces.n; i++) {
    const struct piece *piece = &work->pieces.items[i];
    TRY(bpe_encode_word(t, work->pieces.text.data + piece->start, piece->n, &work->bpe, list));
  }
  return STATUS_OK;
}

static enum status encode_normalized(const struct tokenizer *t, struct encode_work *work, bool at_start, bool continues,
                                     bool parse_special, struct token_list *list) {
  TRY(tokenizer_cut(t, &t->normalized, work->text.data, work->text.n, !parse_special, &work->normalized));
  for (size_t i = 0; i < work->normalized.n; i++) {
    const struct cut *cut = &work->normalized.items[i];
    if (cut->token >= 0)
      TRY(token_list_push(list, t->added[cut->token].id));
    else
      TRY(encode_plain(t, work, work->text.data + cut->start, cut->end - cut->start, at_start && cut->start == 0,
                       continues && cut->start == 0, list));
  }
  return STATUS_OK;
}

static enum status encode_valid(const struct tokenizer *t, struct encode_work *work, const char *text, size_t n,
                                bool parse_special, enum text_place place, struct token_list *list) {
  TRY(tokenizer_cut(t, &t->raw, text, n, !parse_special, &work->raw));
  for (size_t i = 0; i < work->raw.n; i++) {
    const struct cut *cut = &work->raw.items[i];
    bool first = cut->start == 0, goes_on = first && place == TEXT_CONTINUES;
    if (cut->token >= 0) {
      TRY(token_list_push(list, t->added[cut->token].id));
      continue;
    }
    work->text.n = 0;
    TRY(tokenizer_normalize(t, text + cut->start, cut->end - cut->start, goes_on, &work->text));
    TRY(encode_normalized(t, work, first && place != TEXT_AFTER_TOKEN, goes_on, parse_special, list));
  }
  return STATUS_OK;
}

enum status tokenizer_encode_text(const struct tokenizer *tokenizer, const char *text, size_t n, bool parse_special,
                                  enum text_place place, struct token_list *list) {
  struct encode_work work = {0};
  struct text_buffer lossy = {0};
  int64_t before = list->n;
  enum status status = STATUS_OK;
  if (!utf8_is_valid(text, n)) {
    TRY_OUT(utf8_append_lossy(&lossy, text, n));
    text = lossy.data;
    n = lossy.n;
  }
  TRY_OUT(encode_valid(tokenizer, &work, text, n, parse_special, place, list));
out:
  if (status != STATUS_OK) list->n = before;
  text_free(&lossy);
  free_work(&work);
  return status;
}

enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t length, bool add_special,
                             bool parse_special, struct token_list *list) {
  int64_t before = list->n;
  enum status status = STATUS_OK;
  for (int i = 0; add_special && i < tokenizer->n_prefix; i++) TRY_OUT(token_list_push(list, tokenizer->prefix[i]));
  TRY_OUT(tokenizer_encode_text(tokenizer, text, length, parse_special, TEXT_AT_START, list));
  for (int i = 0; add_special && i < tokenizer->n_suffix; i++) TRY_OUT(token_list_push(list, tokenizer->suffix[i]));
out:
  if (status != STATUS_OK) list->n = before;
  return status;
}

/* ---- lookups ---- */

int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *token) {
  int32_t id = token_vocab_find(&tokenizer->added_vocab, token, strlen(token));
  return id >= 0 ? id : token_vocab_find(&tokenizer->vocab, token, strlen(token));
}

int32_t tokenizer_bos(const struct tokenizer *tokenizer) { return tokenizer->bos; }

int32_t tokenizer_eos(const struct tokenizer *tokenizer) { return tokenizer->eos; }

bool tokenizer_adds_bos(const struct tokenizer *tokenizer) {
  for (int i = 0; i < tokenizer->n_prefix; i++)
    if (tokenizer->prefix[i] == tokenizer->bos && tokenizer->bos >= 0) return true;
  return false;
}

bool tokenizer_is_end(const struct tokenizer *tokenizer, int32_t id) {
  for (int i = 0; i < tokenizer->n_ends; i++)
    if (tokenizer->ends[i] == id) return true;
  return false;
}

int64_t tokenizer_size(const struct tokenizer *tokenizer) {
  int64_t n = tokenizer->vocab.n_ids;
  if (tokenizer->n_added) {
    int64_t last = tokenizer->added[tokenizer->added_order[tokenizer->n_added - 1]].id;
    if (last >= n) n = last + 1;
  }
  return n;
}

const char *tokenizer_chat_template(const struct tokenizer *tokenizer) { return tokenizer->chat_template; }

const char *tokenizer_digest(const struct tokenizer *tokenizer) { return tokenizer->digest; }

/* ---- finishing ---- */

void tokenizer_add_end(struct tokenizer *tokenizer, int32_t id) {
  if (id < 0 || tokenizer_is_end(tokenizer, id) || tokenizer->n_ends == TOKENIZER_MAX_ENDS) return;
  tokenizer->ends[tokenizer->n_ends++] = id;
}

static void find_byte_ids(struct tokenizer *tokenizer) {
  for (int byte = 0; byte < 256; byte++) {
    char text[8];
    snprintf(text, sizeof text, "<0x%02X>", byte);
    tokenizer->byte_ids[byte] = token_vocab_find(&tokenizer->vocab, text, 6);
  }
}

/* Without any configuration: the end of text by its usual names, BOS from the
 * post-processor. */
static void guess_special_ids(struct tokenizer *tokenizer) {
  static const char *const eos[] = {"<|endoftext|>", "</s>", "<|end_of_text|>"};
  for (size_t i = 0; tokenizer->eos < 0 && i < sizeof eos / sizeof eos[0]; i++) {
    int32_t id = token_vocab_find(&tokenizer->added_vocab, eos[i], strlen(eos[i]));
    const struct added_token *token = id < 0 ? NULL : tokenizer_added_by_id(tokenizer, id);
    if (token && token->special) tokenizer->eos = id;
  }
  if (tokenizer->bos < 0 && tokenizer->n_prefix) tokenizer->bos = tokenizer->prefix[0];
}

static void find_ends(struct tokenizer *tokenizer) {
  static const char *const ends[] = {"<|im_end|>",      "<|eot_id|>", "<|eom_id|>",   "<|endoftext|>",
                                     "<|end_of_text|>", "<|end|>",    "<end_of_turn>"};
  tokenizer_add_end(tokenizer, tokenizer->eos);
  for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
    tokenizer_add_end(tokenizer, token_vocab_find(&tokenizer->added_vocab, ends[i], strlen(ends[i])));
}

void tokenizer_finish(struct tokenizer *tokenizer) {
  find_byte_ids(tokenizer);
  guess_special_ids(tokenizer);
  find_ends(tokenizer);
  XXH3_state_t state;
  XXH3_128bits_reset(&state);
  XXH3_128bits_update(&state, tokenizer->hash, sizeof tokenizer->hash);
  XXH3_128bits_update(&state, tokenizer->prefix, (size_t)tokenizer->n_prefix * sizeof tokenizer->prefix[0]);
  XXH3_128bits_update(&state, "|", 1);
  XXH3_128bits_update(&state, tokenizer->suffix, (size_t)tokenizer->n_suffix * sizeof tokenizer->suffix[0]);
  XXH128_hash_t hash = XXH3_128bits_digest(&state);
  snprintf(tokenizer->digest, sizeof tokenizer->digest, "%016llx%016llx", (unsigned long long)hash.high64,
           (unsigned long long)hash.low64);
}
