/*
 * file_read.h: the two ways this program reads plain files: a positioned read
 * that is whole or an error, and a small text file at once.
 */
#ifndef LORASHARD_IO_FILE_READ_H
#define LORASHARD_IO_FILE_READ_H

#include <stddef.h>
#include <stdint.h>

#include "io/status.h"

/* Open a regular file for reading; its size goes to *size_p. Errors:
 * STATUS_USAGE (not there, a directory), STATUS_SYSTEM. */
enum status file_open_read(const char *path, int *fd_p, uint64_t *size_p);

/* Read exactly n bytes at offset. A short file is STATUS_DATA. */
enum status file_read_at(int fd, const char *path, uint64_t offset, void *dst, size_t n);

/* A whole file of at most `limit` bytes, zero-terminated (the zero is not
 * counted), malloc'ed for the caller. A longer one is STATUS_DATA. */
enum status file_read_text(const char *path, size_t limit, char **text_p, size_t *length_p);

#endif
