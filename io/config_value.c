#include "io/config_value.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "io/nearest.h"
#include "model/arch.h"

static enum status no_memory(void) { return status_set(STATUS_SYSTEM, "no memory for the configuration"); }

/* "source:line: key: message". */
__attribute__((format(printf, 3, 4))) static enum status fault(const struct config_setting *setting,
                                                               const struct yaml_node *node, const char *format, ...) {
  char text[600];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return yaml_fault(setting->source, node->line, "%s: %s", setting->key, text);
}

/* What a node is, for "found ...". */
static const char *found(const struct yaml_node *node, char *text, size_t size) {
  if (node->kind == YAML_NODE_LIST) return "a list";
  if (node->kind == YAML_NODE_MAP) return "a map of keys";
  if (yaml_is_null(node)) return "nothing";
  snprintf(text, size, node->plain ? "%.80s" : "the text '%.80s'", node->text);
  return text;
}

static enum status wrong_type(const struct config_setting *setting, const struct yaml_node *node, const char *wanted) {
  char text[128];
  return fault(setting, node, "needs %s; found %s", wanted, found(node, text, sizeof text));
}

static enum status out_of_range(const struct config_setting *setting, const struct yaml_node *node) {
  char range[80];
  schema_range(setting->row, range, sizeof range);
  return fault(setting, node, "%.80s is out of range; allowed: %s", node->text, range);
}

/* --- scalars --- */

static enum status parse_int(const struct config_setting *setting, const struct yaml_node *node, int64_t *value) {
  if (!yaml_is_integer(node)) return wrong_type(setting, node, "a whole number");
  errno = 0;
  long long number = strtoll(node->text, NULL, 10);
  if (errno || !schema_holds(setting->row, (double)number)) return out_of_range(setting, node);
  *value = number;
  return STATUS_OK;
}

static enum status parse_seed(const struct config_setting *setting, uint64_t *value) {
  const struct yaml_node *node = setting->node;
  if (!yaml_is_integer(node)) return wrong_type(setting, node, "a whole number");
  errno = 0;
  unsigned long long number = strtoull(node->text, NULL, 10);
  if (errno || node->text[0] == '-')
    return fault(setting, node, "%.80s is out of range; allowed: 0 to 18446744073709551615", node->text);
  *value = number;
  return STATUS_OK;
}

static enum status parse_real(const struct config_setting *setting, const struct yaml_node *node, double *value) {
  if (!yaml_is_number(node)) return wrong_type(setting, node, "a number");
  double number = strtod(node->text, NULL);
  if (!schema_holds(setting->row, number)) return out_of_range(setting, node);
  *value = number;
  return STATUS_OK;
}

static enum status parse_pair(const struct config_setting *setting, double pair[2]) {
  const struct yaml_node *node = setting->node;
  double values[2];
  if (node->kind != YAML_NODE_LIST || node->n != 2) return wrong_type(setting, node, "a list of two numbers, [a, b]");
  for (int i = 0; i < 2; i++) TRY(parse_real(setting, &node->items[i], &values[i]));
  memcpy(pair, values, sizeof values);
  return STATUS_OK;
}

/* Numbers, true and false are no text unless quoted: a bare 8 where a path is
 * wanted is more often a mistake than a path. */
static enum status parse_text(const struct config_setting *setting, const struct yaml_node *node, char **text_p) {
  char text[128];
  if (node->kind != YAML_NODE_SCALAR || yaml_is_null(node))
    return fault(setting, node, "needs text ('' for none); found %s", found(node, text, sizeof text));
  if (yaml_is_number(node) || yaml_bool(node) >= 0)
    return fault(setting, node, "needs text; found %.80s (put it in quotes if it is meant as text)", node->text);
  char *copy = strdup(node->text);
  if (!copy) return no_memory();
  *text_p = copy;
  return STATUS_OK;
}

