/*
 * inspect_adapter.h: the adapter formats of inspect_report.
 */
#ifndef LORASHARD_LAUNCH_INSPECT_ADAPTER_H
#define LORASHARD_LAUNCH_INSPECT_ADAPTER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "io/status.h"

/* adapter.h5 or a step directory. */
enum status report_adapter(const char *path, const char *format, bool with_tensors, json_t **report_p);

/* A PEFT folder, read without its base: r and alpha as its configuration says. */
enum status report_peft(const char *path, bool with_tensors, json_t **report_p);

/* Shared with inspect_report.c: begin a report (STATUS_USAGE if the path is not
 * UTF-8, which JSON needs); add a tensor to the sums by dtype, and a row to
 * "tensors" (returned, owned by the report). */
enum status report_begin(const char *kind, const char *format, const char *path, json_t **report_p);
void report_count(json_t *report, const char *dtype, int64_t parameters, int64_t bytes);
json_t *report_tensor(json_t *report, const char *name, const char *dtype, const int64_t *shape, int n_dims,
                      int64_t bytes);

#endif
