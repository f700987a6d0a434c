#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/base_model.h"
#include "io/durable.h"
#include "io/safetensors.h"
#include "launch/merge_output.h"
#include "lora/merge.h"
#include "model/arch.h"

#define PIECE_VALUES ((int64_t)4 << 20) /* weights that are in memory at a time, unless a row is longer */

/* The adapter's module on a tensor, and which third of a fused one it is. */
struct patch {
  const struct adapter_module *module;
  int part;
};

/* A tensor on its way from base to output. */
struct merge_tensor {
  const struct tensor_info *info;
  enum dtype dtype;
  int64_t rows, cols;
  uint64_t bytes;
  struct patch patches[3];
  int n_patches;
  int file; /* 0-based */
};

struct merge {
  const struct merge_request *request;
  const struct arch *arch;
  struct merge_tensor *tensors; /* in output order: file, falling dtype size, name */
  int64_t n_tensors;
  int n_files;
  float *values; /* [PIECE_VALUES or a row] */
  void *rounded;
  float *delta; /* [longest row] */
};

static enum status no_memory(void) { return status_set(STATUS_SYSTEM, "no memory for merging"); }

enum dtype merge_dtype(const struct merge_request *request, const struct tensor_info *info) {
  if (!request->keep) return request->dtype;
  for (int64_t i = 0; i < request->source->n_tensors; i++)
    if (dtype_quantised(request->source->at(request->source, i)->dtype)) return DTYPE_BF16;
  return info->dtype;
}

/* --- which tensor each module changes --- */

/* The tensor that holds a module, under whichever prefix the files use. */
static const struct tensor_info *module_tensor(const struct merge *merge, const struct adapter_module *module) {
  const struct arch *arch = merge->arch;
  const char *path = arch->linear[module->module] ? arch->linear[module->module] : arch->qkv;
  if (!path) return NULL;
  char layer[32], name[256];
  snprintf(layer, sizeof layer, arch->layer, module->layer);
  for (int p = 0; p < 3 && arch->prefixes[p]; p++) {
    snprintf(name, sizeof name, "%s%s%s.weight", arch->prefixes[p], layer, path);
    const struct tensor_info *info = merge->request->source->find(merge->request->source, name);
    if (info) return info;
  }
  return NULL;
}

static bool is_fused(const struct merge *merge, enum module module) { return !merge->arch->linear[module]; }

/* The shape that the tensor must have for this module to fit. */
static enum status check_shape(const struct merge *merge, const struct adapter_module *module,
                               const struct merge_tensor *tensor) {
  bool fused = is_fused(merge, module->module);
  int64_t out = fused ? 3 * module->out : module->out;
  int64_t rows = merge->arch->conv1d ? module->in : out, cols = merge->arch->conv1d ? out : module->in;
  if (tensor->info->n_dims == 2 && tensor->rows == rows && tensor->cols == cols) return STATUS_OK;
  return status_set(STATUS_USAGE,
                    "adapter module %s of layer %d makes %" PRId64 " of %" PRId64 "; tensor %s of the base is [%" PRId64
                    ", %" PRId64 "]: it belongs to another base",
                    module_names[module->module], module->layer, module->out, module->in, tensor->info->name,
                    tensor->rows, tensor->cols);
}

static enum status add_patch(struct merge *merge, const struct adapter_module *module) {
  const struct tensor_info *info = module_tensor(merge, module);
  if (!info)
    return status_set(STATUS_USAGE, "%s: the adapter changes %s of layer %d, which this base does not have",
                      merge->request->source->path, module_names[module->module], module->layer);
  struct merge_tensor *tensor = merge->tensors;
  while (tensor->info != info) tensor++; /* every tensor of the source has one */
  TRY(check_shape(merge, module, tensor));
  int part = is_fused(merge, module->module) ? (int)module->module : 0; /* MODULE_Q, K, V are 0, 1, 2 */
  for (int p = 0; p < tensor->n_patches; p++)
    if (tensor->patches[p].part == part)
      return status_set(STATUS_DATA, "the adapter changes %s of layer %d twice", module_names[module->module],
                        module->layer);
  tensor->patches[tensor->n_patches++] = (struct patch){module, part};
  return STATUS_OK;
}

/* --- order and files --- */

static int by_size_and_name(const void *a, const void *b) {
  const struct merge_tensor *x = a, *y = b;
  if (x->file != y->file) return x->file < y->file ? -1 : 1;
  size_t size_x = dtype_block_bytes(x->dtype), size_y = dtype_block_bytes(y->dtype);
  if (size_x != size_y) return size_x > size_y ? -1 : 1;
  return strcmp(x->info->name, y->info->name);
}

