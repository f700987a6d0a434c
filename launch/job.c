#include "launch/job.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dist/mesh_compare.h"
#include "dist/watchdog.h"
#include "io/log.h"
#include "io/synthetic.h"
#include "launch/accelerator.h"
#include "launch/adapter_plan.h"
#include "launch/build_id.h"
#include "launch/ranks.h"

enum dtype job_act(const struct config *config) {
  return config->train.compute == COMPUTE_BF16 ? DTYPE_BF16 : DTYPE_F32;
}

enum weight_storage job_storage(enum base_dtype base_dtype) {
  switch (base_dtype) {
    case BASE_F32:
      return STORE_F32;
    case BASE_BF16:
      return STORE_BF16;
    case BASE_FP8:
      return STORE_F8;
    case BASE_INT8:
      return STORE_INT8;
    case BASE_NF4:
      return STORE_NF4;
    default:
      return STORE_AS_FILE;
  }
}

/* job->tokenizer stays NULL where the base has none, or has one that is not supported and not needed. */
static enum status open_tokenizer(struct job *job, bool needed) {
  enum status status = tokenizer_open(job->config->base, &job->tokenizer);
  if (status == STATUS_OK || needed) return status;
  log_warn("going on without a tokenizer: %s", status_message());
  return STATUS_OK;
}

static enum status open_base(struct job *job, const struct job_options *options) {
  const struct config *config = job->config;
  if (!config->base || !*config->base)
    return status_set(STATUS_USAGE, "no base model given: set base (a folder or a .gguf file)");
  TRY(base_model_open(config->base, &job->source));
  if (synthetic_is_name(config->base))
    log_warn("%s: its weights are made up; adapters for them are of no use but to try layouts and speed", config->base);
  TRY(base_model_fingerprint(job->source, job->fingerprint));
  return open_tokenizer(job, !options->no_text);
}

/* Layout errors first, before any weight is read. */
static enum status plan_tensor_cut(struct job *job, const struct job_options *options) {
  const struct model_facts *facts = &job->source->facts;
  if (!arch_find(facts->family))
    return status_set(STATUS_USAGE, "%s: model family '%s' is not supported: %s are", job->source->path, facts->family,
                      arch_list());
  if (facts->position == POSITION_LEARNED && !options->clamp_positions && options->n_positions == 0 &&
      job->config->data.seq_len > facts->max_positions)
    return status_set(STATUS_USAGE,
                      "%" PRId64 " positions is longer than the %" PRId64
                      " learned positions of %s: lower data.seq_len",
                      job->config->data.seq_len, facts->max_positions, job->source->path);
  for (int t = 0; t < job->mesh->n_tp; t++) TRY(shard_plan(facts, job->mesh->n_tp, t, &job->shard));
  return shard_plan(facts, job->mesh->n_tp, job->mesh->tp_rank, &job->shard);
}

/* Wrong targets show before the base is read, too; where they lie decides how the layers are dealt. */
static enum status plan_layout(struct job *job, const struct job_options *options) {
  struct adapter_set set = {0};
  enum status status = STATUS_OK;
  TRY_OUT(plan_tensor_cut(job, options));
  TRY_OUT(adapter_plan_choose(job, options, &set));
  TRY_OUT(shard_plan_stage(&job->source->facts, job->first_adapted, job->mesh->n_pp, job->mesh->pp_rank, &job->shard));
  TRY_OUT(adapter_plan_make(job, &set));
out:
  adapter_set_free(&set);
  return status;
}

static int64_t longest_sequence(const struct job *job, const struct job_options *options) {
  const struct model_facts *facts = &job->source->facts;
  int64_t n = options->n_positions ? options->n_positions : job->config->data.seq_len;
  bool too_long = facts->position == POSITION_LEARNED && n > facts->max_positions;
  return options->clamp_positions && too_long ? facts->max_positions : n;
}

/* What the ranks must have in common: else they would wait for each other, or sum what does not belong together.
 * Settings before the devices are opened, which is collective and done as they say. */
static enum status compare_settings(struct job *job) {
  char *text = NULL;
  enum status status = ranks_agree(config_print(job->config, &text));
  if (status == STATUS_OK) {
    const struct mesh_input inputs[] = {
        {"program version", mesh_hash(0, build_id, strlen(build_id)), "install the same build on every host"},
        {"configuration", mesh_hash(0, text, strlen(text)), "give every rank the same file and --set"},
        {"command line", ranks_command_line(), "start every rank with the same options"},
    };
    status = mesh_compare(job->mesh, inputs, (int)(sizeof inputs / sizeof inputs[0]));
  }
  free(text);
  return status;
}

static enum status compare_base(struct job *job) {
  const char *tokenizer = job->tokenizer ? tokenizer_digest(job->tokenizer) : "";
  const struct mesh_input inputs[] = {
      {"base model", mesh_hash(0, job->fingerprint, strlen(job->fingerprint)), "copy the same model to every host"},
      {"tokenizer", mesh_hash(0, tokenizer, strlen(tokenizer)), "copy the same model to every host"},
  };
  return mesh_compare(job->mesh, inputs, (int)(sizeof inputs / sizeof inputs[0]));
}

