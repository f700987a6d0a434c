/*
 * base_model_internal.h: what every kind of base checks of a read.
 */
#ifndef LORASHARD_IO_BASE_MODEL_INTERNAL_H
#define LORASHARD_IO_BASE_MODEL_INTERNAL_H

#include "io/tensor_source.h"

/* The slice exists in the tensor, which has at most two axes, and if `aligned`
 * its columns cut no block. Errors: STATUS_DATA. */
enum status base_model_check_slice(const struct tensor_info *info, int64_t row, int64_t n_rows, int64_t col,
                                   int64_t n_cols, bool aligned);

#endif
