/*
 * text_file.h: a text data file, its format and its division into chunks of
 * about a mebibyte.
 *
 * The division depends on the file's content alone, so all workers agree on it
 * without talking. Line formats are cut at line ends; plain text is cut before
 * a line that does not begin with white space, where no tokenizer's word
 * crosses.
 */
#ifndef LORASHARD_IO_TEXT_FILE_H
#define LORASHARD_IO_TEXT_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/record.h"
#include "io/status.h"

struct text_chunk {
  uint64_t begin, end; /* bytes */
  int64_t first_line;  /* from 1 */
};

struct text_file {
  const char *path; /* the caller's */
  enum record_format format;
  int fd;
  uint64_t size;
  struct text_chunk *chunks;
  int n_chunks;
  uint64_t digest[2]; /* xxh3-128 of the content */
};

/* Read the file through once: find the format (if RECORD_AUTO: `lines_of_json`
 * says whether the keys of the first object decide, else e2e if each of the
 * first 100 non-empty lines holds exactly one "||", else plain text), the chunks
 * and the digest. A BOM is left out; UTF-16 is refused. A line longer than 256
 * MiB is STATUS_DATA. On success *file is the caller's, for text_file_close. */
enum status text_file_open(const char *path, enum record_format format, bool lines_of_json, struct text_file *file);
void text_file_close(struct text_file *file);

/* The bytes of one chunk, malloc'ed for the caller. */
enum status text_file_read(const struct text_file *file, int chunk, char **data_p, size_t *length_p);

/* Step over lines: the line that begins at *at (without its end, LF or CRLF),
 * or false at the end of data. *at moves to the next line. */
bool text_next_line(const char *data, size_t length, size_t *at, struct text_span *line);

/* True if there is nothing but white space. */
bool text_blank(struct text_span line);

#endif
