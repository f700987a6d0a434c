/*
 * evaluate.h: mean loss of a dataset, over all data-parallel ranks.
 */
#ifndef LORASHARD_LAUNCH_EVALUATE_H
#define LORASHARD_LAUNCH_EVALUATE_H

#include "launch/batcher.h"
#include "launch/job.h"

struct evaluation {
  double loss; /* mean negative log-likelihood of a target, in nats */
  int64_t targets;
  int64_t tokens;   /* positions read */
  bool interrupted; /* a rank was asked to stop: the rest is not set */
};

/* True if all files are .bin: token ids, no text. */
bool evaluate_only_ids(const struct string_list *files);

/* Open files as a dataset the way config.data says; workers are the job's ranks.
 * cache_dir may be NULL. Collective, agreed. */
enum status evaluate_open_data(const struct job *job, const struct string_list *files, const char *cache_dir,
                               struct dataset **data_p);

/* Collective. The model must be prepared for batcher->max_tokens. `stop_asked` (may
 * be NULL) is looked at now and then, on every rank; any rank's true ends it. The
 * loss may come out as NAN or INFINITY. */
enum status evaluate_run(struct job *job, struct batcher *batcher, bool (*stop_asked)(void), struct evaluation *result);

#endif