static enum status plan(struct merge *merge) {
  const struct merge_request *request = merge->request;
  struct tensor_source *source = request->source;
  merge->arch = arch_find(source->facts.family);
  if (!merge->arch) return status_set(STATUS_USAGE, "%s: family %s is not known", source->path, source->facts.family);
  merge->tensors = calloc((size_t)source->n_tensors + 1, sizeof *merge->tensors);
  if (!merge->tensors) return no_memory();
  merge->n_tensors = source->n_tensors;
  uint64_t filled = 0;
  int64_t longest = 1;
  for (int64_t i = 0; i < merge->n_tensors; i++) {
    struct merge_tensor *tensor = &merge->tensors[i];
    tensor->info = source->at(source, i);
    tensor->dtype = merge_dtype(request, tensor->info);
    tensor->rows = tensor->info->n_dims == 2 ? tensor->info->shape[0] : 1;
    tensor->cols = tensor->info->n_dims == 0 ? 1 : tensor->info->shape[tensor->info->n_dims - 1];
    tensor->bytes = dtype_bytes(tensor->dtype, tensor->rows * tensor->cols);
    if (tensor->info->n_dims > 2)
      return status_set(STATUS_USAGE, "%s: tensor %s has %d axes, which merge cannot copy", source->path,
                        tensor->info->name, tensor->info->n_dims);
    if (filled > 0 && filled + tensor->bytes > request->shard_bytes) {
      merge->n_files++;
      filled = 0;
    }
    tensor->file = merge->n_files;
    filled += tensor->bytes;
    if (tensor->cols > longest) longest = tensor->cols;
  }
  merge->n_files++;
  for (int m = 0; m < request->adapter->n_modules; m++) TRY(add_patch(merge, &request->adapter->modules[m]));
  qsort(merge->tensors, (size_t)merge->n_tensors, sizeof *merge->tensors, by_size_and_name);

  size_t piece = (size_t)(longest > PIECE_VALUES ? longest : PIECE_VALUES);
  merge->values = malloc(piece * sizeof *merge->values);
  merge->rounded = malloc(piece * sizeof *merge->values);
  merge->delta = malloc((size_t)longest * sizeof *merge->delta);
  return merge->values && merge->rounded && merge->delta ? STATUS_OK : no_memory();
}

/* --- one tensor --- */

/* How a patch sees row `row` of the stored tensor; false if that row is not
 * its. *col: where in the row its change begins. */
static bool patch_row(const struct merge *merge, const struct patch *patch, int64_t row, struct merge_change *change,
                      int64_t *col) {
  const struct adapter_module *module = patch->module;
  *col = 0;
  if (merge->arch->conv1d) { /* a row is an input; q, k, v lie side by side */
    *change = (struct merge_change){module->A + row, module->in, module->B,   1,
                                    module->r,       module->r,  module->out, module->scale};
    *col = patch->part * module->out;
    return true;
  }
  if (is_fused(merge, module->module)) { /* rows [H][3][head_dim] */
    int64_t head_dim = merge->request->source->facts.head_dim;
    if (row / head_dim % 3 != patch->part) return false;
    row = row / (3 * head_dim) * head_dim + row % head_dim;
  }
  *change = (struct merge_change){
      module->B + row * module->r, 1, module->A, module->in, 1, module->r, module->in, module->scale};
  return true;
}

static enum status merge_piece(struct merge *merge, const struct merge_tensor *tensor, int64_t row, int64_t n_rows,
                               struct merge_sizes *sizes) {
  TRY(base_model_read_f32(merge->request->source, tensor->info, row, n_rows, 0, tensor->cols, merge->values,
                          tensor->cols));
  for (int64_t i = 0; i < n_rows; i++)
    for (int p = 0; p < tensor->n_patches; p++) {
      struct merge_change change;
      int64_t col;
      if (patch_row(merge, &tensor->patches[p], row + i, &change, &col))
        merge_add_row(&change, merge->values + i * tensor->cols + col, merge->delta, sizes);
    }
  int64_t overflow = merge_round(merge->values, n_rows * tensor->cols, tensor->dtype, merge->rounded, &sizes->lost);
  if (overflow < 0) return STATUS_OK;
  return status_set(STATUS_DATA, "tensor %s: %g does not fit %s; use --dtype bf16 or f32", tensor->info->name,
                    (double)merge->values[overflow], dtype_name(tensor->dtype));
}

