/*
 * adapter_plan.h: from settings or from an adapter file to the adapters of this
 * rank, attached to the model.
 */
#ifndef LORASHARD_LAUNCH_ADAPTER_PLAN_H
#define LORASHARD_LAUNCH_ADAPTER_PLAN_H

#include "launch/job.h"

/* Make job->adapters as options say and give them their values; needs job->shard
 * but no model. STATUS_USAGE: a target that the model lacks, an adapter for
 * another base. */
enum status adapter_plan_make(struct job *job, const struct job_options *options);

/* Put them on job->model's linears. */
void adapter_plan_attach(struct job *job);

/* What a checkpoint records of each adapter: malloc'ed, the caller's. */
enum status adapter_plan_modules(const struct job *job, struct checkpoint_module **modules_p);

#endif