/* Index of a word among the row's choices. */
static enum status parse_choice(const struct config_setting *setting, unsigned *index_p) {
  const struct yaml_node *node = setting->node;
  const char *const *choices = setting->row->choices;
  char list[160], text[128];
  int used = 0, n = 0;
  for (; choices[n]; n++) {
    if (node->kind == YAML_NODE_SCALAR && strcmp(node->text, choices[n]) == 0) {
      *index_p = (unsigned)n;
      return STATUS_OK;
    }
    used += snprintf(list + used, sizeof list - (size_t)used, "%s%s", n ? ", " : "", choices[n]);
  }
  return fault(setting, node, "needs one of %s; found %s", list, found(node, text, sizeof text));
}

static enum status store_word(const struct config_setting *setting, char **field) {
  unsigned index;
  TRY(parse_choice(setting, &index));
  char *copy = strdup(setting->row->choices[index]);
  if (!copy) return no_memory();
  free(*field);
  *field = copy;
  return STATUS_OK;
}

static enum status store_text(const struct config_setting *setting, char **field) {
  if (setting->row->choices) return store_word(setting, field);
  char *text;
  TRY(parse_text(setting, setting->node, &text));
  free(*field);
  *field = text;
  return STATUS_OK;
}

static enum status store_bool(const struct config_setting *setting, bool *field) {
  int value = yaml_bool(setting->node);
  if (value < 0) return wrong_type(setting, setting->node, "true or false");
  *field = value;
  return STATUS_OK;
}

/* --- lists --- */

/* The items of a list; a single scalar is a list of itself. */
static enum status as_list(const struct config_setting *setting, const struct yaml_node **items_p, int *n_p) {
  const struct yaml_node *node = setting->node;
  if (node->kind == YAML_NODE_MAP || yaml_is_null(node)) {
    char wanted[64];
    snprintf(wanted, sizeof wanted, "%s%s", setting->row->type == SCHEMA_LAYERS ? "" : "a ",
             schema_type_name(setting->row));
    return wrong_type(setting, node, wanted);
  }
  bool list = node->kind == YAML_NODE_LIST;
  *items_p = list ? node->items : node;
  *n_p = list ? node->n : 1;
  return STATUS_OK;
}

/* Index of a module, -1 for "all". */
static enum status parse_module(const struct config_setting *setting, const struct yaml_node *node, int *module_p) {
  static const char *const names[] = {"q", "k", "v", "o", "gate", "up", "down", "fc1", "fc2", "all"};
  if (node->kind != YAML_NODE_SCALAR) return wrong_type(setting, node, "names of modules");
  bool all = strcmp(node->text, "all") == 0;
  int module = all ? -1 : module_from_name(node->text);
  if (!all && module < 0)
    return fault(setting, node,
                 "unknown module '%.80s', the nearest is '%s'; known: q k v o gate up down (fc1 fc2), all; "
                 "write several as [q, v]",
                 node->text, names[nearest_name(node->text, names, (int)(sizeof names / sizeof names[0]))]);
  *module_p = module;
  return STATUS_OK;
}

static void free_strings(struct string_list *list) {
  for (int i = 0; i < list->n; i++) free(list->items[i]);
  free(list->items);
  memset(list, 0, sizeof *list);
}

/* Copies of the texts of n items. */
static enum status copy_strings(const struct config_setting *setting, const struct yaml_node *items, int n,
                                struct string_list *list) {
  list->items = calloc((size_t)n + 1, sizeof *list->items);
  if (!list->items) return no_memory();
  for (int i = 0; i < n; i++) {
    enum status status = parse_text(setting, &items[i], &list->items[i]);
    if (status == STATUS_OK && !*list->items[i]) {
      free(list->items[i]);
      status = fault(setting, &items[i], "an empty name in the list");
    }
    if (status != STATUS_OK) {
      free_strings(list);
      return status;
    }
    list->n++;
  }
  return STATUS_OK;
}

static enum status store_strings(const struct config_setting *setting, struct string_list *field) {
  const struct yaml_node *items;
  int n;
  TRY(as_list(setting, &items, &n));
  bool files = setting->row->type == SCHEMA_FILES;
  if (n > CONFIG_MAX_FILES)
    return fault(setting, setting->node, "%d names; at most %d are allowed", n, CONFIG_MAX_FILES);
  if (!files && n == 0) return fault(setting, setting->node, "an empty list; name at least one module");
  for (int i = 0, module; i < n && !files; i++) TRY(parse_module(setting, &items[i], &module));
  struct string_list list = {0};
  TRY(copy_strings(setting, items, n, &list));
  free_strings(field);
  *field = list;
  return STATUS_OK;
}

