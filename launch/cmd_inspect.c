/* lorashard inspect: what a model, checkpoint or adapter holds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launch/cli.h"
#include "launch/inspect_report.h"

static const struct cli_help help = {
    .usage = "inspect PATH [--json] [--tensors]",
    .summary = "Show what a model, checkpoint or adapter holds.",
    .details =
        "PATH is a Hugging Face folder, a .gguf or .safetensors file, synthetic:MODEL, adapter.h5, a step directory, "
        "a run's output directory (its newest whole step) or a PEFT folder. Norms are Frobenius norms, averaged over "
        "the layers. No weight of a base model is read.",
};

struct arguments {
  const char *path;
  bool json, tensors, done;
};

static enum status parse(int argc, char **argv, struct arguments *a) {
  const struct cli_option options[] = {
      {.name = "json", .doc = "print one JSON object", .flag = &a->json},
      {.name = "tensors", .doc = "list every tensor", .flag = &a->tensors},
      {NULL},
  };
  int n;
  return cli_parse(&help, options, argc, argv, &a->path, 1, 1, &n, &a->done);
}

/* Texts come from files: control characters must not reach the terminal. */
static void put_text(const char *text) {
  for (; *text; text++) putchar((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text);
}

static void put_line(const char *label, const char *text) {
  printf("%-24s", label);
  put_text(text);
  putchar('\n');
}

/* A JSON value as text: strings bare, the rest compact. */
static void put_value(const char *label, const json_t *value) {
  if (json_is_string(value)) {
    put_line(label, json_string_value(value));
    return;
  }
  char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
  if (text) put_line(label, text);
  free(text);
}

static const char *with_unit(double bytes, char text[32]) {
  static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  for (; bytes >= 1000 && unit < 4; unit++) bytes /= 1000;
  snprintf(text, 32, unit ? "%.2f %s" : "%.0f %s", bytes, units[unit]);
  return text;
}

static void put_fields(const json_t *object) {
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)object, key, value) {
    bool empty = json_is_null(value) || (json_is_string(value) && json_string_length(value) == 0) ||
                 (json_is_object(value) && json_object_size(value) == 0);
    if (!empty) put_value(key, value);
  }
}

/* "4" or "2-8" */
static const char *range(const json_t *pair, const char *format, char text[64]) {
  char high[32];
  double a = json_number_value(json_array_get(pair, 0)), b = json_number_value(json_array_get(pair, 1));
  if (!pair) return "";
  snprintf(text, 32, format, a);
  snprintf(high, sizeof high, format, b);
  if (strcmp(text, high) != 0) {
    strcat(text, "-");
    strcat(text, high);
  }
  return text;
}

static const char *number(const json_t *value, char text[32]) {
  snprintf(text, 32, json_is_number(value) ? "%.4g" : "not finite", json_number_value(value));
  return text;
}

static void put_modules(const json_t *modules) {
  size_t i;
  const json_t *row;
  if (json_array_size(modules) == 0) return;
  printf("\n%-18s %6s %8s %16s %12s %10s %10s\n", "module", "count", "r", "scale", "parameters", "norm A", "norm B");
  json_array_foreach(modules, i, row) {
    char r[64], scale[64], norm_a[32], norm_b[32];
    char name[20];
    snprintf(name, sizeof name, "%.18s", json_string_value(json_object_get(row, "module")));
    for (char *c = name; *c; c++)
      if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    printf("%-18s %6lld %8s %16s %12lld %10s %10s\n", name, json_integer_value(json_object_get(row, "count")),
           range(json_object_get(row, "r"), "%.0f", r), range(json_object_get(row, "scale"), "%.6g", scale),
           json_integer_value(json_object_get(row, "parameters")), number(json_object_get(row, "norm_a"), norm_a),
           number(json_object_get(row, "norm_b"), norm_b));
  }
}

static void put_dtypes(const json_t *dtypes) {
  const char *key;
  json_t *row;
  char unit[32];
  json_object_foreach((json_t *)dtypes, key, row)
      printf("%-24s%lld tensors, %lld parameters, %s\n", key, json_integer_value(json_object_get(row, "tensors")),
             json_integer_value(json_object_get(row, "parameters")),
             with_unit(json_number_value(json_object_get(row, "bytes")), unit));
}

static void put_tensors(const json_t *tensors) {
  size_t i, d;
  const json_t *row, *axis;
  char norm[32];
  if (json_array_size(tensors) == 0) return;
  putchar('\n');
  json_array_foreach(tensors, i, row) {
    const json_t *value = json_object_get(row, "norm");
    put_text(json_string_value(json_object_get(row, "name")));
    printf(" %s [", json_string_value(json_object_get(row, "dtype")));
    json_array_foreach(json_object_get(row, "shape"), d, axis)
        printf("%s%lld", d ? ", " : "", json_integer_value(axis));
    printf("]");
    if (value) printf(" norm %s", number(value, norm));
    putchar('\n');
  }
}

static void put_report(const json_t *report) {
  char unit[32];
  put_value("path", json_object_get(report, "path"));
  printf("%-24s%s (%s)\n", "kind", json_string_value(json_object_get(report, "kind")),
         json_string_value(json_object_get(report, "format")));
  if (json_object_get(report, "family")) put_value("family", json_object_get(report, "family"));
  put_fields(json_object_get(report, "sizes"));
  put_fields(json_object_get(report, "header"));
  if (json_object_get(report, "n_modules")) put_value("modules", json_object_get(report, "n_modules"));
  if (json_object_get(report, "optimizer")) put_value("optimizer", json_object_get(report, "optimizer"));
  printf("%-24s%lld (%s)\n", "parameters", json_integer_value(json_object_get(report, "parameters")),
         with_unit(json_number_value(json_object_get(report, "bytes")), unit));
  put_dtypes(json_object_get(report, "dtypes"));
  put_modules(json_object_get(report, "modules"));
  put_tensors(json_object_get(report, "tensors"));
}

enum status cmd_inspect(int argc, char **argv) {
  struct arguments a = {0};
  json_t *report = NULL;
  TRY(parse(argc, argv, &a));
  if (a.done) return STATUS_OK;
  TRY(inspect_report(a.path, a.tensors, &report));
  if (a.json) {
    json_dumpf(report, stdout, JSON_INDENT(2));
    putchar('\n');
  } else {
    put_report(report);
  }
  json_decref(report);
  return STATUS_OK;
}
