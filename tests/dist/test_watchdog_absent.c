/* Which rank is named when a collective does not end: every kind of answer that the others can give. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "dist/watchdog_internal.h"

enum { TP, DP, STAGE, PP, CONTROL };
enum { WORLD = 4 };

static struct watchdog_place places[WORLD];
static bool answered[WORLD];
static char text[512];

static const char *host(int rank) { return rank < 2 ? "a" : rank < 3 ? "b" : ""; }

/* Four ranks, tp 2 x pp 2, all in their 7th all-reduce over control, step 12, for 30 s. */
static int everybody_waits(void **state) {
  (void)state;
  memset(places, 0, sizeof places);
  for (int r = 0; r < WORLD; r++) {
    struct watchdog_place *place = &places[r];
    answered[r] = true;
    place->step = 12;
    place->seconds = 30;
    place->inside = 1;
    place->group = CONTROL;
    snprintf(place->operation, sizeof place->operation, "all-reduce");
    place->to = place->from = -1;
    place->color[TP] = place->rank[PP] = r / 2;
    place->color[PP] = place->rank[TP] = r % 2;
    place->color[DP] = r;
    place->color[STAGE] = r / 2;
    place->rank[CONTROL] = r;
    place->entered[CONTROL] = 7;
    for (int p = 0; p < WATCHDOG_PARTNERS; p++) place->partners[p].rank = -1;
  }
  return 0;
}

static void place(int rank, bool inside, const char *operation, int group, double seconds, int64_t step) {
  places[rank].inside = inside;
  places[rank].group = group;
  places[rank].seconds = seconds;
  places[rank].step = step;
  snprintf(places[rank].operation, sizeof places[rank].operation, "%s", operation);
}

static void expect(int rank, const char *want) {
  const struct watchdog_answers answers = {WORLD, rank, answered, places};
  watchdog_absent(&answers, host, text, sizeof text);
  assert_string_equal(text, want);
}

static void test_nobody_asked(void **state) {
  (void)state;
  const struct watchdog_answers none = {0};
  watchdog_absent(&none, host, text, sizeof text);
  assert_string_equal(text, "another rank of the group is stuck or gone");
}

static void test_all_there(void **state) {
  (void)state;
  expect(0, "every rank that takes part has called it, so a device or the network is stuck");
}

static void test_silent(void **state) {
  (void)state;
  answered[2] = false;
  /* Another one is late because of it. */
  place(3, true, "all-reduce", TP, 31, 12);
  places[3].entered[CONTROL] = 6;
  expect(0, "rank 2 (host b) does not answer");
  answered[3] = false;
  expect(1, "rank 2 (host b) does not answer; rank 3 does not answer");
}

static void test_missing(void **state) {
  (void)state;
  place(2, false, "broadcast", CONTROL, 31, 11);
  places[2].entered[CONTROL] = 6;
  expect(
      0,
      "rank 2 (host b) has not reached it: for 31 s in no collective, last in broadcast over group control, step 11");
  place(2, false, "", -1, -1, 0);
  expect(0, "rank 2 (host b) has not reached it: is in no collective and has been in none, at step 0");
  /* It has been there and gone on. */
  place(2, false, "broadcast", CONTROL, 1, 12);
  places[2].entered[CONTROL] = 7;
  expect(0, "every rank that takes part has called it, so a device or the network is stuck");
}

/* Rank 0 waits for 1 in tp, 1 for 3 in pp, and 3 computes. */
static void test_chain(void **state) {
  (void)state;
  place(0, true, "all-reduce", TP, 30, 12);
  places[0].entered[TP] = 4;
  place(1, true, "exchange", PP, 31, 12);
  places[1].entered[TP] = 3;
  places[1].from = 1;
  places[1].partners[0] = (struct watchdog_partner){PP, 1, 9, 9};
  place(3, false, "exchange", PP, 32, 12);
  places[3].partners[0] = (struct watchdog_partner){PP, 0, 8, 9};
  expect(0, "rank 3 for 32 s in no collective, last in exchange over group pp, step 12");
  expect(1, "rank 3 has not reached it: for 32 s in no collective, last in exchange over group pp, step 12");
  /* All wait, for each other. */
  place(3, true, "all-reduce", CONTROL, 32, 12);
  expect(0, "rank 1 (host a) has not reached it: for 31 s in exchange over group pp, step 12");
  /* A rank outside that computes does no harm while the group waits for nobody outside. */
  place(2, false, "all-reduce", TP, 2, 12);
  places[1].entered[TP] = 4;
  expect(0, "every rank that takes part has called it, so a device or the network is stuck");
}

