/* Configuration text: never a crash; what is accepted prints to text that is
 * accepted and prints the same again. A first byte '=' stands for --set.
 * seeds: cluster-configs/runs tests/fuzz/seeds/config */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/config.h"

static void check_round_trip(const struct config *config) {
  char *first, *second;
  struct config copy;
  if (config_print(config, &first) != STATUS_OK || config_init(&copy) != STATUS_OK) abort();
  if (config_parse(&copy, first, strlen(first), "printed") != STATUS_OK) abort();
  if (config_print(&copy, &second) != STATUS_OK || strcmp(first, second) != 0) abort();
  config_free(&copy);
  free(first);
  free(second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct config config;
  if (size == 0 || config_init(&config) != STATUS_OK) return 0;
  enum status status;
  if (data[0] == '=') {
    char *text = strndup((const char *)data + 1, size - 1);
    status = config_set(&config, text);
    free(text);
  } else {
    status = config_parse(&config, (const char *)data, size, "fuzz");
  }
  if (status == STATUS_OK) check_round_trip(&config);
  config_free(&config);
  return 0;
}
