#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cmocka.h>

#include "io/token_cache.h"

static const uint64_t key[2] = {0x1111222233334444u, 0x5555666677778888u};
static char folder[] = "/tmp/lorashard-test-token-cache-XXXXXX";

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

/* Documents of 3 and 2 words and an empty one between. */
static void make_chunk(struct token_chunk *chunk) {
  static int32_t ids[] = {1, 7, 9}, mask[] = {0, 0, 1};
  struct token_list id_list = {ids, 3, 3}, mask_list = {mask, 3, 3};
  struct token_builder builder = {0};
  assert_int_equal(token_builder_add(&builder, &id_list, &mask_list), STATUS_OK);
  assert_int_equal(token_builder_end_document(&builder), STATUS_OK);
  assert_int_equal(token_builder_end_document(&builder), STATUS_OK);
  id_list.n = mask_list.n = 2;
  assert_int_equal(token_builder_add(&builder, &id_list, &mask_list), STATUS_OK);
  assert_int_equal(token_builder_end_document(&builder), STATUS_OK);
  assert_int_equal(token_builder_finish(&builder, key, 17, chunk), STATUS_OK);
  token_builder_free(&builder);
}

static void check_chunk(const struct token_chunk *chunk) {
  static const uint32_t words[] = {1, 7, 9 | TOKEN_TARGET, 1, 7};
  static const uint64_t ends[] = {3, 3, 5};
  assert_int_equal(chunk->n_words, 5);
  assert_int_equal(chunk->n_docs, 3);
  assert_memory_equal(chunk->words, words, sizeof words);
  assert_memory_equal(chunk->doc_ends, ends, sizeof ends);
}

static void test_store_and_load(void **state) {
  (void)state;
  struct token_chunk chunk = {0}, loaded = {0};
  char *deep = NULL, path[512], command[512];
  make_chunk(&chunk);
  check_chunk(&chunk);
  snprintf(path, sizeof path, "%s/a//b/", folder);
  assert_int_equal(token_cache_folder(path, key, &deep), STATUS_OK);
  assert_non_null(strstr(deep, "/55556666777788881111222233334444"));
  assert_int_equal(token_cache_make_folder(deep), STATUS_OK);
  assert_int_equal(token_cache_make_folder(deep), STATUS_OK);
  assert_false(token_cache_load(deep, key, 17, &loaded));
  assert_int_equal(token_cache_store(deep, 17, &chunk), STATUS_OK);
  assert_true(token_cache_load(deep, key, 17, &loaded));
  check_chunk(&loaded);
  token_chunk_free(&loaded);
  /* Nothing but the chunk is left, and another's name is not believed. */
  snprintf(command, sizeof command,
           "test \"$(ls '%s')\" = chunk-00017.tok && cp '%s/chunk-00017.tok' "
           "'%s/chunk-00018.tok'",
           deep, deep, deep);
  assert_int_equal(system(command), 0);
  assert_false(token_cache_load(deep, key, 18, &loaded));
  token_chunk_free(&chunk);
  free(deep);
}

static void test_store_fails(void **state) {
  (void)state;
  struct token_chunk chunk = {0};
  char path[256];
  make_chunk(&chunk);
  snprintf(path, sizeof path, "%s/none", folder);
  assert_int_equal(token_cache_store(path, 0, &chunk), STATUS_SYSTEM);
  assert_non_null(strstr(status_message(), "none/chunk-00000.tok"));
  token_chunk_free(&chunk);
  /* A file where a folder should be. */
  snprintf(path, sizeof path, "%s/file", folder);
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  fclose(file);
  strcat(path, "/cache");
  assert_int_equal(token_cache_make_folder(path), STATUS_SYSTEM);
  assert_non_null(strstr(status_message(), "cannot make the token cache's folder"));
}

/* Any single changed byte, a wrong length, another key or number is found. */
static void test_damage(void **state) {
  (void)state;
  struct token_chunk chunk = {0}, parsed = {0};
  const uint64_t other[2] = {key[0], key[1] + 1};
  make_chunk(&chunk);
  assert_true(token_chunk_parse(chunk.image, chunk.size, key, 17, &parsed));
  assert_false(token_chunk_parse(chunk.image, chunk.size, key, 16, &parsed));
  assert_false(token_chunk_parse(chunk.image, chunk.size, other, 17, &parsed));
  for (size_t n = 0; n < chunk.size; n++) assert_false(token_chunk_parse(chunk.image, n, key, 17, &parsed));
  for (size_t i = 0; i < chunk.size; i++) {
    ((uint8_t *)chunk.image)[i] ^= 4;
    assert_false(token_chunk_parse(chunk.image, chunk.size, key, 17, &parsed));
    ((uint8_t *)chunk.image)[i] ^= 4;
  }
  assert_true(token_chunk_parse(chunk.image, chunk.size, key, 17, &parsed));
  token_chunk_free(&chunk);
}

/* Write the right digest into an image. */
static void sign(uint64_t *image, size_t size) {
  uint8_t hashed[256];
  memcpy(hashed, image, 48);
  memcpy(hashed + 48, image + 8, size - 64);
  XXH128_hash_t digest = XXH3_128bits(hashed, size - 16);
  image[6] = digest.low64;
  image[7] = digest.high64;
}

/* Contents that are not possible are refused even if the digest is right. */
static void test_forged(void **state) {
  (void)state;
  enum { DOCS = 4, WORDS = 5, END = 8 }; /* u64 of the image; 44 bytes follow the header */
  static const struct {
    int at, also_at;
    uint64_t value, also;
  } cases[] = {
      {DOCS, 0, 2, 0},
      {DOCS, 0, 4, 0},
      {DOCS, WORDS, 0, 10},                 /* fewer than there are bytes for */
      {DOCS, WORDS, (uint64_t)1 << 61, 11}, /* 8 times it is 0 */
      {DOCS, WORDS, 0, 11 | (uint64_t)1 << 62},
      {WORDS, 0, 4, 0},
      {WORDS, 0, 6, 0},
      {END, 0, UINT64_MAX, 0},
      {END, 0, 4, 0},
      {END + 1, 0, 2, 0},
      {END + 2, 0, 6, 0},
      {END + 2, 0, 2, 0},
      {END + 2, 0, 4, 0},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct token_chunk chunk = {0}, parsed = {0};
    make_chunk(&chunk);
    uint64_t *image = chunk.image;
    sign(image, chunk.size);
    assert_true(token_chunk_parse(image, chunk.size, key, 17, &parsed));
    image[cases[i].at] = cases[i].value;
    if (cases[i].also_at) image[cases[i].also_at] = cases[i].also;
    sign(image, chunk.size);
    assert_false(token_chunk_parse(image, chunk.size, key, 17, &parsed));
    token_chunk_free(&chunk);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_store_and_load),
      cmocka_unit_test(test_store_fails),
      cmocka_unit_test(test_damage),
      cmocka_unit_test(test_forged),
  };
  return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
