/* The command line that starts a layout. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/yaml_tree.h"
#include "launch/planner_report.h"

/* As one word of a shell. */
static void put_word(FILE *out, const char *text) {
  static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+./:,=@%";
  if (*text && strspn(text, plain) == strlen(text)) {
    fputs(text, out);
    return;
  }
  fputc('\'', out);
  for (; *text; text++) *text == '\'' ? fputs("'\\''", out) : fputc(*text, out);
  fputc('\'', out);
}

/* The settings of a layout as text, and their keys. */
struct settings {
  FILE *out;
  const char *keys[12];
  int n;
};

__attribute__((format(printf, 3, 4))) static void put(struct settings *own, const char *key, const char *format, ...) {
  va_list values;
  own->keys[own->n++] = key;
  fprintf(own->out, " --set %s=", key);
  va_start(values, format);
  vfprintf(own->out, format, values);
  va_end(values);
}

/* Does it set the key of "KEY=VALUE"? */
static bool sets(const struct settings *own, const char *assignment) {
  for (int i = 0; i < own->n; i++) {
    size_t length = strlen(own->keys[i]);
    if (strncmp(assignment, own->keys[i], length) == 0 && assignment[length] == '=') return true;
  }
  return false;
}

/* --set base=PATH, the path as a YAML scalar that cannot be taken for anything else. */
static enum status put_base(struct settings *own, const char *base) {
  char *text = NULL;
  size_t size;
  FILE *value = open_memstream(&text, &size);
  if (!value) return status_set(STATUS_SYSTEM, "out of memory for a command line");
  fputs("base=", value);
  yaml_quote(value, base);
  bool failed = fclose(value) != 0 || !text;
  own->keys[own->n++] = "base";
  fputs(" --set ", own->out);
  if (!failed) put_word(own->out, text);
  free(text);
  return failed ? status_set(STATUS_SYSTEM, "out of memory for a command line") : STATUS_OK;
}

static enum status put_layout(struct settings *own, const struct plan_report *report,
                              const struct plan_result *result) {
  const struct plan_layout *l = &result->layout;
  const struct config *config = report->config;
  if (report->base)
    TRY(put_base(own, report->base));
  else if (report->run && !*config->base)
    put(own, "base", "BASE");
  put(own, "parallel.tp", "%d", l->tp);
  put(own, "parallel.pp", "%d", l->pp);
  put(own, "parallel.sequence", "%s", l->sequence ? "true" : "false");
  put(own, "train.micro_batch", "%" PRId64, l->micro_batch);
  put(own, "train.recompute", "%s", plan_word("train.recompute", l->recompute));
  if (l->base_dtype != config->train.base_dtype)
    put(own, "train.base_dtype", "%s", plan_word("train.base_dtype", l->base_dtype));
  if (report->own_length) {
    put(own, "train.compute", "%s", plan_word("train.compute", config->train.compute));
    put(own, "data.seq_len", "%" PRId64, config->data.seq_len);
  }
  if (report->own_length || result->job.global_batch != config->train.global_batch)
    put(own, "train.global_batch", "%" PRId64, result->job.global_batch);
  return STATUS_OK;
}

/* The user's own settings, then those of the layout, which win: a key that it sets is left out of the user's. */
static enum status put_settings(FILE *out, const struct plan_report *report, const struct plan_result *result) {
  char *text = NULL;
  size_t size;
  struct settings own = {.out = open_memstream(&text, &size)};
  if (!own.out) return status_set(STATUS_SYSTEM, "out of memory for a command line");
  enum status status = put_layout(&own, report, result);
  if (fclose(own.out) != 0 || !text) status = status_set(STATUS_SYSTEM, "out of memory for a command line");
  for (int i = 0; i < report->n_set && status == STATUS_OK; i++) {
    if (sets(&own, report->set[i])) continue;
    fputs(" --set ", out);
    put_word(out, report->set[i]);
  }
  if (status == STATUS_OK) fputs(text, out);
  free(text);
  return status;
}

static void put_slurm(FILE *out, const struct plan_report *report, const struct plan_job *job) {
  const struct cluster_device *device = &report->cluster->device;
  const bool gpu = device->kind == CLUSTER_GPU;
  fprintf(out, "sbatch --nodes=%" PRId64 " --ntasks-per-node=%" PRId64, planner_nodes(job), job->per_node);
  if (gpu) fprintf(out, " --gpus-per-node=%" PRId64, job->per_node);
  if (device->cores) fprintf(out, " --cpus-per-task=%" PRId64, device->cores);
  fprintf(out, " launch/slurm/%s.sbatch ", gpu ? "gpu" : "cpu");
  put_word(out, report->run ? report->run : "RUN.yaml");
  fputs(" OUTPUT", out);
}

static void put_mpirun(FILE *out, const struct plan_report *report, const struct plan_job *job) {
  const int64_t cores = report->cluster->device.cores;
  if (cores) fprintf(out, "OMP_NUM_THREADS=%" PRId64 " ", cores);
  /* A signal to mpirun leaves the ranks a second to save, unless it is told otherwise. */
  fprintf(out, "mpirun -n %" PRId64 " --mca odls_base_sigkill_timeout 60", job->ranks);
  if (planner_nodes(job) > 1) {
    fprintf(out, " --hostfile HOSTS --map-by ppr:%" PRId64 ":node", job->per_node);
    if (cores) fputs(" -x OMP_NUM_THREADS", out); /* ssh does not pass the environment on */
    /* A silent host is seen in half a minute, not in eight (cluster-configs/README.md). */
    fputs(" --mca oob_tcp_keepalive_time 10 --mca oob_tcp_keepalive_intvl 5 --mca oob_tcp_keepalive_probes 3", out);
  }
  fputs(" --bind-to none ", out);
  put_word(out, program_invocation_name); /* without a slash the shell found it, and mpirun will */
  fputs(" train ", out);
  put_word(out, report->run ? report->run : "RUN.yaml");
  fputs(" --set output=OUTPUT", out);
}

enum status plan_command(const struct plan_report *report, const struct plan_result *result, char **command_p) {
  char *text = NULL;
  size_t size;
  *command_p = NULL;
  if (report->cluster->launcher == CLUSTER_NO_LAUNCHER) return STATUS_OK;
  FILE *out = open_memstream(&text, &size);
  if (!out) return status_set(STATUS_SYSTEM, "out of memory for a command line");
  if (report->cluster->launcher == CLUSTER_SLURM)
    put_slurm(out, report, &result->job);
  else
    put_mpirun(out, report, &result->job);
  enum status status = put_settings(out, report, result);
  if (fclose(out) != 0 || !text) status = status_set(STATUS_SYSTEM, "out of memory for a command line");
  if (status == STATUS_OK)
    *command_p = text;
  else
    free(text);
  return status;
}
