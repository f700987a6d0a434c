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
  struct tokenizer *tokenizer; /* NULL: the base has none */
  struct shard shard;          /* what this tp rank holds */
  struct adapters adapters;
  struct model *model;
};

struct job_options {
  const char *adapter;  /* path of an adapter to start from or evaluate; NULL or "": none */
  bool fresh_adapters;  /* without `adapter`: new ones as lora.* says */
  bool no_text;         /* nothing is tokenised: a tokenizer that cannot be read is no failure */
  bool any_base;        /* accept an adapter made for another base */
  int64_t n_positions;  /* longest sequence; 0: config's data.seq_len */
  bool clamp_positions; /* no more than the model's learned positions (see model->n_positions) */
};

/* Build it all; collective, agreed: on failure every rank returns the same status
 * and *job can be closed. */
enum status job_open(const struct config *config, const struct job_options *options, struct job *job);
void job_close(struct job *job);

/* The start-up table on stderr, from rank 0. */
void job_describe(const struct job *job);

/* config's compute type. */
enum dtype job_act(const struct config *config);

#endif
