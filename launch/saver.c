#include "launch/saver.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dist/watchdog.h"
#include "io/checkpoint_writer.h"
#include "io/durable.h"
#include "io/log.h"
#include "launch/adapter_plan.h"
#include "launch/ranks.h"

struct saver {
  struct job *job;
  const char *output;
  int keep_last;
  bool writes; /* this rank owns parts */
  enum { SAVER_IDLE, SAVER_WRITING, SAVER_PUBLISHING } phase;
  bool failed; /* this rank's part of it */
  int64_t step;
  struct checkpoint_writer *writer;
  struct checkpoint_header header;
  struct checkpoint_module *modules; /* [n_modules]: of the whole model, whatever stage this rank holds */
  int n_modules;
  struct checkpoint_array *arrays; /* [n_arrays]: value and two moments of each parameter this rank writes */
  int n_arrays;
  char *config_text;
};

static void describe(const struct param *p, const char *suffix, float *data, struct checkpoint_array *array) {
  snprintf(array->group, sizeof array->group, "%s", p->group_name);
  snprintf(array->name, sizeof array->name, "%s%s", p->name, suffix);
  array->rows = p->rows;
  array->cols = p->cols;
  array->row = p->row;
  array->col = p->col;
  array->part_rows = p->part_rows;
  array->part_cols = p->part_cols;
  array->data = data;
}

/* A parameter and its moments, in the host's copy. */
static void describe_state(const struct param_list *list, const struct param *p, struct checkpoint_array arrays[3]) {
  describe(p, "", param_host(list, p->w), &arrays[0]);
  describe(p, ".m", param_host(list, p->m), &arrays[1]);
  describe(p, ".v", param_host(list, p->v), &arrays[2]);
}

static void fill_header(const struct job *job, struct checkpoint_header *header) {
  strcpy(header->method, "lora");
  snprintf(header->program_version, sizeof header->program_version, "%s", LORASHARD_VERSION);
  snprintf(header->base_fingerprint, sizeof header->base_fingerprint, "%s", job->fingerprint);
  snprintf(header->base_path, sizeof header->base_path, "%s", job->source->path);
  checkpoint_set_facts(header, &job->source->facts);
  header->seed = job->config->train.seed;
}

enum status saver_create(struct job *job, const char *output, int keep_last, struct saver **saver_p) {
  enum status status = STATUS_OK;
  const struct param_list *params = &job->adapters.params;
  struct saver *saver = calloc(1, sizeof *saver);
  if (!saver) return status_set(STATUS_SYSTEM, "out of memory for checkpoints");
  saver->job = job;
  saver->output = output;
  saver->keep_last = keep_last;
  fill_header(job, &saver->header);
  saver->arrays = calloc((size_t)params->n * 3 + 1, sizeof *saver->arrays);
  if (!saver->arrays) {
    status = status_set(STATUS_SYSTEM, "out of memory for checkpoints");
    goto out;
  }
  for (int i = 0; i < params->n; i++) {
    if (!param_is_written(&params->items[i], job->mesh)) continue;
    describe_state(params, &params->items[i], saver->arrays + saver->n_arrays);
    saver->n_arrays += 3;
  }
  saver->writes = job->mesh->dp_rank == 0;
  TRY_OUT(adapter_plan_modules(job, &saver->modules, &saver->n_modules));
  TRY_OUT(config_print(job->config, &saver->config_text));
  if (saver->writes) TRY_OUT(checkpoint_writer_create(&saver->writer));
  *saver_p = saver;
  return STATUS_OK;
out:
  saver_destroy(&saver);
  return status;
}

void saver_destroy(struct saver **saver_p) {
  struct saver *saver = *saver_p;
  if (!saver) return;
  checkpoint_writer_destroy(&saver->writer);
  free(saver->modules);
  free(saver->arrays);
  free(saver->config_text);
  free(saver);
  *saver_p = NULL;
}

static void remove_unpublished(const struct saver *saver) {
  char directory[DURABLE_PATH];
  if (durable_path(directory, sizeof directory, "%s/step-%06" PRId64 ".tmp", saver->output, saver->step) == STATUS_OK)
    durable_remove_directory(directory);
}

static void fill_state(const struct run_state *state, struct checkpoint_header *header) {
  header->step = state->step;
  header->epoch = state->samples / state->rows;
  header->cursor = state->samples % state->rows;
  header->tokens_seen = state->tokens_seen;
  header->extra_skipped_steps = state->skipped;
  snprintf(header->data_digest, sizeof header->data_digest, "%s", state->data_digest);
}