static void watchdog_bites(const char *message) {
  status_set(STATUS_PEER, "%s", message);
  ranks_fail(STATUS_PEER);
}

/* From here on a rank that does not answer ends the job. Reading and writing may take any time. */
static enum status start_watchdog(const struct job *job) {
  /* Ranks that wait for the same one are to bark one after the other: the first ends the job. */
  double later = 0.5 * (job->mesh->rank < 8 ? job->mesh->rank : 8);
  TRY(ranks_agree(watchdog_start(job->config->dist.timeout_s + later, watchdog_bites)));
  watchdog_set_task("is starting up");
  return STATUS_OK;
}

enum status job_open(const struct config *config, const struct job_options *options, struct job *job) {
  memset(job, 0, sizeof *job);
  job->config = config;
  TRY(ranks_agree(mesh_create((int)config->parallel.tp, (int)config->parallel.pp, &job->mesh)));
  TRY(start_watchdog(job));
  TRY(ranks_agree(compare_settings(job)));
  TRY(accelerator_open(config, job->mesh, &job->device));
  TRY(ranks_agree(open_base(job, options)));
  TRY(ranks_agree(compare_base(job)));
  job->n_positions = longest_sequence(job, options);
  return ranks_agree(plan_layout(job, options));
}

enum status job_load(struct job *job) {
  const struct model_options options = {
      .act = job_act(job->config),
      .storage = job_storage(job->config->train.base_dtype),
      .n_positions = job->n_positions,
      .shard = &job->shard,
  };
  const char *task = watchdog_set_task("reads the base");
  TRY(ranks_agree(model_create(job->device, job->source, job->mesh->tp, job->mesh->pp, &options, &job->model)));
  watchdog_set_task(task);
  adapter_plan_attach(job);
  log_debug("%" PRIu64 " bytes of weights read", job->source->bytes_read);
  return STATUS_OK;
}

static enum recompute recompute_of(enum recompute_kind kind) {
  switch (kind) {
    case RECOMPUTE_KIND_SELECTIVE:
      return RECOMPUTE_SELECTIVE;
    case RECOMPUTE_KIND_FULL:
      return RECOMPUTE_FULL;
    default:
      return RECOMPUTE_NONE;
  }
}

struct prepare_options job_prepare_options(int64_t max_tokens, int64_t n_micro, bool training,
                                           enum recompute_kind recompute, bool sequence) {
  return (struct prepare_options){.max_tokens = max_tokens,
                                  .training = training,
                                  .recompute = recompute_of(recompute),
                                  .sequence = training && sequence,
                                  .n_micro = n_micro};
}

enum status job_prepare_model(struct job *job, int64_t max_tokens, bool training, int64_t n_micro) {
  const struct prepare_options options =
      job_prepare_options(max_tokens, n_micro, training, job->config->train.recompute, job->config->parallel.sequence);
  return model_prepare(job->model, &options);
}

void job_close(struct job *job) {
  watchdog_stop();
  /* Groups first: their buffers and records are the device's, and freeing memory would wait for messages that do not
   * come. */
  mesh_destroy(&job->mesh);
  if (job->device) device_set_watch(job->device, NULL, NULL); /* it was the mesh's */
  if (job->device) adapters_destroy(&job->adapters, job->device);
  model_destroy(&job->model);
  free(job->planned);
  job->planned = NULL;
  tokenizer_close(&job->tokenizer);
  base_model_close(&job->source);
  device_close(&job->device);
}

void job_describe(const struct job *job) {
  char device[256], stages[32] = "";
  const struct model_facts *facts = &job->source->facts;
  const struct mesh *mesh = job->mesh;
  device_describe(job->device, device, sizeof device);
  log_info("base      %s: %s, %.1f M parameters, %" PRId64 " layers of width %" PRId64, job->source->path,
           facts->family, 1e-6 * (double)model_base_parameters(facts), facts->n_layers, facts->d_model);
  if (mesh->n_pp > 1) snprintf(stages, sizeof stages, " x pp %d", mesh->n_pp);
  log_info("layout    %d rank%s: tp %d x dp %d%s%s; rank 0 holds %" PRId64 " of %" PRId64 " layers, %" PRId64
           " of %" PRId64 " heads, %" PRId64 " of %" PRId64 " FFN columns",
           mesh->world, mesh->world == 1 ? "" : "s", mesh->n_tp, mesh->n_dp, stages,
           job->config->parallel.sequence && mesh->n_tp > 1 ? ", sequence parallel" : "", job->shard.stage.layers.n,
           facts->n_layers, job->shard.heads.n, facts->n_heads, job->shard.ffn.n, facts->d_ffn);
  log_info("device    %s; compute %s", device, dtype_name(job_act(job->config)));
  if (!job->device->host_memory) ranks_must(accelerator_describe(job->mesh, job->device));
  int64_t trainable = adapter_plan_parameters(job);
  if (job->n_planned)
    log_info("adapters  %d, %" PRId64 " parameters (%.3f %% of the base)", job->n_planned, trainable,
             100.0 * (double)trainable / (double)model_base_parameters(facts));
}
