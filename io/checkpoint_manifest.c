/*
 * checkpoint_manifest.c: manifest.json, a size and an XXH3-128 digest for every
 * file of a step directory.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "io/checkpoint_internal.h"

#define MANIFEST_LIMIT (16 << 20)
#define BLOCK          (1 << 20)
#define DIGEST         33 /* 32 hexadecimal digits and a zero */

static enum status digest_stream(int fd, const char *path, XXH3_state_t *state, unsigned char *block,
                                 char digest[DIGEST], int64_t *size_p) {
  int64_t size = 0;
  XXH3_128bits_reset(state);
  for (;;) {
    ssize_t n = read(fd, block, BLOCK);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return status_set(STATUS_SYSTEM, "%s: cannot read: %s", path, strerror(errno));
    if (n == 0) break;
    XXH3_128bits_update(state, block, (size_t)n);
    size += n;
  }
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
  for (int i = 0; i < 16; i++) snprintf(digest + 2 * i, 3, "%02x", canonical.digest[i]);
  *size_p = size;
  return STATUS_OK;
}

static enum status digest_file(const char *path, char digest[DIGEST], int64_t *size_p) {
  struct stat info;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return status_set(STATUS_DATA, "%s: cannot open: %s", path, strerror(errno));
  enum status status;
  unsigned char *block = malloc(BLOCK);
  XXH3_state_t *state = XXH3_createState();
  if (!block || !state)
    status = status_set(STATUS_SYSTEM, "%s: out of memory", path);
  else if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode))
    status = status_set(STATUS_DATA, "%s: not a regular file", path);
  else
    status = digest_stream(fd, path, state, block, digest, size_p);
  XXH3_freeState(state);
  free(block);
  close(fd);
  return status;
}

static bool ends_in_h5(const char *name) {
  size_t length = strlen(name);
  return length > 3 && strcmp(name + length - 3, ".h5") == 0;
}

static enum status add_entry(json_t *files, const char *directory, const char *name) {
  char path[DURABLE_PATH], digest[DIGEST];
  int64_t size;
  TRY(durable_path(path, sizeof path, "%s/%s", directory, name));
  TRY(digest_file(path, digest, &size));
  json_t *entry = json_pack("{s:I, s:s}", "size", (json_int_t)size, "xxh3_128", digest);
  if (!entry || json_object_set_new(files, name, entry) != 0)
    return status_set(STATUS_SYSTEM, "%s: out of memory for its manifest entry", path);
  return STATUS_OK;
}

static enum status add_entries(json_t *files, const char *directory) {
  DIR *stream = opendir(directory);
  if (!stream) return status_set(STATUS_SYSTEM, "%s: cannot list: %s", directory, strerror(errno));
  enum status status = STATUS_OK;
  for (struct dirent *entry; status == STATUS_OK && (entry = readdir(stream));)
    if (entry->d_name[0] != '.' && strncmp(entry->d_name, "manifest.json", 13) != 0)
      status = add_entry(files, directory, entry->d_name);
  closedir(stream);
  return status;
}

enum status manifest_write(const char *directory, int64_t step) {
  char path[DURABLE_PATH];
  TRY(durable_path(path, sizeof path, "%s/manifest.json", directory));
  json_t *files = json_object();
  json_t *root = json_pack("{s:i, s:I, s:o}", "format", CHECKPOINT_FORMAT, "step", (json_int_t)step, "files", files);
  if (!root) return status_set(STATUS_SYSTEM, "%s: out of memory", path);
  enum status status = add_entries(files, directory);
  char *text = status == STATUS_OK ? json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
  if (status == STATUS_OK && !text) status = status_set(STATUS_SYSTEM, "%s: out of memory", path);
  if (status == STATUS_OK) status = durable_write(path, text, strlen(text));
  free(text);
  json_decref(root);
  return status;
}

