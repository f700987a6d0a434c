/* The reader of cluster files on any text; what it takes, it prints and takes again to the same values.
 * seeds: cluster-configs/laptop.yaml cluster-configs/h100-16x8.yaml */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/cluster.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct cluster cluster, again;
  char *text, *text_again;
  if (cluster_parse((const char *)data, size, "fuzz", &cluster) != STATUS_OK) return 0;
  if (cluster_print(&cluster, &text) != STATUS_OK) __builtin_trap();
  if (cluster_parse(text, strlen(text), "printed", &again) != STATUS_OK) __builtin_trap();
  if (cluster_print(&again, &text_again) != STATUS_OK || strcmp(text, text_again) != 0) __builtin_trap();
  cluster_time(&cluster, CLUSTER_ALL_REDUCE, 1e9, 64, cluster.device.per_node, cluster.device.per_node);
  free(text);
  free(text_again);
  return 0;
}
