/*
 * schema.h: one row per configuration key. The rows drive the YAML reader,
 * --set, the printed configuration and docs/configuration.md.
 */
#ifndef LORASHARD_IO_SCHEMA_H
#define LORASHARD_IO_SCHEMA_H

#include <stdbool.h>
#include <stddef.h>

#define SCHEMA_MAX_ROWS 64

/* What a key takes, and the C type of its field. */
enum schema_type {
  SCHEMA_TEXT,      /* char *, owned; with choices: one of them */
  SCHEMA_CHOICE,    /* an enum: the index of the word in choices */
  SCHEMA_INT,       /* int64_t */
  SCHEMA_SEED,      /* uint64_t */
  SCHEMA_REAL,      /* double */
  SCHEMA_REAL_PAIR, /* double[2], each in the range */
  SCHEMA_BOOL,      /* bool */
  SCHEMA_FILES,     /* struct string_list of paths; one text stands for a list of one */
  SCHEMA_TARGETS,   /* struct string_list of module names and "all"; never empty */
  SCHEMA_MODULES,   /* unsigned, a bit per enum module; "all" is 0 */
  SCHEMA_LAYERS,    /* struct layer_list */
  SCHEMA_OVERRIDES, /* the array lora.overrides with n_overrides */
};

struct schema_row {
  const char *name; /* "train.lr" */
  enum schema_type type;
  const char *default_text;   /* as YAML */
  double low, high;           /* numbers only; high 0 and low 0: no range */
  bool low_open, high_open;   /* the bound itself is outside */
  const char *const *choices; /* ended by NULL; or NULL */
  const char *unit;           /* "tokens"; or NULL */
  const char *doc;            /* one sentence without its full stop */
  size_t offset;              /* in struct config (overrides: struct lora_override) */
  const char *also;           /* what other programs call it, for the nearest key; or NULL */
};

extern const struct schema_row schema_rows[];
extern const int schema_n_rows;

/* Keys of one map of lora.overrides. */
extern const struct schema_row schema_override_rows[];
extern const int schema_n_override_rows;

/* The row of a name among rows, or NULL. */
const struct schema_row *schema_find(const struct schema_row *rows, int n, const char *name);

/* True if some key begins with "name.". */
bool schema_is_section(const char *name);

/* The row whose name was probably meant. Both the whole name and its last part
 * are compared. */
const struct schema_row *schema_nearest(const struct schema_row *rows, int n, const char *name);

/* The range as text, "" if there is none: "1 to 65536", "above 0 to 1". */
void schema_range(const struct schema_row *row, char *text, size_t size);

/* True if the row's range holds the value. */
bool schema_holds(const struct schema_row *row, double value);

/* "whole number", "text", ... for messages and documentation. */
const char *schema_type_name(const struct schema_row *row);

#endif
