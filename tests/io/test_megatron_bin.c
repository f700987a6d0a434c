#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/dataset.h"
#include "io/megatron_bin.h"

static char folder[] = "/tmp/lorashard-test-megatron-XXXXXX";

static int group_setup(void **state) {
  (void)state;
  return mkdtemp(folder) ? 0 : -1;
}

static int group_teardown(void **state) {
  (void)state;
  char command[128];
  snprintf(command, sizeof command, "rm -rf '%s'", folder);
  return system(command);
}

/* An index image in the making. */
struct image {
  uint8_t bytes[512];
  size_t n;
};

static void put(struct image *image, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; i++) image->bytes[image->n++] = (uint8_t)(value >> (8 * i));
}

/* Four sequences of 3, 2, 0 and 4 tokens in three documents: 5, 0 and 4. */
static const int lengths[] = {3, 2, 0, 4};
static const int documents[] = {0, 2, 3, 4};

static void make_index(struct image *image, int type, int token_bytes) {
  image->n = 0;
  memcpy(image->bytes, "MMIDIDX\0\0", 9);
  image->n = 9;
  put(image, 1, 8);
  put(image, (uint64_t)type, 1);
  put(image, 4, 8);
  put(image, 4, 8);
  for (int i = 0; i < 4; i++) put(image, (uint64_t)lengths[i], 4);
  uint64_t offset = 0;
  for (int i = 0; i < 4; i++) {
    put(image, offset, 8);
    offset += (uint64_t)(lengths[i] * token_bytes);
  }
  for (int i = 0; i < 4; i++) put(image, (uint64_t)documents[i], 8);
}

static void write_file(const char *path, const void *data, size_t n) {
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, n, file), n);
  assert_int_equal(fclose(file), 0);
}

/* Writes both files; returns the .bin's path, good until the next call. */
static const char *write_pair(const struct image *index, const struct image *tokens) {
  static char path[256];
  snprintf(path, sizeof path, "%s/data.idx", folder);
  write_file(path, index->bytes, index->n);
  snprintf(path, sizeof path, "%s/data.bin", folder);
  write_file(path, tokens->bytes, tokens->n);
  return path;
}

static const int64_t ids[9] = {5, 6, 7, 8, 9, 10, 11, 12, 13};

static void make_tokens(struct image *tokens, int token_bytes) {
  tokens->n = 0;
  for (int i = 0; i < 9; i++) put(tokens, (uint64_t)ids[i], token_bytes);
}

static void test_types(void **state) {
  (void)state;
  static const struct { int type, bytes; } types[] = {{1, 1}, {2, 1}, {3, 2}, {4, 4}, {5, 8}, {8, 2}};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    struct image index, tokens;
    make_index(&index, types[i].type, types[i].bytes);
    make_tokens(&tokens, types[i].bytes);
    struct megatron_bin *bin = NULL;
    assert_int_equal(megatron_bin_open(write_pair(&index, &tokens), &bin), STATUS_OK);
    assert_int_equal(megatron_bin_index(bin)->n_documents, 3);
    static const int64_t firsts[] = {0, 0, 5}, sizes[] = {5, 0, 4};
    for (int d = 0; d < 3; d++) {
      int64_t first, n;
      int32_t got[9];
      megatron_index_document(megatron_bin_index(bin), d, &first, &n);
      assert_int_equal(n, sizes[d]);
      if (n == 0) continue;
      assert_int_equal(first, firsts[d]);
      megatron_bin_read(bin, first, n, got);
      for (int64_t t = 0; t < n; t++) assert_int_equal(got[t], ids[first + t]);
    }
    megatron_bin_close(&bin);
    assert_null(bin);
  }
}

/* u16 above the sign bit; signed and wide ids outside what an id can be. */
static void test_ranges(void **state) {
  (void)state;
  static const struct {
    int type, bytes;
    uint64_t value;
    int32_t want;
  } cases[] = {{8, 2, 65535, 65535},           {1, 1, 255, 255},
               {2, 1, 255, INT32_MAX},         {3, 2, 65535, INT32_MAX},
               {4, 4, 0xffffffffu, INT32_MAX}, {5, 8, (uint64_t)1 << 32, INT32_MAX},
               {5, 8, UINT64_MAX, INT32_MAX}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct image index, tokens = {.n = 0};
    make_index(&index, cases[i].type, cases[i].bytes);
    for (int t = 0; t < 9; t++) put(&tokens, cases[i].value, cases[i].bytes);
    struct megatron_bin *bin = NULL;
    int32_t got = 0;
    assert_int_equal(megatron_bin_open(write_pair(&index, &tokens), &bin), STATUS_OK);
    megatron_bin_read(bin, 8, 1, &got);
    assert_int_equal(got, cases[i].want);
    megatron_bin_close(&bin);
  }
}

static void check_rejected(const struct image *index, uint64_t bin_size, const char *message) {
  struct megatron_index parsed;
  /* A copy of the exact size, so that a sanitizer sees any byte read too many. */
  uint8_t *copy = malloc(index->n ? index->n : 1);
  assert_non_null(copy);
  memcpy(copy, index->bytes, index->n);
  enum status status = megatron_index_parse(copy, index->n, bin_size, "x.idx", &parsed);
  free(copy);
  if (status != STATUS_DATA || !strstr(status_message(), message))
    fail_msg("expected \"%s\", got %d: %s", message, status, status_message());
}

static void overwrite(struct image *image, size_t at, uint64_t value, int bytes) {
  size_t n = image->n;
  image->n = at;
  put(image, value, bytes);
  image->n = n;
}

