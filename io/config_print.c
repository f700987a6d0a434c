#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "io/config_value.h"
#include "model/arch.h"

/* The fewest digits that give the same double back. */
static void print_real(FILE *out, double value) {
  char text[40];
  for (int digits = 6; digits <= 17; digits++) {
    snprintf(text, sizeof text, "%.*g", digits, value);
    if (strtod(text, NULL) == value) break;
  }
  fputs(text, out);
}

static void print_strings(FILE *out, const struct string_list *list, bool quote) {
  fputc('[', out);
  for (int i = 0; i < list->n; i++) {
    if (i) fputs(", ", out);
    if (quote)
      yaml_quote(out, list->items[i]);
    else
      fputs(list->items[i], out);
  }
  fputc(']', out);
}

static void print_modules(FILE *out, unsigned mask) {
  if (mask == 0) {
    fputs("all", out);
    return;
  }
  const char *separator = "[";
  for (int m = 0; m < MODULE_COUNT; m++) {
    if (!(mask >> m & 1)) continue;
    fprintf(out, "%s%s", separator, module_names[m]);
    separator = ", ";
  }
  fputc(']', out);
}

static void print_layers(FILE *out, const struct layer_list *layers) {
  if (layers->all) {
    fputs("all", out);
    return;
  }
  fputc('[', out);
  for (int i = 0; i < layers->n;) {
    int end = i;
    while (end + 1 < layers->n && layers->items[end + 1] == layers->items[end] + 1) end++;
    if (i) fputs(", ", out);
    if (end > i)
      fprintf(out, "\"%d-%d\"", layers->items[i], layers->items[end]);
    else
      fprintf(out, "%d", layers->items[i]);
    i = end + 1;
  }
  fputc(']', out);
}

static void print_overrides(FILE *out, const struct config *config) {
  fputc('[', out);
  for (int i = 0; i < config->lora.n_overrides; i++) {
    const struct lora_override *override = &config->lora.overrides[i];
    fputs(i ? ", {modules: " : "{modules: ", out);
    print_modules(out, override->modules);
    fputs(", layers: ", out);
    print_layers(out, &override->layers);
    if (override->r > 0) fprintf(out, ", r: %" PRId64, override->r);
    if (override->alpha >= 0) {
      fputs(", alpha: ", out);
      print_real(out, override->alpha);
    }
    if (override->off) fputs(", off: true", out);
    fputc('}', out);
  }
  fputc(']', out);
}

static void print_pair(FILE *out, const double pair[2]) {
  fputc('[', out);
  print_real(out, pair[0]);
  fputs(", ", out);
  print_real(out, pair[1]);
  fputc(']', out);
}

void config_value_print(FILE *out, const struct schema_row *row, const void *base) {
  const void *field = (const char *)base + row->offset;
  switch (row->type) {
    case SCHEMA_TEXT:
      if (row->choices)
        fputs(*(char *const *)field, out);
      else
        yaml_quote(out, *(char *const *)field);
      break;
    case SCHEMA_CHOICE:
      fputs(row->choices[*(const unsigned *)field], out);
      break;
    case SCHEMA_INT:
      fprintf(out, "%" PRId64, *(const int64_t *)field);
      break;
    case SCHEMA_SEED:
      fprintf(out, "%" PRIu64, *(const uint64_t *)field);
      break;
    case SCHEMA_REAL:
      print_real(out, *(const double *)field);
      break;
    case SCHEMA_REAL_PAIR:
      print_pair(out, field);
      break;
    case SCHEMA_BOOL:
      fputs(*(const bool *)field ? "true" : "false", out);
      break;
    case SCHEMA_FILES:
    case SCHEMA_TARGETS:
      print_strings(out, field, row->type == SCHEMA_FILES);
      break;
    case SCHEMA_MODULES:
      print_modules(out, *(const unsigned *)field);
      break;
    case SCHEMA_LAYERS:
      print_layers(out, field);
      break;
    case SCHEMA_OVERRIDES:
      print_overrides(out, base);
      break;
  }
}

