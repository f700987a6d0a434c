#include "io/hf_folder.h"

#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/base_model.h"
#include "io/file_read.h"

#define CONFIG_LIMIT ((size_t)4 << 20)
#define INDEX_LIMIT  ((size_t)64 << 20)

static enum status join(const char *folder, const char *name, char path[PATH_MAX]) {
  int n = snprintf(path, PATH_MAX, "%s/%s", folder, name);
  if (n < 0 || n >= PATH_MAX) return status_set(STATUS_USAGE, "%.200s...: path is too long", folder);
  return STATUS_OK;
}

static bool has(const char *folder, const char *name) {
  char path[PATH_MAX];
  return join(folder, name, path) == STATUS_OK && access(path, F_OK) == 0;
}

static enum status read_facts(const char *folder, struct model_facts *facts) {
  char path[PATH_MAX];
  TRY(join(folder, "config.json", path));
  if (access(path, F_OK) != 0) {
    if (has(folder, "adapter_config.json"))
      return status_set(STATUS_USAGE, "%s: holds an adapter, not a base model; name the base model's folder", folder);
    return status_set(STATUS_USAGE, "%s: no config.json; name a Hugging Face model folder or a .gguf file", folder);
  }
  return model_facts_read(path, CONFIG_LIMIT, facts);
}

static enum status add_file(struct hf_folder *folder, const char *path) {
  struct safetensors **files = realloc(folder->files, ((size_t)folder->n_files + 1) * sizeof *files);
  if (!files) return status_set(STATUS_SYSTEM, "%s: no memory to open it", path);
  folder->files = files;
  TRY(safetensors_open(path, &files[folder->n_files]));
  folder->n_files++;
  return STATUS_OK;
}

/* Buffers that old files carry and nothing reads: causal masks and rotary
 * frequencies, in whatever dtype. */
static bool is_buffer(const struct safetensors_tensor *tensor) {
  static const char *const ends[] = {".attn.bias", ".attention.bias", ".masked_bias", ".rotary_emb.inv_freq"};
  size_t length = strlen(tensor->name);
  for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
    size_t n = strlen(ends[i]);
    if (length >= n && strcmp(tensor->name + length - n, ends[i]) == 0) return true;
  }
  return false;
}

static int by_name(const void *a, const void *b) {
  const struct hf_tensor *x = a, *y = b;
  int order = strcmp(x->tensor->name, y->tensor->name);
  if (order != 0) return order;
  return strcmp(x->file->path, y->file->path);
}

/* All tensors of all files, sorted by name and file; names may repeat yet. */
static enum status collect(struct hf_folder *folder, const char *path) {
  int64_t n = 0;
  for (int f = 0; f < folder->n_files; f++) n += folder->files[f]->n_tensors;
  folder->tensors = calloc((size_t)n + 1, sizeof *folder->tensors);
  if (!folder->tensors) return status_set(STATUS_SYSTEM, "%s: no memory for %lld tensors", path, (long long)n);
  for (int f = 0; f < folder->n_files; f++) {
    const struct safetensors *file = folder->files[f];
    for (int64_t i = 0; i < file->n_tensors; i++) {
      const struct safetensors_tensor *tensor = &file->tensors[i];
      if (is_buffer(tensor)) continue;
      if (!tensor->readable)
        return status_set(STATUS_USAGE, "%s: tensor %.200s is %s with %d axes; weights must be F32, F16 or BF16",
                          file->path, tensor->name, tensor->file_type, tensor->n_dims);
      folder->tensors[folder->n_tensors++] = (struct hf_tensor){tensor, file};
    }
  }
  if (folder->n_tensors > 0) qsort(folder->tensors, (size_t)folder->n_tensors, sizeof *folder->tensors, by_name);
  return STATUS_OK;
}

/* Every entry of the map must be in the file it names. */
static enum status check_map(const struct hf_folder *folder, const char *index_path, const json_t *map,
                             const json_t *file_numbers) {
  const char *name;
  json_t *value;
  json_object_foreach((json_t *)map, name, value) {
    int f = (int)json_integer_value(json_object_get(file_numbers, json_string_value(value)));
    const struct safetensors_tensor wanted = {.name = name};
    const struct hf_tensor key = {&wanted, folder->files[f]};
    if (is_buffer(&wanted)) continue;
    if (!bsearch(&key, folder->tensors, (size_t)folder->n_tensors, sizeof key, by_name))
      return status_set(STATUS_DATA, "%s: tensor %.200s should be in %.200s and is not; download both again",
                        index_path, name, json_string_value(value));
  }
  return STATUS_OK;
}

