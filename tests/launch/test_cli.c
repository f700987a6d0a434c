/* Option parsing, help made from the rows, numbers. */
#include "launch/cli.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char *output, *limit;
static bool quiet;
static struct cli_values sets;
static const char *operands[3];
static int n_operands;
static bool done;

static const struct cli_option options[] = {
    {"output,o", "FILE", "where the result goes", .value = &output},
    {"limit", "N", "at most this many", .value = &limit},
    {"quiet,q", NULL, "say less", .flag = &quiet},
    {"set", "KEY=VALUE",
     "replace a key; this sentence is long enough that it has to be broken into two lines by the help",
     .values = &sets},
    {NULL},
};
static const struct cli_help help = {
    .usage = "demo IN [OUT] [--output FILE]",
    .summary = "Show what a command line is.",
    .details = "Example:\n  lorashard demo a",
};

static int setup(void **state) {
  (void)state;
  output = limit = NULL;
  quiet = done = false;
  sets.n = n_operands = 0;
  return 0;
}

/* Parse up to 8 words, ended by NULL, after the command's name. */
static enum status parse(const char *const *words) {
  char *argv[80] = {"demo"};
  int argc = 1;
  for (; words[argc - 1]; argc++) argv[argc] = (char *)words[argc - 1];
  return cli_parse(&help, options, argc, argv, operands, 1, 2, &n_operands, &done);
}
#define PARSE(...) parse((const char *const[]){__VA_ARGS__, NULL})

static void assert_refused(enum status status, const char *part) {
  assert_int_equal(status, STATUS_USAGE);
  if (!strstr(status_message(), part) || strncmp(status_message(), "demo: ", 6) != 0)
    fail_msg("'%s' lacks '%s'", status_message(), part);
}

static void all_forms_of_options(void **state) {
  (void)state;
  assert_int_equal(PARSE("in", "--output", "a", "--set=x=1", "-q", "out", "--set", "y=2"), STATUS_OK);
  assert_int_equal(n_operands, 2);
  assert_string_equal(operands[0], "in");
  assert_string_equal(operands[1], "out");
  assert_string_equal(output, "a");
  assert_null(limit);
  assert_true(quiet && !done);
  assert_int_equal(sets.n, 2);
  assert_string_equal(sets.items[0], "x=1");
  assert_string_equal(sets.items[1], "y=2");
  assert_int_equal(PARSE("-o", "b", "in"), STATUS_OK);
  assert_string_equal(output, "b");
  assert_int_equal(PARSE("-oc", "in", "--limit="), STATUS_OK);
  assert_string_equal(output, "c");
  assert_string_equal(limit, "");
}

static void values_and_operands_may_look_like_options(void **state) {
  (void)state;
  assert_int_equal(PARSE("--output", "--quiet", "--", "--limit", "-"), STATUS_OK);
  assert_string_equal(output, "--quiet");
  assert_false(quiet);
  assert_string_equal(operands[0], "--limit");
  assert_string_equal(operands[1], "-");
  assert_null(limit);
  assert_int_equal(PARSE("-"), STATUS_OK); /* by convention a file, not an option */
}

static void mistakes_are_named(void **state) {
  (void)state;
  assert_refused(PARSE("in", "--ouptut", "x"), "unknown option '--ouptut'; the nearest is '--output'");
  assert_refused(PARSE("in", "--qiet=1"), "'--qiet'; the nearest is '--quiet'");
  assert_refused(PARSE("in", "-x"), "unknown option '-x'");
  assert_refused(PARSE("in", "--quiet=yes"), "--quiet takes no value");
  assert_refused(PARSE("in", "--limit"), "--limit needs a value (N)");
  assert_refused(PARSE("in", "-o"), "-o needs a value (FILE)");
  assert_refused(PARSE("--quiet"), "operand is missing; usage: lorashard demo IN");
  assert_refused(PARSE("a", "b", "c"), "unexpected 'c'");
  /* No prefix matching: a later option must not change what a script means. */
  assert_refused(PARSE("in", "--out", "x"), "unknown option '--out'");
}

static void repeated_values_are_bounded(void **state) {
  (void)state;
  const char *words[70] = {"in"};
  for (int i = 1; i <= 65; i++) words[i] = "--set=a=b";
  assert_refused(parse(words), "more than 64 times");
}

static void help_lists_every_row(void **state) {
  (void)state;
  FILE *file = tmpfile();
  assert_non_null(file);
  fflush(stdout);
  int saved = dup(STDOUT_FILENO);
  dup2(fileno(file), STDOUT_FILENO);
  enum status status = PARSE("--quiet", "--help", "--nonsense");
  fflush(stdout);
  dup2(saved, STDOUT_FILENO);
  close(saved);
  assert_int_equal(status, STATUS_OK);
  assert_true(done);
  char text[4096];
  rewind(file);
  text[fread(text, 1, sizeof text - 1, file)] = 0;
  fclose(file);
  assert_string_equal(text,
                      "usage: lorashard demo IN [OUT] [--output FILE]\n\n"
                      "Show what a command line is.\n\n"
                      "options:\n"
                      "  -o, --output FILE       where the result goes\n"
                      "  --limit N               at most this many\n"
                      "  -q, --quiet             say less\n"
                      "  --set KEY=VALUE         replace a key; this sentence is long enough that it\n"
                      "                          has to be broken into two lines by the help\n"
                      "  -h, --help              show this text\n\n"
                      "Example:\n  lorashard demo a\n");
}

static void whole_numbers(void **state) {
  (void)state;
  long long value = 0;
  assert_int_equal(cli_int("--limit", "12", 1, 20, &value), STATUS_OK);
  assert_int_equal(value, 12);
  assert_int_equal(cli_int("--limit", "-3", -5, 20, &value), STATUS_OK);
  assert_int_equal(value, -3);
  const char *const wrong[] = {"", "x", "1.5", "3 ", " 3", "0x10"};
  for (int i = 0; i < 6; i++) {
    assert_int_equal(cli_int("--limit", wrong[i], 0, 20, &value), STATUS_USAGE);
    assert_true(strncmp(status_message(), "--limit needs a whole number", 28) == 0);
  }
  assert_int_equal(cli_int("--limit", "21", 1, 20, &value), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "allowed: 1 to 20"));
  assert_int_equal(cli_int("--limit", "99999999999999999999", 1, 20, &value), STATUS_USAGE);
  assert_int_equal(value, -3); /* unchanged by failures */
}

static void real_numbers(void **state) {
  (void)state;
  double value = 0;
  assert_int_equal(cli_double("--temperature", "0.5", 0, 2, &value), STATUS_OK);
  assert_true(value == 0.5);
  assert_int_equal(cli_double("--temperature", "1e-1", 0, 2, &value), STATUS_OK);
  assert_true(value == 0.1);
  const char *const wrong[] = {"", "warm", "nan", "inf", "0x1", "1,5"};
  for (int i = 0; i < 6; i++) assert_int_equal(cli_double("--temperature", wrong[i], 0, 2, &value), STATUS_USAGE);
  assert_int_equal(cli_double("--temperature", "2.1", 0, 2, &value), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "allowed: 0 to 2"));
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup(f, setup)
  const struct CMUnitTest tests[] = {
      TEST(all_forms_of_options), TEST(values_and_operands_may_look_like_options),
      TEST(mistakes_are_named),   TEST(repeated_values_are_bounded),
      TEST(help_lists_every_row), TEST(whole_numbers),
      TEST(real_numbers),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
