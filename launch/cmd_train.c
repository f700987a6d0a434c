/* lorashard train: fine-tune adapters over a sharded base. */
#include <string.h>

#include "launch/cli.h"
#include "launch/evaluate.h"
#include "launch/ranks.h"
#include "launch/stop_signal.h"
#include "launch/train_loop.h"

static const struct cli_help help = {
    .usage = "train CONFIG.yaml [--set KEY=VALUE ...] [--resume | --resume-from PATH] [--overwrite]",
    .summary = "Fine-tune LoRA adapters over a frozen base model cut over MPI ranks.",
    .details =
        "Start it alone, or with mpirun for several ranks: parallel.tp x parallel.pp of them share one copy of the "
        "base (tp cuts its layers, pp deals them out), and there are as many data-parallel replicas as that goes into "
        "the ranks.\n\n"
        "  lorashard train my.yaml\n"
        "  mpirun -n 2 lorashard train my.yaml --set parallel.tp=2\n"
        "  mpirun -n 4 -hostfile hosts lorashard train my.yaml --set parallel.tp=2 --set 'lora.targets=[q, v]'\n\n"
        "Everything is written below `output`: checkpoints step-000100/ (always one at the last step), `latest`, "
        "metrics.jsonl (one JSON object a step), config.yaml (the resolved settings), status.json (whether the run is "
        "running, finished, stopped or failed), cache/ (token ids). A first SIGTERM, SIGUSR1 or Ctrl-C: the step is "
        "finished, a checkpoint written, exit code 0. A second one (Ctrl-C a second later, the others three): the end, "
        "at once. mpirun kills the ranks a second after a signal to itself; --mca odls_base_sigkill_timeout 60 makes "
        "it "
        "wait. "
        "lorashard help-config lists every key.",
};

struct arguments {
  const char *config;
  struct cli_values set;
  struct train_options train;
  bool any_base, done;
};

static enum status parse(int argc, char **argv, struct arguments *a) {
  const struct cli_option options[] = {
      {.name = "set",
       .arg = "KEY=VALUE",
       .doc = "set any configuration key, value in YAML; may be repeated",
       .values = &a->set},
      {.name = "resume",
       .doc = "go on from the newest whole checkpoint in the output directory",
       .flag = &a->train.resume},
      {.name = "resume-from",
       .arg = "PATH",
       .doc = "begin from a checkpoint of another run, with its optimizer and place in the data: a step directory, an "
              "output directory or a file of `gather --with-optimizer`, of any layout",
       .value = &a->train.resume_from},
      {.name = "overwrite", .doc = "replace the run that the output directory holds", .flag = &a->train.overwrite},
      {.name = "any-base", .doc = "accept a lora.adapter that was trained on another base", .flag = &a->any_base},
      {NULL},
  };
  int n;
  TRY(cli_parse(&help, options, argc, argv, &a->config, 1, 1, &n, &a->done));
  if (a->train.resume && a->train.overwrite)
    return status_set(STATUS_USAGE, "--resume and --overwrite exclude each other");
  if (a->train.resume && a->train.resume_from)
    return status_set(STATUS_USAGE, "--resume and --resume-from exclude each other");
  return STATUS_OK;
}

static enum status configure(const struct arguments *a, struct config *config) {
  TRY(config_init(config));
  TRY(config_read(config, a->config));
  for (int i = 0; i < a->set.n; i++) TRY(config_set(config, a->set.items[i]));
  return config_check(config, true);
}

static enum status run(int argc, char **argv) {
  struct arguments a = {0};
  struct config config;
  struct job job = {0};
  TRY(ranks_agree(parse(argc, argv, &a)));
  if (a.done) return STATUS_OK;
  stop_signal_watch(mesh_launcher_rank());
  memset(&config, 0, sizeof config);
  enum status status = ranks_agree(configure(&a, &config));
  struct job_options options = {.adapter = config.lora.adapter, .fresh_adapters = true, .any_base = a.any_base};
  options.no_text = evaluate_only_ids(&config.data.train) && evaluate_only_ids(&config.data.eval);
  if (status == STATUS_OK) status = job_open(&config, &options, &job);
  if (status == STATUS_OK) {
    job_describe(&job);
    status = train_run(&job, &a.train);
  }
  job_close(&job);
  config_free(&config);
  return status;
}

enum status cmd_train(int argc, char **argv) { return ranks_run(argc, argv, run); }