static enum status write_tensor(struct merge *merge, const struct merge_tensor *tensor,
                                struct safetensors_writer *writer, struct merge_sizes *sizes) {
  int64_t piece = tensor->cols > 0 && tensor->cols < PIECE_VALUES ? PIECE_VALUES / tensor->cols : 1;
  for (int64_t row = 0; row < tensor->rows; row += piece) {
    int64_t n = tensor->rows - row < piece ? tensor->rows - row : piece;
    size_t row_bytes = dtype_bytes(tensor->dtype, tensor->cols);
    if (tensor->n_patches == 0 && tensor->dtype == tensor->info->dtype)
      TRY(merge->request->source->read(merge->request->source, tensor->info, row, n, 0, tensor->cols, merge->rounded,
                                       row_bytes));
    else
      TRY(merge_piece(merge, tensor, row, n, sizes));
    TRY(safetensors_writer_append(writer, merge->rounded, (size_t)n * row_bytes));
  }
  return STATUS_OK;
}

/* --- files --- */

static void file_name(const struct merge *merge, int file, char name[64]) {
  if (merge->n_files == 1)
    snprintf(name, 64, "model.safetensors");
  else
    snprintf(name, 64, "model-%05d-of-%05d.safetensors", file + 1, merge->n_files);
}

/* Write tensors [first, end), which are one file's. */
static enum status write_file(struct merge *merge, int64_t first, int64_t end, struct merge_sizes *total,
                              struct merge_report *report) {
  char name[64], path[DURABLE_PATH];
  file_name(merge, merge->tensors[first].file, name);
  TRY(durable_path(path, sizeof path, "%s/%s", merge->request->folder, name));
  struct safetensors_entry *entries = calloc((size_t)(end - first), sizeof *entries);
  if (!entries) return no_memory();
  for (int64_t i = first; i < end; i++) {
    const struct merge_tensor *tensor = &merge->tensors[i];
    entries[i - first] = (struct safetensors_entry){tensor->info->name, tensor->dtype, tensor->info->n_dims, {0}};
    memcpy(entries[i - first].shape, tensor->info->shape, sizeof tensor->info->shape);
  }
  struct safetensors_writer *writer = NULL;
  enum status status = STATUS_OK;
  TRY_OUT(safetensors_writer_create(path, entries, end - first, &writer));
  for (int64_t i = first; i < end; i++) {
    const struct merge_tensor *tensor = &merge->tensors[i];
    struct merge_sizes sizes = {0};
    TRY_OUT(write_tensor(merge, tensor, writer, &sizes));
    report->bytes += tensor->bytes;
    if (tensor->n_patches == 0) continue;
    report->n_changed++;
    total->weight += sizes.weight;
    total->change += sizes.change;
    double loss = sizes.change > 0 ? sqrt(sizes.lost / sizes.change) : 0;
    if (loss > report->largest_loss) {
      report->largest_loss = loss;
      snprintf(report->lossiest, sizeof report->lossiest, "%s", tensor->info->name);
    }
  }
  status = safetensors_writer_finish(&writer);
out:
  safetensors_writer_destroy(&writer);
  free(entries);
  return status;
}

static enum status write_index(const struct merge *merge, uint64_t bytes) {
  json_t *map = json_object();
  enum status status = STATUS_OK;
  char *text = NULL, path[DURABLE_PATH];
  bool failed = !map;
  for (int64_t i = 0; i < merge->n_tensors && !failed; i++) {
    char name[64];
    file_name(merge, merge->tensors[i].file, name);
    failed = json_object_set_new(map, merge->tensors[i].info->name, json_string(name)) != 0;
  }
  json_t *root =
      failed ? NULL : json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)bytes, "weight_map", map);
  if (root) text = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS);
  if (!text) {
    status = no_memory();
    goto out;
  }
  TRY_OUT(durable_path(path, sizeof path, "%s/model.safetensors.index.json", merge->request->folder));
  TRY_OUT(durable_write(path, text, strlen(text)));
out:
  free(text);
  json_decref(root);
  json_decref(map);
  return status;
}

enum status merge_write_weights(const struct merge_request *request, struct merge_report *report) {
  struct merge merge = {.request = request};
  struct merge_sizes total = {0};
  struct merge_report found = {0};
  enum status status = STATUS_OK;
  TRY_OUT(plan(&merge));
  for (int64_t first = 0, end; first < merge.n_tensors; first = end) {
    for (end = first + 1; end < merge.n_tensors && merge.tensors[end].file == merge.tensors[first].file;) end++;
    TRY_OUT(write_file(&merge, first, end, &total, &found));
  }
  if (merge.n_files > 1) TRY_OUT(write_index(&merge, found.bytes));
  found.relative_change = total.weight > 0 ? sqrt(total.change / total.weight) : 0;
  found.n_tensors = (int)merge.n_tensors;
  found.n_files = merge.n_files;
  *report = found;
out:
  free(merge.tensors);
  free(merge.values);
  free(merge.rounded);
  free(merge.delta);
  return status;
}
