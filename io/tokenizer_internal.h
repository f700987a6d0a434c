/*
 * tokenizer_internal.h: what the tokenizer_*.c files share. Not for others,
 * except tokenizer_encode_text (chat templates) and tokenizer_open_json (fuzzer).
 *
 * A text goes through: added tokens cut out -> normalizers -> normalised added
 * tokens cut out -> pre-tokenizers -> BPE -> post-processor. Each stage is a
 * list of plain rows that tokenizer.json or a GGUF's keys fill in.
 */
#ifndef LORASHARD_IO_TOKENIZER_INTERNAL_H
#define LORASHARD_IO_TOKENIZER_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/status.h"
#include "io/tokenizer.h"

/* ---- growing bytes (tokenizer_unicode.c) ---- */
struct text_buffer {
  char *data;
  size_t n, capacity;
};
enum status text_reserve(struct text_buffer *buffer, size_t extra);
enum status text_append(struct text_buffer *buffer, const char *data, size_t n);
enum status text_append_cp(struct text_buffer *buffer, uint32_t cp);
void text_free(struct text_buffer *buffer);

/* ---- Unicode (tokenizer_unicode.c) ---- */
/* Decode the code point at text[0..n), n > 0. Returns its bytes; for an invalid
 * sequence *cp = UINT32_MAX and the bytes of its maximal invalid part. */
size_t utf8_next(const char *text, size_t n, uint32_t *cp);
/* Write 1..4 bytes; returns their number. */
size_t utf8_put(uint32_t cp, char *out);
/* Append text with each invalid part replaced by U+FFFD. */
enum status utf8_append_lossy(struct text_buffer *out, const char *text, size_t n);
bool utf8_is_valid(const char *text, size_t n);
/* A code point of the same general category and the same UTF-8 length that
 * every Unicode version from 14 on knows; cp itself if that is one. */
uint32_t unicode_stand_in(uint32_t cp);
bool unicode_is_space(uint32_t cp);   /* White_Space */
bool unicode_is_word(uint32_t cp);    /* \w of Unicode's regular expressions (UTS 18) */
bool unicode_is_numeric(uint32_t cp); /* general category N */
/* Append the normal form of valid UTF-8. */
enum status unicode_compose(struct text_buffer *out, const char *text, size_t n, bool compatibility);
enum status unicode_lowercase(struct text_buffer *out, const char *text, size_t n);

/* ---- regular expressions (tokenizer_regex.c) ---- */
struct token_regex;
struct regex_scratch; /* one per encode call: match data and JIT stack */
/* Compile a pattern in Oniguruma's syntax. An unsupported construct is
 * STATUS_DATA, named. */
enum status token_regex_create(const char *pattern, size_t n, struct token_regex **regex_p);
void token_regex_destroy(struct token_regex **regex_p);
enum status regex_scratch_create(struct regex_scratch **scratch_p);
void regex_scratch_destroy(struct regex_scratch **scratch_p);
/* Append to out the text with code points replaced by their stand-ins, byte
 * offsets unchanged: what token_regex_find takes as subject. */
enum status token_regex_subject(struct text_buffer *out, const char *text, size_t n);
/* First match in subject[from, n). *found is false if there is none. */
enum status token_regex_find(const struct token_regex *regex, struct regex_scratch *scratch, const char *subject,
                             size_t n, size_t from, bool *found, size_t *start, size_t *end);

/* ---- vocabulary and merges (tokenizer_vocab.c) ---- */
struct vocab_entry {
  size_t offset; /* into text */
  uint32_t length;
  int32_t id;
};
struct token_vocab {
  struct text_buffer text; /* all tokens, one after another */
  struct vocab_entry *entries;
  size_t n, capacity;
  uint32_t *slots; /* hash table: entry + 1, 0 is free; n_slots is a power of two */
  size_t n_slots;
  int32_t *by_id; /* [n_ids], entry or -1 */
  int64_t n_ids;
};
/* Add a token, or give a known one a new id. */
enum status token_vocab_add(struct token_vocab *vocab, const char *text, size_t n, int32_t id);
int32_t token_vocab_find(const struct token_vocab *vocab, const char *text, size_t n);
/* Build the table from ids to tokens. Ids far beyond the number of tokens are
 * STATUS_DATA: the table would be large for no reason. */