static void test_rejected(void **state) {
  (void)state;
  const size_t at_lengths = 34, at_offsets = 34 + 16, at_documents = 34 + 16 + 32;
  static const struct {
    size_t at;
    uint64_t value;
    int bytes;
    const char *message;
  } cases[] = {
      {0, 'X', 1, "not a Megatron index"},
      {9, 2, 8, "index version 2"},
      {17, 6, 1, "token type 6 is not an integer"},
      {17, 7, 1, "token type 7"},
      {17, 0, 1, "token type 0"},
      {17, 200, 1, "token type 200"},
      {18, 5, 8, "do not hold 5 sequences"},
      {18, UINT64_MAX, 8, "do not hold"},
      {18, (uint64_t)1 << 62, 8, "do not hold"},
      {26, 0, 8, "do not hold"},
      {26, (uint64_t)1 << 61, 8, "do not hold"},
      {26, 3, 8, "bytes after the documents"},
      {at_lengths, 0xffffffffu, 4, "sequence 0 has a negative length"},
      {at_lengths + 12, 5, 4, "sequence 3 lies outside the .bin of 18 bytes"},
      {at_offsets + 24, UINT64_MAX - 1, 8, "sequence 3 lies outside"},
      {at_offsets + 24, 9, 8, "sequence 3 lies outside"},
      {at_offsets + 8, 8, 8, "sequence 1 does not follow"},
      {at_documents, 1, 8, "do not begin at sequence 0"},
      {at_documents + 24, 3, 8, "do not begin at sequence 0 and end at 4"},
      {at_documents + 8, 4, 8, "document 1 ends at sequence 3, outside"},
      {at_documents + 8, UINT64_MAX, 8, "document 0 ends at sequence"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct image index;
    make_index(&index, 8, 2);
    overwrite(&index, cases[i].at, cases[i].value, cases[i].bytes);
    check_rejected(&index, 18, cases[i].message);
  }
  struct image index;
  make_index(&index, 8, 2);
  check_rejected(&index, 16, "sequence 3 lies outside the .bin of 16 bytes");
  const size_t whole = index.n;
  for (index.n = 0; index.n < whole; index.n++) check_rejected(&index, 18, "x.idx: ");
}

/* Modes of multimodal data: all text is read, an image is refused. */
static void test_modes(void **state) {
  (void)state;
  struct image index;
  struct megatron_index parsed;
  make_index(&index, 8, 2);
  for (int i = 0; i < 4; i++) put(&index, 0, 1);
  assert_int_equal(megatron_index_parse(index.bytes, index.n, 18, "x.idx", &parsed), STATUS_OK);
  index.bytes[index.n - 1] = 1;
  check_rejected(&index, 18, "multimodal");
}

static void test_paths(void **state) {
  (void)state;
  struct image index, tokens;
  make_index(&index, 8, 2);
  make_tokens(&tokens, 2);
  const char *path = write_pair(&index, &tokens);
  char other[256];
  struct megatron_bin *bin = NULL;
  snprintf(other, sizeof other, "%s/data.idx", folder);
  assert_int_equal(megatron_bin_open(other, &bin), STATUS_USAGE);
  assert_int_equal(unlink(other), 0);
  assert_int_equal(megatron_bin_open(path, &bin), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "data.idx: cannot open"));
  assert_null(bin);
}

/* As a dataset: no tokenizer, all but a document's first id learnt, nothing added
 * at its end, the empty document skipped. */
static void test_dataset(void **state) {
  (void)state;
  struct image index, tokens;
  make_index(&index, 8, 2);
  make_tokens(&tokens, 2);
  const char *path = write_pair(&index, &tokens);
  struct dataset_options options = {.files = &path, .n_files = 1, .format = "auto", .seq_len = 8, .packing = true};
  struct dataset *dataset = NULL;
  options.n_vocab = 13;
  assert_int_equal(dataset_open(&options, &dataset), STATUS_DATA);
  assert_non_null(strstr(status_message(), "data.bin: token 8 has an id outside the base's vocabulary of 13"));
  options.n_vocab = 14;
  assert_int_equal(dataset_open(&options, &dataset), STATUS_OK);
  assert_int_equal(dataset_counts(dataset)->documents, 3);
  assert_int_equal(dataset_counts(dataset)->without_target, 1);
  assert_int_equal(dataset_rows(dataset), 1);
  int32_t row[8], labels[8], positions[8], starts[8];
  int n_docs = 0;
  int64_t n = 0;
  dataset_row(dataset, 0, row, labels, positions, starts, &n_docs, &n);
  static const int32_t want_ids[8] = {5, 6, 7, 8, 10, 11, 12, 0}, want_labels[8] = {6, 7, 8, 9, 11, 12, 13, -1};
  static const int32_t want_positions[8] = {0, 1, 2, 3, 0, 1, 2, 0};
  assert_memory_equal(row, want_ids, sizeof row);
  assert_memory_equal(labels, want_labels, sizeof labels);
  assert_memory_equal(positions, want_positions, sizeof positions);
  assert_int_equal(n_docs, 2);
  assert_int_equal(starts[1], 4);
  assert_int_equal(n, 7);
  dataset_close(&dataset);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_types), cmocka_unit_test(test_ranges), cmocka_unit_test(test_rejected),
      cmocka_unit_test(test_modes), cmocka_unit_test(test_paths),  cmocka_unit_test(test_dataset),
  };
  return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
