/*
 * peft_config.c: adapter_config.json, read as PEFT reads it. Source: PEFT's
 * LoraConfig and its matching of target modules.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/durable.h"
#include "io/file_read.h"
#include "io/peft_internal.h"

#define CONFIG_LIMIT  (16 << 20)
#define PATTERN_LIMIT 4096 /* bytes of one regular expression */

/* --- regular expressions --- */

static enum status compile(const struct peft_config *config, const char *field, const char *before, const char *pattern,
                           const char *after, double value, struct peft_patterns *patterns) {
  char text[PATTERN_LIMIT + 64], reason[128];
  int error;
  PCRE2_SIZE offset;
  struct peft_pattern *larger = realloc(patterns->items, ((size_t)patterns->n + 1) * sizeof *larger);
  if (!larger) return status_set(STATUS_SYSTEM, "%s: out of memory", config->path);
  patterns->items = larger;
  int used = snprintf(text, sizeof text, "%s%s%s", before, pattern, after);
  if (used >= (int)sizeof text)
    return status_set(STATUS_DATA, "%s: %s: an expression is longer than %d bytes", config->path, field, PATTERN_LIMIT);
  pcre2_code *code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED,
                                   &error, &offset, NULL);
  if (!code) {
    pcre2_get_error_message(error, (PCRE2_UCHAR *)reason, sizeof reason);
    return status_set(STATUS_DATA, "%s: %s: \"%.100s\" is no regular expression: %s", config->path, field, pattern,
                      reason);
  }
  patterns->items[patterns->n++] = (struct peft_pattern){code, value};
  return STATUS_OK;
}

/* idx_p, if not NULL, gets the number in the named group "idx". */
static enum status match(const struct peft_config *config, const struct peft_pattern *pattern, const char *path,
                         uint32_t options, bool *matched_p, long *idx_p) {
  enum status status = STATUS_OK;
  pcre2_match_data *data = pcre2_match_data_create_from_pattern(pattern->code, NULL);
  pcre2_match_context *context = pcre2_match_context_create(NULL);
  if (!data || !context) {
    status = status_set(STATUS_SYSTEM, "%s: out of memory", config->path);
    goto out;
  }
  pcre2_set_match_limit(context, 200000); /* the expression is not ours */
  pcre2_set_depth_limit(context, 10000);
  int n = pcre2_match(pattern->code, (PCRE2_SPTR)path, strlen(path), 0, options, data, context);
  if (n < 0 && n != PCRE2_ERROR_NOMATCH) {
    status = status_set(STATUS_DATA, "%s: an expression is too costly to match against %s", config->path, path);
    goto out;
  }
  *matched_p = n >= 0;
  if (n >= 0 && idx_p) {
    PCRE2_UCHAR digits[16];
    PCRE2_SIZE size = sizeof digits;
    *idx_p = pcre2_substring_copy_byname(data, (PCRE2_SPTR) "idx", digits, &size) == 0
                 ? strtol((const char *)digits, NULL, 10)
                 : -1;
  }
out:
  pcre2_match_data_free(data);
  pcre2_match_context_free(context);
  return status;
}

static void free_patterns(struct peft_patterns *patterns) {
  for (int i = 0; i < patterns->n; i++) pcre2_code_free(patterns->items[i].code);
  free(patterns->items);
  *patterns = (struct peft_patterns){0};
}

/* --- fields --- */

static bool inactive(const json_t *value) {
  return !value || json_is_null(value) || json_is_false(value) ||
         (json_is_array(value) && json_array_size(value) == 0) ||
         (json_is_object(value) && json_object_size(value) == 0);
}

/* Fields that are read, or that only say where the adapter comes from or how it
 * was begun. */
static const char *const known_fields[] = {"peft_type",
                                           "task_type",
                                           "base_model_name_or_path",
                                           "revision",
                                           "r",
                                           "lora_alpha",
                                           "lora_dropout",
                                           "target_modules",
                                           "exclude_modules",
                                           "bias",
                                           "fan_in_fan_out",
                                           "use_rslora",
                                           "rank_pattern",
                                           "alpha_pattern",
                                           "layers_to_transform",
                                           "layers_pattern",
                                           "init_lora_weights",
                                           "inference_mode",
                                           "peft_version",
                                           "auto_mapping",
                                           "runtime_config",
                                           "loftq_config",
                                           "eva_config",
                                           "qalora_group_size",
                                           "megatron_core",
                                           NULL};