static void expect_busy(int rank, int busy) {
  const struct watchdog_answers answers = {WORLD, rank, answered, places};
  assert_int_equal(watchdog_busy(&answers), busy);
}

/* Waited for are ranks that work, unless one is missing that does not. */
static void test_busy(void **state) {
  (void)state;
  const struct watchdog_answers none = {0};
  assert_int_equal(watchdog_busy(&none), -1);
  expect_busy(0, -1);
  for (int r = 2; r < WORLD; r++) {
    place(r, false, "broadcast", CONTROL, 31, 11);
    places[r].entered[CONTROL] = 6;
    snprintf(places[r].task, sizeof places[r].task, "reads the base");
  }
  expect_busy(0, 2);
  *places[3].task = 0;
  expect_busy(0, -1);
  snprintf(places[3].task, sizeof places[3].task, "reads the base");
  answered[3] = false;
  expect_busy(0, -1);
  /* A task of a rank that waits itself is nothing to wait for. */
  answered[3] = true;
  places[2].inside = places[3].inside = 1;
  expect_busy(0, -1);
}

/* Both directions of an exchange are counted by themselves. */
static void test_exchange(void **state) {
  (void)state;
  for (int r = 0; r < WORLD; r++) place(r, true, "exchange", PP, 30, 12);
  places[0].to = 1;
  places[0].partners[0] = (struct watchdog_partner){PP, 1, 5, 3};
  places[2].partners[0] = (struct watchdog_partner){PP, 0, 3, 5};
  expect(0, "every rank that takes part has called it, so a device or the network is stuck");
  places[2].partners[0].receives = 4;
  expect(0, "rank 2 (host b) has not reached it: for 30 s in exchange over group pp, step 12");
  places[0].to = -1;
  places[0].from = 1;
  expect(0, "every rank that takes part has called it, so a device or the network is stuck");
  places[2].partners[0].sends = 2;
  expect(0, "rank 2 (host b) has not reached it: for 30 s in exchange over group pp, step 12");
  places[2].partners[0].rank = -1; /* it has not exchanged anything yet */
  expect(0, "rank 2 (host b) has not reached it: for 30 s in exchange over group pp, step 12");
}

/* More ranks than a line takes, and a line that ends early. */
static void test_many(void **state) {
  (void)state;
  enum { MANY = 9 };
  static struct watchdog_place many[MANY];
  static bool none[MANY] = {true};
  const struct watchdog_answers answers = {MANY, 0, none, many};
  many[0] = places[0];
  watchdog_absent(&answers, host, text, sizeof text);
  assert_string_equal(text,
                      "rank 1 (host a) does not answer; rank 2 (host b) does not answer; rank 3 does not answer; "
                      "rank 4 does not answer; and 4 more ranks");
  watchdog_absent(&answers, host, text, 20);
  assert_string_equal(text, "rank 1 (host a) doe");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(test_nobody_asked, everybody_waits),
      cmocka_unit_test_setup(test_all_there, everybody_waits),
      cmocka_unit_test_setup(test_silent, everybody_waits),
      cmocka_unit_test_setup(test_missing, everybody_waits),
      cmocka_unit_test_setup(test_chain, everybody_waits),
      cmocka_unit_test_setup(test_busy, everybody_waits),
      cmocka_unit_test_setup(test_exchange, everybody_waits),
      cmocka_unit_test_setup(test_many, everybody_waits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
