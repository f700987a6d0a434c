/*
 * main.c: the subcommand table, and the one place where a failure becomes a
 * line on stderr and an exit code.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "dist/mesh.h"
#include "io/config.h"
#include "io/log.h"
#include "io/nearest.h"
#include "launch/cli.h"

static enum status cmd_help_config(int argc, char **argv) {
  static const struct cli_help help = {
      .usage = "help-config",
      .summary = "Print every configuration key with type, default, allowed values and meaning (Markdown).",
  };
  const struct cli_option options[] = {{NULL}};
  bool done;
  TRY(cli_parse(&help, options, argc, argv, NULL, 0, 0, NULL, &done));
  if (!done) config_describe(stdout);
  return STATUS_OK;
}

static const struct {
  const char *name;
  cli_command_func_t *run;
  bool on_all_ranks; /* else the launcher's first rank does it alone */
  const char *summary;
} commands[] = {
    {"train", cmd_train, true, "fine-tune adapters; start it with mpirun for several ranks"},
    {"eval", cmd_eval, true, "loss of a base model, with or without an adapter, on a data set"},
    {"score", cmd_score, true, "log-probability of each token of a text"},
    {"generate", cmd_generate, true, "continue a prompt"},
    {"gather", cmd_gather, false, "make one self-contained adapter file from a checkpoint"},
    {"export", cmd_export, false, "write an adapter for other programs (PEFT, vLLM)"},
    {"merge", cmd_merge, false, "write the base model with an adapter added in"},
    {"inspect", cmd_inspect, false, "show what a model, checkpoint or adapter holds"},
    {"tokenize", cmd_tokenize, false, "show the token ids of a text"},
    {"probe", cmd_probe, true, "measure this machine and its links, as a cluster file for plan"},
    {"plan", cmd_plan, false, "find layouts that fit a cluster, with memory and predicted speed"},
    {"doctor", cmd_doctor, true, "check this machine and the build"},
    {"help-config", cmd_help_config, false, "print every configuration key"},
};

#define N_COMMANDS ((int)(sizeof commands / sizeof commands[0]))

static void print_commands(void) {
  printf("lorashard " LORASHARD_VERSION
         ": LoRA fine-tuning of language models whose weights are sharded over MPI ranks\n\n"
         "usage: lorashard COMMAND [ARGUMENTS]\n"
         "       mpirun -n RANKS lorashard train CONFIG.yaml\n\n"
         "commands:\n");
  for (int i = 0; i < N_COMMANDS; i++) printf("  %-12s %s\n", commands[i].name, commands[i].summary);
  printf(
      "\nlorashard COMMAND --help explains a command; lorashard --version prints the version.\n"
      "Exit code: 0 done, 1 failed, 2 wrong request (option, key, path).\n");
}

static enum status run_command(int argc, char **argv) {
  const char *names[N_COMMANDS];
  for (int i = 0; i < N_COMMANDS; i++) {
    if (strcmp(argv[0], commands[i].name) == 0) return commands[i].run(argc, argv);
    names[i] = commands[i].name;
  }
  return status_set(STATUS_USAGE, "unknown command '%.80s'; the nearest is '%s' (lorashard --help lists all)", argv[0],
                    names[nearest_name(argv[0], names, N_COMMANDS)]);
}

static enum status run(int argc, char **argv) {
  if (argc < 2) return status_set(STATUS_USAGE, "no command given; lorashard --help lists them");
  if (strcmp(argv[1], "--version") == 0) {
    printf("lorashard %s\n", LORASHARD_VERSION);
    return STATUS_OK;
  }
  bool help = strcmp(argv[1], "help") == 0;
  if (help && argc > 2) {
    char flag[] = "--help";
    char *of_command[] = {argv[2], flag, NULL};
    return run_command(2, of_command);
  }
  if (help || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
    print_commands();
    return STATUS_OK;
  }
  if (argv[1][0] == '-')
    return status_set(STATUS_USAGE, "unknown option '%.80s'; write lorashard COMMAND [OPTIONS]", argv[1]);
  return run_command(argc - 1, argv + 1);
}

static bool on_all_ranks(const char *name) {
  for (int i = 0; i < N_COMMANDS; i++)
    if (strcmp(name, commands[i].name) == 0) return commands[i].on_all_ranks;
  return false;
}

int main(int argc, char **argv) {
  /* A limit on file sizes is to be met where the write fails. */
  signal(SIGXFSZ, SIG_IGN);
  if (mesh_launcher_rank() > 0 && !(argc > 1 && on_all_ranks(argv[1]))) return 0;
  enum status status = run(argc, argv);
  if (fflush(stdout) != 0 || ferror(stdout))
    if (status == STATUS_OK) status = status_set(STATUS_SYSTEM, "cannot write to standard output");
  /* An empty message: the cause has been printed, here or by another rank. */
  if (status != STATUS_OK && *status_message()) log_error("%s", status_message());
  return status_exit_code(status);
}
