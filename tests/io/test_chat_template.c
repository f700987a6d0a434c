/*
 * Conversations against transformers' apply_chat_template: every case of
 * fixtures/tokenizers/chats.json, ids and mask. No tolerance: ids are integers.
 */
#include <jansson.h>
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

#include "io/chat_template.h"

#define TOKENIZERS FIXTURES "/tokenizers/"

static void write_file(const char *folder, const char *name, const char *text) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
  assert_int_equal(fclose(file), 0);
}

static void remove_file(const char *folder, const char *name) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  unlink(path);
}

/* A fixture's tokenizer.json with other special tokens and another template. */
static struct tokenizer *open_with(const char *name, const char *bos, const char *eos, const char *jinja) {
  char folder[] = "/tmp/lorashard-chat-XXXXXX", path[512], target[600];
  assert_non_null(mkdtemp(folder));
  snprintf(target, sizeof target, TOKENIZERS "%s/tokenizer.json", name);
  snprintf(path, sizeof path, "%s/tokenizer.json", folder);
  assert_int_equal(symlink(target, path), 0);
  json_t *config = json_pack("{s:s*, s:s*}", "bos_token", bos, "eos_token", eos);
  char *text = json_dumps(config, 0);
  write_file(folder, "tokenizer_config.json", text);
  free(text);
  json_decref(config);
  if (jinja) write_file(folder, "chat_template.jinja", jinja);
  struct tokenizer *tokenizer = NULL;
  if (tokenizer_open(folder, &tokenizer) != STATUS_OK) fail_msg("%s", status_message());
  remove_file(folder, "tokenizer.json");
  remove_file(folder, "tokenizer_config.json");
  remove_file(folder, "chat_template.jinja");
  rmdir(folder);
  return tokenizer;
}

static json_t *load_chats(void) {
  json_error_t error;
  json_t *chats = json_load_file(TOKENIZERS "chats.json", 0, &error);
  if (!chats) fail_msg("%s", error.text);
  return chats;
}

static int read_messages(const json_t *list, struct chat_message *messages) {
  int n = (int)json_array_size(list);
  assert_in_range(n, 1, 16);
  for (int i = 0; i < n; i++) {
    const json_t *item = json_array_get(list, (size_t)i);
    messages[i].role = json_string_value(json_object_get(item, "role"));
    messages[i].content = json_string_value(json_object_get(item, "content"));
  }
  return n;
}

static void compare(const char *name, size_t at, const json_t *want, const struct token_list *ids,
                    const struct token_list *mask) {
  const json_t *want_ids = json_object_get(want, "ids");
  const char *want_mask = json_string_value(json_object_get(want, "mask"));
  assert_int_equal(ids->n, mask->n);
  for (int64_t i = 0; i < ids->n && i < (int64_t)json_array_size(want_ids); i++) {
    if (ids->ids[i] != json_integer_value(json_array_get(want_ids, (size_t)i)))
      fail_msg("%s case %zu: id %lld is %d, not %lld", name, at, (long long)i, ids->ids[i],
               (long long)json_integer_value(json_array_get(want_ids, (size_t)i)));
    if (mask->ids[i] != want_mask[i] - '0')
      fail_msg("%s case %zu: mask of id %lld is %d", name, at, (long long)i, mask->ids[i]);
  }
  assert_int_equal(ids->n, json_array_size(want_ids));
}

static void test_golden_conversations(void **state) {
  (void)state;
  json_t *chats = load_chats();
  size_t n_cases = 0;
  for (size_t k = 0; k < json_array_size(chats); k++) {
    const json_t *form = json_array_get(chats, k), *cases = json_object_get(form, "cases");
    const char *name = json_string_value(json_object_get(form, "name"));
    struct tokenizer *tokenizer = open_with(
        json_string_value(json_object_get(form, "tokenizer")), json_string_value(json_object_get(form, "bos")),
        json_string_value(json_object_get(form, "eos")), json_string_value(json_object_get(form, "jinja")));
    enum chat_template chosen, named;
    assert_int_equal(chat_template_choose("auto", tokenizer, &chosen), STATUS_OK);
    assert_int_equal(chat_template_choose(json_string_value(json_object_get(form, "template")), tokenizer, &named),
                     STATUS_OK);
    assert_int_equal(chosen, named);
    for (size_t i = 0; i < json_array_size(cases); i++, n_cases++) {
      const json_t *want = json_array_get(cases, i);
      struct chat_message messages[16];
      struct token_list ids = {0}, mask = {0};
      int n = read_messages(json_object_get(want, "messages"), messages);
      bool open = json_is_true(json_object_get(want, "open"));
      if (chat_template_apply(chosen, tokenizer, messages, n, open, &ids, &mask) != STATUS_OK)
        fail_msg("%s case %zu: %s", name, i, status_message());
      compare(name, i, want, &ids, &mask);
      token_list_free(&ids);
      token_list_free(&mask);
    }
    tokenizer_close(&tokenizer);
  }
  assert_true(n_cases > 120); /* ten templates with a dozen conversations or more each */
  json_decref(chats);
}

