#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/safetensors.h"

static char folder[] = "/tmp/test_safetensors.XXXXXX";
static char path[64], temporary[64];

static int setup(void **state) {
  (void)state;
  if (!mkdtemp(folder)) return -1;
  snprintf(path, sizeof path, "%s/file", folder);
  snprintf(temporary, sizeof temporary, "%s/file.tmp", folder);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  unlink(path);
  return rmdir(folder); /* fails, and so does the group, if something else is left */
}

/* A file of this header (length field as given) and n zero bytes of data. */
static void put(uint64_t length, const char *header, size_t n) {
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  for (int i = 0; i < 8; i++) fputc((int)(length >> (8 * i) & 255), file);
  fputs(header, file);
  while (n-- > 0) fputc(0, file);
  fclose(file);
}

static void expect_refused(const char *fault) {
  struct safetensors *file = NULL;
  assert_int_equal(safetensors_open(path, &file), STATUS_DATA);
  assert_null(file);
  if (!strstr(status_message(), fault) || !strstr(status_message(), path))
    fail_msg("message \"%s\" does not say \"%s\"", status_message(), fault);
}

static void test_malformed_refused(void **state) {
  (void)state;
  static const struct {
    const char *header;
    size_t data;
    const char *fault;
  } cases[] = {
      {"", 0, "does not begin with {"},
      {" {}", 0, "does not begin with {"},
      {"{\"a\":", 0, "not valid JSON"},
      {"{\"\xff\":1}", 0, "not valid JSON"},
      {"{} x", 0, "not valid JSON"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
       "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
       8, "duplicate"},
      {"{\"__metadata__\":{\"n\":1}}", 0, "other than strings"},
      {"{\"__metadata__\":[]}", 0, "__metadata__"},
      {"{\"a\":[]}", 0, "not an object"},
      {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "no dtype"},
      {"{\"a\":{\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4, "shape"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "shape"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "shape"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "not a range"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "not a range"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "do not fit"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, "too large"},
      {"{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0, "too large"},
      {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "whole bytes"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "neighbour"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
       "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2,6]}}",
       6, "neighbour"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
       "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}",
       12, "neighbour"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 3, "past the end"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5, "longer"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    put(strlen(cases[i].header), cases[i].header, cases[i].data);
    expect_refused(cases[i].fault);
  }
}

static void test_bad_length_refused(void **state) {
  (void)state;
  put(100000001, "{}", 0);
  expect_refused("100 MB");
  put(UINT64_MAX, "{}", 0);
  expect_refused("100 MB");
  put(3, "{}", 0);
  expect_refused("past the end");
  assert_int_equal(truncate(path, 7), 0);
  expect_refused("shorter than 8");
}

/* What the format allows: any order of keys, a scalar, an empty tensor, data
 * that is not aligned, spaces after the header, dtypes that are not weights. */
static void test_allowed(void **state) {
  (void)state;
  const char *header =
      "{\"b\":{\"data_offsets\":[1,5],\"shape\":[],\"dtype\":\"F32\"},\"__metadata__\":{\"format\":\"pt\"},"
      "\"a\":{\"dtype\":\"BOOL\",\"shape\":[1],\"data_offsets\":[0,1]},"
      "\"e\":{\"dtype\":\"F16\",\"shape\":[3,0],\"data_offsets\":[5,5]},"
      "\"deep\":{\"dtype\":\"F16\",\"shape\":[1,1,1,1,1],\"data_offsets\":[5,7]}}   ";
  put(strlen(header), header, 7);
  struct safetensors *file = NULL;
  assert_int_equal(safetensors_open(path, &file), STATUS_OK);
  assert_int_equal(file->n_tensors, 4);
  const struct safetensors_tensor *b = safetensors_find(file, "b");
  assert_true(b->readable && b->dtype == DTYPE_F32 && b->n_dims == 0 && b->bytes == 4);
  assert_int_equal(b->offset, 8 + strlen(header) + 1);
  assert_false(safetensors_find(file, "a")->readable);
  assert_string_equal(safetensors_find(file, "a")->file_type, "BOOL");
  assert_false(safetensors_find(file, "deep")->readable);
  assert_int_equal(safetensors_find(file, "e")->bytes, 0);
  assert_null(safetensors_find(file, "c"));
  safetensors_close(&file);
  assert_null(file);
}

static const struct safetensors_entry entries[] = {
    {"w", DTYPE_F32, 2, {2, 3}}, {"scalar", DTYPE_F32, 0, {0}}, {"h \"quoted\"", DTYPE_BF16, 1, {5}}};
static const float values[7] = {1, 2, 3, 4, 5, 6, 7};
static const uint16_t halves[5] = {10, 11, 12, 13, 14};

static void test_written_is_read(void **state) {
  (void)state;
  struct safetensors_writer *writer = NULL;
  assert_int_equal(safetensors_writer_create(path, entries, 3, &writer), STATUS_OK);
  assert_int_equal(safetensors_writer_append(writer, values, 10), STATUS_OK); /* pieces need not end with tensors */
  assert_int_equal(safetensors_writer_append(writer, (const char *)values + 10, 18), STATUS_OK);
  assert_int_equal(safetensors_writer_append(writer, halves, 10), STATUS_OK);
  assert_int_equal(safetensors_writer_append(writer, halves, 1), STATUS_USAGE); /* more than the header says */
  assert_int_equal(safetensors_writer_finish(&writer), STATUS_OK);
  assert_null(writer);
  assert_int_not_equal(access(temporary, F_OK), 0);

  struct safetensors *file = NULL;
  assert_int_equal(safetensors_open(path, &file), STATUS_OK);
  const struct safetensors_tensor *w = safetensors_find(file, "w");
  assert_int_equal(w->offset % 8, 0);
  assert_int_equal(w->n_dims, 2);
  assert_int_equal(w->shape[1], 3);
  float middle[2];
  assert_int_equal(safetensors_read(file, w, 8, 8, middle), STATUS_OK);
  assert_memory_equal(middle, &values[2], 8);
  assert_int_equal(safetensors_read(file, w, 20, 8, middle), STATUS_DATA);
  uint16_t read_halves[5];
  assert_int_equal(safetensors_read(file, safetensors_find(file, "h \"quoted\""), 0, 10, read_halves), STATUS_OK);
  assert_memory_equal(read_halves, halves, 10);
  assert_int_equal(truncate(path, 100), 0); /* cut while it is open */
  assert_int_equal(safetensors_read(file, w, 0, 24, (char[24]){0}), STATUS_DATA);
  assert_non_null(strstr(status_message(), "tensor w"));
  safetensors_close(&file);
}

static void test_unfinished_leaves_nothing(void **state) {
  (void)state;
  unlink(path);
  struct safetensors_writer *writer = NULL;
  assert_int_equal(safetensors_writer_create(path, entries, 3, &writer), STATUS_OK);
  assert_int_equal(access(temporary, F_OK), 0);
  assert_int_equal(safetensors_writer_append(writer, values, 4), STATUS_OK);
  assert_int_equal(safetensors_writer_finish(&writer), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "34 bytes"));
  assert_int_not_equal(access(temporary, F_OK), 0);
  assert_int_not_equal(access(path, F_OK), 0);
  assert_int_equal(safetensors_writer_create(path, entries, 3, &writer), STATUS_OK);
  safetensors_writer_destroy(&writer);
  assert_int_not_equal(access(temporary, F_OK), 0);
}

/* A file size limit stands for the full disk: both fail in write(). */
static void test_full_disk_leaves_nothing(void **state) {
  (void)state;
  unlink(path);
  struct rlimit before, limit;
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, SIG_IGN);
  limit = before;
  limit.rlim_cur = 4096;
  struct safetensors_entry large = {"large", DTYPE_F32, 1, {4096}};
  struct safetensors_writer *writer = NULL;
  assert_int_equal(safetensors_writer_create(path, &large, 1, &writer), STATUS_OK);
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
  static float data[4096];
  enum status status = safetensors_writer_append(writer, data, sizeof data);
  setrlimit(RLIMIT_FSIZE, &before);
  assert_int_equal(status, STATUS_SYSTEM);
  assert_non_null(strstr(status_message(), temporary));
  safetensors_writer_destroy(&writer);
  assert_int_not_equal(access(temporary, F_OK), 0);
}

static void test_bad_entries_refused(void **state) {
  (void)state;
  struct safetensors_writer *writer = NULL;
  const struct safetensors_entry quantised = {"q", DTYPE_Q8_0, 1, {32}};
  const struct safetensors_entry twice[] = {{"a", DTYPE_F32, 1, {1}}, {"a", DTYPE_F32, 1, {1}}};
  const struct safetensors_entry large = {"l", DTYPE_F32, 2, {INT64_MAX, 4}};
  const struct safetensors_entry not_text = {"\xff", DTYPE_F32, 1, {1}};
  assert_int_equal(safetensors_writer_create(path, &quantised, 1, &writer), STATUS_USAGE);
  assert_int_equal(safetensors_writer_create(path, twice, 2, &writer), STATUS_USAGE);
  assert_int_equal(safetensors_writer_create(path, &large, 1, &writer), STATUS_USAGE);
  assert_int_equal(safetensors_writer_create(path, &not_text, 1, &writer), STATUS_USAGE);
  assert_null(writer);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_malformed_refused),
      cmocka_unit_test(test_bad_length_refused),
      cmocka_unit_test(test_allowed),
      cmocka_unit_test(test_written_is_read),
      cmocka_unit_test(test_unfinished_leaves_nothing),
      cmocka_unit_test(test_full_disk_leaves_nothing),
      cmocka_unit_test(test_bad_entries_refused),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
