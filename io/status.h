/*
 * status.h: how lorashard's functions report failure.
 *
 * A function that can fail returns `enum status`. The function that first
 * knows of the error writes one message with status_set (file, tensor or rank
 * first, then the fault, then the remedy); callers pass the code on with TRY.
 * Nothing below launch/ prints, exits or aborts.
 */
#ifndef LORASHARD_IO_STATUS_H
#define LORASHARD_IO_STATUS_H

#ifdef __cplusplus /* the kernels of model/cuda are CUDA C */
extern "C" {
#endif

enum status {
  STATUS_OK = 0,
  STATUS_USAGE = -1,  /* a wrong request: flag, key, layout; exit code 2 */
  STATUS_DATA = -2,   /* a file or its content is at fault; exit code 1 */
  STATUS_SYSTEM = -3, /* memory, disk, operating system; exit code 1 */
  STATUS_DEVICE = -4, /* compute library or accelerator; exit code 1 */
  STATUS_PEER = -5,   /* another rank failed or went away; exit code 1 */
};

/* Record `code` and one line of text (printf style; no newline, no trailing
 * period) for this thread. Returns `code`. */
enum status status_set(enum status code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Put "prefix: " in front of the recorded message, for the rare caller that
 * knows a name its callee could not. Returns `code`. */
enum status status_prefix(enum status code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The last recorded message of this thread; "" if none. Never NULL. */
const char *status_message(void);

/* 0, 1 or 2, as the command line promises. */
int status_exit_code(enum status code);

/* Pass a failure on to the caller. */
#define TRY(expression)                               \
  do {                                                \
    enum status try_status_ = (expression);           \
    if (try_status_ != STATUS_OK) return try_status_; \
  } while (0)

/* Store a failure in the local variable `status` and jump to `out:`. */
#define TRY_OUT(expression)                             \
  do {                                                  \
    if ((status = (expression)) != STATUS_OK) goto out; \
  } while (0)

#ifdef __cplusplus
}
#endif

#endif
