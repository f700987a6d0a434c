/*
 * tokenizer_config.c: the files beside tokenizer.json: names of the special
 * tokens, whether BOS and EOS are added, where generation ends, the chat
 * template.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/file_read.h"
#include "io/tokenizer_internal.h"

#define MAX_CONFIG   (64u << 20) /* tokenizer_config.json may list every added token */
#define MAX_TEMPLATE (1u << 20)

/* *text_p = NULL if there is no such file. */
static enum status read_optional(const char *folder, const char *name, size_t limit, char **text_p, size_t *n) {
  char path[4096];
  struct stat info;
  *text_p = NULL;
  int length = snprintf(path, sizeof path, "%s/%s", folder, name);
  if (length < 0 || (size_t)length >= sizeof path) return status_set(STATUS_USAGE, "%s: the path is too long", folder);
  if (stat(path, &info) != 0) return STATUS_OK;
  return file_read_text(path, limit, text_p, n);
}

static enum status read_object(const char *folder, const char *name, json_t **object_p) {
  char *text;
  size_t n;
  json_error_t error;
  *object_p = NULL;
  TRY(read_optional(folder, name, MAX_CONFIG, &text, &n));
  if (!text) return STATUS_OK;
  json_t *object = json_loadb(text, n, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &error);
  free(text);
  if (!object)
    return status_set(STATUS_DATA, "%s/%s: line %d is not valid JSON: %s", folder, name, error.line, error.text);
  if (!json_is_object(object)) {
    json_decref(object);
    return status_set(STATUS_DATA, "%s/%s: not a JSON object", folder, name);
  }
  *object_p = object;
  return STATUS_OK;
}

/* "bos_token": "<s>" or {"content": "<s>", ...}; leaves *id if absent or unknown. */
static void read_token(const struct tokenizer *tokenizer, const json_t *config, const char *key, int32_t *id) {
  const json_t *value = json_object_get(config, key);
  if (json_is_object(value)) value = json_object_get(value, "content");
  if (!json_is_string(value)) return;
  int32_t found = tokenizer_find(tokenizer, json_string_value(value));
  if (found >= 0) *id = found;
}

static bool valid_id(const struct tokenizer *tokenizer, const json_t *value) {
  return json_is_number(value) && json_number_value(value) >= 0 && json_number_value(value) < tokenizer_size(tokenizer);
}

/* Ids of generation_config.json: every eos ends generation; where the tokenizer
 * itself names no token, the first one is it. */
static void read_generation(struct tokenizer *tokenizer, const json_t *config, bool named_eos) {
  const json_t *eos = json_object_get(config, "eos_token_id"), *bos = json_object_get(config, "bos_token_id");
  const json_t *first = json_is_array(eos) ? json_array_get(eos, 0) : eos;
  for (size_t i = 0; i < json_array_size(eos); i++)
    if (valid_id(tokenizer, json_array_get(eos, i)))
      tokenizer_add_end(tokenizer, (int32_t)json_number_value(json_array_get(eos, i)));
  if (valid_id(tokenizer, first)) {
    tokenizer_add_end(tokenizer, (int32_t)json_number_value(first));
    if (!named_eos) tokenizer->eos = (int32_t)json_number_value(first);
  }
  if (tokenizer->bos < 0 && valid_id(tokenizer, bos)) tokenizer->bos = (int32_t)json_number_value(bos);
}

/* add_bos_token and add_eos_token, where either is written, replace the
 * post-processor: so does transformers 5. */
static void read_additions(struct tokenizer *tokenizer, const json_t *config) {
  const json_t *bos = json_object_get(config, "add_bos_token"), *eos = json_object_get(config, "add_eos_token");
  if (!json_is_boolean(bos) && !json_is_boolean(eos)) return;
  tokenizer->n_prefix = json_is_true(bos) && tokenizer->bos >= 0;
  tokenizer->n_suffix = json_is_true(eos) && tokenizer->eos >= 0;
  tokenizer->prefix[0] = tokenizer->bos;
  tokenizer->suffix[0] = tokenizer->eos;
}

static enum status keep_template(struct tokenizer *tokenizer, const char *text, size_t n) {
  if (n > MAX_TEMPLATE) return status_set(STATUS_DATA, "%s: the chat template has %zu bytes", tokenizer->path, n);
  char *copy = malloc(n + 1);
  if (!copy) return status_set(STATUS_SYSTEM, "out of memory for the chat template");
  memcpy(copy, text, n);
  copy[n] = 0;
  free(tokenizer->chat_template);
  tokenizer->chat_template = copy;
  return STATUS_OK;
}

/* A string, or a list of {name, template} of which "default" counts. */
static enum status read_template_key(struct tokenizer *tokenizer, const json_t *config) {
  const json_t *value = json_object_get(config, "chat_template");
  for (size_t i = 0; json_is_array(value) && i < json_array_size(value); i++) {
    const json_t *item = json_array_get(value, i);
    const char *name = json_string_value(json_object_get(item, "name"));
    if (name && strcmp(name, "default") == 0) {
      value = json_object_get(item, "template");
      break;
    }
  }
  if (!json_is_string(value)) return STATUS_OK;
  return keep_template(tokenizer, json_string_value(value), json_string_length(value));
}

static enum status read_template_file(struct tokenizer *tokenizer, const char *folder) {
  char *text;
  size_t n;
  TRY(read_optional(folder, "chat_template.jinja", MAX_TEMPLATE, &text, &n));
  if (!text) return STATUS_OK;
  enum status status = keep_template(tokenizer, text, n);
  free(text);
  return status;
}

enum status tokenizer_read_config(struct tokenizer *tokenizer, const char *folder) {
  json_t *config = NULL, *map = NULL, *generation = NULL;
  enum status status = STATUS_OK;
  int32_t bos = -1, eos = -1;
  TRY_OUT(read_object(folder, "tokenizer_config.json", &config));
  TRY_OUT(read_object(folder, "special_tokens_map.json", &map));
  TRY_OUT(read_object(folder, "generation_config.json", &generation));
  /* tokenizer_config.json has the last word. */
  read_token(tokenizer, map, "bos_token", &bos);
  read_token(tokenizer, map, "eos_token", &eos);
  read_token(tokenizer, config, "bos_token", &bos);
  read_token(tokenizer, config, "eos_token", &eos);
  if (bos >= 0) tokenizer->bos = bos;
  if (eos >= 0) tokenizer->eos = eos;
  read_generation(tokenizer, generation, eos >= 0);
  read_additions(tokenizer, config);
  TRY_OUT(read_template_key(tokenizer, config));
  TRY_OUT(read_template_file(tokenizer, folder));
  tokenizer_finish(tokenizer);
out:
  json_decref(config);
  json_decref(map);
  json_decref(generation);
  return status;
}
