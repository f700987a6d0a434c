/* planner_internal.h: what only the planner's files share. */
#ifndef LORASHARD_LAUNCH_PLANNER_INTERNAL_H
#define LORASHARD_LAUNCH_PLANNER_INTERNAL_H

#include "launch/planner.h"
#include "lora/adapter.h"
#include "model/model.h"

#define PLAN_MAX_TP 1024
#define PLAN_MAX_PP 1024
#define PLAN_QKV    (1u << MODULE_Q | 1u << MODULE_K | 1u << MODULE_V)
#define PLAN_UP     (1u << MODULE_GATE | 1u << MODULE_UP)

/* Sums over adapters, parts of one rank. */
struct plan_pairs {
  double in, out;       /* r in_t and r out_t: multiplications a token of x A' and h B' */
  double reads, writes; /* in_t and out_t: widths of x and y */
  double columns;       /* r of column-parallel ones: they ride along with sequence parallelism */
  double stage, dp;     /* parameters in each reduction group */
};

/* What tensor parallelism over tp ranks makes of the model: the largest part of any
 * rank. Sums over layers [0, l) at index l. */
struct plan_cut {
  struct plan_cut *next;
  int tp;
  int n_ranks; /* ranks that differ from each other in what they hold */
  int *ranks;  /* [n_ranks] one of each kind */
  double work; /* multiplications per token of a layer's linears */
  double heads, kv_heads, ffn, vocab;
  struct plan_pairs *before; /* [L + 1] of the adapters in layers [0, l) */
};

/* The layers of each of pp stages. */
struct plan_stages {
  struct plan_stages *next;
  int pp;
  struct span *layers; /* [pp] */
};

/* A memory table that was filled before. */
struct plan_known {
  struct plan_known *next;
  struct plan_layout layout; /* dp = 0 */
  int64_t in_flight;
  struct plan_memory memory; /* of the largest rank */
};

struct planner {
  const struct config *config;
  const struct cluster *cluster;
  struct tensor_source *source;
  const struct model_facts *facts;
  struct device device; /* no device: its kind of memory, for dry runs */
  enum dtype act;
  struct cluster_rate rate;   /* of act products */
  enum dtype file;            /* type of the linears as stored; of several, that of most weights */
  double file_bytes;          /* that a weight of theirs takes there, in the mean */
  double head_bytes;          /* that a weight of the head takes there */
  struct adapter_spec *specs; /* [n_specs] of the whole model, not placed */
  int n_specs;
  int first_adapted;
  unsigned lowest_modules; /* bit per module with an adapter in that layer */
  int64_t seq_len;
  struct plan_cut *cuts;
  struct plan_stages *stages;
  struct plan_known *known;
};

/* Cached; NULL with STATUS_SYSTEM or STATUS_USAGE set otherwise. */
enum status planner_cut(struct planner *planner, int tp, const struct plan_cut **cut_p);
enum status planner_stages(struct planner *planner, int pp, const struct plan_stages **stages_p);
void planner_free_costs(struct planner *planner);

/* --- planner_place.c --- */

/* Groups of tp ranks lie within a node, or on whole nodes. */
bool planner_placed_well(const struct plan_job *job, int64_t tp);

/* Groups of n ranks, `stride` apart, cut the job's ranks in blocks of n stride. How
 * they lie on nodes, each number of the group that has it worst: 9 ranks on nodes of 8
 * are 8 and 1, so fewest is 1 and nodes 2. */
struct plan_spread {
  int64_t fewest; /* ranks of a group on a node that it is on: they carry most to other nodes. n: all within a node */
  int64_t nodes;  /* most that a group is on */
};
struct plan_spread planner_spread(const struct plan_job *job, int64_t n, int64_t stride);

/* Do all ranks of a stage find their neighbours of the next on their own node? */
bool planner_stages_share_node(const struct plan_job *job, const struct plan_layout *layout, int stage);

/* --- planner_costs.c --- */

/* Tokens of a full micro-batch, as the batcher pads them. */
int64_t planner_tokens(const struct planner *planner, const struct plan_layout *layout);
/* Micro-batches of the replica that has most. */
int64_t planner_micro_batches(const struct planner *planner, const struct plan_job *job,
                              const struct plan_layout *layout);
/* Rows of a micro-batch. */
int64_t planner_rows_at_once(const struct planner *planner, const struct plan_layout *layout);

/* Bytes that a rank may use. */
double planner_room(const struct planner *planner);

/* Weights of a whole layer's linears. */
double planner_layer_weights(const struct planner *planner);
/* Bytes that a weight of the layers' linears takes, and one of the head, which is never quantised here. */
double planner_weight_bytes(const struct planner *planner, enum base_dtype base_dtype);
double planner_head_bytes(const struct planner *planner, enum base_dtype base_dtype);

enum status planner_predict(struct planner *planner, const struct plan_job *job, const struct plan_layout *layout,
                            struct plan_time *time);

/* A lower bound of a rank's memory that needs no table. */
double planner_least_memory(const struct planner *planner, const struct plan_layout *layout);
/* Memory of the largest rank, from tables. With room above 0 it stops at the first rank that needs more. */
enum status planner_largest(struct planner *planner, const struct plan_job *job, const struct plan_layout *layout,
                            double room, struct plan_memory *memory);

#endif
