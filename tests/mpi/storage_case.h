/*
 * storage_case.h: models that differ only in how their base is stored.
 */
#ifndef LORASHARD_TESTS_MPI_STORAGE_CASE_H
#define LORASHARD_TESTS_MPI_STORAGE_CASE_H

#include "golden_device.h"
#include "model/transformer.h"

/* This rank's part over mesh->tp, in f32 and prepared for storage_loss. */
struct model *storage_open(struct tensor_source *source, struct mesh *mesh, enum weight_storage storage);

/* Mean loss of three rows of 16 tokens of no meaning, which any base has. */
double storage_loss(struct model *model);

#endif
