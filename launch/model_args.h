/*
 * model_args.h: what eval, score and generate have in common: a base, an adapter,
 * settings.
 */
#ifndef LORASHARD_LAUNCH_MODEL_ARGS_H
#define LORASHARD_LAUNCH_MODEL_ARGS_H

#include "launch/cli.h"
#include "launch/job.h"

struct model_args {
  const char *base, *adapter;
  struct cli_values set;
  bool any_base, done;
};

/* The rows for their option tables. */
#define MODEL_ARGS_OPTIONS(args)                                                                               \
  {.name = "base",                                                                                             \
   .arg = "BASE",                                                                                              \
   .doc = "base model: a Hugging Face folder, a .gguf file or synthetic:NAME",                                 \
   .value = &(args)->base},                                                                                    \
      {.name = "adapter",                                                                                      \
       .arg = "ADAPTER",                                                                                       \
       .doc = "adapter.h5, a checkpoint directory or a PEFT folder",                                           \
       .value = &(args)->adapter},                                                                             \
      {.name = "set",                                                                                          \
       .arg = "KEY=VALUE",                                                                                     \
       .doc = "set a configuration key (parallel.tp, train.compute, data.seq_len, ...); may be repeated",      \
       .values = &(args)->set},                                                                                \
  {                                                                                                            \
    .name = "any-base", .doc = "accept an adapter that was trained on another base", .flag = &(args)->any_base \
  }

/* Settings from the arguments: defaults, --set, then --base. STATUS_USAGE without a base. */
enum status model_args_configure(const struct model_args *args, struct config *config);

/* Open base and adapter on all ranks; `options` says the rest (n_positions, ...).
 * Collective, agreed. */
enum status model_args_open(const struct model_args *args, const struct config *config, struct job_options options,
                            struct job *job);

#endif
