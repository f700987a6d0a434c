#include "io/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int log_rank;
static int log_ranks = 1;
static enum log_level log_max = LOG_INFO;

void log_setup(int rank, int n_ranks, enum log_level level) {
  log_rank = rank;
  log_ranks = n_ranks;
  log_max = level;
}

/* One write(2) per line, so that lines of several ranks do not interleave. */
static void emit(const char *label, const char *format, va_list args) {
  char line[2048];
  int used = snprintf(line, sizeof line, "lorashard: %s", label);
  if (log_rank > 0) used += snprintf(line + used, sizeof line - (size_t)used, "rank %d: ", log_rank);
  int body = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, args);
  size_t end = (size_t)used + (body > 0 ? (size_t)body : 0);
  if (end > sizeof line - 2) end = sizeof line - 2;
  line[end++] = '\n';
  fflush(stdout);
  ssize_t written = write(STDERR_FILENO, line, end);
  (void)written;
}

#define EMIT(label)            \
  do {                         \
    va_list args;              \
    va_start(args, format);    \
    emit(label, format, args); \
    va_end(args);              \
  } while (0)

void log_info(const char *format, ...) {
  if (log_rank == 0 && log_max >= LOG_INFO) EMIT("");
}

void log_warn(const char *format, ...) {
  if (log_rank == 0 && log_max >= LOG_WARN) EMIT("warning: ");
}

void log_warn_here(const char *format, ...) {
  if (log_max >= LOG_WARN) EMIT("warning: ");
}

void log_debug(const char *format, ...) {
  if (log_max >= LOG_DEBUG) EMIT("debug: ");
}

void log_error(const char *format, ...) { EMIT("error: "); }
