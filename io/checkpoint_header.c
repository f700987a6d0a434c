/*
 * checkpoint_header.c: attributes of the root and of module groups, and the
 * configuration text.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/checkpoint_internal.h"

#define CONFIG_LIMIT (16 << 20) /* bytes of configuration text that are believed */

void checkpoint_set_facts(struct checkpoint_header *header, const struct model_facts *facts) {
  snprintf(header->base_family, sizeof header->base_family, "%s", facts->family);
  header->n_layers = facts->n_layers;
  header->d_model = facts->d_model;
  header->n_heads = facts->n_heads;
  header->n_kv_heads = facts->n_kv_heads;
  header->head_dim = facts->head_dim;
  header->d_ffn = facts->d_ffn;
}

void checkpoint_get_facts(const struct checkpoint_header *header, struct model_facts *facts) {
  memset(facts, 0, sizeof *facts);
  snprintf(facts->family, sizeof facts->family, "%s", header->base_family);
  facts->n_layers = header->n_layers;
  facts->d_model = header->d_model;
  facts->n_heads = header->n_heads;
  facts->n_kv_heads = header->n_kv_heads;
  facts->head_dim = header->head_dim;
  facts->d_ffn = header->d_ffn;
}

/* One table drives writing and reading. */
enum kind { KIND_TEXT, KIND_INT, KIND_UINT };
struct field {
  const char *name;
  enum kind kind;
  size_t offset, size;
};
#define TEXT(field) \
  { #field, KIND_TEXT, offsetof(struct checkpoint_header, field), sizeof((struct checkpoint_header *)0)->field }
#define INT(field) \
  { #field, KIND_INT, offsetof(struct checkpoint_header, field), 0 }
static const struct field fields[] = {
    TEXT(method),
    TEXT(program_version),
    TEXT(base_fingerprint),
    TEXT(base_path),
    TEXT(base_family),
    INT(step),
    INT(epoch),
    INT(cursor),
    INT(tokens_seen),
    {"seed", KIND_UINT, offsetof(struct checkpoint_header, seed), 0},
    TEXT(data_digest),
    {"skipped_steps", KIND_INT, offsetof(struct checkpoint_header, extra_skipped_steps), 0},
    INT(n_layers),
    INT(d_model),
    INT(n_heads),
    INT(n_kv_heads),
    INT(head_dim),
    INT(d_ffn),
};
#define N_FIELDS (sizeof fields / sizeof fields[0])

enum status header_write(hid_t file, const char *path, const struct checkpoint_header *header) {
  TRY(hdf5_put_int(file, path, "format", CHECKPOINT_FORMAT));
  for (size_t i = 0; i < N_FIELDS; i++) {
    const char *at = (const char *)header + fields[i].offset;
    switch (fields[i].kind) {
      case KIND_TEXT:
        TRY(hdf5_put_text(file, path, fields[i].name, at));
        break;
      case KIND_INT:
        TRY(hdf5_put_int(file, path, fields[i].name, *(const int64_t *)at));
        break;
      case KIND_UINT:
        TRY(hdf5_put_uint(file, path, fields[i].name, *(const uint64_t *)at));
        break;
    }
  }
  return STATUS_OK;
}

enum status header_read(hid_t file, const char *path, struct checkpoint_header *header) {
  int64_t format;
  TRY(hdf5_get_int(file, path, "root", "format", &format));
  if (format != CHECKPOINT_FORMAT)
    return status_set(STATUS_DATA, "%s: adapter format %lld, this program reads format %d", path, (long long)format,
                      CHECKPOINT_FORMAT);
  for (size_t i = 0; i < N_FIELDS; i++) {
    char *at = (char *)header + fields[i].offset;
    switch (fields[i].kind) {
      case KIND_TEXT:
        TRY(hdf5_get_text(file, path, "root", fields[i].name, at, fields[i].size));
        break;
      case KIND_UINT:
        TRY(hdf5_get_uint(file, path, "root", fields[i].name, (uint64_t *)at));
        break;
      case KIND_INT:
        TRY(hdf5_get_int(file, path, "root", fields[i].name, (int64_t *)at));
        if (*(int64_t *)at < 0) return status_set(STATUS_DATA, "%s: attribute %s is negative", path, fields[i].name);
        break;
    }
  }
  return STATUS_OK;
}

/* The scale of a module in words, so that other readers need no documentation. */
static const char *const scale_rules[2] = {"alpha/r", "alpha/sqrt(r)"};

enum status module_write(hid_t group, const char *path, const struct checkpoint_module *module) {
  TRY(hdf5_put_int(group, path, "r", module->r));
  TRY(hdf5_put_double(group, path, "alpha", module->alpha));
  TRY(hdf5_put_int(group, path, "in", module->in));
  TRY(hdf5_put_int(group, path, "out", module->out));
  return hdf5_put_text(group, path, "scale", scale_rules[module->rslora]);
}

enum status module_read(hid_t group, const char *path, struct checkpoint_module *module) {
  const char *where = module->group;
  char scale[16];
  TRY(hdf5_get_int(group, path, where, "r", &module->r));
  TRY(hdf5_get_double(group, path, where, "alpha", &module->alpha));
  TRY(hdf5_get_int(group, path, where, "in", &module->in));
  TRY(hdf5_get_int(group, path, where, "out", &module->out));
  TRY(hdf5_get_text(group, path, where, "scale", scale, sizeof scale));
  module->rslora = strcmp(scale, scale_rules[1]) == 0;
  if (!module->rslora && strcmp(scale, scale_rules[0]) != 0)
    return status_set(STATUS_DATA, "%s: %s: unknown scale rule \"%s\"", path, where, scale);
  const int64_t limit = INT32_MAX;
  if (module->r < 1 || module->r > limit || module->in < 1 || module->in > limit || module->out < 1 ||
      module->out > limit)
    return status_set(STATUS_DATA, "%s: %s: r %lld, in %lld, out %lld are not all in [1, %lld]", path, where,
                      (long long)module->r, (long long)module->in, (long long)module->out, (long long)limit);
  if (!(module->alpha >= -1e30 && module->alpha <= 1e30))
    return status_set(STATUS_DATA, "%s: %s: alpha is not a finite number", path, where);
  return STATUS_OK;
}

enum status config_write(hid_t file, const char *path, const char *text) {
  enum status status = STATUS_OK;
  hid_t type = -1, space = -1, list = -1, dataset = -1;
  hsize_t one = 1;
  H5_TRY_OUT(STATUS_SYSTEM, path, type = hdf5_text_type(strlen(text) + 1));
  H5_TRY_OUT(STATUS_SYSTEM, path, space = H5Screate_simple(1, &one, NULL));
  H5_TRY_OUT(STATUS_SYSTEM, path, list = hdf5_untimed(H5P_DATASET_CREATE));
  H5_TRY_OUT(STATUS_SYSTEM, path, H5Pset_chunk(list, 1, &one));
  H5_TRY_OUT(STATUS_SYSTEM, path, H5Pset_fletcher32(list));
  H5_TRY_OUT(STATUS_SYSTEM, path, dataset = H5Dcreate2(file, "config", type, space, H5P_DEFAULT, list, H5P_DEFAULT));
  H5_TRY_OUT(STATUS_SYSTEM, path, H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text));
  hid_t written = dataset;
  dataset = -1;
  H5_TRY_OUT(STATUS_SYSTEM, path, H5Dclose(written));
out:
  hdf5_release(dataset);
  hdf5_release(list);
  hdf5_release(space);
  hdf5_release(type);
  return status;
}

static enum status config_check(hid_t dataset, hid_t type, const char *path, int64_t file_size) {
  size_t size = H5Tget_size(type);
  if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0)
    return status_set(STATUS_DATA, "%s: config is not a fixed-length text", path);
  if (size < 1 || size > CONFIG_LIMIT || (int64_t)size > file_size || H5Dget_storage_size(dataset) < (hsize_t)size)
    return status_set(STATUS_DATA, "%s: config claims %zu bytes that the file does not hold", path, size);
  return STATUS_OK;
}

