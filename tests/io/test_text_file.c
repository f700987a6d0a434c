#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/text_file.h"

#define MIB (1 << 20)

static char folder[] = "/tmp/lorashard-test-text-file-XXXXXX", path[256];

static int group_setup(void **state) {
  (void)state;
  if (!mkdtemp(folder)) return -1;
  snprintf(path, sizeof path, "%s/file", folder);
  return 0;
}

static int group_teardown(void **state) {
  (void)state;
  char command[128];
  snprintf(command, sizeof command, "rm -rf '%s'", folder);
  return system(command);
}

static void write_file(const void *data, size_t n) {
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, n, file), n);
  assert_int_equal(fclose(file), 0);
}

static void open_file(enum record_format format, bool lines_of_json, struct text_file *file) {
  if (text_file_open(path, format, lines_of_json, file) != STATUS_OK) fail_msg("%s", status_message());
}

/* Chunks follow each other without a gap, cover the file, and know their lines. */
static void check_cover(const struct text_file *file, const char *data, size_t n) {
  uint64_t at = 0;
  int64_t line = 1;
  for (int c = 0; c < file->n_chunks; c++) {
    const struct text_chunk *chunk = &file->chunks[c];
    assert_int_equal(chunk->begin, at);
    assert_int_equal(chunk->first_line, line);
    assert_true(chunk->end > at && chunk->end <= n);
    char *read = NULL;
    size_t length = 0;
    assert_int_equal(text_file_read(file, c, &read, &length), STATUS_OK);
    assert_int_equal(length, chunk->end - at);
    assert_memory_equal(read, data + at, length);
    free(read);
    for (; at < chunk->end; at++) line += data[at] == '\n';
  }
  assert_int_equal(at, n);
}

/* n bytes of lines of `step` bytes, every third followed by an indented one. */
static char *make_lines(size_t n, size_t step) {
  char *data = malloc(n);
  assert_non_null(data);
  for (size_t i = 0; i < n; i++) data[i] = i % step == step - 1 ? '\n' : 'a';
  for (size_t i = 0; i + 3 * step < n; i += 3 * step) data[i] = ' ';
  return data;
}

static void test_lines(void **state) {
  (void)state;
  const size_t n = 5 * MIB / 2, step = 64; /* a mebibyte is a multiple of it */
  char *data = make_lines(n, step);
  struct text_file file;
  write_file(data, n);
  open_file(RECORD_E2E, false, &file);
  check_cover(&file, data, n);
  assert_int_equal(file.n_chunks, 3);
  for (int c = 1; c < 3; c++) assert_int_equal(file.chunks[c].begin, c * MIB);
  text_file_close(&file);
  free(data);
}

/* Plain text is not cut before white space, where a tokenizer's word may cross. */
static void test_stream(void **state) {
  (void)state;
  const size_t n = 5 * MIB / 2, step = 64;
  char *data = make_lines(n, step);
  data[MIB] = data[MIB + step] = '\n';
  struct text_file file;
  write_file(data, n);
  open_file(RECORD_AUTO, false, &file);
  assert_int_equal(file.format, RECORD_STREAM);
  check_cover(&file, data, n);
  assert_int_equal(file.n_chunks, 3);
  assert_int_equal(file.chunks[1].begin, MIB + 1);
  for (int c = 1; c < 3; c++) {
    assert_int_equal(data[file.chunks[c].begin - 1], '\n');
    assert_int_equal(data[file.chunks[c].begin], 'a');
  }
  text_file_close(&file);
  free(data);
}

/* Text without a line end is cut between characters, binary anywhere. */
static void test_no_lines(void **state) {
  (void)state;
  const size_t n = 9 * MIB;
  char *data = malloc(n);
  assert_non_null(data);
  struct text_file file;
  for (size_t i = 0; i < n; i++) data[i] = "\xe2\x82\xac"[i % 3]; /* the Euro sign */
  write_file(data, n);
  open_file(RECORD_STREAM, false, &file);
  check_cover(&file, data, n);
  assert_int_equal(file.n_chunks, 3);
  for (int c = 1; c < file.n_chunks; c++) assert_int_equal((unsigned char)data[file.chunks[c].begin], 0xe2);
  text_file_close(&file);
  memset(data, 0x80, n);
  write_file(data, n);
  open_file(RECORD_STREAM, false, &file);
  check_cover(&file, data, n);
  assert_int_equal(file.n_chunks, 2);
  text_file_close(&file);
  free(data);
}

static void check_detected(const char *text, bool lines_of_json, enum record_format want) {
  struct text_file file;
  write_file(text, strlen(text));
  open_file(RECORD_AUTO, lines_of_json, &file);
  assert_int_equal(file.format, want);
  text_file_close(&file);
}

static void test_detection(void **state) {
  (void)state;
  check_detected("a||b\n\nc||d", false, RECORD_E2E);
  check_detected(
      "\xef\xbb\xbf"
      "a||b\n",
      false, RECORD_E2E);
  check_detected("a||b\nc||d||e\n", false, RECORD_STREAM);
  check_detected("a||b\nc\n", false, RECORD_STREAM);
  check_detected("", false, RECORD_STREAM);
  check_detected("\n\n{\"prompt\": \"a\", \"completion\": \"b\"}\n", true, RECORD_PROMPT_COMPLETION);
  check_detected("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", true, RECORD_MESSAGES);
  /* A hundred lines decide, not the hundred and first. */
  char text[101 * 5 + 8] = "";
  for (int i = 0; i < 100; i++) strcat(text, "a||b\n");
  strcat(text, "no\n");
  check_detected(text, false, RECORD_E2E);
  text[99 * 5 + 1] = ' ';
  check_detected(text, false, RECORD_STREAM);
  /* Fewer lines than that in the first mebibyte: the last one, cut before its
   * bars, does not count. */
  char *data = make_lines(3 * MIB, 100000);
  for (size_t i = 0; i + 90002 < 3 * MIB; i += 100000) memcpy(data + i + 90000, "||", 2);
  write_file(data, 3 * MIB - MIB / 2);
  struct text_file file;
  open_file(RECORD_AUTO, false, &file);
  assert_int_equal(file.format, RECORD_E2E);
  text_file_close(&file);
  free(data);
}

static void test_digest(void **state) {
  (void)state;
  struct text_file one, two;
  write_file("a\nb\n", 4);
  open_file(RECORD_STREAM, false, &one);
  write_file("a\nc\n", 4);
  open_file(RECORD_STREAM, false, &two);
  assert_memory_not_equal(one.digest, two.digest, sizeof one.digest);
  text_file_close(&one);
  text_file_close(&two);
}

static void test_next_line(void **state) {
  (void)state;
  static const char data[] = "a\r\n\nb\rc\n\r\nend";
  static const char *const want[] = {"a", "", "b\rc", "", "end"};
  struct text_span line;
  size_t at = 0;
  for (int i = 0; i < 5; i++) {
    assert_true(text_next_line(data, sizeof data - 1, &at, &line));
    assert_int_equal(line.length, strlen(want[i]));
    assert_memory_equal(line.text, want[i], line.length);
  }
  assert_false(text_next_line(data, sizeof data - 1, &at, &line));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_lines),     cmocka_unit_test(test_stream), cmocka_unit_test(test_no_lines),
      cmocka_unit_test(test_detection), cmocka_unit_test(test_digest), cmocka_unit_test(test_next_line),
  };
  return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
