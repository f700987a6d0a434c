/* Any bytes as a tokenizer.json: opened or refused; if opened, a short text is encoded and decoded.
 * seeds: tests/fixtures/tokenizers/added/tokenizer.json tests/fixtures/tokenizers/metaspace-first/tokenizer.json
 * seeds: tests/fixtures/tokenizers/split-string/tokenizer.json tests/fixtures/tokenizers/nfkc/tokenizer.json */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/log.h"
#include "io/tokenizer_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char text[] =
    "It's a<mask> <right>  test:\r\n\t12\xC2\xB2 word \xE2\x96\x81 e\xCC\x81\xCC\xA3 \xC4\xB0 \xF0\x9F\x98\x80 \xFF "
    "<gap>the";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct tokenizer *tokenizer = NULL;
  log_setup(0, 1, LOG_ERROR); /* ids that differ from the file's are worth a warning to people only */
  if (tokenizer_open_json("fuzz.json", (const char *)data, size, &tokenizer) != STATUS_OK) {
    if (tokenizer || !status_message()[0]) abort();
    return 0;
  }
  for (int special = 0; special < 2; special++) {
    struct token_list list = {0};
    char *decoded = NULL;
    size_t n;
    if (tokenizer_encode(tokenizer, text, sizeof text - 1, special, special, &list) == STATUS_OK &&
        tokenizer_decode(tokenizer, list.ids, list.n, special, &decoded, &n) == STATUS_OK && strlen(decoded) > n)
      abort();
    free(decoded);
    token_list_free(&list);
  }
  tokenizer_close(&tokenizer);
  return 0;
}
