/*
 * saver.h: checkpoints of a training run: snapshot, background write, publish,
 * and the way back.
 */
#ifndef LORASHARD_LAUNCH_SAVER_H
#define LORASHARD_LAUNCH_SAVER_H

#include "launch/job.h"

struct saver;

/* Where a run stands. */
struct run_state {
  int64_t step;        /* optimizer steps done */
  int64_t samples;     /* samples of the run consumed (launch/batcher.h) */
  int64_t rows;        /* N of the dataset */
  int64_t tokens_seen; /* all ranks */
  int64_t skipped;     /* steps skipped for a gradient that was not finite */
  char data_digest[40];
};

enum status saver_create(struct job *job, const char *output, int keep_last, struct saver **saver_p);
void saver_destroy(struct saver **saver_p);

/* After a failure that all ranks agreed on, whose message stays: publish the
 * checkpoint that was being written, or remove what could not be. Collective. */
void saver_settle(struct saver *saver);

/* Begin a checkpoint of the present state: every rank calls it; returns when the
 * snapshot is taken. At most one is under way (saver_pending). */
enum status saver_begin(struct saver *saver, const struct run_state *state);

/* *busy: this rank's background work on the checkpoint is not done. A failed write
 * is this rank's status. */
enum status saver_poll(struct saver *saver, bool *busy);

/* True between saver_begin and the publishing. */
bool saver_pending(const struct saver *saver);

/* No rank is busy any more: after the shards rank 0 starts publishing (in the
 * background too); after that the checkpoint is no longer pending. */
enum status saver_advance(struct saver *saver);

/* See a checkpoint that is under way through. Collective; the status is agreed on. */
enum status saver_finish(struct saver *saver);

/* Read parameters and moments of a step directory, or of a gathered file that has
 * them, into this rank's parts, whatever layout wrote it, and where the run stood.
 * STATUS_USAGE when the run's adapters, dropout, base, seed or data are others than
 * now, or there are no moments; another global batch is warned of. Local to the
 * rank. */
enum status saver_restore(struct job *job, const char *path, int64_t rows, const char *data_digest,
                          struct run_state *state);

#endif
