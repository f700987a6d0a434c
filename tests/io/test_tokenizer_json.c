/*
 * tokenizer.json and the files beside it: what is refused, and how the refusal
 * reads; which file decides about special tokens and the chat template.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* keep after the headers above: cmocka needs them */
#include <cmocka.h>

#include "io/tokenizer_internal.h"
#include "tokenizer_corpus.h"

#define MODEL \
  "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"</s>\": 3}, \"merges\": [\"a b\"]}"
#define STAGE(text) "{" text ", " MODEL "}"
#define BPE(text)   "{\"model\": {\"type\": \"BPE\", " text "}}"

static enum status open_text(const char *text, struct tokenizer **tokenizer) {
  return tokenizer_open_json("file.json", text, strlen(text), tokenizer);
}

static void test_refusals_name_file_and_fault(void **state) {
  (void)state;
  static const struct {
    const char *json, *says;
  } rows[] = {
      {"", "JSON"},
      {"[]", "not a JSON object"},
      {"{\"model\": {\"type\": \"BPE\"", "line 1"},
      {"{}", "no model"},
      {"{\"model\": {\"type\": \"WordPiece\", \"vocab\": {}}}", "WordPiece"},
      {"{\"model\": {\"type\": \"Unigram\", \"vocab\": []}}", "Unigram"},
      {"{\"model\": {\"type\": \"WordLevel\", \"vocab\": {}}}", "WordLevel"},
      {"{\"model\": {\"vocab\": {}}}", "without type"},
      {BPE("\"dropout\": 0.1, \"vocab\": {}, \"merges\": []"), "dropout"},
      {BPE("\"continuing_subword_prefix\": \"##\", \"vocab\": {}, \"merges\": []"), "continuing_subword_prefix"},
      {BPE("\"end_of_word_suffix\": \"</w>\", \"vocab\": {}, \"merges\": []"), "end_of_word_suffix"},
      {BPE("\"vocab\": [], \"merges\": []"), "vocab"},
      {BPE("\"vocab\": {\"a\": -1}, \"merges\": []"), "\"a\""},
      {BPE("\"vocab\": {\"a\": 1.5}, \"merges\": []"), "\"a\""},
      {BPE("\"vocab\": {\"a\": 2000000000}, \"merges\": []"), "2000000000"},
      {BPE("\"vocab\": {\"a\": 0}, \"merges\": {}"), "merges"},
      {BPE("\"vocab\": {\"a\": 0}, \"merges\": [\"a\"]"), "merge 0"},
      {BPE("\"vocab\": {\"a\": 0}, \"merges\": [\"a b c\"]"), "merge 0"},
      {BPE("\"vocab\": {\"a\": 0}, \"merges\": [[\"a\", \"b\", \"c\"]]"), "merge 0"},
      {BPE("\"vocab\": {\"a\": 0}, \"merges\": [\"a b\"]"), "not in the vocabulary"},
      {BPE("\"vocab\": {\"a\": 0}, \"merges\": [], \"fuse_unk\": 1"), "fuse_unk"},
      {STAGE("\"normalizer\": {\"type\": \"Precompiled\"}"), "Precompiled"},
      {STAGE("\"normalizer\": {\"type\": \"BertNormalizer\"}"), "BertNormalizer"},
      {STAGE("\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"Regex\": \"a\"}, \"content\": \"b\"}"), "Regex"},
      {STAGE("\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"String\": \"\"}, \"content\": \"b\"}"), "empty"},
      {STAGE("\"normalizer\": {\"type\": \"Prepend\"}"), "prepend"},
      {STAGE("\"normalizer\": {}"), "normalizer has no type"},
      {STAGE("\"pre_tokenizer\": {\"type\": \"BertPreTokenizer\"}"), "BertPreTokenizer"},
      {STAGE("\"pre_tokenizer\": {\"type\": \"Whitespace\"}"), "Whitespace"},
      {STAGE("\"pre_tokenizer\": {\"type\": \"Split\", \"behavior\": \"Isolated\"}"), "pattern"},
      {STAGE("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"a\"}, \"behavior\": \"Odd\"}"),
       "Odd"},
      {STAGE("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(\"}, \"behavior\": \"Isolated\"}"),
       "file.json: regular expression"},
      {STAGE("\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"ab\"}"), "Metaspace"},
      {STAGE("\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"_\", \"prepend_scheme\": \"odd\"}"),
       "odd"},
      {STAGE("\"post_processor\": {\"type\": \"RobertaProcessing\"}"), "RobertaProcessing"},
      {STAGE(
           "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"x\"}}]}"),
       "unknown special token"},
      {STAGE("\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": []}"), "the text once"},
      {STAGE("\"decoder\": {\"type\": \"WordPiece\"}"), "WordPiece"},
      {STAGE("\"decoder\": {\"type\": \"Strip\", \"content\": \" \", \"start\": -1, \"stop\": 0}"), "Strip"},
      {STAGE("\"added_tokens\": 3"), "added_tokens"},
      {STAGE("\"added_tokens\": [{\"id\": 4}]"), "content"},
      {STAGE("\"added_tokens\": [{\"content\": \"x\", \"id\": \"4\"}]"), "\"x\""},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    struct tokenizer *tokenizer = NULL;
    if (open_text(rows[i].json, &tokenizer) != STATUS_DATA) fail_msg("accepted: %s", rows[i].json);
    assert_null(tokenizer);
    if (strncmp(status_message(), "file.json: ", 11) != 0 || !strstr(status_message(), rows[i].says))
      fail_msg("%s\nsays: %s\nwithout: %s", rows[i].json, status_message(), rows[i].says);
  }
}

static void test_truncated_files_are_refused(void **state) {
  (void)state;
  size_t n;
  char *text = read_whole(TOKENIZER_FIXTURES "added/tokenizer.json", &n);
  struct tokenizer *tokenizer = NULL;
  while (n > 0 && text[n - 1] != '}') n--;
  for (size_t length = 0; length < n; length += 37)
    assert_int_equal(tokenizer_open_json("cut.json", text, length, &tokenizer), STATUS_DATA);
  assert_int_equal(tokenizer_open_json("whole.json", text, n, &tokenizer), STATUS_OK);
  tokenizer_close(&tokenizer);
  free(text);
}

/* What Oniguruma and PCRE2 read differently is rewritten or refused. */
static void test_regular_expressions(void **state) {
  (void)state;
  static const struct {
    const char *pattern, *subject;
    int start, end; /* of the first match; start -1: none; -2: refused */
  } rows[] = {
      {"b+", "abbc", 1, 3},
      {"[^x]", "x", -1, 0},
      {" ?[^(\\s|[.,!?])]+", "ab.c", 0, 2}, /* a class within a class */
      {"[a[b[c]]]+", "xcbaz", 1, 4},
      {"\\v", "a\n\x0b", 2, 3}, /* the vertical tab alone */
      {"\\u0041", "xA", 1, 2},
      {"\\x{1F600}", "a\xF0\x9F\x98\x80", 1, 5},
      {"(?i:'s)", "x'\xC5\xBF", 1, 4}, /* long s folds to s */
      {"^b", "a\nb", 2, 3},            /* ^ is a line's start */
      {"\\s", "\xE1\xA0\x8E", -1, 0},  /* U+180E is no white space */
      {"\\s", "\xC2\x85", 0, 2},
      {"\\p{L}", "1\xF0\x9E\x80\xB0", 1, 5}, /* U+1E030, new in Unicode 15 */
      {"\\p{N}{1,3}", "12345", 0, 3},
      {"(?i)AB", "xab", 1, 3},
      {"a(?i)b", "", -2, 0},
      {"\\w+", "", -2, 0},
      {"\\h", "", -2, 0},
      {"\\bx", "", -2, 0},
      {"\\R", "", -2, 0},
      {"\\K", "", -2, 0},
      {"(a)\\1", "", -2, 0},
      {"\\p{Han}", "", -2, 0},
      {"\\p{Letter}", "", -2, 0},
      {"\\pL", "", -2, 0},
      {"[[:alpha:]]", "", -2, 0},
      {"[a&&b]", "", -2, 0},
      {"[a[^b]]", "", -2, 0},
      {"[x[+-]y]", "", -2, 0},
      {"[]", "", -2, 0},
      {"[a", "", -2, 0},
      {"a{2}+", "", -2, 0},
      {"a{2}?", "", -2, 0},
      {"a{,2}", "", -2, 0},
      {"(?#x)a", "", -2, 0},
      {"(*UTF)a", "", -2, 0},
      {"\\xFF", "", -2, 0},
      {"\\", "", -2, 0},
      {"(a", "", -2, 0},
  };
  struct regex_scratch *scratch = NULL;
  assert_int_equal(regex_scratch_create(&scratch), STATUS_OK);
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    struct token_regex *regex = NULL;
    enum status status = token_regex_create(rows[i].pattern, strlen(rows[i].pattern), &regex);
    if ((status == STATUS_OK) != (rows[i].start != -2)) fail_msg("%s: %s", rows[i].pattern, status_message());
    if (status != STATUS_OK) continue;
    struct text_buffer subject = {0};
    bool found;
    size_t start = 0, end = 0, n = strlen(rows[i].subject);
    assert_int_equal(token_regex_subject(&subject, rows[i].subject, n), STATUS_OK);
    assert_int_equal(token_regex_find(regex, scratch, subject.data, n, 0, &found, &start, &end), STATUS_OK);
    if (found != (rows[i].start >= 0) || (found && ((int)start != rows[i].start || (int)end != rows[i].end)))
      fail_msg("%s on %s: %d %zu %zu", rows[i].pattern, rows[i].subject, found, start, end);
    text_free(&subject);
    token_regex_destroy(&regex);
  }
  regex_scratch_destroy(&scratch);
}