static int count(const struct token_list *list, int32_t id) {
  int n = 0;
  for (int64_t i = 0; i < list->n; i++) n += list->ids[i] == id;
  return n;
}

/* A form chosen by name, without a template of the tokenizer's own. */
static void test_by_name(void **state) {
  (void)state;
  const struct chat_message messages[] = {{"user", "Hi"}, {"assistant", "Yes"}};
  static const struct {
    const char *form, *folder, *bos, *eos;
    int n_bos, n_targets_end; /* how often BOS; 1: the last target is the end of turn */
  } rows[] = {
      {"llama2", "llama2", "<s>", "</s>", 1, 1},
      {"zephyr", "llama2", "<s>", "</s>", 1, 1}, /* the tokenizer adds BOS to other texts */
      {"alpaca", "smollm2", "<|im_start|>", "<|im_end|>", 0, 1},
      {"chatml", "qwen2", NULL, "<|im_end|>", 0, 1},
      {"llama3", "llama3", "<|begin_of_text|>", "<|eot_id|>", 1, 1},
  };
  for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
    struct tokenizer *tokenizer = open_with(rows[k].folder, rows[k].bos, rows[k].eos, NULL);
    enum chat_template chat;
    struct token_list ids = {0}, mask = {0};
    assert_int_equal(chat_template_choose("auto", tokenizer, &chat), STATUS_OK);
    assert_int_equal(chat, CHAT_NONE);
    assert_int_equal(chat_template_apply(CHAT_NONE, tokenizer, messages, 2, false, &ids, &mask), STATUS_USAGE);
    assert_int_equal(chat_template_choose(rows[k].form, tokenizer, &chat), STATUS_OK);
    assert_int_equal(chat_template_apply(chat, tokenizer, messages, 2, false, &ids, &mask), STATUS_OK);
    if (rows[k].bos && rows[k].n_bos) assert_int_equal(count(&ids, tokenizer_bos(tokenizer)), rows[k].n_bos);
    int64_t last = -1;
    for (int64_t i = 0; i < mask.n; i++)
      if (mask.ids[i]) last = i;
    assert_true(last > 0);
    assert_int_equal(ids.ids[last], tokenizer_eos(tokenizer));
    token_list_free(&ids);
    token_list_free(&mask);
    tokenizer_close(&tokenizer);
  }
}

/* Prompt for generation + answer = training ids, up to the answer's end. */
static void test_training_and_generation_agree(void **state) {
  (void)state;
  const struct chat_message messages[] = {{"system", "Be brief."}, {"user", "Hi"}, {"assistant", "  \nleading"}};
  struct tokenizer *tokenizer = open_with("smollm2", "<|im_start|>", "<|im_end|>", NULL);
  struct token_list prompt = {0}, whole = {0}, mask = {0}, other = {0};
  assert_int_equal(chat_template_apply(CHAT_CHATML, tokenizer, messages, 2, true, &prompt, &other), STATUS_OK);
  assert_int_equal(chat_template_apply(CHAT_CHATML, tokenizer, messages, 3, false, &whole, &mask), STATUS_OK);
  assert_true(whole.n > prompt.n);
  assert_memory_equal(whole.ids, prompt.ids, (size_t)prompt.n * sizeof *prompt.ids);
  for (int64_t i = 0; i < prompt.n; i++) assert_int_equal(mask.ids[i], 0);
  assert_int_equal(mask.ids[prompt.n], 1);
  token_list_free(&prompt);
  token_list_free(&whole);
  token_list_free(&mask);
  token_list_free(&other);
  tokenizer_close(&tokenizer);
}

static void test_refusals(void **state) {
  (void)state;
  enum chat_template chat;
  struct token_list ids = {0}, mask = {0};
  struct tokenizer *tokenizer = open_with("gpt2", NULL, "<|endoftext|>", "{{ messages[0]['content'] + '<|turn|>' }}");
  assert_int_equal(chat_template_choose("auto", tokenizer, &chat), STATUS_DATA);
  assert_non_null(strstr(status_message(), "zephyr"));
  assert_int_equal(chat_template_choose("chatlm", tokenizer, &chat), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "chatml"));
  const struct chat_message user[] = {{"user", "Hi"}}, tool[] = {{"user", "Hi"}, {"tool", "x"}};
  const struct chat_message twice[] = {{"user", "Hi"}, {"user", "again"}};
  assert_int_equal(chat_template_apply(CHAT_CHATML, tokenizer, user, 1, false, &ids, &mask), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "<|im_start|>"));
  assert_int_equal(chat_template_apply(CHAT_ALPACA, tokenizer, tool, 2, false, &ids, &mask), STATUS_DATA);
  assert_non_null(strstr(status_message(), "tool"));
  assert_int_equal(chat_template_apply(CHAT_ALPACA, tokenizer, twice, 2, false, &ids, &mask), STATUS_DATA);
  assert_int_equal(ids.n, 0);
  assert_int_equal(mask.n, 0);
  token_list_free(&ids);
  token_list_free(&mask);
  tokenizer_close(&tokenizer);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_golden_conversations),
      cmocka_unit_test(test_by_name),
      cmocka_unit_test(test_training_and_generation_agree),
      cmocka_unit_test(test_refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
