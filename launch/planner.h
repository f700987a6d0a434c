/*
 * planner.h: what a layout of tp x pp x dp ranks needs and how fast it should be,
 * without running it; and the search for the best one.
 *
 * Memory is not modelled: it is the sum of the very tables that train allocates its
 * arenas from, filled without allocating (model_options.dry). Time is a model: rates
 * and links of a cluster file (io/cluster.h), the operations of docs/architecture.md.
 * docs/scaling.md says what it assumes and how far off it was.
 */
#ifndef LORASHARD_LAUNCH_PLANNER_H
#define LORASHARD_LAUNCH_PLANNER_H

#include "io/cluster.h"
#include "io/config.h"
#include "io/tensor_source.h"

struct planner;

/* What plan may choose. ranks = tp pp dp. */
struct plan_layout {
  int tp, pp, dp;
  bool sequence;
  enum recompute_kind recompute;
  enum base_dtype base_dtype;
  int64_t micro_batch; /* rows */
};

/* The job that a layout is for, and where its ranks lie: planner_job makes it. */
struct plan_job {
  int64_t ranks;
  int64_t per_node;     /* ranks of each node; the last may have fewer */
  int64_t global_batch; /* rows of a step over all ranks */
};

/* Groups that messages travel in (docs/architecture.md). */
enum plan_flow { PLAN_TP, PLAN_PP, PLAN_STAGE, PLAN_DP, PLAN_CONTROL, PLAN_FLOWS };
extern const char *const plan_flow_names[PLAN_FLOWS];

/* One step of a rank of the slowest stage. */
struct plan_traffic {
  double calls, bytes;  /* as dist/comm counts them: buffers that are summed whole, of a gather its own part */
  double node, network; /* bytes that the rank sends to others of its node, and out of it */
  double seconds;       /* not hidden behind anything */
};

/* Seconds of one step; the parts add up to `step`. */
struct plan_time {
  int64_t micro_batches; /* of each replica */
  int slowest;           /* pipeline stage */
  double products;       /* frozen weights and head, forward and backward */
  double attention;
  double adapters;
  double elementwise; /* norms, activations, residuals, loss: bound by memory bandwidth */
  double recompute;   /* what is computed again */
  double bubble;      /* stages waiting for the pipeline to fill and drain */
  double optimizer;
  struct plan_traffic traffic[PLAN_FLOWS];
  double step;
  double tokens_per_s; /* of all ranks, padding not counted */
  double flops;        /* of forward and of backward through the frozen base, all ranks, nothing twice */
  double mfu;          /* flops / (step ranks peak); 0 where the cluster gives no peak */
};

/* Bytes of one rank. */
struct plan_memory {
  int tp_rank, pp_rank;
  size_t base;        /* arena of weights */
  size_t adapters;    /* A, B and their gradients */
  size_t optimizer;   /* two moments of each: in the same arena */
  size_t activations; /* what is kept for backward */
  size_t buffers;     /* the rest of the arena of activations: gradients, head, scratch */
  size_t total;
};

struct plan_result {
  struct plan_layout layout;
  struct plan_job job;
  struct plan_time time;
  struct plan_memory memory; /* of the largest rank */
  bool fits;
};

/* What the search may vary; a layout's field that may not be varied keeps the value
 * of `fixed`. */
struct plan_search {
  struct plan_layout fixed;
  bool tp, pp, sequence, recompute, base_dtype, micro_batch;
  int most; /* results wanted */
};

/* `config`, `cluster` and `source` are borrowed. STATUS_USAGE: an adapter on a linear that the model lacks, a sequence
 * longer than the model's positions, number types that the cluster's devices lack. */
enum status planner_create(const struct config *config, const struct cluster *cluster, struct tensor_source *source,
                           struct planner **planner_p);
void planner_destroy(struct planner **planner_p);

/* A job of so many ranks, node by node as the cluster's launcher places them. */
struct plan_job planner_job(const struct cluster *cluster, int64_t ranks, int64_t global_batch);
int64_t planner_nodes(const struct plan_job *job);

/* STATUS_USAGE where the job needs more nodes than there are, with the next numbers of
 * ranks that do not. A sweep does not ask: it is about more nodes of the same kind. */
enum status planner_check_nodes(const struct cluster *cluster, const struct plan_job *job);

/* config's own layout on that many ranks: its tp, pp, sequence, recompute, base_dtype, micro_batch. */
struct plan_layout planner_configured(const struct planner *planner, int64_t ranks);

/* STATUS_USAGE when the layout cannot be: names what does not fit together. */
enum status planner_check(const struct planner *planner, const struct plan_job *job, const struct plan_layout *layout);

/* Time and memory of one layout; also of one that does not fit (result->fits). */
enum status planner_state(struct planner *planner, const struct plan_job *job, const struct plan_layout *layout,
                          struct plan_result *result);

/* Memory of one rank: exactly what train would allocate. */
enum status planner_rank_memory(struct planner *planner, const struct plan_job *job, const struct plan_layout *layout,
                                int tp_rank, int pp_rank, struct plan_memory *memory);

/* The fastest layouts that fit, best first: at most search->most of them in results;
 * *n_p of them, 0 if nothing fits. *tried_p: layouts that can be. */
enum status planner_search(struct planner *planner, const struct plan_job *job, const struct plan_search *search,
                           struct plan_result *results, int *n_p, int *tried_p);

/* The layout that needs least memory, when nothing fits. *found_p: some layout can be. */
enum status planner_smallest(struct planner *planner, const struct plan_job *job, const struct plan_search *search,
                             struct plan_result *result, bool *found_p);

/* --- facts for reports --- */

struct plan_totals {
  int64_t base_parameters;
  int64_t trained_parameters;
  double rank_memory; /* bytes that a rank may use */
  double peak;        /* FLOP/s of one rank in the run's number type */
  enum dtype file;    /* type that the layers' linears are stored in; of several, that of most weights */
};
struct plan_totals planner_totals(const struct planner *planner);

#endif