static enum status load_manifest(const char *path, json_t **root_p) {
  struct stat info;
  if (stat(path, &info) != 0)
    return status_set(STATUS_DATA, "%s: %s; not a whole step directory", path, strerror(errno));
  if (!S_ISREG(info.st_mode) || info.st_size > MANIFEST_LIMIT)
    return status_set(STATUS_DATA, "%s: not a manifest (a file of at most %d bytes)", path, MANIFEST_LIMIT);
  json_error_t error;
  json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
  if (!root) return status_set(STATUS_DATA, "%s:%d: %s", path, error.line, error.text);
  *root_p = root;
  return STATUS_OK;
}

static enum status check_entry(const char *directory, const char *name, const json_t *entry) {
  char path[DURABLE_PATH], digest[DIGEST];
  int64_t size;
  struct stat info;
  json_t *stated = json_object_get(entry, "size");
  const char *stated_digest = json_string_value(json_object_get(entry, "xxh3_128"));
  if (!json_is_integer(stated) || !stated_digest || strchr(name, '/') || name[0] == '.')
    return status_set(STATUS_DATA, "%s/manifest.json: entry \"%.80s\" is not understood", directory, name);
  TRY(durable_path(path, sizeof path, "%s/%s", directory, name));
  if (stat(path, &info) != 0) return status_set(STATUS_DATA, "%s: in the manifest, but %s", path, strerror(errno));
  if ((json_int_t)info.st_size != json_integer_value(stated))
    return status_set(STATUS_DATA, "%s: %lld bytes, its manifest says %lld", path, (long long)info.st_size,
                      (long long)json_integer_value(stated));
  TRY(digest_file(path, digest, &size));
  if (strcmp(digest, stated_digest) != 0)
    return status_set(STATUS_DATA, "%s: content does not match the digest in its manifest", path);
  return STATUS_OK;
}

/* Every .h5 file must be in the manifest: all listed ones exist, so counting is
 * enough. */
static enum status check_strangers(const char *directory, const json_t *files) {
  int listed = 0, present = 0;
  const char *name;
  json_t *entry;
  json_object_foreach((json_t *)files, name, entry) listed += ends_in_h5(name);
  DIR *stream = opendir(directory);
  if (!stream) return status_set(STATUS_DATA, "%s: cannot list: %s", directory, strerror(errno));
  for (struct dirent *item; (item = readdir(stream));) present += ends_in_h5(item->d_name);
  closedir(stream);
  if (listed != present)
    return status_set(STATUS_DATA, "%s: has %d .h5 files, its manifest %d", directory, present, listed);
  return STATUS_OK;
}

static enum status check_root(const char *directory, const json_t *root, int64_t *step_p) {
  const json_t *format = json_object_get(root, "format"), *step = json_object_get(root, "step");
  json_t *files = json_object_get(root, "files");
  if (!json_is_integer(format) || !json_is_integer(step) || !json_is_object(files))
    return status_set(STATUS_DATA, "%s/manifest.json: lacks format, step or files", directory);
  if (json_integer_value(format) != CHECKPOINT_FORMAT)
    return status_set(STATUS_DATA, "%s/manifest.json: format %lld, this program reads format %d", directory,
                      (long long)json_integer_value(format), CHECKPOINT_FORMAT);
  if (!json_object_get(files, "adapter.h5"))
    return status_set(STATUS_DATA, "%s/manifest.json: adapter.h5 is not in it", directory);
  const char *name;
  json_t *entry;
  json_object_foreach(files, name, entry) TRY(check_entry(directory, name, entry));
  TRY(check_strangers(directory, files));
  *step_p = json_integer_value(step);
  return STATUS_OK;
}

enum status manifest_check(const char *directory, int64_t *step_p) {
  char path[DURABLE_PATH];
  json_t *root = NULL;
  TRY(durable_path(path, sizeof path, "%s/manifest.json", directory));
  TRY(load_manifest(path, &root));
  enum status status = check_root(directory, root, step_p);
  json_decref(root);
  return status;
}
