/*
 * golden_step.h: steps of a golden case on the present ranks, the same on one
 * rank alone as the reference, and their comparison.
 */
#ifndef LORASHARD_TESTS_MPI_GOLDEN_STEP_H
#define LORASHARD_TESTS_MPI_GOLDEN_STEP_H

#include "golden_case.h"

/* Largest absolute value. */
double golden_largest(const float *x, int64_t n);

/* Keep the case's adapters on the modules of a mask (bit per enum module) in
 * layers from first_layer on. */
void golden_select(struct golden_case *golden, unsigned modules, int first_layer);
#define GOLDEN_ALL_MODULES ((1u << MODULE_COUNT) - 1)

/* Gradients of the mean loss of the case's rows: dealt over dp, in micro-batches
 * of so many rows, reduced. Returns the loss. */
double golden_gradient(struct golden_case *golden, struct golden_model *m, int64_t micro_batch);

/* The same with all rows on this rank and no communication; m is of a mesh with
 * tp = 1, so that its parameters are whole. */
double golden_gradient_alone(struct golden_case *golden, struct golden_model *m);

/* Global norm of reduced gradients. */
double golden_norm(struct golden_model *m);

/* This rank's parts of m against the whole parameters of a reference: fails the
 * job above `tolerance` times the reference's largest element of that
 * parameter. Returns the worst error as such a share. */
enum golden_what { GOLDEN_WEIGHTS, GOLDEN_GRADIENTS };
double golden_compare(const char *label, struct golden_model *m, struct golden_model *reference, enum golden_what what,
                      double tolerance);

#endif
