#include "launch/cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/nearest.h"

#define HELP_COLUMN 26 /* where the text of an option begins */
#define HELP_WIDTH  80

/* The long name of a row and its one-letter alias (0: none). */
static size_t split_name(const struct cli_option *option, char *letter) {
  const char *comma = strchr(option->name, ',');
  *letter = comma ? comma[1] : 0;
  return comma ? (size_t)(comma - option->name) : strlen(option->name);
}

/* --- help --- */

/* Words of text from `column` on, broken before HELP_WIDTH, indented. */
static void print_wrapped(const char *text, int indent, int column) {
  while (*text) {
    size_t word = strcspn(text, " ");
    if (column > indent && column + 1 + (int)word > HELP_WIDTH) {
      printf("\n%*s", indent, "");
      column = indent;
    } else if (column > indent) {
      putchar(' ');
      column++;
    }
    printf("%.*s", (int)word, text);
    column += (int)word;
    text += word + strspn(text + word, " ");
  }
  putchar('\n');
}

static void print_option(const char *long_name, size_t length, char letter, const char *arg, const char *doc) {
  char left[128];
  char alias[8] = "";
  if (letter) snprintf(alias, sizeof alias, "-%c, ", letter);
  int column =
      snprintf(left, sizeof left, "  %s--%.*s%s%s", alias, (int)length, long_name, arg ? " " : "", arg ? arg : "");
  printf("%s", left);
  if (column > HELP_COLUMN - 2)
    printf("\n%*s", HELP_COLUMN, "");
  else
    printf("%*s", HELP_COLUMN - column, "");
  print_wrapped(doc, HELP_COLUMN, HELP_COLUMN);
}

static void print_help(const struct cli_help *help, const struct cli_option *options) {
  printf("usage: lorashard %s\n\n", help->usage);
  print_wrapped(help->summary, 0, 0);
  printf("\noptions:\n");
  for (const struct cli_option *option = options; option->name; option++) {
    char letter;
    size_t length = split_name(option, &letter);
    print_option(option->name, length, letter, option->arg, option->doc);
  }
  print_option("help", 4, 'h', NULL, "show this text");
  if (help->details) printf("\n%s\n", help->details);
}

/* --- parsing --- */

/* What is being parsed. */
struct parse {
  const struct cli_help *help;
  const struct cli_option *options;
  const char *command;
  int argc;
  char **argv;
  int at; /* index of the argument in hand */
};

static enum status unknown_option(const struct parse *parse, const char *text, size_t length) {
  char typed[64], names[64][48];
  const char *list[65] = {"help"};
  int n = 1;
  snprintf(typed, sizeof typed, "%.*s", (int)(length < sizeof typed ? length : sizeof typed - 1), text);
  for (const struct cli_option *option = parse->options; option->name && n < 65; option++, n++) {
    char letter;
    size_t name_length = split_name(option, &letter);
    snprintf(names[n - 1], sizeof names[0], "%.*s", (int)name_length, option->name);
    list[n] = names[n - 1];
  }
  return status_set(STATUS_USAGE, "%s: unknown option '--%s'; the nearest is '--%s' (lorashard %s --help lists all)",
                    parse->command, typed, list[nearest_name(typed, list, n)], parse->command);
}

/* Store an option's value: `attached` from "--name=value", else the next
 * argument, whatever it looks like. `shown` is the option as typed. */
static enum status take_option(struct parse *parse, const struct cli_option *option, const char *attached,
                               const char *shown) {
  if (option->flag) {
    if (attached) return status_set(STATUS_USAGE, "%s: %s takes no value", parse->command, shown);
    *option->flag = true;
    return STATUS_OK;
  }
  const char *value = attached;
  if (!value) {
    if (parse->at + 1 >= parse->argc)
      return status_set(STATUS_USAGE, "%s: %s needs a value (%s)", parse->command, shown, option->arg);
    value = parse->argv[++parse->at];
  }
  if (option->value) {
    *option->value = value;
    return STATUS_OK;
  }
  int capacity = (int)(sizeof option->values->items / sizeof option->values->items[0]);
  if (option->values->n >= capacity)
    return status_set(STATUS_USAGE, "%s: %s is given more than %d times", parse->command, shown, capacity);
  option->values->items[option->values->n++] = value;
  return STATUS_OK;
}