enum status token_vocab_index(struct token_vocab *vocab);
/* Text of an id, not zero-terminated, or NULL. */
const char *token_vocab_text(const struct token_vocab *vocab, int32_t id, size_t *n);
void token_vocab_free(struct token_vocab *vocab);

struct merge_slot {
  uint64_t pair; /* left id << 32 | right id; UINT64_MAX is free */
  int32_t rank, id;
};
struct merge_table {
  struct merge_slot *slots;
  size_t n_slots, n;
};
/* A later merge of the same pair replaces the earlier one. */
enum status merge_table_add(struct merge_table *table, int32_t left, int32_t right, int32_t rank, int32_t id);
const struct merge_slot *merge_table_find(const struct merge_table *table, int32_t left, int32_t right);
void merge_table_free(struct merge_table *table);

/* ---- added tokens (tokenizer_added.c) ---- */
struct added_token {
  char *content;
  size_t length;
  char *normal; /* normalised content, which is also its text when decoding; NULL: content */
  size_t normal_length;
  int32_t id;
  bool single_word, lstrip, rstrip, normalized, special;
};
struct trie_node {
  uint32_t child, sibling; /* 0: none */
  int32_t token;           /* index into added, -1: no token ends here */
  unsigned char byte;
};
struct token_trie {
  struct trie_node *nodes; /* node 0 is the root */
  size_t n, capacity;
  uint32_t first[256]; /* children of the root */
};
/* A piece of a text: an added token (token >= 0) or text between them. */
struct cut {
  size_t start, end;
  int32_t token;
};
struct cut_list {
  struct cut *items;
  size_t n, capacity;
};
enum status token_trie_add(struct token_trie *trie, const char *content, size_t n, int32_t token);
void token_trie_free(struct token_trie *trie);

/* ---- stages ---- */
enum normalizer_kind { NORMALIZE_NFC, NORMALIZE_NFKC, NORMALIZE_LOWERCASE, NORMALIZE_PREPEND, NORMALIZE_REPLACE };
struct normalizer {
  enum normalizer_kind kind;
  char *pattern, *content; /* REPLACE; PREPEND has only content */
  size_t pattern_length, content_length;
};

enum pretokenizer_kind { PRETOKENIZE_BYTELEVEL, PRETOKENIZE_SPLIT, PRETOKENIZE_DIGITS, PRETOKENIZE_METASPACE };
enum split_behavior { SPLIT_ISOLATED, SPLIT_REMOVED, SPLIT_CONTIGUOUS, SPLIT_PREVIOUS, SPLIT_NEXT };
enum prepend_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };
struct pretokenizer {
  enum pretokenizer_kind kind;
  struct token_regex *regex;    /* SPLIT; BYTELEVEL with use_regex, else NULL */
  enum split_behavior behavior; /* SPLIT */
  bool invert;                  /* SPLIT */
  bool individual;              /* DIGITS */
  bool add_prefix_space;        /* BYTELEVEL */
  bool split;                   /* METASPACE */
  enum prepend_scheme scheme;   /* METASPACE */
  char replacement[8];          /* METASPACE, zero-terminated */
};

enum decoder_kind {
  DECODE_BYTELEVEL,
  DECODE_REPLACE,
  DECODE_BYTE_FALLBACK,
  DECODE_FUSE,
  DECODE_STRIP,
  DECODE_METASPACE
};
struct decoder {
  enum decoder_kind kind;
  char *pattern, *content; /* REPLACE; STRIP has only content */
  size_t pattern_length, content_length;
  int start, stop;            /* STRIP */
  enum prepend_scheme scheme; /* METASPACE */
};

#define TOKENIZER_MAX_STAGES   16
#define TOKENIZER_MAX_TEMPLATE 16 /* special tokens a post-processor may add on each side */
#define TOKENIZER_MAX_ENDS     32

struct tokenizer {
  char *path; /* for messages */
  struct token_vocab vocab;
  struct merge_table merges;
  int32_t unk;    /* -1: unknown characters vanish */
  bool unk_named; /* an unk_token is named but not in the vocabulary: meeting one is an error */
  bool fuse_unk, byte_fallback, ignore_merges;
  int32_t byte_ids[256]; /* of "<0xNN>", -1: not in the vocabulary */