/* A pattern that backtracks without end is an error, not a hang. */
static void test_hostile_pattern_ends(void **state) {
  (void)state;
  struct token_regex *regex = NULL;
  struct regex_scratch *scratch = NULL;
  bool found;
  size_t start, end;
  char subject[64];
  memset(subject, 'a', sizeof subject);
  assert_int_equal(regex_scratch_create(&scratch), STATUS_OK);
  assert_int_equal(token_regex_create("(?:a|a)*b|(?:a+)+$c", 19, &regex), STATUS_OK);
  assert_int_equal(token_regex_find(regex, scratch, subject, sizeof subject, 0, &found, &start, &end), STATUS_DATA);
  assert_non_null(strstr(status_message(), "match limit"));
  token_regex_destroy(&regex);
  regex_scratch_destroy(&scratch);
}

/* ---- the files beside tokenizer.json ---- */

static char folder[64];
static const char *const names[] = {"tokenizer.json",         "tokenizer_config.json", "special_tokens_map.json",
                                    "generation_config.json", "chat_template.jinja",   "tokenizer.model"};
#define N_NAMES (sizeof names / sizeof names[0])

static int make_folder(void **state) {
  (void)state;
  strcpy(folder, "/tmp/lorashard-tok-XXXXXX");
  return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
  (void)state;
  char path[256];
  for (size_t i = 0; i < N_NAMES; i++) {
    snprintf(path, sizeof path, "%s/%s", folder, names[i]);
    unlink(path);
  }
  return rmdir(folder);
}

