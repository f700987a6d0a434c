#include "launch/run_status.h"

#include <inttypes.h>
#include <stdio.h>

#include "io/durable.h"

enum status run_status_write(const char *output, enum run_status run_status, int64_t step, int64_t steps) {
  static const char *const names[] = {"running", "finished", "stopped", "failed"};
  char path[DURABLE_PATH], text[128];
  TRY(durable_path(path, sizeof path, "%s/" RUN_STATUS_FILE, output));
  int length = snprintf(text, sizeof text, "{\"state\": \"%s\", \"step\": %" PRId64 ", \"steps\": %" PRId64 "}\n",
                        names[run_status], step, steps);
  return durable_write(path, text, (size_t)length);
}