enum status config_read_text(hid_t file, const char *path, int64_t file_size, char **text_p) {
  enum status status = STATUS_OK;
  hid_t dataset = -1, type = -1, space = -1;
  char *text = NULL;
  htri_t exists;
  *text_p = NULL;
  H5_TRY_OUT(STATUS_DATA, path, exists = H5Lexists(file, "config", H5P_DEFAULT));
  if (!exists) return STATUS_OK;
  H5_TRY_OUT(STATUS_DATA, path, dataset = H5Dopen2(file, "config", H5P_DEFAULT));
  TRY_OUT(dataset_check_storage(dataset, path, "config", file_size, NULL));
  H5_TRY_OUT(STATUS_DATA, path, type = H5Dget_type(dataset));
  H5_TRY_OUT(STATUS_DATA, path, space = H5Dget_space(dataset));
  if (H5Sget_simple_extent_npoints(space) != 1) {
    status = status_set(STATUS_DATA, "%s: config is not one text", path);
    goto out;
  }
  TRY_OUT(config_check(dataset, type, path, file_size));
  size_t size = H5Tget_size(type);
  if (!(text = calloc(1, size + 1))) {
    status = status_set(STATUS_SYSTEM, "%s: out of memory", path);
    goto out;
  }
  H5_TRY_OUT(STATUS_DATA, path, H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text));
  text[hdf5_text_length(type, text, size)] = 0;
  *text_p = text;
  text = NULL;
out:
  free(text);
  hdf5_release(space);
  hdf5_release(type);
  hdf5_release(dataset);
  return status;
}