  struct added_token *added;
  int32_t n_added;
  int32_t *added_order;              /* [n_added], indices into added by rising id */
  struct token_vocab added_vocab;    /* ids of added tokens by content; vocab has the model's alone */
  struct token_trie raw, normalized; /* tokens found before and after normalising */

  struct normalizer normalizers[TOKENIZER_MAX_STAGES];
  struct pretokenizer pretokenizers[TOKENIZER_MAX_STAGES];
  struct decoder decoders[TOKENIZER_MAX_STAGES];
  int n_normalizers, n_pretokenizers, n_decoders;

  int32_t prefix[TOKENIZER_MAX_TEMPLATE], suffix[TOKENIZER_MAX_TEMPLATE];
  int n_prefix, n_suffix;
  bool has_template; /* a TemplateProcessing decides prefix and suffix */

  int32_t bos, eos;
  int32_t ends[TOKENIZER_MAX_ENDS];
  int n_ends;
  char *chat_template;
  uint64_t hash[2]; /* of the source's bytes; the digest adds prefix and suffix */
  char digest[33];
};

/* Where a text stands, which decides what is put in front of it: a Metaspace's
 * "first" prefix only at the start, a Prepend or prefix space there and after a
 * token, nothing where it goes on after other text. */
enum text_place { TEXT_AT_START, TEXT_AFTER_TOKEN, TEXT_CONTINUES };

enum status tokenizer_normalize(const struct tokenizer *tokenizer, const char *text, size_t n, bool continues,
                                struct text_buffer *out);

struct piece {
  size_t start, n;
  bool at_start; /* begins where the whole text begins */
};
struct piece_list {
  struct text_buffer text;
  struct piece *items;
  size_t n, capacity;
};
enum status piece_push(struct piece_list *list, size_t start, size_t n, bool at_start);
void piece_list_free(struct piece_list *list);
/* Run all pre-tokenizers over list->items; scratch is made on first use.
 * `other` is work space. With `continues` the first piece gets no prefix. */
enum status tokenizer_pretokenize(const struct tokenizer *tokenizer, struct piece_list *list, struct piece_list *other,
                                  struct text_buffer *subject, struct regex_scratch **scratch, bool continues);
/* Byte -> code point of GPT-2's byte alphabet, and back (-1: none). */
uint32_t byte_alphabet(unsigned char byte);
int byte_of_alphabet(uint32_t cp);

struct bpe_scratch; /* work space of one encode call */
void bpe_scratch_destroy(struct bpe_scratch **scratch_p);
enum status bpe_encode_word(const struct tokenizer *tokenizer, const char *word, size_t n, struct bpe_scratch **scratch,
                            struct token_list *list);

/* Cut added tokens out of text[0, n). With skip_special, special ones stay text. */
enum status tokenizer_cut(const struct tokenizer *tokenizer, const struct token_trie *trie, const char *text, size_t n,
                          bool skip_special, struct cut_list *cuts);
/* Give added tokens their ids and build both tries; normalizers and vocabulary
 * are in place. */
enum status tokenizer_finish_added(struct tokenizer *tokenizer);
/* Take over one token read from a file. */
enum status tokenizer_add_token(struct tokenizer *tokenizer, const char *content, size_t n,
                                const struct added_token *flags);
const struct added_token *tokenizer_added_by_id(const struct tokenizer *tokenizer, int32_t id);
void tokenizer_add_end(struct tokenizer *tokenizer, int32_t id);
/* Byte ids, end tokens and digest, once everything else is known. */
void tokenizer_finish(struct tokenizer *tokenizer);

enum status tokenizer_create(const char *path, struct tokenizer **tokenizer_p);

/* tokenizer.json's bytes in memory; `path` is for messages. */
enum status tokenizer_open_json(const char *path, const char *text, size_t n, struct tokenizer **tokenizer_p);
/* The files beside tokenizer.json in `folder`: special ids, BOS rule, chat template. */
enum status tokenizer_read_config(struct tokenizer *tokenizer, const char *folder);
enum status tokenizer_open_gguf(const char *path, struct tokenizer **tokenizer_p);

/* tokenizer_encode without the post-processor, for a text that stands at `place`
 * among other texts and tokens. */
enum status tokenizer_encode_text(const struct tokenizer *tokenizer, const char *text, size_t n, bool parse_special,
                                  enum text_place place, struct token_list *list);

#endif
