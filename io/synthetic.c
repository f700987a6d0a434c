/*
 * The tensor source over made-up weights, and the names that ask for one.
 */
#include "io/synthetic.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/base_model.h"
#include "io/base_model_internal.h"
#include "io/model_facts_internal.h"
#include "io/nearest.h"
#include "io/quant.h"
#include "io/synthetic_internal.h"

#define PREFIX        "synthetic:"
#define MAX_BUILTIN   32
#define MAX_CONFIG    ((size_t)1 << 20)
#define DEFAULT_DTYPE DTYPE_BF16

struct synthetic {
  uint64_t seed;
  struct synthetic_list list;
  struct tensor_info *infos; /* [list.n] in name order; index is into list.tensors */
};

/* --- the source --- */

static const struct tensor_info *info_at(const struct tensor_source *source, int64_t i) {
  const struct synthetic *state = source->state;
  return &state->infos[i];
}

static int info_by_name(const void *a, const void *b) {
  return strcmp(((const struct tensor_info *)a)->name, ((const struct tensor_info *)b)->name);
}

static const struct tensor_info *info_find(const struct tensor_source *source, const char *name) {
  const struct synthetic *state = source->state;
  const struct tensor_info key = {.name = name};
  return bsearch(&key, state->infos, (size_t)source->n_tensors, sizeof key, info_by_name);
}

static void fill_constant(float value, enum dtype dtype, int64_t n, void *dst) {
  if (dtype == DTYPE_F32)
    for (int64_t i = 0; i < n; i++) ((float *)dst)[i] = value;
  else
    for (int64_t i = 0; i < n; i++) ((uint16_t *)dst)[i] = dtype == DTYPE_F16 ? f32_to_f16(value) : f32_to_bf16(value);
}

static void fill(const struct synthetic *state, const struct tensor_info *info, int64_t first, int64_t n, void *dst) {
  const struct synthetic_tensor *tensor = &state->list.tensors[info->index];
  if (tensor->fill == SYNTHETIC_RANDOM)
    synthetic_values(state->seed, tensor->kind, tensor->layer, tensor->deviation, first, n, info->dtype, dst);
  else
    fill_constant(tensor->fill == SYNTHETIC_ONES, info->dtype, n, dst);
}

static enum status read_slice(struct tensor_source *source, const struct tensor_info *info, int64_t row, int64_t n_rows,
                              int64_t col, int64_t n_cols, void *dst, size_t dst_stride) {
  TRY(base_model_check_slice(info, row, n_rows, col, n_cols, true));
  if (n_rows == 0 || n_cols == 0) return STATUS_OK;
  int64_t cols = info->shape[info->n_dims - 1];
  size_t bytes = dtype_bytes(info->dtype, n_cols);
  if (n_cols == cols && dst_stride == bytes)
    fill(source->state, info, row * cols, n_rows * cols, dst);
  else
    for (int64_t i = 0; i < n_rows; i++)
      fill(source->state, info, (row + i) * cols + col, n_cols, (char *)dst + (size_t)i * dst_stride);
  source->bytes_read += bytes * (size_t)n_rows;
  return STATUS_OK;
}

static void close_state(struct tensor_source *source) {
  struct synthetic *state = source->state;
  source->state = NULL;
  if (!state) return;
  free(state->list.tensors);
  free(state->infos);
  free(state);
}

static enum status make_infos(struct tensor_source *source, enum dtype dtype) {
  struct synthetic *state = source->state;
  TRY(synthetic_tensors(source->path, &source->facts, &state->list));
  state->infos = calloc((size_t)state->list.n, sizeof *state->infos);
  if (!state->infos)
    return status_set(STATUS_SYSTEM, "%s: no memory for %" PRId64 " tensors", source->path, state->list.n);
  for (int64_t i = 0; i < state->list.n; i++) {
    const struct synthetic_tensor *tensor = &state->list.tensors[i];
    state->infos[i] = (struct tensor_info){tensor->name, dtype, tensor->n_dims, {tensor->shape[0], tensor->shape[1]},
                                           source->path, i};
  }
  source->n_tensors = state->list.n;
  return STATUS_OK;
}

enum status synthetic_from_facts(const char *path, const struct model_facts *facts, enum dtype dtype, uint64_t seed,
                                 struct tensor_source **source_p) {
  struct tensor_source *source = calloc(1, sizeof *source);
  struct synthetic *state = calloc(1, sizeof *state);
  enum status status = STATUS_OK;
  if (!source || !state || !(source->path = strdup(path))) {
    free(source);
    free(state);
    return status_set(STATUS_SYSTEM, "%s: no memory to open it", path);
  }
  state->seed = seed;
  source->state = state;
  source->facts = *facts;
  source->variant = seed;
  source->at = info_at;
  source->find = info_find;
  source->read = read_slice;
  source->close = close_state;
  if ((status = make_infos(source, dtype)) != STATUS_OK) {
    base_model_close(&source);
    return status;
  }
  *source_p = source;
  return STATUS_OK;
}

