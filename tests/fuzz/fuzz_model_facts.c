/* config.json: any bytes give facts that pass their own check, or an error. */
#include <stdint.h>
#include <stdlib.h>

#include "io/base_model.h"
#include "io/model_facts_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct model_facts facts;
  if (model_facts_parse((const char *)data, size, "config.json", &facts) == STATUS_OK &&
      model_facts_check("config.json", &facts) != STATUS_OK)
    abort();
  return 0;
}
