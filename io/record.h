/*
 * record.h: one line of a data file as the texts it holds.
 */
#ifndef LORASHARD_IO_RECORD_H
#define LORASHARD_IO_RECORD_H

#include <stddef.h>

#include "io/chat_template.h"
#include "io/status.h"

/* What a file's samples look like. */
enum record_format {
  RECORD_AUTO,              /* not known yet */
  RECORD_TEXT,              /* JSONL: text */
  RECORD_PROMPT_COMPLETION, /* JSONL: prompt, completion */
  RECORD_MESSAGES,          /* JSONL: messages (role, content) or conversations (from, value) */
  RECORD_ALPACA,            /* JSONL: instruction, input (may be absent), output */
  RECORD_E2E,               /* lines input||target */
  RECORD_STREAM,            /* plain text, the whole file one stream */
  RECORD_TOKENS,            /* ids, Megatron's .bin with .idx */
};

const char *record_format_name(enum record_format format);

struct text_span {
  const char *text; /* may hold NUL bytes; not zero-terminated */
  size_t length;
};

struct record {
  enum record_format format;
  struct text_span prompt;     /* prompt, instruction, or the input of e2e */
  struct text_span input;      /* Alpaca's input; empty if absent */
  struct text_span completion; /* completion, output, target, or text */
  struct chat_message *messages;
  int n_messages;
  struct json_t *json; /* owns the texts of a JSON record */
};

/* Read one JSON object. With RECORD_AUTO its keys decide the format, else it
 * must be of the given one. Zero-initialise *record; on success it is the
 * caller's, to be freed with record_free; on failure nothing is. Roles come out
 * as system, user or assistant. Errors (STATUS_DATA) do not name file and line:
 * the caller puts them in front. */
enum status record_parse_json(const char *line, size_t length, enum record_format expected, struct record *record);

/* Read one line input||target; the spans point into `line`, white space at
 * their ends is left out. Nothing to free. Errors as above. */
enum status record_parse_e2e(const char *line, size_t length, struct record *record);

void record_free(struct record *record);

/* How often "||" occurs in a line, without overlap. */
int record_count_bars(const char *line, size_t length);

#endif