/* Length of "section." in a row's name, 0 for a key of its own. */
static int section_length(const struct schema_row *row) {
  const char *dot = strchr(row->name, '.');
  return dot ? (int)(dot - row->name) : 0;
}

static bool same_section(const struct schema_row *a, const struct schema_row *b) {
  int length = section_length(a);
  return length == section_length(b) && memcmp(a->name, b->name, (size_t)length) == 0;
}

enum status config_print(const struct config *config, char **text_p) {
  char *text = NULL;
  size_t size = 0;
  FILE *out = open_memstream(&text, &size);
  if (!out) return status_set(STATUS_SYSTEM, "no memory to print the configuration");
  for (int i = 0; i < schema_n_rows; i++) {
    const struct schema_row *row = &schema_rows[i];
    int section = section_length(row);
    if (section && (i == 0 || !same_section(row, row - 1))) fprintf(out, "%.*s:\n", section, row->name);
    fprintf(out, "%s%s: ", section ? "  " : "", section ? row->name + section + 1 : row->name);
    config_value_print(out, row, config);
    fputc('\n', out);
  }
  bool failed = ferror(out);
  if (fclose(out) != 0 || failed) {
    free(text);
    return status_set(STATUS_SYSTEM, "no memory to print the configuration");
  }
  *text_p = text;
  return STATUS_OK;
}

/* --- documentation --- */

static void describe_row(FILE *out, const struct schema_row *row) {
  char range[80];
  schema_range(row, range, sizeof range);
  fprintf(out, "| `%s` | %s | `%s` | ", row->name, schema_type_name(row), row->default_text);
  for (int i = 0; row->choices && row->choices[i]; i++) fprintf(out, "%s%s", i ? ", " : "", row->choices[i]);
  fprintf(out, "%s%s%s | %s |\n", range, *range && row->unit ? " " : "", row->unit ? row->unit : "", row->doc);
}

static void describe_header(FILE *out) {
  fputs("| key | type | default | allowed | meaning |\n|---|---|---|---|---|\n", out);
}

void config_describe(FILE *out) {
  fputs(
      "# Configuration\n\n"
      "A training job is one YAML file. Every key has a default; `base`, `data.train` and `output` must be given\n"
      "to train. `--set KEY=VALUE` replaces any key with a YAML value: `--set train.lr=1e-4`,\n"
      "`--set 'lora.targets=[q, v]'`. Unknown keys, wrong types and values out of range are errors. Where a list\n"
      "is expected, a single value stands for a list of one. Relative paths start at the folder the program is\n"
      "started in. `lorashard help-config` prints this page.\n\n"
      "```yaml\n"
      "base: models/SmolLM2-135M\n"
      "data:\n"
      "  train: [train.jsonl]\n"
      "  seq_len: 256\n"
      "lora:\n"
      "  r: 8\n"
      "  targets: [q, k, v, o]\n"
      "  overrides:\n"
      "    - {modules: [q, v], layers: \"0-3\", r: 4, alpha: 8}\n"
      "    - {layers: [29], off: true}\n"
      "train:\n"
      "  epochs: 1\n"
      "  lr: 2e-4\n"
      "output: runs/first\n"
      "```\n\n"
      "`''` is no text, `[]` an empty list.\n",
      out);
  for (int i = 0; i < schema_n_rows; i++) {
    const struct schema_row *row = &schema_rows[i];
    int section = section_length(row);
    if (i == 0 || !same_section(row, row - 1)) {
      if (section)
        fprintf(out, "\n## %.*s\n\n", section, row->name);
      else
        fprintf(out, "\n## %s\n\n", i == 0 ? row->name : "other");
      describe_header(out);
    }
    describe_row(out, row);
  }
  fputs("\n## Keys of one entry of lora.overrides\n\n", out);
  describe_header(out);
  for (int i = 0; i < schema_n_override_rows; i++) describe_row(out, &schema_override_rows[i]);
}
