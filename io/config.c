#include "io/config.h"

#include <stdlib.h>
#include <string.h>

#include "io/config_value.h"

enum status config_init(struct config *config) {
  memset(config, 0, sizeof *config);
  for (int i = 0; i < schema_n_rows; i++) {
    const struct schema_row *row = &schema_rows[i];
    struct yaml_node node;
    enum status status = yaml_tree_parse(row->default_text, strlen(row->default_text), row->name, false, &node);
    struct config_setting setting = {row, "default", row->name, &node};
    if (status == STATUS_OK) status = config_value_store(&setting, config);
    yaml_tree_free(&node);
    if (status != STATUS_OK) {
      config_free(config);
      return status;
    }
  }
  return STATUS_OK;
}

void config_free(struct config *config) {
  for (int i = 0; i < schema_n_rows; i++) config_value_clear(&schema_rows[i], config);
}

/* --- from YAML --- */

/* One file or one --set on its way into config. */
struct source {
  struct config *config;
  const char *name;
  bool given[SCHEMA_MAX_ROWS]; /* rows that this source has set */
};

static enum status unknown_key(const struct source *source, const struct yaml_node *key, const char *path) {
  return yaml_fault(source->name, key->line, "unknown key '%.120s'; the nearest is '%s'", path,
                    schema_nearest(schema_rows, schema_n_rows, path)->name);
}

/* Store the value of one key, or of all keys below a section. `key` is where
 * messages point to. */
static enum status apply(struct source *source, const char *path, const struct yaml_node *key,
                         const struct yaml_node *value) {
  const struct schema_row *row = schema_find(schema_rows, schema_n_rows, path);
  if (row) {
    bool *given = &source->given[row - schema_rows];
    if (*given) return yaml_fault(source->name, key->line, "key '%s' is given twice", path);
    *given = true;
    struct config_setting setting = {row, source->name, row->name, value};
    return config_value_store(&setting, source->config);
  }
  if (*path && !schema_is_section(path)) return unknown_key(source, key, path);
  if (yaml_is_null(value)) return STATUS_OK; /* a section whose keys are all commented out */
  if (value->kind != YAML_NODE_MAP) {
    if (*path) return yaml_fault(source->name, value->line, "%s: is a section; put keys under it", path);
    return yaml_fault(source->name, value->line, "a configuration is a map of keys, such as 'base: PATH'");
  }
  for (int i = 0; i < value->n; i++) {
    char child[160];
    const struct yaml_node *child_key = &value->items[2 * i];
    snprintf(child, sizeof child, "%s%s%.100s", path, *path ? "." : "", child_key->text);
    if (!*child_key->text) return yaml_fault(source->name, child_key->line, "an empty key");
    TRY(apply(source, child, child_key, &value->items[2 * i + 1]));
  }
  return STATUS_OK;
}

static bool was_given(const struct source *source, const char *name) {
  return source->given[schema_find(schema_rows, schema_n_rows, name) - schema_rows];
}

/* A run's length is in steps or in epochs: the one that the latest source names
 * puts the other to 0. */
static enum status settle_length(const struct source *source) {
  struct config *config = source->config;
  bool steps = was_given(source, "train.steps") && config->train.steps > 0;
  bool epochs = was_given(source, "train.epochs") && config->train.epochs > 0;
  if (steps && epochs) return yaml_fault(source->name, 0, "train.steps and train.epochs are both given; leave one out");
  if (steps) config->train.epochs = 0;
  if (epochs) config->train.steps = 0;
  return STATUS_OK;
}

static enum status apply_text(struct config *config, const char *text, size_t length, const char *name, bool lines,
                              const char *path) {
  struct source source = {.config = config, .name = name};
  struct yaml_node root;
  enum status status = yaml_tree_parse(text, length, name, lines, &root);
  if (status == STATUS_OK) status = apply(&source, path, &root, &root);
  if (status == STATUS_OK) status = settle_length(&source);
  yaml_tree_free(&root);
  return status;
}

enum status config_parse(struct config *config, const char *text, size_t length, const char *name) {
  return apply_text(config, text, length, name, true, "");
}

enum status config_read(struct config *config, const char *path) {
  char *text;
  size_t length;
  TRY(yaml_read_text(path, "the configuration", &text, &length));
  enum status status = config_parse(config, text, length, path);
  free(text);
  return status;
}

enum status config_set(struct config *config, const char *assignment) {
  const char *equals = strchr(assignment, '=');
  if (!equals || equals == assignment)
    return status_set(STATUS_USAGE, "--set %.120s: write KEY=VALUE, such as train.lr=1e-4", assignment);
  char key[128];
  size_t length = (size_t)(equals - assignment);
  snprintf(key, sizeof key, "%.*s", length < sizeof key ? (int)length : (int)sizeof key - 1, assignment);
  return apply_text(config, equals + 1, strlen(equals + 1), "--set", false, key);
}

enum status config_check(const struct config *config, bool training) {
  if (!*config->base)
    return status_set(STATUS_USAGE, "base is not set; name the model's folder or .gguf file (base: PATH)");
  if (!training) return STATUS_OK;
  if (config->data.train.n == 0)
    return status_set(STATUS_USAGE, "data.train is empty; name the files to train on (data: {train: [FILE]})");
  if (!*config->output)
    return status_set(STATUS_USAGE, "output is not set; name a folder for checkpoints (output: DIR)");
  if (config->train.steps == 0 && config->train.epochs <= 0)
    return status_set(STATUS_USAGE, "train.steps and train.epochs are both 0; set one of them");
  return STATUS_OK;
}
