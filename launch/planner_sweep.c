#include "launch/planner_sweep.h"

#include <inttypes.h>
#include <string.h>

const char *const sweep_way_names[SWEEP_WAYS] = {"tp", "pp", "dp"};

double sweep_share(const struct plan_result *result, enum sweep_way way) {
  const struct plan_time *time = &result->time;
  double seconds = way == SWEEP_TP   ? time->traffic[PLAN_TP].seconds
                   : way == SWEEP_PP ? time->traffic[PLAN_PP].seconds + time->bubble
                                     : time->traffic[PLAN_STAGE].seconds + time->traffic[PLAN_DP].seconds +
                                           time->traffic[PLAN_CONTROL].seconds;
  return time->step > 0 ? seconds / time->step : 0;
}

static enum status check(const struct cluster *cluster, const struct sweep_options *options) {
  if (options->to <= cluster->device.per_node || cluster->links[CLUSTER_NETWORK].line[CLUSTER_ALL_REDUCE].beta > 0)
    return STATUS_OK;
  return status_set(STATUS_USAGE,
                    "%s: a sweep to %" PRId64 " ranks needs the network's rates, but the file has no section network",
                    cluster->name, options->to);
}

static struct plan_job job_at(const struct cluster *cluster, const struct sweep_options *options, int64_t ranks) {
  double factor = options->weak ? (double)ranks / (double)options->from : 1;
  double rows = (double)options->global_batch * factor;
  return planner_job(cluster, ranks, rows < 1 ? 1 : (int64_t)rows);
}

/* The layout with one axis `factor` times as long, or false where that cannot be. */
static enum status grow(struct planner *planner, const struct plan_job *job, const struct plan_result *base,
                        enum sweep_way way, int64_t factor, struct plan_result *result, bool *can_p) {
  struct plan_layout layout = base->layout;
  *can_p = false;
  if (factor > 1 << 20) return STATUS_OK;
  if (way == SWEEP_TP) layout.tp *= (int)factor;
  if (way == SWEEP_PP) layout.pp *= (int)factor;
  if (way == SWEEP_DP) layout.dp *= (int)factor;
  if (planner_check(planner, job, &layout) != STATUS_OK) return STATUS_OK;
  TRY(planner_state(planner, job, &layout, result));
  *can_p = true;
  return STATUS_OK;
}

static enum status run_way(struct planner *planner, const struct cluster *cluster, const struct sweep_options *options,
                           const struct plan_result *base, enum sweep_way way, struct sweep_line *line) {
  for (int64_t ranks = base->job.ranks; ranks <= options->to && line->n < SWEEP_MAX; ranks *= 2) {
    struct plan_job job = job_at(cluster, options, ranks);
    struct plan_result *point = &line->points[line->n];
    bool can;
    TRY(grow(planner, &job, base, way, ranks / base->job.ranks, point, &can));
    if (!can) break; /* more ranks than heads, layers or rows */
    line->share[line->n++] = sweep_share(point, way);
    if (!line->stops && line->share[line->n - 1] > options->threshold) line->stops = ranks;
  }
  return STATUS_OK;
}

enum status sweep_run(struct planner *planner, const struct cluster *cluster, const struct plan_search *search,
                      const struct sweep_options *options, struct sweep *sweep) {
  struct plan_search one = *search;
  const struct plan_result *base = NULL;
  memset(sweep, 0, sizeof *sweep);
  TRY(check(cluster, options));
  one.most = 1;
  for (int64_t ranks = options->from; ranks <= options->to && sweep->n < SWEEP_MAX; ranks *= 2) {
    struct plan_job job = job_at(cluster, options, ranks);
    struct plan_result *best = &sweep->best[sweep->n];
    int n, tried;
    TRY(planner_search(planner, &job, &one, best, &n, &tried));
    if (n == 0) *best = (struct plan_result){.job = job};
    if (n && !base) base = best;
    sweep->ranks[sweep->n++] = ranks;
  }
  for (int way = 0; base && way < SWEEP_WAYS; way++)
    TRY(run_way(planner, cluster, options, base, (enum sweep_way)way, &sweep->ways[way]));
  return STATUS_OK;
}
