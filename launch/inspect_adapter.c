#include "launch/inspect_adapter.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/checkpoint.h"
#include "io/durable.h"
#include "io/file_read.h"
#include "io/quant.h"
#include "io/safetensors.h"

#define CONFIG_LIMIT (16 << 20)
#define MAX_KINDS    64

/* Sums over the layers of one kind of module: "q", or PEFT's "c_attn". */
struct kind {
  char name[64];
  int n;
  int64_t r_low, r_high, parameters;
  double scale_low, scale_high;
  double norm_a, norm_b; /* Frobenius norms, summed over layers */
};

struct kinds {
  struct kind items[MAX_KINDS];
  int n;
};

/* The row of that name, made if needed; kinds beyond the table share the last. */
static struct kind *find_kind(struct kinds *kinds, const char *name) {
  for (int i = 0; i < kinds->n; i++)
    if (strcmp(kinds->items[i].name, name) == 0) return &kinds->items[i];
  if (kinds->n == MAX_KINDS) return &kinds->items[MAX_KINDS - 1];
  struct kind *kind = &kinds->items[kinds->n++];
  *kind = (struct kind){.r_low = INT64_MAX, .scale_low = INFINITY, .scale_high = -INFINITY};
  snprintf(kind->name, sizeof kind->name, "%s", kinds->n == MAX_KINDS ? "others" : name);
  return kind;
}

/* JSON has no infinities: a norm that is none is null. */
static json_t *norm_json(double value) { return isfinite(value) ? json_real(value) : json_null(); }

static json_t *kinds_json(const struct kinds *kinds) {
  json_t *list = json_array();
  for (int i = 0; i < kinds->n; i++) {
    const struct kind *kind = &kinds->items[i];
    double layers = kind->n > 0 ? kind->n : 1;
    json_t *row = json_pack("{s:s, s:i, s:[I, I], s:I, s:o, s:o}", "module", kind->name, "count", kind->n, "r",
                            (json_int_t)(kind->n ? kind->r_low : 0), (json_int_t)kind->r_high, "parameters",
                            (json_int_t)kind->parameters, "norm_a", norm_json(kind->norm_a / layers), "norm_b",
                            norm_json(kind->norm_b / layers));
    if (row && isfinite(kind->scale_low))
      json_object_set_new(row, "scale", json_pack("[f, f]", kind->scale_low, kind->scale_high));
    if (row) json_array_append_new(list, row);
  }
  return list;
}

static void widen(struct kind *kind, int64_t r, double scale) {
  if (r < kind->r_low) kind->r_low = r;
  if (r > kind->r_high) kind->r_high = r;
  if (scale < kind->scale_low) kind->scale_low = scale;
  if (scale > kind->scale_high) kind->scale_high = scale;
}

static double norm(const float *values, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)values[i] * (double)values[i];
  return sqrt(sum);
}

/* --- our own files --- */

static enum status array_norm(const struct checkpoint *checkpoint, const struct checkpoint_array *stored,
                              double *norm_p) {
  struct checkpoint_array array = *stored;
  array.row = array.col = 0;
  array.part_rows = array.rows;
  array.part_cols = array.cols;
  array.data = malloc((size_t)array.rows * (size_t)array.cols * sizeof(float));
  if (!array.data) return status_set(STATUS_SYSTEM, "out of memory for %s/%s", array.group, array.name);
  enum status status = checkpoint_read(checkpoint, &array);
  if (status == STATUS_OK) *norm_p = norm(array.data, array.rows * array.cols);
  free(array.data);
  return status;
}