static enum status store_modules(const struct config_setting *setting, unsigned *field) {
  const struct yaml_node *items;
  int n;
  TRY(as_list(setting, &items, &n));
  if (n == 0) return fault(setting, setting->node, "an empty list; name at least one module");
  unsigned mask = 0;
  bool all = false;
  for (int i = 0; i < n; i++) {
    int module;
    TRY(parse_module(setting, &items[i], &module));
    if (module < 0)
      all = true;
    else
      mask |= 1u << module;
  }
  *field = all ? 0 : mask;
  return STATUS_OK;
}

/* --- layers --- */

/* "7" or "4-11" into a bounded, ordered range. */
static enum status parse_layer_range(const struct config_setting *setting, const struct yaml_node *node, int *low_p,
                                     int *high_p) {
  int low = 0, high = 0, used = 0;
  bool scalar = node->kind == YAML_NODE_SCALAR;
  size_t length = scalar ? strspn(node->text, "0123456789-") : 0;
  /* At most five digits a number, so that sscanf cannot overflow. */
  bool whole = scalar && length > 0 && length <= 11 && !node->text[length] && node->text[0] != '-';
  int parts = whole ? sscanf(node->text, "%5d%n-%5d%n", &low, &used, &high, &used) : 0;
  if (parts == 1) high = low;
  if (parts < 1 || node->text[used])
    return wrong_type(setting, node, "all, layer numbers from 0, or ranges such as \"4-11\"");
  if (low > high) return fault(setting, node, "range %s runs backwards", node->text);
  if (high > CONFIG_MAX_LAYER)
    return fault(setting, node, "layer %d is out of range; allowed: 0 to %d", high, CONFIG_MAX_LAYER);
  *low_p = low;
  *high_p = high;
  return STATUS_OK;
}

/* Mark the layers of each item in a map of all possible ones. */
static enum status mark_layers(const struct config_setting *setting, const struct yaml_node *items, int n,
                               unsigned char *marks, bool *all_p) {
  for (int i = 0; i < n; i++) {
    if (items[i].kind == YAML_NODE_SCALAR && strcmp(items[i].text, "all") == 0) {
      *all_p = true;
      continue;
    }
    int low = 0, high = 0;
    TRY(parse_layer_range(setting, &items[i], &low, &high));
    memset(marks + low, 1, (size_t)(high - low + 1));
  }
  return STATUS_OK;
}

static enum status collect_layers(const unsigned char *marks, struct layer_list *list) {
  int n = 0;
  for (int i = 0; i <= CONFIG_MAX_LAYER; i++) n += marks[i];
  list->items = malloc(((size_t)n + 1) * sizeof *list->items);
  if (!list->items) return no_memory();
  for (int i = 0; i <= CONFIG_MAX_LAYER; i++)
    if (marks[i]) list->items[list->n++] = i;
  return STATUS_OK;
}

/* The stored list is sorted and holds no layer twice. */
static enum status store_layers(const struct config_setting *setting, struct layer_list *field) {
  const struct yaml_node *items;
  int n;
  TRY(as_list(setting, &items, &n));
  if (n == 0) return fault(setting, setting->node, "an empty list; name at least one layer, or all");
  unsigned char *marks = calloc(CONFIG_MAX_LAYER + 1, 1);
  if (!marks) return no_memory();
  struct layer_list list = {0};
  enum status status = mark_layers(setting, items, n, marks, &list.all);
  if (status == STATUS_OK && !list.all) status = collect_layers(marks, &list);
  free(marks);
  TRY(status);
  free(field->items);
  *field = list;
  return STATUS_OK;
}

/* --- overrides --- */

