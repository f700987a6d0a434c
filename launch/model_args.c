#include "launch/model_args.h"

#include <stdlib.h>
#include <string.h>

#include "dist/watchdog.h"

enum status model_args_configure(const struct model_args *args, struct config *config) {
  TRY(config_init(config));
  for (int i = 0; i < args->set.n; i++) TRY(config_set(config, args->set.items[i]));
  if (args->base) {
    free(config->base);
    config->base = strdup(args->base);
    if (!config->base) return status_set(STATUS_SYSTEM, "out of memory");
  }
  if (!config->base || !*config->base)
    return status_set(STATUS_USAGE, "no base model given: --base BASE (a folder or a .gguf file)");
  return config_check(config, false);
}

enum status model_args_open(const struct model_args *args, const struct config *config, struct job_options options,
                            struct job *job) {
  options.adapter = args->adapter;
  options.any_base = args->any_base;
  TRY(job_open(config, &options, job));
  TRY(job_load(job));
  watchdog_set_task(NULL);
  return STATUS_OK;
}