/* --- names --- */

bool synthetic_is_name(const char *base) { return strncmp(base, PREFIX, strlen(PREFIX)) == 0; }

const char *const *synthetic_names(void) {
  static const char *names[MAX_BUILTIN + 1];
  for (int i = 0; i < MAX_BUILTIN && builtin_models[i].name; i++) names[i] = builtin_models[i].name;
  return names;
}

static int count_names(const char *const *names) {
  int n = 0;
  while (names[n]) n++;
  return n;
}

enum status synthetic_facts(const char *name, struct model_facts *facts) {
  const char *const *names = synthetic_names();
  for (int i = 0; names[i]; i++)
    if (strcmp(names[i], name) == 0)
      return model_facts_parse(builtin_models[i].json, strlen(builtin_models[i].json), name, facts);
  char list[512] = "";
  size_t length = 0;
  for (int i = 0; names[i] && length < sizeof list; i++)
    length += (size_t)snprintf(list + length, sizeof list - length, "%s%s", i ? ", " : "", names[i]);
  return status_set(STATUS_USAGE, "%.200s: no built-in model and no config.json; did you mean %s? There are %s", name,
                    names[nearest_name(name, names, count_names(names))], list);
}

static bool ends_in_json(const char *name) {
  size_t n = strlen(name);
  return n >= 5 && strcmp(name + n - 5, ".json") == 0;
}

static enum status facts_of(const char *name, struct model_facts *facts) {
  return ends_in_json(name) ? model_facts_read(name, MAX_CONFIG, facts) : synthetic_facts(name, facts);
}

static enum status parse_number(const char *base, const char *key, const char *text, uint64_t low, uint64_t high,
                                uint64_t *value) {
  char *end = NULL;
  errno = 0;
  *value = strtoull(text, &end, 10);
  if (errno == 0 && end != text && *end == 0 && text[0] >= '0' && text[0] <= '9' && *value >= low && *value <= high)
    return STATUS_OK;
  return status_set(STATUS_USAGE, "%s: %s must be a whole number from %" PRIu64 " to %" PRIu64, base, key, low, high);
}

/* What follows the name. */
struct options {
  uint64_t layers; /* 0: the model's own */
  uint64_t seed;
  bool has_dtype;
  enum dtype dtype;
};

static enum status parse_option(const char *base, const char *key, const char *value, struct options *options) {
  static const char *const keys[] = {"layers", "dtype", "seed"};
  if (strcmp(key, "layers") == 0) return parse_number(base, key, value, 1, 65536, &options->layers);
  if (strcmp(key, "seed") == 0) return parse_number(base, key, value, 0, UINT64_MAX, &options->seed);
  if (strcmp(key, "dtype") != 0)
    return status_set(STATUS_USAGE, "%s: unknown option \"%.40s\"; did you mean %s? There are layers=N, dtype=, seed=S",
                      base, key, keys[nearest_name(key, keys, 3)]);
  for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++)
    if (strcmp(value, dtype_name((enum dtype)dtype)) == 0) {
      options->has_dtype = true;
      options->dtype = (enum dtype)dtype;
      return STATUS_OK;
    }
  return status_set(STATUS_USAGE, "%s: dtype is \"%.40s\"; it must be f32, bf16 or f16", base, value);
}

enum status synthetic_open_base(const char *base, struct tensor_source **source_p) {
  struct options options = {0};
  struct model_facts facts;
  enum status status = STATUS_OK;
  char *text = strdup(base + strlen(PREFIX)), *rest = text;
  if (!text) return status_set(STATUS_SYSTEM, "%s: no memory to open it", base);
  const char *name = strsep(&rest, ",");
  while (rest) {
    char *value = strsep(&rest, ","), *key = strsep(&value, "=");
    TRY_OUT(parse_option(base, key, value ? value : "", &options));
  }
  TRY_OUT(facts_of(name, &facts));
  if (options.layers) facts.n_layers = (int64_t)options.layers;
  TRY_OUT(model_facts_check(base, &facts));
  if (!options.has_dtype) options.dtype = facts.has_dtype ? facts.dtype : DEFAULT_DTYPE;
  TRY_OUT(synthetic_from_facts(base, &facts, options.dtype, options.seed, source_p));
out:
  free(text);
  return status;
}