static bool is_known(const char *name) {
  for (const char *const *known = known_fields; *known; known++)
    if (strcmp(*known, name) == 0) return true;
  return false;
}

static enum status refuse_unknown(const struct peft_config *config) {
  const char *name;
  json_t *value;
  json_object_foreach(config->root, name, value) {
    if (is_known(name) || inactive(value)) continue;
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    enum status status =
        status_set(STATUS_DATA, "%s: %.60s is %.60s, which is not supported", config->path, name, text ? text : "set");
    free(text);
    return status;
  }
  return STATUS_OK;
}

static enum status want_text(const struct peft_config *config, const char *name, const char *expected) {
  const json_t *value = json_object_get(config->root, name);
  if (!value || (json_is_string(value) && strcmp(json_string_value(value), expected) == 0)) return STATUS_OK;
  return status_set(STATUS_DATA, "%s: %s is %s; only \"%s\" is supported", config->path, name,
                    json_is_string(value) ? json_string_value(value) : "not a text", expected);
}

/* These initialisations also change the base's weights, so that the adapter
 * does not belong to the base as published. */
static enum status check_init(const struct peft_config *config) {
  const json_t *value = json_object_get(config->root, "init_lora_weights");
  static const char *const harmless[] = {"gaussian", "eva", "orthogonal", NULL};
  if (!value || json_is_boolean(value) || json_is_null(value)) return STATUS_OK;
  const char *text = json_string_value(value);
  for (const char *const *name = harmless; text && *name; name++)
    if (strcmp(text, *name) == 0) return STATUS_OK;
  return status_set(STATUS_DATA, "%s: init_lora_weights \"%.40s\" changes the base, which is not supported",
                    config->path, text ? text : "?");
}

static enum status read_number(const struct peft_config *config, const char *name, double fallback, double low,
                               double *value_p) {
  const json_t *value = json_object_get(config->root, name);
  *value_p = value ? json_number_value(value) : fallback;
  if ((value && !json_is_number(value)) || !(*value_p >= low && *value_p <= 1e9))
    return status_set(STATUS_DATA, "%s: %s is not a number in [%g, 1e9]", config->path, name, low);
  return STATUS_OK;
}

/* --- patterns --- */

static enum status read_value_patterns(const struct peft_config *config, const char *name,
                                       struct peft_patterns *patterns) {
  json_t *object = json_object_get(config->root, name), *value;
  const char *key;
  if (!object || json_is_null(object)) return STATUS_OK;
  if (!json_is_object(object)) return status_set(STATUS_DATA, "%s: %s is not an object", config->path, name);
  json_object_foreach(object, key, value) {
    double number = json_number_value(value);
    if (!json_is_number(value) || !(fabs(number) <= 1e9))
      return status_set(STATUS_DATA, "%s: %s: \"%.80s\" is not a number", config->path, name, key);
    TRY(compile(config, name, "(.*\\.)?(", key, ")$", number, patterns));
  }
  return STATUS_OK;
}

/* A text is an expression for the whole path; a list is compared as it is. */
static enum status read_module_names(const struct peft_config *config, const char *name,
                                     struct peft_patterns *patterns) {
  const json_t *value = json_object_get(config->root, name), *item;
  size_t i;
  if (!value || json_is_null(value)) return STATUS_OK;
  if (json_is_string(value)) {
    if (strcmp(json_string_value(value), "all-linear") == 0) return STATUS_OK;
    return compile(config, name, "", json_string_value(value), "", 0, patterns);
  }
  if (!json_is_array(value)) return status_set(STATUS_DATA, "%s: %s is neither text nor list", config->path, name);
  json_array_foreach(value, i, item) if (!json_is_string(item)) return status_set(
      STATUS_DATA, "%s: %s holds something that is not text", config->path, name);
  return STATUS_OK;
}

static enum status check_layer_numbers(const struct peft_config *config) {
  const json_t *value = json_object_get(config->root, "layers_to_transform"), *item;
  size_t i;
  if (inactive(value) || json_is_integer(value)) return STATUS_OK;
  bool good = json_is_array(value);
  if (good) json_array_foreach(value, i, item) good = good && json_is_integer(item);
  if (!good) return status_set(STATUS_DATA, "%s: layers_to_transform is not a list of integers", config->path);
  return STATUS_OK;
}

