/*
 * hf_folder.h: a Hugging Face model folder: config.json and one or many
 * safetensors files, with every header read and checked and no weight touched.
 */
#ifndef LORASHARD_IO_HF_FOLDER_H
#define LORASHARD_IO_HF_FOLDER_H

#include "io/model_facts.h"
#include "io/safetensors.h"
#include "io/status.h"

/* A tensor of the folder and the file that holds it. */
struct hf_tensor {
  const struct safetensors_tensor *tensor;
  const struct safetensors *file;
};

struct hf_folder {
  struct model_facts facts;
  struct safetensors **files;
  int n_files;
  struct hf_tensor *tensors; /* by name, each name once; causal-mask and rotary buffers left out */
  int64_t n_tensors;
};

/* Open a folder. A single model.safetensors wins over an index. Names keep the
 * prefix they have in the file. On success *folder_p is the caller's. Errors:
 * STATUS_USAGE (no weights, only a pickle, an adapter folder, an unsupported
 * model or dtype: named), STATUS_DATA (malformed file, missing shard, index
 * entry without a tensor). */
enum status hf_folder_open(const char *path, struct hf_folder **folder_p);

/* NULL is fine; sets the pointer to NULL. */
void hf_folder_close(struct hf_folder **folder_p);

#endif