static enum status take_long(struct parse *parse, const char *text) {
  size_t length = strcspn(text, "=");
  const char *attached = text[length] ? text + length + 1 : NULL;
  for (const struct cli_option *option = parse->options; option->name; option++) {
    char letter, shown[64];
    size_t name_length = split_name(option, &letter);
    if (name_length != length || memcmp(option->name, text, length) != 0) continue;
    snprintf(shown, sizeof shown, "--%.*s", (int)length, text);
    return take_option(parse, option, attached, shown);
  }
  return unknown_option(parse, text, length);
}

static enum status take_short(struct parse *parse, const char *text) {
  for (const struct cli_option *option = parse->options; option->name; option++) {
    char letter;
    split_name(option, &letter);
    if (!letter || letter != text[0]) continue;
    char shown[3] = {'-', letter, 0};
    return take_option(parse, option, text[1] ? text + 1 : NULL, shown);
  }
  return status_set(STATUS_USAGE, "%s: unknown option '-%.40s' (lorashard %s --help lists all)", parse->command, text,
                    parse->command);
}

enum status cli_parse(const struct cli_help *help, const struct cli_option *options, int argc, char **argv,
                      const char **operands, int min, int max, int *n_operands, bool *done) {
  struct parse parse = {help, options, argv[0], argc, argv, 1};
  int n = 0;
  bool only_operands = false;
  *done = false;
  for (; parse.at < argc; parse.at++) {
    const char *text = argv[parse.at];
    bool option = !only_operands && text[0] == '-' && text[1];
    if (option && strcmp(text, "--") == 0) {
      only_operands = true;
    } else if (option && (strcmp(text, "--help") == 0 || strcmp(text, "-h") == 0)) {
      print_help(help, options);
      *done = true;
      return STATUS_OK;
    } else if (option) {
      TRY(text[1] == '-' ? take_long(&parse, text + 2) : take_short(&parse, text + 1));
    } else {
      if (n >= max)
        return status_set(STATUS_USAGE, "%s: unexpected '%.200s'; usage: lorashard %s", argv[0], text, help->usage);
      operands[n++] = text;
    }
  }
  if (n < min)
    return status_set(STATUS_USAGE, "%s: %s missing; usage: lorashard %s", argv[0],
                      min - n == 1 ? "an operand is" : "operands are", help->usage);
  if (n_operands) *n_operands = n;
  return STATUS_OK;
}

/* --- numbers --- */

enum status cli_int(const char *option, const char *text, long long low, long long high, long long *value) {
  char *end;
  errno = 0;
  long long number = strtoll(text, &end, 10);
  if (end == text || *end || text[0] == ' ')
    return status_set(STATUS_USAGE, "%s needs a whole number; found '%.80s'", option, text);
  if (errno || number < low || number > high)
    return status_set(STATUS_USAGE, "%s %.80s is out of range; allowed: %lld to %lld", option, text, low, high);
  *value = number;
  return STATUS_OK;
}

enum status cli_double(const char *option, const char *text, double low, double high, double *value) {
  char *end;
  double number = strtod(text, &end);
  /* strtod takes nan, inf and hexadecimal too; none is meant. */
  if (end == text || *end || text[strspn(text, "0123456789.eE+-")])
    return status_set(STATUS_USAGE, "%s needs a number; found '%.80s'", option, text);
  if (!(number >= low && number <= high))
    return status_set(STATUS_USAGE, "%s %.80s is out of range; allowed: %.15g to %.15g", option, text, low, high);
  *value = number;
  return STATUS_OK;
}