static enum status read_layers(struct peft_config *config) {
  const json_t *pattern = json_object_get(config->root, "layers_pattern"), *item;
  size_t i;
  TRY(check_layer_numbers(config));
  if (!inactive(json_object_get(config->root, "layers_to_transform")) &&
      json_is_string(json_object_get(config->root, "target_modules")))
    return status_set(STATUS_DATA, "%s: layers_to_transform needs target_modules as a list", config->path);
  const char *before = "(?:^|.*?\\.)", *after = "\\.(?P<idx>\\d+)\\.";
  if (json_is_string(pattern) && json_string_length(pattern) > 0)
    return compile(config, "layers_pattern", before, json_string_value(pattern), after, 0, &config->layers);
  if (json_is_array(pattern) && json_array_size(pattern) > 0) {
    json_array_foreach(pattern, i, item) {
      if (!json_is_string(item)) return status_set(STATUS_DATA, "%s: layers_pattern is not text", config->path);
      TRY(compile(config, "layers_pattern", before, json_string_value(item), after, 0, &config->layers));
    }
    return STATUS_OK;
  }
  return compile(config, "layers_pattern", ".*?\\.", "[^.]*", after, 0, &config->layers);
}

/* PEFT's own choice for a family when target_modules is absent. */
static enum status default_targets(struct peft_config *config, const struct arch *arch) {
  const json_t *value = json_object_get(config->root, "target_modules");
  if (value && !json_is_null(value)) return STATUS_OK;
  const char *dot = arch->qkv ? strrchr(arch->qkv, '.') : NULL;
  json_t *list = arch->qkv ? json_pack("[s]", dot ? dot + 1 : arch->qkv) : json_pack("[s, s]", "q_proj", "v_proj");
  if (!list || json_object_set_new(config->root, "target_modules", list) != 0)
    return status_set(STATUS_SYSTEM, "%s: out of memory", config->path);
  return STATUS_OK;
}

static enum status read_fields(struct peft_config *config, const struct arch *arch) {
  const json_t *rslora = json_object_get(config->root, "use_rslora");
  TRY(refuse_unknown(config));
  TRY(want_text(config, "peft_type", "LORA"));
  TRY(want_text(config, "bias", "none"));
  TRY(check_init(config));
  TRY(read_number(config, "r", 8, 1, &config->r));
  TRY(read_number(config, "lora_alpha", 8, -1e9, &config->alpha));
  if (rslora && !json_is_boolean(rslora))
    return status_set(STATUS_DATA, "%s: use_rslora is neither true nor false", config->path);
  config->rslora = json_is_true(rslora);
  TRY(read_value_patterns(config, "rank_pattern", &config->ranks));
  TRY(read_value_patterns(config, "alpha_pattern", &config->alphas));
  TRY(default_targets(config, arch));
  TRY(read_module_names(config, "target_modules", &config->targets));
  TRY(read_module_names(config, "exclude_modules", &config->exclude));
  return read_layers(config);
}

enum status peft_config_read(const char *folder, const struct arch *arch, struct peft_config *config) {
  char *text = NULL;
  size_t length;
  json_error_t error;
  memset(config, 0, sizeof *config);
  TRY(durable_path(config->path, sizeof config->path, "%s/adapter_config.json", folder));
  TRY(file_read_text(config->path, CONFIG_LIMIT, &text, &length));
  config->root = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
  free(text);
  if (!config->root) return status_set(STATUS_DATA, "%s:%d: %s", config->path, error.line, error.text);
  enum status status = json_is_object(config->root) ? read_fields(config, arch)
                                                    : status_set(STATUS_DATA, "%s: not an object", config->path);
  if (status != STATUS_OK) peft_config_free(config);
  return status;
}

void peft_config_free(struct peft_config *config) {
  json_decref(config->root);
  config->root = NULL;
  free_patterns(&config->ranks);
  free_patterns(&config->alphas);
  free_patterns(&config->targets);
  free_patterns(&config->exclude);
  free_patterns(&config->layers);
}

/* --- matching --- */

/* Is path an entry of the list (exact_p) or does it end in "." + entry? */
static bool in_list(const json_t *list, const char *path, bool *exact_p) {
  size_t i, length = strlen(path);
  const json_t *item;
  bool found = false;
  *exact_p = false;
  json_array_foreach(list, i, item) {
    size_t n = json_string_length(item);
    if (n > length || strcmp(path + length - n, json_string_value(item)) != 0) continue;
    if (n == length) *exact_p = true;
    if (n == length || path[length - n - 1] == '.') found = true;
  }
  return found;
}

