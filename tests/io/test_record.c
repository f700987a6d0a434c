#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "io/record.h"

static enum status parse(const char *line, enum record_format format, struct record *record) {
  *record = (struct record){0};
  return record_parse_json(line, strlen(line), format, record);
}

static void check_span(struct text_span span, const char *want) {
  assert_int_equal(span.length, strlen(want));
  assert_memory_equal(span.text, want, span.length);
}

static void test_formats(void **state) {
  (void)state;
  static const struct {
    const char *line;
    enum record_format format;
  } cases[] = {
      {"{\"text\": \"a\"}", RECORD_TEXT},
      {"{\"prompt\": \"a\", \"completion\": \"b\", \"id\": 7}", RECORD_PROMPT_COMPLETION},
      {"{\"instruction\": \"a\", \"output\": \"b\", \"text\": \"whole\"}", RECORD_ALPACA},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"prompt\": \"p\"}", RECORD_MESSAGES},
      {"{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}]}", RECORD_MESSAGES},
  };
  struct record record;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    assert_int_equal(parse(cases[i].line, RECORD_AUTO, &record), STATUS_OK);
    assert_int_equal(record.format, cases[i].format);
    record_free(&record);
    assert_int_equal(parse(cases[i].line, cases[i].format, &record), STATUS_OK);
    record_free(&record);
  }
  /* The file's format wins over other keys beside it. */
  assert_int_equal(parse(cases[2].line, RECORD_TEXT, &record), STATUS_OK);
  check_span(record.completion, "whole");
  record_free(&record);
}

static void test_fields(void **state) {
  (void)state;
  struct record record;
  assert_int_equal(
      parse("{\"instruction\": \"i\", \"input\": \"\\u00e9\\n\", \"output\": \"o\"}", RECORD_AUTO, &record), STATUS_OK);
  check_span(record.prompt, "i");
  check_span(record.input, "\xc3\xa9\n");
  check_span(record.completion, "o");
  record_free(&record);
  assert_int_equal(parse("{\"instruction\": \"i\", \"input\": null, \"output\": \"o\"}", RECORD_AUTO, &record),
                   STATUS_OK);
  assert_int_equal(record.input.length, 0);
  record_free(&record);
  assert_int_equal(parse("{\"text\": \"a\\u0000b\"}", RECORD_AUTO, &record), STATUS_OK);
  assert_int_equal(record.completion.length, 3);
  record_free(&record);
}

static void test_messages(void **state) {
  (void)state;
  struct record record;
  assert_int_equal(
      parse("{\"conversations\": [{\"from\": \"system\", \"value\": \"s\"}, {\"from\": \"human\", \"value\": "
            "\"q\"}, {\"from\": \"gpt\", \"value\": \"a\"}]}",
            RECORD_AUTO, &record),
      STATUS_OK);
  static const char *const roles[] = {"system", "user", "assistant"}, *const contents[] = {"s", "q", "a"};
  assert_int_equal(record.n_messages, 3);
  for (int i = 0; i < 3; i++) {
    assert_string_equal(record.messages[i].role, roles[i]);
    assert_string_equal(record.messages[i].content, contents[i]);
  }
  record_free(&record);
}

static void test_errors(void **state) {
  (void)state;
  static const struct {
    const char *line, *message;
  } cases[] = {
      {"", "not valid JSON"},
      {"{\"text\": \"a\"} x", "not valid JSON: byte"},
      {"\"text\"", "not valid JSON"},
      {"{}", "no known keys"},
      {"{\"text\": null}", "the value of 'text' is not a string"},
      {"{\"completion\": \"a\"}", "key 'prompt' is missing"},
      {"{\"output\": \"a\"}", "key 'instruction' is missing"},
      {"{\"instruction\": \"a\", \"output\": \"b\", \"input\": 1}", "the value of 'input' is not a string"},
      {"{\"messages\": \"a\"}", "the value of 'messages' is not an array"},
      {"{\"messages\": []}", "'messages' is empty"},
      {"{\"messages\": [1]}", "message 1 is not an object"},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"tool\", \"content\": \"a\"}]}",
       "message 2: unknown role 'tool'"},
      {"{\"messages\": [{\"role\": \"user\"}]}", "message 1: key 'content' is missing"},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\\u0000\"}]}",
       "message 1: the value of 'content' holds a NUL"},
      {"{\"conversations\": [{\"role\": \"user\", \"content\": \"a\"}]}", "message 1: key 'from' is missing"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct record record;
    enum status status = parse(cases[i].line, RECORD_AUTO, &record);
    if (status != STATUS_DATA || !strstr(status_message(), cases[i].message))
      fail_msg("expected \"%s\", got %d: %s", cases[i].message, status, status_message());
    assert_null(record.json);
    assert_null(record.messages);
  }
}

static void test_e2e(void **state) {
  (void)state;
  struct record record = {0};
  const char *line = "  name : A | area : b || It is | there . \r";
  assert_int_equal(record_parse_e2e(line, strlen(line), &record), STATUS_OK);
  check_span(record.prompt, "name : A | area : b");
  check_span(record.completion, "It is | there .");
  assert_int_equal(record_parse_e2e("||", 2, &record), STATUS_OK);
  assert_int_equal(record.prompt.length + record.completion.length, 0);
  assert_int_equal(record_parse_e2e("a|b", 3, &record), STATUS_DATA);
  assert_int_equal(record_parse_e2e("a||b||c", 7, &record), STATUS_DATA);
  assert_non_null(strstr(status_message(), "holds '||' 2 times"));
  assert_int_equal(record_count_bars("a|||b", 5), 1);
  assert_int_equal(record_count_bars("a||||b", 6), 2);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_formats), cmocka_unit_test(test_fields), cmocka_unit_test(test_messages),
      cmocka_unit_test(test_errors),  cmocka_unit_test(test_e2e),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
