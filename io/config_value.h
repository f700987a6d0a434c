/*
 * config_value.h: one key's value, from YAML into its field and back to text.
 */
#ifndef LORASHARD_IO_CONFIG_VALUE_H
#define LORASHARD_IO_CONFIG_VALUE_H

#include "io/config.h"
#include "io/schema.h"
#include "io/yaml_tree.h"

#define CONFIG_MAX_LAYER 65535 /* largest layer number that a list may hold */

/* One value to be stored, and what messages about it say. */
struct config_setting {
  const struct schema_row *row;
  const char *source; /* file or "--set" */
  const char *key;    /* "train.lr", "lora.overrides[0].r" */
  const struct yaml_node *node;
};

/* Check the value's type and range and store it in `base` (struct config; for
 * rows of schema_override_rows struct lora_override), freeing what the field
 * held. The field is unchanged after a failure. Errors: STATUS_USAGE with
 * source, line and key; STATUS_SYSTEM. */
enum status config_value_store(const struct config_setting *setting, void *base);

/* Free what the field owns and empty it. */
void config_value_clear(const struct schema_row *row, void *base);

/* Write the value as YAML on one line. */
void config_value_print(FILE *out, const struct schema_row *row, const void *base);

#endif
