/*
 * adapter_plan.h: from settings or from an adapter file to the adapters of the
 * model, this rank's part of them, and these attached to its linears.
 */
#ifndef LORASHARD_LAUNCH_ADAPTER_PLAN_H
#define LORASHARD_LAUNCH_ADAPTER_PLAN_H

#include "io/peft.h"
#include "launch/job.h"

/* The adapters that lora.* asks for on a model, in order of layer and module, whole
 * sizes only: *specs_p malloc'ed, the caller's. STATUS_USAGE: a target that the model
 * lacks, or no adapter at all. */
enum status adapter_plan_fresh(const struct model_facts *facts, const struct config *config,
                               struct adapter_spec **specs_p, int *n_p);

/* The lowest layer with an adapter; L if none. */
int adapter_plan_first_layer(const struct model_facts *facts, const struct adapter_spec *specs, int n);

/* own[n]: those of the planned adapters that lie in the shard's layers, with the parts
 * that its rank holds; kept[n]: their places in `planned`. Both have room for
 * n_planned; kept may be NULL. Returns n. */
int adapter_plan_of_shard(const struct model_facts *facts, const struct shard *shard,
                          const struct adapter_spec *planned, int n_planned, struct adapter_spec *own, int *kept);

/* job->planned and first_adapted, for the whole model, as options say; with an
 * adapter file its values in *set, to be freed with adapter_set_free also after a
 * failure. STATUS_USAGE: as above, or an adapter for another base. */
enum status adapter_plan_choose(struct job *job, const struct job_options *options, struct adapter_set *set);

/* Make job->adapters, those of job->shard's layers, and give them the set's values or,
 * if it is empty, initial ones. Needs no model. */
enum status adapter_plan_make(struct job *job, const struct adapter_set *set);

/* Put them on job->model's linears. */
void adapter_plan_attach(struct job *job);

/* Parameters of all adapters of the model. */
int64_t adapter_plan_parameters(const struct job *job);

/* What a checkpoint records of each adapter of the model: malloc'ed, the caller's. */
enum status adapter_plan_modules(const struct job *job, struct checkpoint_module **modules_p, int *n_p);

#endif