static void put(const char *name, const char *text) {
  char path[256];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  fputs(text, file);
  assert_int_equal(fclose(file), 0);
}

#define ADDED(id, text) "{\"id\": " id ", \"content\": \"" text "\", \"special\": true}"

static struct tokenizer *open_folder(void) {
  struct tokenizer *tokenizer = NULL;
  if (tokenizer_open(folder, &tokenizer) != STATUS_OK) fail_msg("%s", status_message());
  assert_non_null(tokenizer);
  return tokenizer;
}

static void test_which_file_decides(void **state) {
  (void)state;
  put("tokenizer.json",
      STAGE("\"added_tokens\": [" ADDED("3", "</s>") ", " ADDED("4", "<s>") ", " ADDED("5", "<pad>") "]"));
  struct tokenizer *t = open_folder();
  assert_int_equal(tokenizer_eos(t), 3); /* by its usual name */
  assert_int_equal(tokenizer_bos(t), -1);
  assert_int_equal(tokenizer_size(t), 6);
  char digest[33];
  strcpy(digest, tokenizer_digest(t));
  tokenizer_close(&t);

  put("generation_config.json", "{\"eos_token_id\": [5, 3, 99], \"bos_token_id\": 4}");
  t = open_folder();
  assert_int_equal(tokenizer_eos(t), 5);
  assert_true(tokenizer_is_end(t, 3) && tokenizer_is_end(t, 5) && !tokenizer_is_end(t, 4));
  assert_int_equal(tokenizer_bos(t), 4);
  assert_false(tokenizer_is_end(t, 99)); /* is no token */
  tokenizer_close(&t);

  put("special_tokens_map.json", "{\"eos_token\": \"a\"}");
  put("tokenizer_config.json",
      "{\"eos_token\": {\"content\": \"</s>\"}, \"bos_token\": \"<s>\", \"add_bos_token\": true, "
      "\"chat_template\": [{\"name\": \"tool\", \"template\": \"T\"}, "
      "{\"name\": \"default\", \"template\": \"D\"}]}");
  t = open_folder();
  assert_int_equal(tokenizer_eos(t), 3);
  assert_true(tokenizer_adds_bos(t));
  assert_string_equal(tokenizer_chat_template(t), "D");
  assert_string_not_equal(tokenizer_digest(t), digest); /* BOS is added: other ids */
  char *ids = ids_text(t, "ab", 2, true);
  assert_string_equal(ids, "4 2");
  free(ids);
  tokenizer_close(&t);

  put("chat_template.jinja", "J");
  t = open_folder();
  assert_string_equal(tokenizer_chat_template(t), "J");
  tokenizer_close(&t);

  put("tokenizer_config.json", "{\"bos_token\": ");
  assert_int_equal(tokenizer_open(folder, &t), STATUS_DATA);
  assert_non_null(strstr(status_message(), "tokenizer_config.json"));
}

