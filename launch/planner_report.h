/*
 * planner_report.h: a plan as one JSON object, and as text for people. Both are made
 * from the same values.
 */
#ifndef LORASHARD_LAUNCH_PLANNER_REPORT_H
#define LORASHARD_LAUNCH_PLANNER_REPORT_H

#include <jansson.h>

#include "launch/planner_sweep.h"

/* All that was found out. */
struct plan_report {
  const struct config *config;
  const struct cluster *cluster;
  const struct model_facts *facts;
  const char *model;      /* as the user named it */
  const char *run;        /* path of the run's configuration, or NULL */
  const char *base;       /* what train must be told to open, where the run may name another base; or NULL */
  const char *trains;     /* the base that train opens though `model` gives the sizes here; or NULL: they are its own */
  bool assumed_dtype;     /* the type of the weights is plan's choice: the model does not say it */
  const char *const *set; /* [n_set] KEY=VALUE of the user */
  int n_set;
  bool own_length; /* --set and defaults decide data.seq_len and the batch, not a run */
  struct plan_job job;
  struct plan_totals totals;
  const struct plan_result *results; /* [n], best first */
  int n, tried;
  const struct sweep *sweep; /* NULL: none */
  struct sweep_options sweep_options;
};

/* Bytes of training every parameter with Adam in mixed precision, and with adapters. */
struct plan_comparison {
  double full; /* weights and gradients in 16 bit, weights and two moments in f32: 16 a parameter */
  double full_weights, full_gradients, full_master, full_moments;
  double lora_weights; /* 16 bit */
  double lora_trained; /* 16 for each trained parameter */
};
struct plan_comparison plan_compare(const struct plan_totals *totals);

/* Is it the model of the LoRA paper's section on GPT-3? */
bool plan_is_gpt3(const struct model_facts *facts);

/* The word for a value of an enumerated key of the configuration: "selective". */
const char *plan_word(const char *key, int value);

/* The command that starts a layout; malloc'ed, the caller's. NULL where lorashard cannot run on the cluster. */
enum status plan_command(const struct plan_report *report, const struct plan_result *result, char **command_p);

/* *object_p is the caller's (json_decref). */
enum status plan_report_json(const struct plan_report *report, json_t **object_p);

enum status plan_report_print(const struct plan_report *report);

#endif
