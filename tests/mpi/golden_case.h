/*
 * golden_case.h: one case of tests/golden (see its README) and a model with its
 * adapters built from it on the present ranks.
 */
#ifndef LORASHARD_TESTS_MPI_GOLDEN_CASE_H
#define LORASHARD_TESTS_MPI_GOLDEN_CASE_H

#include "dist/mesh.h"
#include "io/base_model.h"
#include "io/safetensors.h"
#include "lora/adapter.h"
#include "model/transformer.h"

#define GOLDEN_MAX_MODULES 64
#define GOLDEN_STEPS       20

struct golden_module {
  int layer;
  char name[8]; /* "q", ...; "fused" */
  int64_t r;
  double alpha, scale;
};

struct golden_case {
  char folder[512];
  int64_t rows, seq_len, n_vocab, n_targets;
  bool rslora;
  int n_modules;
  struct golden_module modules[GOLDEN_MAX_MODULES];
  double loss, losses[GOLDEN_STEPS], grad_norms[GOLDEN_STEPS];
  int32_t ids[256], labels[256], positions[256];
  int64_t row_ids[256];
  struct segment segments[8];
  struct safetensors *tensors;
};

/* Ends the whole job on failure: these are tests. */
void golden_open(const char *name, struct golden_case *golden);
void golden_close(struct golden_case *golden);

/* A tensor of golden.safetensors by name; malloc'ed f32, *n elements. */
float *golden_tensor(const struct golden_case *golden, const char *name, int64_t *n);

struct golden_model {
  struct mesh *mesh;     /* borrowed */
  struct device *device; /* golden_device() */
  struct tensor_source *source;
  struct model *model;
  struct adapters adapters;
};

/* The case's model cut over mesh->n_tp ranks, its adapters with the golden's
 * values ("fused" as three pairs that share A), prepared for training. */
void golden_model_open(const struct golden_case *golden, struct mesh *mesh, enum dtype act, struct golden_model *m);
/* The same, prepared as `how` says: sequence, recompute, n_micro; max_tokens 0: all rows at once. */
void golden_model_open_as(const struct golden_case *golden, struct mesh *mesh, enum dtype act,
                          const struct prepare_options *how, struct golden_model *m);
void golden_model_close(struct golden_model *m);

/* The host's copy of one of a parameter's arrays, as of the last golden_fetch. */
static inline float *golden_host(const struct golden_model *m, const float *array) {
  return param_host(&m->adapters.params, array);
}
void golden_fetch(struct golden_model *m);

/* Rows [first, first + n) as one batch, one document a row. */
struct batch golden_batch(struct golden_case *golden, int64_t first, int64_t n);

/* transformer_train of a single micro-batch. */
void golden_train_one(struct golden_model *m, const struct batch *batch, float g, double *loss_sum);

/* Fail the job with a message unless ok. */
void golden_check(bool ok, const char *format, ...) __attribute__((format(printf, 2, 3)));
void golden_must(enum status status);

#endif
