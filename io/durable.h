/*
 * durable.h: files that are whole or absent. Write under a temporary name,
 * fsync, rename, fsync the directory.
 */
#ifndef LORASHARD_IO_DURABLE_H
#define LORASHARD_IO_DURABLE_H

#include <stddef.h>

#include "io/status.h"

#define DURABLE_PATH 4096

/* Format a path into buffer. STATUS_USAGE if it does not fit. */
enum status durable_path(char *buffer, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* fsync a file or a directory by its path. */
enum status durable_sync(const char *path);

/* fsync the directory that holds path. */
enum status durable_sync_parent(const char *path);

/* Make a file of this name anew, to be read and written: what stood there, be it a
 * link, is taken away first, never followed. *fd_p is the caller's. */
enum status durable_create(const char *path, int *fd_p);

/* Rename a synced temporary file over path and sync the directory. On failure
 * the temporary file is removed. */
enum status durable_rename(const char *temporary, const char *path);

/* Replace path by length bytes of text, whole or not at all. */
enum status durable_write(const char *path, const char *text, size_t length);

/* STATUS_SYSTEM if the directory holds another one, which is not this program's. */
enum status durable_check_plain(const char *path);

/* Remove a directory of plain files; STATUS_OK if there is none. One that holds
 * another directory is left as it is, with an error. Of a link only the link is
 * removed. */
enum status durable_remove_directory(const char *path);

#endif
