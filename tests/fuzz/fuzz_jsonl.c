/* Any bytes as a line of each format: parsed or refused, nothing left behind. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t total;

static void use(struct text_span span) {
  for (size_t i = 0; i < span.length; i++) total += (unsigned char)span.text[i];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  for (int format = RECORD_AUTO; format <= RECORD_E2E; format++) {
    struct record record = {0};
    enum status status = format == RECORD_E2E
                             ? record_parse_e2e((const char *)data, size, &record)
                             : record_parse_json((const char *)data, size, (enum record_format)format, &record);
    if (status == STATUS_OK) {
      use(record.prompt);
      use(record.input);
      use(record.completion);
      for (int i = 0; i < record.n_messages; i++) total += strlen(record.messages[i].content);
      if (record.format == RECORD_AUTO) abort();
    } else if (record.json || record.messages) {
      abort();
    }
    record_free(&record);
  }
  return 0;
}
