/*
 * merge_output.h: what `merge` writes: the weights in one or many safetensors
 * files, and the config.json and tokenizer files beside them.
 */
#ifndef LORASHARD_LAUNCH_MERGE_OUTPUT_H
#define LORASHARD_LAUNCH_MERGE_OUTPUT_H

#include <stdbool.h>
#include <stdint.h>

#include "io/peft.h"
#include "io/tensor_source.h"

struct merge_request {
  struct tensor_source *source;
  const struct adapter_set *adapter;
  const char *folder;   /* exists, empty */
  bool keep;            /* each tensor keeps its dtype; a base with quantised tensors becomes bf16 */
  enum dtype dtype;     /* without keep: f32, f16 or bf16 */
  uint64_t shard_bytes; /* a file grows to at most this, unless one tensor is larger */
};

struct merge_report {
  double relative_change; /* ||s B A|| / ||W|| over the changed rows */
  double largest_loss;    /* over tensors: ||rounding|| / ||s B A|| */
  char lossiest[256];     /* the tensor it is in; "" if nothing was lost */
  int n_changed, n_tensors, n_files;
  uint64_t bytes;
};

/* Write every tensor of the base, changed where the adapter says, piece by
 * piece: memory does not grow with the model. Each module of the adapter must
 * fit a tensor of the base. Errors: STATUS_USAGE (adapter of another shape),
 * STATUS_DATA (unreadable base, a value outside f16), STATUS_SYSTEM. */
enum status merge_write_weights(const struct merge_request *request, struct merge_report *report);

/* The dtype a tensor of the base gets. */
enum dtype merge_dtype(const struct merge_request *request, const struct tensor_info *info);

/* config.json (copied, its dtype brought up to date; made from the keys for a
 * GGUF base) and, from a folder, the tokenizer's files. Errors: STATUS_USAGE (a
 * GGUF whose rotary scaling no config.json can say), STATUS_SYSTEM. */
enum status merge_write_config(const struct merge_request *request);

#endif
