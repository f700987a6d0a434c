/*
 * config.h: one training job's settings. io/schema.c has a row per key (name,
 * type, default, range, unit, doc, offset) that drives YAML, --set, the printed
 * resolved configuration and the documentation.
 */
#ifndef LORASHARD_IO_CONFIG_H
#define LORASHARD_IO_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "io/status.h"

#define CONFIG_MAX_FILES     64
#define CONFIG_MAX_OVERRIDES 32

enum lora_init { LORA_INIT_KAIMING, LORA_INIT_GAUSSIAN };
enum schedule_kind { SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_CONSTANT };
enum compute_kind { COMPUTE_F32, COMPUTE_BF16 };
enum base_dtype { BASE_KEEP, BASE_F32, BASE_BF16, BASE_FP8, BASE_INT8, BASE_NF4 };
enum recompute_kind { RECOMPUTE_KIND_NONE, RECOMPUTE_KIND_SELECTIVE, RECOMPUTE_KIND_FULL };
enum collectives_kind { COLLECTIVES_AUTO, COLLECTIVES_NCCL, COLLECTIVES_MPI };

struct string_list {
  char **items; /* owned */
  int n;
};

/* A list of layer numbers; all = true means every layer. */
struct layer_list {
  bool all;
  int *items; /* owned */
  int n;
};

/* lora.overrides: a rule for some modules and layers; later ones win. */
struct lora_override {
  unsigned modules;         /* bit per enum module; 0: all */
  struct layer_list layers; /* all by default */
  int64_t r;                /* 0: as lora.r; off = true removes the adapter */
  double alpha;             /* < 0: as lora.alpha */
  bool off;
};

struct config {
  char *base;
  struct {
    struct string_list train, eval;
    char *format;
    int64_t seq_len;
    bool packing;
    char *chat_template;
  } data;
  struct {
    int64_t r;
    double alpha, dropout;
    struct string_list targets; /* module names; "all" means every linear */
    struct layer_list layers;
    bool rslora;
    enum lora_init init;
    struct lora_override overrides[CONFIG_MAX_OVERRIDES];
    int n_overrides;
    char *adapter; /* start from this adapter; "" for a fresh one */
  } lora;
  struct {
    int64_t steps;                     /* 0: from epochs */
    double epochs;                     /* used when steps is 0 */
    int64_t global_batch, micro_batch; /* rows */
    double lr;
    enum schedule_kind schedule;
    int64_t warmup_steps;
    double weight_decay;
    double betas[2];
    double eps, clip_norm; /* clip_norm 0: no clipping */
    uint64_t seed;
    enum compute_kind compute;
    enum base_dtype base_dtype;
    enum recompute_kind recompute;
    bool skip_nan;       /* skip a step whose gradient is not finite instead of stopping */
    int64_t check_every; /* steps; 0: never */
    bool tf32, graphs;   /* cuda only */
  } train;
  struct {
    int64_t tp, pp;
    bool sequence; /* tokens are split over tp outside the linears */
  } parallel;
  struct {
    int64_t every, keep_last; /* every 0: only at the end; keep_last 0: keep all */
  } checkpoint;
  struct {
    int64_t every; /* 0: only at the end */
  } eval;
  struct {
    double timeout_s;                  /* of one collective */
    enum collectives_kind collectives; /* cuda only */
    bool share_gpus;
  } dist;
  char *output;
  char *device; /* auto cpu cuda */
};

/* Set every default. Never fails but for memory. */
enum status config_init(struct config *config);
void config_free(struct config *config);

/* Read a YAML file over what config holds. Unknown keys (with the nearest
 * valid one), wrong types, values out of range: STATUS_USAGE with file:line. */
enum status config_read(struct config *config, const char *path);

/* The same from memory; `name` stands for the file in messages. */
enum status config_parse(struct config *config, const char *text, size_t length, const char *name);

/* One "key=value" of --set, value in YAML. */
enum status config_set(struct config *config, const char *assignment);

/* Checks that need more than one key (epochs or steps, output present, ...).
 * `training`: also what only train needs. */
enum status config_check(const struct config *config, bool training);

/* The resolved configuration as YAML, every key; malloc'ed, the caller's. */
enum status config_print(const struct config *config, char **text_p);

/* A table of all keys with type, default, range and doc, for --help and docs/. */
void config_describe(FILE *out);

#endif
