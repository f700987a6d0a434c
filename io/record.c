#include "io/record.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

const char *record_format_name(enum record_format format) {
  static const char *const names[] = {"auto",   "text", "prompt_completion", "messages",
                                      "alpaca", "e2e",  "plain text",        "tokens"};
  return names[format];
}

static bool has(const json_t *object, const char *key) { return json_object_get(object, key) != NULL; }

/* Whole sets of keys first, then a lone key of a pair, so that the caller can
 * name the one that is missing. */
static enum record_format classify(const json_t *object) {
  if (has(object, "messages") || has(object, "conversations")) return RECORD_MESSAGES;
  if (has(object, "prompt") && has(object, "completion")) return RECORD_PROMPT_COMPLETION;
  if (has(object, "instruction") && has(object, "output")) return RECORD_ALPACA;
  if (has(object, "text")) return RECORD_TEXT;
  if (has(object, "prompt") || has(object, "completion")) return RECORD_PROMPT_COMPLETION;
  if (has(object, "instruction") || has(object, "output")) return RECORD_ALPACA;
  return RECORD_AUTO;
}

static enum status get_text(const json_t *object, const char *key, struct text_span *span) {
  const json_t *value = json_object_get(object, key);
  if (!value) return status_set(STATUS_DATA, "key '%s' is missing", key);
  if (!json_is_string(value)) return status_set(STATUS_DATA, "the value of '%s' is not a string", key);
  *span = (struct text_span){json_string_value(value), json_string_length(value)};
  return STATUS_OK;
}

/* A string without NUL, for interfaces that take zero-terminated ones. */
static enum status get_c_string(const json_t *object, const char *key, int message, const char **text_p) {
  struct text_span span = {0};
  enum status status = get_text(object, key, &span);
  if (status == STATUS_OK && strlen(span.text) != span.length)
    status = status_set(STATUS_DATA, "the value of '%s' holds a NUL character", key);
  if (status != STATUS_OK) return status_prefix(status, "message %d", message);
  *text_p = span.text;
  return STATUS_OK;
}

static const char *known_role(const char *role) {
  static const char *const names[][2] = {
      {"system", "system"}, {"user", "user"}, {"human", "user"}, {"assistant", "assistant"}, {"gpt", "assistant"}};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (strcmp(role, names[i][0]) == 0) return names[i][1];
  return NULL;
}

static enum status parse_messages(struct record *record) {
  const char *list_key = has(record->json, "messages") ? "messages" : "conversations";
  bool conversations = list_key[0] == 'c';
  const json_t *list = json_object_get(record->json, list_key);
  if (!list) return status_set(STATUS_DATA, "key 'messages' is missing");
  if (!json_is_array(list)) return status_set(STATUS_DATA, "the value of '%s' is not an array", list_key);
  size_t n = json_array_size(list);
  if (n == 0) return status_set(STATUS_DATA, "'%s' is empty", list_key);
  record->messages = calloc(n, sizeof *record->messages);
  if (!record->messages) return status_set(STATUS_SYSTEM, "no memory for %zu messages", n);
  for (size_t i = 0; i < n; i++) {
    const json_t *item = json_array_get(list, i);
    int number = (int)i + 1;
    if (!json_is_object(item)) return status_set(STATUS_DATA, "message %d is not an object", number);
    const char *role = NULL;
    TRY(get_c_string(item, conversations ? "from" : "role", number, &role));
    TRY(get_c_string(item, conversations ? "value" : "content", number, &record->messages[i].content));
    record->messages[i].role = known_role(role);
    if (!record->messages[i].role)
      return status_set(STATUS_DATA, "message %d: unknown role '%s'; known are system, user (human), assistant (gpt)",
                        number, role);
    record->n_messages++;
  }
  return STATUS_OK;
}

static enum status parse_fields(struct record *record) {
  switch (record->format) {
    case RECORD_TEXT:
      return get_text(record->json, "text", &record->completion);
    case RECORD_PROMPT_COMPLETION:
      TRY(get_text(record->json, "prompt", &record->prompt));
      return get_text(record->json, "completion", &record->completion);
    case RECORD_ALPACA:
      TRY(get_text(record->json, "instruction", &record->prompt));
      TRY(get_text(record->json, "output", &record->completion));
      if (has(record->json, "input") && !json_is_null(json_object_get(record->json, "input")))
        return get_text(record->json, "input", &record->input);
      return STATUS_OK;
    default:
      return parse_messages(record);
  }
}

/* True if the record has the keys of its format, so that a second format's keys
 * beside them do no harm. */
static bool has_keys(const json_t *object, enum record_format format) {
  switch (format) {
    case RECORD_TEXT:
      return has(object, "text");
    case RECORD_PROMPT_COMPLETION:
      return has(object, "prompt") && has(object, "completion");
    case RECORD_ALPACA:
      return has(object, "instruction") && has(object, "output");
    default:
      return has(object, "messages") || has(object, "conversations");
  }
}

static enum status check_format(const json_t *object, enum record_format expected, enum record_format *format_p) {
  enum record_format found = classify(object);
  if (expected == RECORD_AUTO) {
    if (found == RECORD_AUTO)
      return status_set(STATUS_DATA,
                        "no known keys; use text, or prompt and completion, or messages, or instruction and output");
    *format_p = found;
    return STATUS_OK;
  }
  if (!has_keys(object, expected) && found != RECORD_AUTO && found != expected)
    return status_set(STATUS_DATA, "a %s record in a file of %s records; use one file for each kind",
                      record_format_name(found), record_format_name(expected));
  *format_p = expected;
  return STATUS_OK;
}

enum status record_parse_json(const char *line, size_t length, enum record_format expected, struct record *record) {
  if (memchr(line, '\0', length)) return status_set(STATUS_DATA, "holds a NUL byte; the file is damaged or not text");
  json_error_t error;
  record->json = json_loadb(line, length, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &error);
  if (!record->json)
    return status_set(STATUS_DATA, "not valid JSON: byte %d: %s; one object a line", error.position, error.text);
  enum status status = STATUS_OK;
  if (!json_is_object(record->json)) TRY_OUT(status_set(STATUS_DATA, "not a JSON object; one object a line"));
  TRY_OUT(check_format(record->json, expected, &record->format));
  TRY_OUT(parse_fields(record));
out:
  if (status != STATUS_OK) record_free(record);
  return status;
}

void record_free(struct record *record) {
  free(record->messages);
  json_decref(record->json);
  *record = (struct record){0};
}

int record_count_bars(const char *line, size_t length) {
  int n = 0;
  for (size_t i = 0; i + 1 < length; i++) {
    if (line[i] != '|' || line[i + 1] != '|') continue;
    n++;
    i++;
  }
  return n;
}

static struct text_span strip(const char *text, size_t length) {
  static const char space[] = " \t\r\n\v\f";
  while (length > 0 && memchr(space, text[length - 1], sizeof space - 1)) length--;
  while (length > 0 && memchr(space, text[0], sizeof space - 1)) text++, length--;
  return (struct text_span){text, length};
}

enum status record_parse_e2e(const char *line, size_t length, struct record *record) {
  int bars = record_count_bars(line, length);
  if (bars != 1) return status_set(STATUS_DATA, "holds '||' %d times; wanted is one, as in input||target", bars);
  const char *bar = memmem(line, length, "||", 2);
  size_t before = (size_t)(bar - line);
  record->format = RECORD_E2E;
  record->prompt = strip(line, before);
  record->completion = strip(bar + 2, length - before - 2);
  return STATUS_OK;
}