static enum status layer_selected(const struct peft_config *config, const char *path, bool *selected_p) {
  const json_t *layers = json_object_get(config->root, "layers_to_transform"), *item;
  size_t i;
  long layer = -1;
  bool matched = false;
  for (int p = 0; !matched && p < config->layers.n; p++)
    TRY(match(config, &config->layers.items[p], path, 0, &matched, &layer));
  *selected_p = false;
  if (!matched || layer < 0) return STATUS_OK;
  if (json_is_integer(layers)) *selected_p = json_integer_value(layers) == layer;
  json_array_foreach(layers, i, item) if (json_integer_value(item) == layer) *selected_p = true;
  return STATUS_OK;
}

enum status peft_config_selects(const struct peft_config *config, const char *path, bool *selected_p) {
  const json_t *targets = json_object_get(config->root, "target_modules");
  bool exact, excluded = in_list(json_object_get(config->root, "exclude_modules"), path, &exact);
  *selected_p = false;
  if (config->exclude.n) TRY(match(config, &config->exclude.items[0], path, PCRE2_ENDANCHORED, &excluded, NULL));
  if (excluded) return STATUS_OK;
  if (config->targets.n) return match(config, &config->targets.items[0], path, PCRE2_ENDANCHORED, selected_p, NULL);
  if (json_is_string(targets)) { /* all-linear */
    *selected_p = true;
    return STATUS_OK;
  }
  *selected_p = in_list(targets, path, &exact);
  if (*selected_p && !exact && !inactive(json_object_get(config->root, "layers_to_transform")))
    return layer_selected(config, path, selected_p);
  return STATUS_OK;
}

/* Value of the first pattern that matches, in file order, else fallback. */
static enum status pattern_value(const struct peft_config *config, const struct peft_patterns *patterns,
                                 const char *path, double fallback, double *value_p) {
  *value_p = fallback;
  for (int i = 0; i < patterns->n; i++) {
    bool matched = false;
    TRY(match(config, &patterns->items[i], path, 0, &matched, NULL));
    if (!matched) continue;
    *value_p = patterns->items[i].value;
    break;
  }
  return STATUS_OK;
}

enum status peft_config_sizes(const struct peft_config *config, const char *path, int64_t *r_p, double *alpha_p) {
  double r;
  TRY(pattern_value(config, &config->ranks, path, config->r, &r));
  TRY(pattern_value(config, &config->alphas, path, config->alpha, alpha_p));
  if (r < 1 || r > 1e6 || r != floor(r))
    return status_set(STATUS_DATA, "%s: rank %g of %s is not a positive integer", config->path, r, path);
  *r_p = (int64_t)r;
  return STATUS_OK;
}

/* --- writing --- */

static json_t *number(double value) {
  double rounded = rint(value);
  bool integral = fabs(value - rounded) <= 1e-9 * fmax(1, fabs(value)) && fabs(value) < 1e15;
  return integral ? json_integer((json_int_t)rounded) : json_real(value);
}

enum status peft_config_write(const char *folder, const struct peft_summary *summary) {
  char path[DURABLE_PATH];
  TRY(durable_path(path, sizeof path, "%s/adapter_config.json", folder));
  json_t *targets = json_array();
  for (int i = 0; i < summary->n_targets; i++) json_array_append_new(targets, json_string(summary->targets[i]));
  bool has_base = summary->base_name && summary->base_name[0];
  json_t *root = json_pack(
      "{s:{}, s:s?, s:s, s:b, s:b, s:b, s:n, s:n, s:o, s:b, s:f, s:n, s:s, s:s, s:I, s:{}, s:n, s:o, s:s, s:b, s:b}",
      "alpha_pattern", "base_model_name_or_path", has_base ? summary->base_name : NULL, "bias", "none",
      "fan_in_fan_out", summary->fan_in_fan_out, "inference_mode", 1, "init_lora_weights", 1, "layers_pattern",
      "layers_to_transform", "lora_alpha", number(summary->alpha), "lora_bias", 0, "lora_dropout", 0.0,
      "modules_to_save", "peft_type", "LORA", "peft_version", "0.18.0", "r", (json_int_t)summary->r, "rank_pattern",
      "revision", "target_modules", targets, "task_type", "CAUSAL_LM", "use_dora", 0, "use_rslora", 0);
  char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_ENSURE_ASCII) : NULL;
  json_decref(root);
  if (!text)
    return status_set(STATUS_SYSTEM, "%s: cannot be made: out of memory, or the base's name is not UTF-8", path);
  enum status status = durable_write(path, text, strlen(text));
  free(text);
  return status;
}