static enum status add_array(const struct checkpoint *checkpoint, const struct checkpoint_array *array,
                             struct kinds *kinds, bool with_tensors, json_t *report) {
  const char *last = strrchr(array->group, '/');
  struct kind *kind = find_kind(kinds, last ? last + 1 : array->group);
  bool is_a = strcmp(array->name, "A") == 0, is_b = strcmp(array->name, "B") == 0;
  int64_t n = array->rows * array->cols, bytes = n * (int64_t)sizeof(float);
  double value = 0;
  if (strchr(array->name, '.')) {
    json_object_set_new(report, "optimizer", json_true());
  } else {
    TRY(array_norm(checkpoint, array, &value));
    report_count(report, "f32", n, bytes);
    kind->parameters += n;
    if (is_a) kind->norm_a += value;
    if (is_b) kind->norm_b += value;
  }
  if (!with_tensors) return STATUS_OK;
  char name[2 * CHECKPOINT_NAME];
  int64_t shape[2] = {array->rows, array->cols};
  snprintf(name, sizeof name, "%s/%s", array->group, array->name);
  json_t *row = report_tensor(report, name, "f32", shape, 2, bytes);
  if (row && !strchr(array->name, '.')) json_object_set_new(row, "norm", norm_json(value));
  return STATUS_OK;
}

/* A seed above 2^63 is no JSON integer of this library's: then as text. */
static json_t *seed_json(uint64_t seed) {
  char text[24];
  if (seed <= INT64_MAX) return json_integer((json_int_t)seed);
  snprintf(text, sizeof text, "%" PRIu64, seed);
  return json_string(text);
}

static json_t *header_json(const struct checkpoint_header *h) {
  return json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:o, s:I, s:s}", "method", h->method,
                   "program_version", h->program_version, "base_path", h->base_path, "base_family", h->base_family,
                   "base_fingerprint", h->base_fingerprint, "step", (json_int_t)h->step, "epoch", (json_int_t)h->epoch,
                   "cursor", (json_int_t)h->cursor, "tokens_seen", (json_int_t)h->tokens_seen, "seed",
                   seed_json(h->seed), "skipped_steps", (json_int_t)h->extra_skipped_steps, "data_digest",
                   h->data_digest);
}

static enum status fill_adapter(const struct checkpoint *checkpoint, bool with_tensors, json_t *report) {
  struct kinds kinds = {.n = 0};
  const struct checkpoint_module *modules;
  const struct checkpoint_array *arrays;
  int n_modules = checkpoint_modules(checkpoint, &modules), n_arrays = checkpoint_arrays(checkpoint, &arrays);
  json_t *header = header_json(checkpoint_header(checkpoint));
  json_object_set_new(report, "header", header ? header : json_null());
  json_object_set_new(report, "optimizer", json_false());
  json_object_set_new(report, "n_modules", json_integer(n_modules));
  for (int i = 0; i < n_modules; i++) {
    const struct checkpoint_module *module = &modules[i];
    const char *last = strrchr(module->group, '/');
    struct kind *kind = find_kind(&kinds, last ? last + 1 : module->group);
    kind->n++;
    widen(kind, module->r, module->alpha / (module->rslora ? sqrt((double)module->r) : (double)module->r));
  }
  for (int i = 0; i < n_arrays; i++) TRY(add_array(checkpoint, &arrays[i], &kinds, with_tensors, report));
  json_object_set_new(report, "modules", kinds_json(&kinds));
  return STATUS_OK;
}

enum status report_adapter(const char *path, const char *format, bool with_tensors, json_t **report_p) {
  struct checkpoint *checkpoint = NULL;
  TRY(checkpoint_open(path, &checkpoint));
  json_t *report = NULL;
  enum status status = report_begin("adapter", format, path, &report);
  if (status == STATUS_OK) status = fill_adapter(checkpoint, with_tensors, report);
  checkpoint_close(&checkpoint);
  if (status == STATUS_OK)
    *report_p = report;
  else
    json_decref(report);
  return status;
}

/* --- PEFT --- */

static enum status peft_norm(const struct safetensors *file, const struct safetensors_tensor *tensor, int64_t n,
                             double *norm_p) {
  void *raw = malloc((size_t)tensor->bytes + 1);
  float *values = malloc((size_t)(n + 1) * sizeof *values);
  enum status status = raw && values ? safetensors_read(file, tensor, 0, (size_t)tensor->bytes, raw)
                                     : status_set(STATUS_SYSTEM, "%s: out of memory", file->path);
  if (status == STATUS_OK) {
    quant_expand_f32(tensor->dtype, raw, n, values);
    *norm_p = norm(values, n);
  }
  free(raw);
  free(values);
  return status;
}