/* Keep one tensor a name: the one the map names, or the only one. */
static enum status keep_mapped(struct hf_folder *folder, const json_t *map) {
  int64_t kept = 0;
  for (int64_t i = 0, end; i < folder->n_tensors; i = end) {
    const char *name = folder->tensors[i].tensor->name;
    for (end = i + 1; end < folder->n_tensors && strcmp(name, folder->tensors[end].tensor->name) == 0;) end++;
    int64_t chosen = i;
    if (end - i > 1) {
      const char *file = map ? json_string_value(json_object_get(map, name)) : NULL;
      for (chosen = i; chosen < end; chosen++) {
        const char *path = folder->tensors[chosen].file->path;
        if (file && strcmp(strrchr(path, '/') + 1, file) == 0) break;
      }
      if (chosen == end)
        return status_set(STATUS_DATA, "%s: tensor %.200s is in %s too and the index names neither; download again",
                          folder->tensors[i].file->path, name, folder->tensors[i + 1].file->path);
    }
    folder->tensors[kept++] = folder->tensors[chosen];
  }
  folder->n_tensors = kept;
  return STATUS_OK;
}

/* Open each file that the map names, once; its number goes to file_numbers. */
static enum status open_shards(struct hf_folder *folder, const char *path, const char *index_path, const json_t *map,
                               json_t *file_numbers) {
  const char *name;
  json_t *value;
  json_object_foreach((json_t *)map, name, value) {
    const char *file = json_string_value(value);
    if (!file || !*file || strchr(file, '/') || strstr(file, ".."))
      return status_set(STATUS_DATA, "%s: tensor %.200s: the map must name a file of the same folder", index_path,
                        name);
    if (json_object_get(file_numbers, file)) continue;
    if (!has(path, file))
      return status_set(STATUS_DATA, "%s: %.200s is not in the folder (it holds tensor %.200s); download it",
                        index_path, file, name);
    char shard[PATH_MAX];
    TRY(join(path, file, shard));
    TRY(add_file(folder, shard));
    if (json_object_set_new(file_numbers, file, json_integer(folder->n_files - 1)) != 0)
      return status_set(STATUS_SYSTEM, "%s: no memory for the list of files", index_path);
  }
  return STATUS_OK;
}

static enum status open_indexed(struct hf_folder *folder, const char *path) {
  char index_path[PATH_MAX];
  char *text = NULL;
  size_t length = 0;
  json_t *root = NULL, *file_numbers = NULL;
  enum status status;
  TRY(join(path, "model.safetensors.index.json", index_path));
  TRY(file_read_text(index_path, INDEX_LIMIT, &text, &length));
  json_error_t error;
  root = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
  const json_t *map = json_object_get(root, "weight_map");
  if (!root) {
    status = status_set(STATUS_DATA, "%s:%d: not valid JSON: %s", index_path, error.line, error.text);
    goto out;
  }
  if (!json_is_object(map) || json_object_size(map) == 0) {
    status = status_set(STATUS_DATA, "%s: no \"weight_map\"; download it again", index_path);
    goto out;
  }
  file_numbers = json_object();
  if (!file_numbers) {
    status = status_set(STATUS_SYSTEM, "%s: no memory for the list of files", index_path);
    goto out;
  }
  TRY_OUT(open_shards(folder, path, index_path, map, file_numbers));
  TRY_OUT(collect(folder, path));
  TRY_OUT(check_map(folder, index_path, map, file_numbers));
  TRY_OUT(keep_mapped(folder, map));
out:
  json_decref(file_numbers);
  json_decref(root);
  free(text);
  return status;
}

static enum status open_weights(struct hf_folder *folder, const char *path) {
  if (has(path, "model.safetensors")) {
    char file[PATH_MAX];
    TRY(join(path, "model.safetensors", file));
    TRY(add_file(folder, file));
    return collect(folder, path); /* a file's own names are unique */
  }
  if (has(path, "model.safetensors.index.json")) return open_indexed(folder, path);
  if (has(path, "pytorch_model.bin") || has(path, "pytorch_model.bin.index.json"))
    return status_set(STATUS_USAGE,
                      "%s: only pytorch_model.bin, a pickle, which is not read; load the model with transformers and "
                      "save_pretrained it (safetensors)",
                      path);
  return status_set(STATUS_USAGE, "%s: no model.safetensors and no model.safetensors.index.json; download the weights",
                    path);
}

enum status hf_folder_open(const char *path, struct hf_folder **folder_p) {
  struct hf_folder *folder = calloc(1, sizeof *folder);
  if (!folder) return status_set(STATUS_SYSTEM, "%s: no memory to open it", path);
  enum status status = read_facts(path, &folder->facts);
  if (status == STATUS_OK) status = open_weights(folder, path);
  if (status != STATUS_OK) {
    hf_folder_close(&folder);
    return status;
  }
  *folder_p = folder;
  return STATUS_OK;
}

void hf_folder_close(struct hf_folder **folder_p) {
  struct hf_folder *folder = *folder_p;
  *folder_p = NULL;
  if (!folder) return;
  for (int f = 0; f < folder->n_files; f++) safetensors_close(&folder->files[f]);
  free(folder->files);
  free(folder->tensors);
  free(folder);
}
