/*
 * planner_sweep.h: more and more nodes of the same kind. Which layout wins at each
 * size, and from where on each way of growing spends its time on messages.
 */
#ifndef LORASHARD_LAUNCH_PLANNER_SWEEP_H
#define LORASHARD_LAUNCH_PLANNER_SWEEP_H

#include "launch/planner.h"

#define SWEEP_MAX 24 /* sizes: 2^0 to 2^23 */

/* One way to use more ranks: all else stays as in the smallest layout that fits. */
enum sweep_way { SWEEP_TP, SWEEP_PP, SWEEP_DP, SWEEP_WAYS };

struct sweep_line {
  int n;
  struct plan_result points[SWEEP_MAX];
  double share[SWEEP_MAX]; /* of the step: messages of this way and, for pp, the bubble */
  int64_t stops;           /* first ranks whose share is above the threshold; 0: none */
};

struct sweep_options {
  int64_t from, to;
  int64_t global_batch; /* rows of a step at `from` ranks */
  bool weak;            /* rows grow with the ranks; else they stay */
  double threshold;     /* share of the step */
};

struct sweep {
  int n;
  int64_t ranks[SWEEP_MAX];
  struct plan_result best[SWEEP_MAX]; /* fits false: nothing fits that many ranks */
  struct sweep_line ways[SWEEP_WAYS];
};

extern const char *const sweep_way_names[SWEEP_WAYS];

/* Ranks from `from` on, doubled while they are at most `to`. STATUS_USAGE: the cluster's
 * file has no network, but more than a node is asked for. */
enum status sweep_run(struct planner *planner, const struct cluster *cluster, const struct plan_search *search,
                      const struct sweep_options *options, struct sweep *sweep);

/* Share of a step that messages of a group take. */
double sweep_share(const struct plan_result *result, enum sweep_way way);

#endif
