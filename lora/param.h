/*
 * param.h: what trains, as a list of named matrices: whole shape, the part this
 * rank holds, its parallel state and its reduction group. Buckets, optimizer and
 * checkpoints work on this list and know nothing of A and B.
 *
 * Per reduction group there is one flat bucket of parameters, gradients and
 * moments; a parameter's pointers lie inside them.
 */
#ifndef LORASHARD_LORA_PARAM_H
#define LORASHARD_LORA_PARAM_H

#include <stdbool.h>
#include <stdint.h>

#include "dist/mesh.h"
#include "io/status.h"
#include "model/device.h"

/* Over which ranks a gradient is summed. */
enum param_group {
  PARAM_STAGE, /* replicated over tp, partial gradients: tp and dp */
  PARAM_DP,    /* sharded over tp: dp only */
  PARAM_GROUPS,
};

struct param {
  char group_name[64]; /* "layers/12/q" */
  char name[16];       /* "A" */
  int64_t rows, cols;  /* whole */
  int64_t row, col;    /* where this rank's part begins */
  int64_t part_rows, part_cols;
  enum param_group group;
  int64_t offset;       /* in its bucket */
  float *w, *g, *m, *v; /* [part_rows, part_cols], device memory */
};

struct param_bucket {
  int64_t n;            /* parameters */
  float *w, *g, *m, *v; /* [n], device memory */
};

struct param_list {
  struct param *items;
  int n, capacity;
  struct param_bucket buckets[PARAM_GROUPS];
  void *memory; /* one block for all buckets, device memory */
  size_t memory_bytes;
  void *host; /* the same in host memory, as of the last param_list_fetch; = memory on a device with host memory */
};

/* Add a parameter; pointers come with param_list_allocate. */
enum status param_list_add(struct param_list *list, const struct param *param);

/* Bytes that param_list_allocate takes. */
size_t param_list_bytes(const struct param_list *list);

/* Allocate the buckets, zeroed, and set every pointer. */
enum status param_list_allocate(struct param_list *list, struct device *device);
void param_list_free(struct param_list *list, struct device *device);

/* True if this rank writes the parameter's part to a checkpoint: sharded parts by
 * every tp rank of dp rank 0, replicated ones by tp rank 0 alone. */
bool param_is_written(const struct param *param, const struct mesh *mesh);

/* Zero all gradients. */
enum status param_list_zero_gradients(struct param_list *list, struct device *device);

/* Bytes of each of a parameter's four arrays. */
static inline size_t param_bytes(const struct param *param) {
  return (size_t)(param->part_rows * param->part_cols) * sizeof(float);
}

/* Copy all parameters, gradients and moments to list->host, or back. */
enum status param_list_fetch(struct param_list *list, struct device *device);
enum status param_list_send(struct param_list *list, struct device *device);

/* Where the host's copy of an array is: param_host(list, param->w). */
static inline float *param_host(const struct param_list *list, const float *array) {
  return (float *)((char *)list->host + ((const char *)array - (const char *)list->memory));
}

/* This rank's part = its place in a whole [rows, cols] matrix in host memory. */
enum status param_set_from_whole(const struct param *param, struct device *device, const float *whole);

#endif
