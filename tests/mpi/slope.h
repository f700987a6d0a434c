/*
 * slope.h: the gradient that a model's parameters hold against central
 * differences of its own loss.
 */
#ifndef LORASHARD_TESTS_MPI_SLOPE_H
#define LORASHARD_TESTS_MPI_SLOPE_H

#include "golden_case.h"

/* Mean loss of the case's rows. */
double slope_loss(struct golden_case *golden, struct golden_model *m);

/* Along direction number d in all parameters at once: |slope of the loss -
 * <gradient, direction>| over the gradient's norm. The gradients are whole over
 * tp (reduced, or of one rank alone). A purely random direction is almost
 * orthogonal to the gradient, so that the rounding of a bf16 loss would drown
 * its slope; `leaning` ones are not. f32: two steps, error O(step^4). */
double slope_error(struct golden_case *golden, struct golden_model *m, int d, bool leaning);

#endif
