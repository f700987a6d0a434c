#include "launch/job.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/log.h"
#include "launch/accelerator.h"
#include "launch/adapter_plan.h"
#include "launch/ranks.h"

enum dtype job_act(const struct config *config) {
  return config->train.compute == COMPUTE_BF16 ? DTYPE_BF16 : DTYPE_F32;
}

static enum weight_storage storage(const struct config *config) {
  switch (config->train.base_dtype) {
    case BASE_F32:
      return STORE_F32;
    case BASE_BF16:
      return STORE_BF16;
    case BASE_FP8:
      return STORE_F8;
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
  TRY(base_model_fingerprint(job->source, job->fingerprint));
  return open_tokenizer(job, !options->no_text);
}

/* Layout errors first, before any weight is read. */
static enum status plan_layout(struct job *job, const struct job_options *options) {
  const struct model_facts *facts = &job->source->facts;
  if (!arch_find(facts->family))
    return status_set(STATUS_USAGE, "%s: model family '%s' is not supported: %s are", job->source->path, facts->family,
                      arch_list());
  if (job->config->parallel.pp != 1)
    return status_set(STATUS_USAGE, "parallel.pp %" PRId64 ": pipeline stages are not supported by this version",
                      job->config->parallel.pp);
  if (facts->position == POSITION_LEARNED && !options->clamp_positions && options->n_positions == 0 &&
      job->config->data.seq_len > facts->max_positions)
    return status_set(STATUS_USAGE,
                      "%" PRId64 " positions is longer than the %" PRId64
                      " learned positions of %s: lower data.seq_len",
                      job->config->data.seq_len, facts->max_positions, job->source->path);
  for (int t = 0; t < job->mesh->n_tp; t++) TRY(shard_plan(facts, job->mesh->n_tp, t, &job->shard));
  return shard_plan(facts, job->mesh->n_tp, job->mesh->tp_rank, &job->shard);
}

static enum status open_model(struct job *job, const struct job_options *options) {
  const struct model_facts *facts = &job->source->facts;
  struct model_options model_options = {
      .act = job_act(job->config),
      .storage = storage(job->config),
      .n_positions = options->n_positions ? options->n_positions : job->config->data.seq_len,
  };
  if (options->clamp_positions && facts->position == POSITION_LEARNED &&
      model_options.n_positions > facts->max_positions)
    model_options.n_positions = facts->max_positions;
  return model_create(job->device, job->source, job->mesh->tp, &model_options, &job->model);
}

static enum status open_local(struct job *job, const struct job_options *options) {
  TRY(open_base(job, options));
  TRY(plan_layout(job, options));
  TRY(adapter_plan_make(job, options)); /* wrong targets show before the base is read */
  TRY(open_model(job, options));
  adapter_plan_attach(job);
  log_debug("%" PRIu64 " bytes of weights read", job->source->bytes_read);
  return STATUS_OK;
}

enum status job_open(const struct config *config, const struct job_options *options, struct job *job) {
  memset(job, 0, sizeof *job);
  job->config = config;
  TRY(ranks_agree(mesh_create((int)config->parallel.tp, 1, &job->mesh)));
  TRY(accelerator_open(config, job->mesh, &job->device));
  return ranks_agree(open_local(job, options));
}

void job_close(struct job *job) {
  /* Groups first: their buffers and records are the device's, and freeing memory would wait for messages that do not
   * come. */
  mesh_destroy(&job->mesh);
  if (job->device) device_set_watch(job->device, NULL, NULL); /* it was the mesh's */
  if (job->device) adapters_destroy(&job->adapters, job->device);
  model_destroy(&job->model);
  tokenizer_close(&job->tokenizer);
  base_model_close(&job->source);
  device_close(&job->device);
}

void job_describe(const struct job *job) {
  char device[256];
  const struct model_facts *facts = &job->source->facts;
  const struct mesh *mesh = job->mesh;
  device_describe(job->device, device, sizeof device);
  log_info("base      %s: %s, %.1f M parameters, %" PRId64 " layers of width %" PRId64, job->source->path,
           facts->family, 1e-6 * (double)model_base_parameters(facts), facts->n_layers, facts->d_model);
  log_info("layout    %d rank%s: tp %d x dp %d; rank 0 holds %" PRId64 " of %" PRId64 " heads, %" PRId64 " of %" PRId64
           " FFN columns, %.1f MB of weights",
           mesh->world, mesh->world == 1 ? "" : "s", mesh->n_tp, mesh->n_dp, job->shard.heads.n, facts->n_heads,
           job->shard.ffn.n, facts->d_ffn, 1e-6 * (double)job->model->weights.memory.total);
  log_info("device    %s; compute %s", device, dtype_name(job->model->act));
  if (!job->device->host_memory) ranks_must(accelerator_describe(job->mesh, job->device));
  int64_t trainable = param_list_total(&job->adapters.params);
  if (job->adapters.n)
    log_info("adapters  %d, %" PRId64 " parameters (%.3f %% of the base)", job->adapters.n, trainable,
             100.0 * (double)trainable / (double)model_base_parameters(facts));
}
