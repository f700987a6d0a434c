#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "io/row_pack.h"

static void check_rows(const struct row_table *table, const int64_t *first, const int64_t *documents, int64_t n_rows) {
  assert_int_equal(table->n_rows, n_rows);
  for (int64_t r = 0; r <= n_rows; r++) assert_int_equal(table->first[r], first[r]);
  for (int64_t d = 0; d < first[n_rows]; d++) assert_int_equal(table->documents[d], documents[d]);
}

static void test_first_fit(void **state) {
  (void)state;
  static const int32_t need[] = {6, 5, 4, 10, 5, 1, 1};
  static const int64_t first[] = {0, 2, 4, 5, 7}, documents[] = {0, 2, 1, 4, 3, 5, 6};
  struct row_table table = {0};
  assert_int_equal(row_pack(need, 7, 10, true, &table), STATUS_OK);
  check_rows(&table, first, documents, 4);
  row_table_free(&table);

  static const int64_t single[] = {0, 1, 2, 3, 4, 5, 6, 7};
  assert_int_equal(row_pack(need, 7, 10, false, &table), STATUS_OK);
  check_rows(&table, single, single, 7);
  row_table_free(&table);

  static const int64_t none[] = {0};
  assert_int_equal(row_pack(need, 0, 10, true, &table), STATUS_OK);
  check_rows(&table, none, none, 0);
  row_table_free(&table);
}

/* 64 rows may be open; opening one more closes the fullest, the first of equals. */
static void test_window(void **state) {
  (void)state;
  int32_t need[67];
  for (int i = 0; i < 65; i++) need[i] = 60;
  need[9] = 70;
  struct row_table table = {0};
  need[65] = 30; /* row 0 comes first */
  need[66] = 40; /* row 0 has 10 left: row 1 */
  assert_int_equal(row_pack(need, 67, 100, true, &table), STATUS_OK);
  assert_int_equal(table.n_rows, 65);
  assert_int_equal(table.documents[table.first[0] + 1], 65);
  assert_int_equal(table.documents[table.first[1] + 1], 66);
  row_table_free(&table);

  for (int i = 0; i < 65; i++) need[i] = 99;
  need[3] = 100; /* full: never in the window, so 64 others are open */
  need[9] = 98;
  need[64] = 99;
  need[65] = 2;
  need[66] = 1;
  assert_int_equal(row_pack(need, 67, 100, true, &table), STATUS_OK);
  assert_int_equal(table.n_rows, 65);
  assert_int_equal(table.documents[table.first[9] + 1], 65);
  assert_int_equal(table.documents[table.first[0] + 1], 66);
  row_table_free(&table);

  /* With row 3 open too, opening row 64 closes row 0, the first of the fullest. */
  need[3] = 99;
  assert_int_equal(row_pack(need, 67, 100, true, &table), STATUS_OK);
  assert_int_equal(table.n_rows, 65);
  assert_int_equal(table.first[1] - table.first[0], 1);
  assert_int_equal(table.documents[table.first[1] + 1], 66);
  row_table_free(&table);
}

/* Full rows take no place in the window, whether filled by one document or by
 * several: 64 rows are open, row 1 the fullest, so it would be closed by anything
 * that needs a place. A full document and one that comes after row 0 has been
 * filled need none: the last document still finds row 1. */
static void test_full_rows(void **state) {
  (void)state;
  int32_t need[68];
  for (int i = 0; i < 64; i++) need[i] = 60;
  need[1] = 90;
  need[64] = 100; /* row 64 */
  need[65] = 40;  /* fills row 0 */
  need[66] = 60;  /* row 65, in the place of row 0 */
  need[67] = 10;  /* row 1, the first with room */
  struct row_table table = {0};
  assert_int_equal(row_pack(need, 68, 100, true, &table), STATUS_OK);
  assert_int_equal(table.n_rows, 66);
  assert_int_equal(table.first[2] - table.first[1], 2);
  assert_int_equal(table.documents[table.first[1] + 1], 67);
  row_table_free(&table);
}

/* Whatever comes, each document is in one row, rows are not overfull, and the
 * rows of short documents are well filled. */
static void test_random(void **state) {
  (void)state;
  enum { N = 5000, SIZE = 512 };
  static int32_t need[N];
  static int seen[N];
  uint32_t x = 1;
  int64_t total = 0;
  for (int i = 0; i < N; i++) {
    x = x * 1664525u + 1013904223u;
    need[i] = 1 + (int32_t)((x >> 16) % 200);
    total += need[i];
  }
  struct row_table table = {0};
  assert_int_equal(row_pack(need, N, SIZE, true, &table), STATUS_OK);
  for (int64_t r = 0; r < table.n_rows; r++) {
    int64_t sum = 0;
    for (int64_t d = table.first[r]; d < table.first[r + 1]; d++) {
      assert_true(d == table.first[r] || table.documents[d] > table.documents[d - 1]);
      sum += need[table.documents[d]];
      seen[table.documents[d]]++;
    }
    assert_true(sum > 0 && sum <= SIZE);
  }
  for (int i = 0; i < N; i++) assert_int_equal(seen[i], 1);
  /* Documents of a fifth of a row on average leave gaps smaller than the least
   * one: 95 % is far below what first fit reaches. */
  assert_true((double)total / (double)(table.n_rows * SIZE) > 0.95);
  row_table_free(&table);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_first_fit),
      cmocka_unit_test(test_window),
      cmocka_unit_test(test_full_rows),
      cmocka_unit_test(test_random),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