/* The last name before ".lora_A" or ".lora_B"; false for other tensors. */
static bool module_of_key(const char *key, char name[64], bool *is_a) {
  const char *lora = strstr(key, ".lora_A.");
  *is_a = lora != NULL;
  if (!lora) lora = strstr(key, ".lora_B.");
  if (!lora) return false;
  const char *begin = lora;
  while (begin > key && begin[-1] != '.') begin--;
  snprintf(name, 64, "%.*s", (int)(lora - begin), begin);
  return true;
}

static enum status add_peft_tensor(const struct safetensors *file, const struct safetensors_tensor *tensor,
                                   struct kinds *kinds, bool with_tensors, json_t *report) {
  char name[64];
  bool is_a;
  int n_dims = tensor->readable ? tensor->n_dims : 0;
  int64_t n = tensor->readable ? 1 : 0;
  for (int d = 0; d < n_dims; d++) n *= tensor->shape[d];
  report_count(report, tensor->file_type, n, (int64_t)tensor->bytes);
  json_t *row = with_tensors ? report_tensor(report, tensor->name, tensor->file_type, tensor->shape, n_dims,
                                             (int64_t)tensor->bytes)
                             : NULL;
  if (n_dims != 2 || !module_of_key(tensor->name, name, &is_a)) return STATUS_OK;
  double value;
  TRY(peft_norm(file, tensor, n, &value));
  if (row) json_object_set_new(row, "norm", norm_json(value));
  struct kind *kind = find_kind(kinds, name);
  kind->parameters += n;
  if (is_a) {
    kind->n++;
    kind->norm_a += value;
    if (tensor->shape[0] < kind->r_low) kind->r_low = tensor->shape[0];
    if (tensor->shape[0] > kind->r_high) kind->r_high = tensor->shape[0];
  } else {
    kind->norm_b += value;
  }
  return STATUS_OK;
}

/* The fields of adapter_config.json that say how the adapter is applied. */
static enum status peft_header(const char *folder, json_t *report) {
  static const char *const names[] = {"peft_type",
                                      "base_model_name_or_path",
                                      "r",
                                      "lora_alpha",
                                      "use_rslora",
                                      "target_modules",
                                      "rank_pattern",
                                      "alpha_pattern",
                                      "peft_version",
                                      NULL};
  char path[DURABLE_PATH], *text;
  size_t length;
  json_error_t error;
  TRY(durable_path(path, sizeof path, "%s/adapter_config.json", folder));
  TRY(file_read_text(path, CONFIG_LIMIT, &text, &length));
  json_t *config = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
  free(text);
  if (!config) return status_set(STATUS_DATA, "%s:%d: %s", path, error.line, error.text);
  json_t *header = json_object();
  for (const char *const *name = names; *name; name++) {
    json_t *value = json_object_get(config, *name);
    if (value) json_object_set(header, *name, value);
  }
  json_decref(config);
  json_object_set_new(report, "header", header);
  return STATUS_OK;
}

static enum status fill_peft(const char *folder, const struct safetensors *file, bool with_tensors, json_t *report) {
  struct kinds kinds = {.n = 0};
  int n = 0;
  TRY(peft_header(folder, report));
  for (int64_t i = 0; i < file->n_tensors; i++)
    TRY(add_peft_tensor(file, &file->tensors[i], &kinds, with_tensors, report));
  for (int i = 0; i < kinds.n; i++) n += kinds.items[i].n;
  json_object_set_new(report, "n_modules", json_integer(n));
  json_object_set_new(report, "modules", kinds_json(&kinds));
  return STATUS_OK;
}

enum status report_peft(const char *path, bool with_tensors, json_t **report_p) {
  char tensors[DURABLE_PATH];
  struct safetensors *file = NULL;
  TRY(durable_path(tensors, sizeof tensors, "%s/adapter_model.safetensors", path));
  TRY(safetensors_open(tensors, &file));
  json_t *report = NULL;
  enum status status = report_begin("adapter", "peft", path, &report);
  if (status == STATUS_OK) status = fill_peft(path, file, with_tensors, report);
  safetensors_close(&file);
  if (status == STATUS_OK)
    *report_p = report;
  else
    json_decref(report);
  return status;
}