static void test_folders_without_tokenizer_json(void **state) {
  (void)state;
  struct tokenizer *t = NULL;
  assert_int_equal(tokenizer_open(folder, &t), STATUS_OK);
  assert_null(t);
  put("tokenizer.model", "x");
  assert_int_equal(tokenizer_open(folder, &t), STATUS_DATA);
  assert_non_null(strstr(status_message(), "save_pretrained"));
  assert_int_equal(tokenizer_open("/no/such/folder", &t), STATUS_USAGE);
}

/* The library numbers added tokens itself: 40 becomes 4. */
static void test_ids_of_added_tokens(void **state) {
  (void)state;
  struct tokenizer *t = NULL;
  assert_int_equal(open_text(STAGE("\"added_tokens\": [" ADDED("40", "<x>") ", " ADDED("0", "b") "]"), &t), STATUS_OK);
  assert_int_equal(tokenizer_find(t, "<x>"), 4);
  assert_int_equal(tokenizer_find(t, "b"), 1);
  tokenizer_close(&t);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_refusals_name_file_and_fault),
      cmocka_unit_test(test_truncated_files_are_refused),
      cmocka_unit_test(test_regular_expressions),
      cmocka_unit_test(test_hostile_pattern_ends),
      cmocka_unit_test_setup_teardown(test_which_file_decides, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(test_folders_without_tokenizer_json, make_folder, remove_folder),
      cmocka_unit_test(test_ids_of_added_tokens),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
