/*
 * log.h: lines for people, on stderr. Rank 0 speaks for all at info and above;
 * other ranks only for themselves, with their rank in front.
 */
#ifndef LORASHARD_IO_LOG_H
#define LORASHARD_IO_LOG_H

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

/* Rank shown in messages, number of ranks, and the highest level printed.
 * Defaults: rank 0 of 1, LOG_INFO. */
void log_setup(int rank, int n_ranks, enum log_level level);

/* "lorashard: warning: ..."; info has no label. Rank 0 only. */
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* log_warn from whichever rank calls. */
void log_warn_here(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* "lorashard: error: ..." from whichever rank calls, in one write. */
void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
