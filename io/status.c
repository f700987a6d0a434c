#include "io/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MESSAGE_SIZE 1024

static _Thread_local char message[MESSAGE_SIZE];

/* One message is one line: control characters of file names and of other
 * programs' texts become spaces. */
static void flatten(char *text) {
  for (; *text; text++)
    if ((unsigned char)*text < 0x20 || *text == 0x7f) *text = ' ';
}

enum status status_set(enum status code, const char *format, ...) {
  char text[MESSAGE_SIZE];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  flatten(text);
  memcpy(message, text, sizeof text);
  return code;
}

enum status status_prefix(enum status code, const char *format, ...) {
  char text[MESSAGE_SIZE];
  va_list args;
  va_start(args, format);
  int used = vsnprintf(text, sizeof text, format, args);
  va_end(args);
  if (used < 0) used = 0;
  if ((size_t)used < sizeof text) snprintf(text + used, sizeof text - (size_t)used, ": %s", message);
  flatten(text);
  memcpy(message, text, sizeof text);
  return code;
}

const char *status_message(void) { return message; }

int status_exit_code(enum status code) {
  if (code == STATUS_OK) return 0;
  return code == STATUS_USAGE ? 2 : 1;
}
