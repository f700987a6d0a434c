/*
 * cli.h: the subcommand table and its option parser; --help is made from the
 * same rows that parse.
 */
#ifndef LORASHARD_LAUNCH_CLI_H
#define LORASHARD_LAUNCH_CLI_H

#include <stdbool.h>

#include "io/status.h"

/* Repeatable option values, in order. */
struct cli_values {
  const char *items[64];
  int n;
};

/* One option. Exactly one of value, flag and values is not NULL. */
struct cli_option {
  const char *name; /* without "--"; a one-letter alias may follow a comma: "output,o" */
  const char *arg;  /* name of its value in the help, NULL for a flag */
  const char *doc;
  const char **value;
  bool *flag;
  struct cli_values *values;
};

struct cli_help {
  const char *usage;   /* "train CONFIG [--set KEY=VALUE ...] [--resume]" */
  const char *summary; /* one line */
  const char *details; /* paragraphs, examples; may be NULL */
};

/* Parse argv (argv[0] is the subcommand) against options (ended by a row with
 * name NULL). Operands go to operands[0..max); their number must be in
 * [min, max]. With --help the help is printed and *done set: the command
 * returns at once. Errors are STATUS_USAGE and name the nearest option. */
enum status cli_parse(const struct cli_help *help, const struct cli_option *options, int argc, char **argv,
                      const char **operands, int min, int max, int *n_operands, bool *done);

/* Number parsing with range errors that name the option ("--limit"). */
enum status cli_int(const char *option, const char *text, long long low, long long high, long long *value);
enum status cli_double(const char *option, const char *text, double low, double high, double *value);

/* A subcommand: returns a status; main prints the error and picks the exit code. */
typedef enum status cli_command_func_t(int argc, char **argv);
cli_command_func_t cmd_train, cmd_eval, cmd_score, cmd_generate, cmd_gather, cmd_export, cmd_merge, cmd_inspect,
    cmd_tokenize, cmd_plan, cmd_doctor, cmd_probe;

#endif
