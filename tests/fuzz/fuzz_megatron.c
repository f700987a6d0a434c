/* Any bytes as an index: refused, or all its documents lie inside the .bin. The
 * first two bytes are the size of the .bin. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "io/megatron_bin.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2) return 0;
  const int64_t bin_size = data[0] | data[1] << 8;
  struct megatron_index index;
  if (megatron_index_parse(data + 2, size - 2, (uint64_t)bin_size, "fuzz.idx", &index) != STATUS_OK) return 0;
  for (int64_t d = 0; d < index.n_documents; d++) {
    int64_t first, n;
    megatron_index_document(&index, d, &first, &n);
    if (first < 0 || n < 0 || (first + n) * index.token_bytes > bin_size) abort();
  }
  return 0;
}
