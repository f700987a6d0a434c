/*
 * inspect_report.h: what a file or folder holds, as one JSON object. `inspect`
 * prints it as it is or as a table.
 *
 * Every report has "kind" ("model", "adapter", "tensors"), "format", "path",
 * "parameters", "bytes" and "dtypes" {name: {tensors, parameters, bytes}};
 * models have "family" and "sizes", adapters "header", "modules" (a row per kind
 * of module) and what their format adds.
 */
#ifndef LORASHARD_LAUNCH_INSPECT_REPORT_H
#define LORASHARD_LAUNCH_INSPECT_REPORT_H

#include <jansson.h>
#include <stdbool.h>

#include "io/status.h"

/* Report on a path. with_tensors: also a row per tensor or module, "tensors".
 * *report_p is the caller's (json_decref). Errors: STATUS_USAGE (nothing there,
 * or nothing known), and those of the format's reader. */
enum status inspect_report(const char *path, bool with_tensors, json_t **report_p);

#endif
