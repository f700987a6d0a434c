#include "launch/inspect_report.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/base_model.h"
#include "io/durable.h"
#include "io/peft.h"
#include "io/safetensors.h"
#include "io/synthetic.h"
#include "launch/inspect_adapter.h"

enum status report_begin(const char *kind, const char *format, const char *path, json_t **report_p) {
  json_t *report = json_pack("{s:s, s:s, s:s}", "kind", kind, "format", format, "path", path);
  if (!report) return status_set(STATUS_USAGE, "%s: the path is not UTF-8", path);
  *report_p = report;
  return STATUS_OK;
}

/* --- tensors and their sums --- */

static void add_to(json_t *object, const char *key, int64_t amount) {
  json_int_t before = json_integer_value(json_object_get(object, key));
  json_object_set_new(object, key, json_integer(before + (json_int_t)amount));
}

void report_count(json_t *report, const char *dtype, int64_t parameters, int64_t bytes) {
  json_t *dtypes = json_object_get(report, "dtypes"), *row;
  if (!dtypes) {
    dtypes = json_object();
    json_object_set_new(report, "dtypes", dtypes);
  }
  row = json_object_get(dtypes, dtype);
  if (!row) {
    row = json_object();
    json_object_set_new(dtypes, dtype, row);
  }
  add_to(row, "tensors", 1);
  add_to(row, "parameters", parameters);
  add_to(row, "bytes", bytes);
  add_to(report, "parameters", parameters);
  add_to(report, "bytes", bytes);
}

json_t *report_tensor(json_t *report, const char *name, const char *dtype, const int64_t *shape, int n_dims,
                      int64_t bytes) {
  json_t *list = json_object_get(report, "tensors"), *axes = json_array();
  if (!list) {
    list = json_array();
    json_object_set_new(report, "tensors", list);
  }
  for (int d = 0; d < n_dims; d++) json_array_append_new(axes, json_integer((json_int_t)shape[d]));
  json_t *row =
      json_pack("{s:s, s:s, s:o, s:I}", "name", name, "dtype", dtype, "shape", axes, "bytes", (json_int_t)bytes);
  json_array_append_new(list, row);
  return row;
}

static int64_t count_elements(const int64_t *shape, int n_dims) {
  int64_t n = 1;
  for (int d = 0; d < n_dims; d++) n *= shape[d];
  return n;
}

/* --- base models --- */

static void report_source(const struct tensor_source *source, bool with_tensors, json_t *report) {
  const struct model_facts *facts = &source->facts;
  json_object_set_new(report, "family", json_string(facts->family));
  json_object_set_new(report, "sizes",
                      json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "layers", (json_int_t)facts->n_layers,
                                "width", (json_int_t)facts->d_model, "heads", (json_int_t)facts->n_heads, "kv_heads",
                                (json_int_t)facts->n_kv_heads, "head_dim", (json_int_t)facts->head_dim, "ffn",
                                (json_int_t)facts->d_ffn, "vocabulary", (json_int_t)facts->n_vocab, "positions",
                                (json_int_t)facts->max_positions, "tied_head", facts->tied_head));
  for (int64_t i = 0; i < source->n_tensors; i++) {
    const struct tensor_info *info = source->at(source, i);
    int64_t n = count_elements(info->shape, info->n_dims), bytes = (int64_t)dtype_bytes(info->dtype, n);
    report_count(report, dtype_name(info->dtype), n, bytes);
    if (with_tensors) report_tensor(report, info->name, dtype_name(info->dtype), info->shape, info->n_dims, bytes);
  }
}

static enum status report_model(const char *path, const char *format, bool with_tensors, json_t **report_p) {
  struct tensor_source *source = NULL;
  TRY(base_model_open(path, &source));
  enum status status = report_begin("model", format, path, report_p);
  if (status == STATUS_OK) report_source(source, with_tensors, *report_p);
  base_model_close(&source);
  return status;
}

static enum status report_safetensors(const char *path, bool with_tensors, json_t **report_p) {
  struct safetensors *file = NULL;
  TRY(safetensors_open(path, &file));
  enum status status = report_begin("tensors", "safetensors", path, report_p);
  for (int64_t i = 0; status == STATUS_OK && i < file->n_tensors; i++) {
    const struct safetensors_tensor *tensor = &file->tensors[i];
    int n_dims = tensor->readable ? tensor->n_dims : 0;
    int64_t n = tensor->readable ? count_elements(tensor->shape, n_dims) : 0;
    report_count(*report_p, tensor->file_type, n, (int64_t)tensor->bytes);
    if (with_tensors)
      report_tensor(*report_p, tensor->name, tensor->file_type, tensor->shape, n_dims, (int64_t)tensor->bytes);
  }
  safetensors_close(&file);
  return status;
}

/* --- which kind --- */

static bool has_file(const char *folder, const char *name) {
  char path[DURABLE_PATH];
  struct stat info;
  return durable_path(path, sizeof path, "%s/%s", folder, name) == STATUS_OK && stat(path, &info) == 0;
}

static enum status report_folder(const char *path, bool with_tensors, json_t **report_p) {
  char step[DURABLE_PATH];
  bool peft = peft_is_folder(path);
  if (peft) TRY(adapter_resolve(path, step, sizeof step, &peft)); /* it may be a checkpoint, too */
  if (peft) return report_peft(path, with_tensors, report_p);
  if (has_file(path, "manifest.json")) return report_adapter(path, "step", with_tensors, report_p);
  if (has_file(path, "config.json")) return report_model(path, "huggingface", with_tensors, report_p);
  if (checkpoint_resolve(path, step, sizeof step) == STATUS_OK)
    return report_adapter(step, "step", with_tensors, report_p);
  return status_set(STATUS_USAGE,
                    "%s: neither a model (config.json), an adapter (adapter_config.json, manifest.json) nor a run "
                    "with a whole step",
                    path);
}

static enum status report_file(const char *path, bool with_tensors, json_t **report_p) {
  unsigned char head[9] = {0};
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  ssize_t n = fd >= 0 ? read(fd, head, sizeof head) : -1;
  if (fd >= 0) close(fd);
  if (n >= 8 && memcmp(head, "\211HDF\r\n\032\n", 8) == 0) return report_adapter(path, "hdf5", with_tensors, report_p);
  if (n >= 4 && memcmp(head, "GGUF", 4) == 0) return report_model(path, "gguf", with_tensors, report_p);
  if (n == 9 && head[8] == '{') return report_safetensors(path, with_tensors, report_p);
  return status_set(STATUS_USAGE, "%s: neither safetensors nor GGUF nor HDF5", path);
}

enum status inspect_report(const char *path, bool with_tensors, json_t **report_p) {
  struct stat info;
  if (synthetic_is_name(path)) return report_model(path, "synthetic", with_tensors, report_p);
  if (stat(path, &info) != 0) return status_set(STATUS_USAGE, "%s: no such file or folder", path);
  if (S_ISDIR(info.st_mode)) return report_folder(path, with_tensors, report_p);
  if (S_ISREG(info.st_mode)) return report_file(path, with_tensors, report_p);
  return status_set(STATUS_USAGE, "%s: neither a file nor a folder", path);
}