static enum status parse_override(const struct config_setting *setting, const struct yaml_node *map, int index,
                                  struct lora_override *override) {
  if (map->kind != YAML_NODE_MAP) return wrong_type(setting, map, "maps such as {modules: [q], layers: \"0-3\", r: 4}");
  for (int i = 0; i < map->n; i++) {
    const struct yaml_node *name = &map->items[2 * i];
    const struct schema_row *row = schema_find(schema_override_rows, schema_n_override_rows, name->text);
    if (!row)
      return fault(setting, name, "unknown key '%.80s'; the nearest is '%s'", name->text,
                   schema_nearest(schema_override_rows, schema_n_override_rows, name->text)->name);
    char key[96];
    snprintf(key, sizeof key, "%s[%d].%s", setting->key, index, row->name);
    struct config_setting part = {row, setting->source, key, &map->items[2 * i + 1]};
    TRY(config_value_store(&part, override));
  }
  if (override->off && (override->r > 0 || override->alpha >= 0))
    return fault(setting, map, "r and alpha mean nothing beside off: true; leave them or off out");
  if (!override->off && override->r == 0 && override->alpha < 0)
    return fault(setting, map, "an override changes nothing; give it r, alpha or off: true");
  return STATUS_OK;
}

static void free_overrides(struct lora_override *overrides, int n) {
  for (int i = 0; i < n; i++) free(overrides[i].layers.items);
}

static enum status store_overrides(const struct config_setting *setting, struct config *config) {
  const struct yaml_node *node = setting->node;
  if (node->kind != YAML_NODE_LIST)
    return wrong_type(setting, node, "a list of maps, [{modules: [q], layers: \"0-3\", r: 4}]");
  if (node->n > CONFIG_MAX_OVERRIDES)
    return fault(setting, node, "%d overrides; at most %d are allowed", node->n, CONFIG_MAX_OVERRIDES);
  struct lora_override overrides[CONFIG_MAX_OVERRIDES];
  for (int i = 0; i < node->n; i++) {
    overrides[i] = (struct lora_override){.layers.all = true, .alpha = -1};
    enum status status = parse_override(setting, &node->items[i], i, &overrides[i]);
    if (status != STATUS_OK) {
      free_overrides(overrides, i + 1);
      return status;
    }
  }
  free_overrides(config->lora.overrides, config->lora.n_overrides);
  memcpy(config->lora.overrides, overrides, (size_t)node->n * sizeof *overrides);
  config->lora.n_overrides = node->n;
  return STATUS_OK;
}

/* --- by type --- */

enum status config_value_store(const struct config_setting *setting, void *base) {
  void *field = (char *)base + setting->row->offset;
  switch (setting->row->type) {
    case SCHEMA_TEXT:
      return store_text(setting, field);
    case SCHEMA_CHOICE:
      return parse_choice(setting, field);
    case SCHEMA_INT:
      return parse_int(setting, setting->node, field);
    case SCHEMA_SEED:
      return parse_seed(setting, field);
    case SCHEMA_REAL:
      return parse_real(setting, setting->node, field);
    case SCHEMA_REAL_PAIR:
      return parse_pair(setting, field);
    case SCHEMA_BOOL:
      return store_bool(setting, field);
    case SCHEMA_FILES:
    case SCHEMA_TARGETS:
      return store_strings(setting, field);
    case SCHEMA_MODULES:
      return store_modules(setting, field);
    case SCHEMA_LAYERS:
      return store_layers(setting, field);
    case SCHEMA_OVERRIDES:
      return store_overrides(setting, base);
  }
  return STATUS_OK;
}

void config_value_clear(const struct schema_row *row, void *base) {
  void *field = (char *)base + row->offset;
  struct config *config = base;
  struct layer_list *layers = field;
  switch (row->type) {
    case SCHEMA_TEXT:
      free(*(char **)field);
      *(char **)field = NULL;
      break;
    case SCHEMA_FILES:
    case SCHEMA_TARGETS:
      free_strings(field);
      break;
    case SCHEMA_LAYERS:
      free(layers->items);
      *layers = (struct layer_list){0};
      break;
    case SCHEMA_OVERRIDES:
      free_overrides(config->lora.overrides, config->lora.n_overrides);
      config->lora.n_overrides = 0;
      break;
    default:
      break;
  }
}
