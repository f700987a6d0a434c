/*
 * job.h: everything a model-running subcommand needs, built in order on every
 * rank: mesh, device, base model, tokenizer, sharded model, adapters.
 */
#ifndef LORASHARD_LAUNCH_JOB_H
#define LORASHARD_LAUNCH_JOB_H

#include "dist/mesh.h"
#include "io/base_model.h"
#include "io/checkpoint.h"
#include "io/config.h"
#include "io/tokenizer.h"
#include "lora/adapter.h"
#include "model/transformer.h"

struct job {
  const struct config *config; /* borrowed */
  struct mesh *mesh;
  struct device *device;
  struct tensor_source *source;
  char fingerprint[FINGERPRINT_SIZE];
  struct tokenizer *tokenizer;  /* NULL: the base has none */
  struct shard shard;           /* what this rank holds */
  struct adapter_spec *planned; /* [n_planned]: adapters of the whole model, whole sizes */
  int n_planned;
  int first_adapted;        /* lowest layer of the model with an adapter; L if none */
  struct adapters adapters; /* those of this rank's stage */
  int64_t n_positions;      /* longest sequence of the model */
  struct model *model;      /* NULL before job_load */
};

struct job_options {
  const char *adapter;  /* path of an adapter to start from or evaluate; NULL or "": none */
  bool fresh_adapters;  /* without `adapter`: new ones as lora.* says */
  bool no_text;         /* nothing is tokenised: a tokenizer that cannot be read is no failure */
  bool any_base;        /* accept an adapter made for another base */
  int64_t n_positions;  /* longest sequence; 0: config's data.seq_len */
  bool clamp_positions; /* no more than the model's learned positions (see model->n_positions) */
};

/* Build all that needs no weight of the base: mistakes of the user show before a large one is read. Collective,
 * agreed: on failure every rank returns the same status and *job can be closed. */
enum status job_open(const struct config *config, const struct job_options *options, struct job *job);

/* Read this rank's weights and connect the adapters to them. Collective, agreed. */
enum status job_load(struct job *job);

void job_close(struct job *job);

/* Activation buffers for micro-batches of up to max_tokens, as config says. n_micro: most micro-batches of a
 * step. */
enum status job_prepare_model(struct job *job, int64_t max_tokens, bool training, int64_t n_micro);

/* The start-up table on stderr, from rank 0. */
void job_describe(const struct job *job);

/* How train.base_dtype keeps weights. */
enum weight_storage job_storage(enum base_dtype base_dtype);

/* What train and plan prepare a model for: train.recompute as the model takes it; forward only, a caller may have
 * batches of any size, so no sequence parallelism. */
struct prepare_options job_prepare_options(int64_t max_tokens, int64_t n_micro, bool training,
                                           enum recompute_kind recompute, bool sequence);

/* config's compute type. */
enum dtype job_act(const struct config *config);

#endif