enum status saver_begin(struct saver *saver, const struct run_state *state) {
  const struct mesh *mesh = saver->job->mesh;
  char directory[4096] = "", file[64];
  enum status status = STATUS_OK;
  fill_state(state, &saver->header);
  saver->step = state->step;
  if (mesh->rank == 0) status = checkpoint_begin(saver->output, state->step, directory, sizeof directory);
  TRY(ranks_agree(status));
  TRY(comm_broadcast(mesh->control, directory, sizeof directory, 0));
  saver->phase = SAVER_WRITING;
  if (!saver->writes) return STATUS_OK;
  snprintf(file, sizeof file, "shard-tp%04d-pp%04d.h5", mesh->tp_rank, mesh->pp_rank);
  status = param_list_fetch(&saver->job->adapters.params, saver->job->device);
  if (status == STATUS_OK)
    status = checkpoint_writer_submit(saver->writer, directory, file, &saver->header, saver->modules, saver->n_modules,
                                      saver->arrays, saver->n_arrays);
  saver->failed = status != STATUS_OK;
  return status;
}

enum status saver_poll(struct saver *saver, bool *busy) {
  bool done = true;
  enum status status = STATUS_OK;
  if (saver_pending(saver) && saver->writes) status = checkpoint_writer_poll(saver->writer, &done);
  if (status != STATUS_OK) saver->failed = true;
  *busy = !done;
  return status;
}

bool saver_pending(const struct saver *saver) { return saver->phase != SAVER_IDLE; }

/* For this rank's background work. */
static enum status wait_own(struct saver *saver) {
  const char *task = watchdog_set_task("writes a checkpoint");
  enum status status = saver_pending(saver) && saver->writes ? checkpoint_writer_wait(saver->writer) : STATUS_OK;
  watchdog_set_task(task);
  if (status != STATUS_OK) saver->failed = true;
  return status;
}

enum status saver_advance(struct saver *saver) {
  if (saver->phase == SAVER_PUBLISHING) {
    saver->phase = SAVER_IDLE;
    return STATUS_OK;
  }
  saver->phase = SAVER_PUBLISHING;
  if (saver->job->mesh->rank != 0) return STATUS_OK;
  enum status status =
      checkpoint_writer_publish(saver->writer, saver->output, saver->step, saver->config_text, saver->keep_last);
  if (status != STATUS_OK) saver->failed = true;
  return status;
}

enum status saver_finish(struct saver *saver) {
  while (saver_pending(saver)) {
    TRY(ranks_agree(wait_own(saver)));
    TRY(ranks_agree(saver_advance(saver)));
  }
  return STATUS_OK;
}

void saver_settle(struct saver *saver) {
  char message[1024];
  if (!saver || saver->phase == SAVER_IDLE) return;
  snprintf(message, sizeof message, "%s", status_message());
  wait_own(saver); /* once all have agreed, no rank writes into a directory that is being removed */
  enum status status = ranks_agree(saver->failed ? STATUS_SYSTEM : STATUS_OK);
  if (status == STATUS_OK) status = saver_finish(saver);
  if (status != STATUS_OK && saver->job->mesh->rank == 0) remove_unpublished(saver);
  saver->phase = SAVER_IDLE;
  status_set(STATUS_OK, "%s", message);
}

/* --- the way back --- */

/* The adapters of the whole model, of which this rank may hold some layers only. */
static enum status compare_modules(const struct checkpoint_module *wanted, int n_wanted,
                                   const struct checkpoint_module *found, int n, const char *path) {
  if (n != n_wanted)
    return status_set(STATUS_USAGE,
                      "%s holds %d adapters but the configuration asks for %d: resume with the run's own lora.* "
                      "settings",
                      path, n, n_wanted);
  for (int i = 0; i < n_wanted; i++) {
    const struct checkpoint_module *want = &wanted[i], *match = NULL;
    for (int k = 0; k < n && !match; k++)
      if (strcmp(found[k].group, want->group) == 0) match = &found[k];
    if (!match || match->r != want->r || match->alpha != want->alpha || match->rslora != want->rslora)
      return status_set(STATUS_USAGE,
                        "%s: adapter %s differs from the configuration's (r, alpha or rslora), or is absent: "
                        "resume with the run's own lora.* settings",
                        path, want->group);
  }
  return STATUS_OK;
}

static enum status check_modules(const struct job *job, const struct checkpoint *checkpoint, const char *path) {
  const struct checkpoint_module *found;
  struct checkpoint_module *wanted = NULL;
  int n_wanted = 0, n = checkpoint_modules(checkpoint, &found);
  TRY(adapter_plan_modules(job, &wanted, &n_wanted));
  enum status status = compare_modules(wanted, n_wanted, found, n, path);
  free(wanted);
  return status;
}

/* What a run must not change silently: the configuration that the checkpoint keeps against the present one. */
static enum status check_config(const struct job *job, const struct checkpoint *checkpoint, const char *path) {
  const char *text = checkpoint_config(checkpoint);
  struct config before;
  TRY(config_init(&before));
  enum status status = config_parse(&before, text, strlen(text), path);
  if (status != STATUS_OK || !*text) {
    log_warn("%s: its configuration cannot be compared with this one (%s)", path,
             *text ? status_message() : "it holds none");
    status = STATUS_OK;
  } else if (before.lora.dropout != job->config->lora.dropout) {
    status = status_set(STATUS_USAGE,
                        "%s was trained with lora.dropout %g, not %g: resume with that value, or start a new run from "
                        "it with lora.adapter",
                        path, before.lora.dropout, job->config->lora.dropout);
  } else if (before.train.global_batch != job->config->train.global_batch) {
    log_warn("%s was trained with train.global_batch %" PRId64 ", from here on it is %" PRId64
             ": the data goes on where it stopped, a step takes other numbers of samples",
             path, before.train.global_batch, job->config->train.global_batch);
  }
  config_free(&before);
  return status;
}

static enum status check_moments(const struct checkpoint *checkpoint, const char *path) {
  const struct checkpoint_array *arrays;
  int n = checkpoint_arrays(checkpoint, &arrays);
  for (int i = 0; i < n; i++)
    if (strchr(arrays[i].name, '.')) return STATUS_OK; /* one that lacks some of them is reported when it is read */
  return status_set(STATUS_USAGE,
                    "%s holds no optimizer state to go on with: gather it with --with-optimizer, or start a new run "
                    "from it with lora.adapter",
                    path);
}

static enum status check_run(const struct job *job, const struct checkpoint_header *header, const char *path,
                             int64_t rows, const char *data_digest) {
  if (strcmp(header->base_fingerprint, job->fingerprint) != 0)
    return status_set(STATUS_USAGE, "%s was trained on another base (%s): resume with that base", path,
                      header->base_path);
  if (header->seed != job->config->train.seed)
    return status_set(STATUS_USAGE,
                      "%s was trained with train.seed %" PRIu64 ", not %" PRIu64 ": resume with that seed", path,
                      header->seed, job->config->train.seed);
  if (strcmp(header->data_digest, data_digest) != 0 || header->cursor >= rows)
    return status_set(STATUS_USAGE,
                      "%s was trained on other data (or another data.seq_len, packing or template): resume with "
                      "the same, or start a new run from it with lora.adapter",
                      path);
  return STATUS_OK;
}

enum status saver_restore(struct job *job, const char *path, int64_t rows, const char *data_digest,
                          struct run_state *state) {
  enum status status = STATUS_OK;
  struct checkpoint *checkpoint = NULL;
  TRY(checkpoint_open(path, &checkpoint));
  const struct checkpoint_header *header = checkpoint_header(checkpoint);
  TRY_OUT(check_run(job, header, path, rows, data_digest));
  TRY_OUT(check_modules(job, checkpoint, path));
  TRY_OUT(check_moments(checkpoint, path));
  TRY_OUT(check_config(job, checkpoint, path));
  struct param_list *params = &job->adapters.params;
  for (int i = 0; i < params->n; i++) {
    struct checkpoint_array arrays[3];
    describe_state(params, &params->items[i], arrays);
    for (int k = 0; k < 3; k++) TRY_OUT(checkpoint_read(checkpoint, &arrays[k]));
  }
  TRY_OUT(param_list_send(params, job->device));
  state->step = header->step;
  state->samples = header->epoch * rows + header->cursor;
  state->tokens_seen = header->tokens_seen;
  state->skipped = header->extra_skipped_steps;
out:
  checkpoint_close(&checkpoint);
  return status;
}
