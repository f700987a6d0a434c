/*
 * checkpoint_step.c: step directories under an output directory: begin,
 * publish, find, prune. A step is whole under its final name or absent.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/checkpoint_internal.h"
#include "io/log.h"

/* The step numbers in OUTPUT, rising. */
struct step_list {
  int64_t *steps;
  int n, capacity;
};

int64_t checkpoint_step_number(const char *name, bool temporary) {
  if (strncmp(name, "step-", 5) != 0) return -1;
  size_t digits = strspn(name + 5, "0123456789");
  if (digits < 6 || digits > 18 || strcmp(name + 5 + digits, temporary ? ".tmp" : "") != 0) return -1;
  if (digits > 6 && name[5] == '0') return -1;
  return strtoll(name + 5, NULL, 10);
}

static enum status step_path(char *path, size_t size, const char *output, int64_t step, const char *suffix) {
  return durable_path(path, size, "%s/step-%06lld%s", output, (long long)step, suffix);
}

static int by_number(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

static enum status list_steps(const char *output, struct step_list *list) {
  memset(list, 0, sizeof *list);
  DIR *stream = opendir(output);
  if (!stream) {
    if (errno == ENOENT) return STATUS_OK;
    return status_set(STATUS_SYSTEM, "%s: cannot list: %s", output, strerror(errno));
  }
  enum status status = STATUS_OK;
  for (struct dirent *entry; (entry = readdir(stream));) {
    int64_t step = checkpoint_step_number(entry->d_name, false);
    if (step < 0) continue;
    if (list->n == list->capacity) {
      list->capacity = list->capacity ? 2 * list->capacity : 16;
      int64_t *larger = realloc(list->steps, (size_t)list->capacity * sizeof *larger);
      if (!larger) {
        status = status_set(STATUS_SYSTEM, "%s: out of memory for %d steps", output, list->capacity);
        break;
      }
      list->steps = larger;
    }
    list->steps[list->n++] = step;
  }
  closedir(stream);
  if (status == STATUS_OK && list->n) qsort(list->steps, (size_t)list->n, sizeof *list->steps, by_number);
  if (status != STATUS_OK) free(list->steps);
  return status;
}

bool checkpoint_is_leftover(const char *name) {
  size_t length = strlen(name);
  return strncmp(name, "step-", 5) == 0 && length > 9 && strcmp(name + length - 4, ".tmp") == 0;
}

/* Remove every step-*.tmp that an ended process left behind. What cannot be removed stays: it is in nobody's way. */
static enum status remove_stale(const char *output) {
  DIR *stream = opendir(output);
  if (!stream) return status_set(STATUS_SYSTEM, "%s: cannot list: %s", output, strerror(errno));
  for (struct dirent *entry; (entry = readdir(stream));) {
    char path[DURABLE_PATH];
    if (!checkpoint_is_leftover(entry->d_name)) continue;
    if (durable_path(path, sizeof path, "%s/%s", output, entry->d_name) != STATUS_OK) continue;
    if (durable_remove_directory(path) != STATUS_OK) log_warn("leaving %s", status_message());
  }
  closedir(stream);
  return STATUS_OK;
}

enum status checkpoint_begin(const char *output, int64_t step, char *directory, size_t directory_size) {
  if (step < 0) return status_set(STATUS_USAGE, "%s: step %lld is negative", output, (long long)step);
  TRY(step_path(directory, directory_size, output, step, ".tmp"));
  if (mkdir(output, 0777) != 0 && errno != EEXIST)
    return status_set(STATUS_SYSTEM, "%s: cannot create: %s", output, strerror(errno));
  TRY(durable_remove_directory(directory));
  TRY(remove_stale(output));
  if (mkdir(directory, 0777) != 0)
    return status_set(STATUS_SYSTEM, "%s: cannot create: %s", directory, strerror(errno));
  return STATUS_OK;
}

static enum status rename_directory(const char *from, const char *to) {
  if (rename(from, to) == 0) return STATUS_OK;
  return status_set(STATUS_SYSTEM, "%s: cannot rename %s to it: %s", to, from, strerror(errno));
}

/* A directory is first renamed to a .tmp name: if removing it is cut short, what
 * is left is not taken for a step. */
static enum status remove_step(const char *output, int64_t step) {
  char path[DURABLE_PATH], doomed[DURABLE_PATH];
  TRY(step_path(path, sizeof path, output, step, ""));
  TRY(step_path(doomed, sizeof doomed, output, step, ".old.tmp"));
  TRY(durable_check_plain(path));
  TRY(durable_remove_directory(doomed));
  TRY(rename_directory(path, doomed));
  return durable_remove_directory(doomed);
}

/* Keep the newest keep_last steps, and always the one just written. The new checkpoint does not depend on an old one's
 * going: a folder that somebody has put there is left alone. */
static enum status prune(const char *output, int64_t written, int keep_last) {
  struct step_list list;
  if (keep_last <= 0) return STATUS_OK;
  TRY(list_steps(output, &list));
  for (int i = 0; i < list.n - keep_last; i++)
    if (list.steps[i] != written && remove_step(output, list.steps[i]) != STATUS_OK)
      log_warn("keeping an old checkpoint: %s", status_message());
  free(list.steps);
  return STATUS_OK;
}

/* Rename step-N.tmp to step-N. A directory of that name is an older attempt at
 * the same step, which training has just repeated. */
static enum status appear(const char *output, int64_t step, const char *temporary) {
  char path[DURABLE_PATH], text[64];
  struct stat info;
  TRY(step_path(path, sizeof path, output, step, ""));
  if (lstat(path, &info) == 0) TRY(remove_step(output, step));
  TRY(rename_directory(temporary, path));
  TRY(durable_sync(output));
  TRY(durable_path(path, sizeof path, "%s/latest", output));
  int length = snprintf(text, sizeof text, "step-%06lld\n", (long long)step);
  return durable_write(path, text, (size_t)length);
}

enum status checkpoint_publish(const char *output, int64_t step, const struct checkpoint_header *header,
                               const struct checkpoint_module *modules, int n_modules, const char *config_text,
                               int keep_last) {
  char temporary[DURABLE_PATH];
  struct shard_set set;
  if (step < 0 || header->step != step)
    return status_set(STATUS_USAGE, "%s: step %lld is published with a header of step %lld", output, (long long)step,
                      (long long)header->step);
  TRY(step_path(temporary, sizeof temporary, output, step, ".tmp"));
  hdf5_enter();
  enum status status = shard_set_read(temporary, header, modules, n_modules, &set);
  if (status == STATUS_OK) {
    status = shard_set_publish(&set, temporary, header, modules, n_modules, config_text);
    shard_set_free(&set);
  }
  hdf5_leave();
  TRY(status);
  TRY(manifest_write(temporary, step));
  TRY(durable_sync(temporary));
  TRY(appear(output, step, temporary));
  return prune(output, step, keep_last);
}

/* Say so if `latest` names a step that is not the one found. */
static void compare_latest(const char *output, int64_t found) {
  char path[DURABLE_PATH], text[64] = "";
  if (durable_path(path, sizeof path, "%s/latest", output) != STATUS_OK) return;
  int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC); /* neither a pipe nor somebody else's file */
  if (fd < 0 && errno == ENOENT) return;
  ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (fd >= 0) close(fd);
  text[n > 0 ? n : 0] = 0;
  text[strcspn(text, "\r\n")] = 0;
  int64_t named = checkpoint_step_number(text, false);
  if (named == found) return;
  for (char *c = text; *c; c++)
    if (!isprint((unsigned char)*c)) *c = '?';
  if (found < 0)
    log_warn("%s: names \"%s\", but there is no whole step", path, text);
  else
    log_warn("%s: names \"%s\"; the newest whole step is %lld", path, text, (long long)found);
}

enum status checkpoint_find_latest(const char *output, char *path, size_t path_size, int64_t *step_p) {
  struct step_list list;
  TRY(list_steps(output, &list));
  enum status status = STATUS_OK;
  int64_t found = -1;
  for (int i = list.n - 1; found < 0 && i >= 0 && status == STATUS_OK; i--) {
    char candidate[DURABLE_PATH];
    int64_t stated;
    status = step_path(candidate, sizeof candidate, output, list.steps[i], "");
    if (status != STATUS_OK) break;
    if (manifest_check(candidate, &stated) != STATUS_OK) {
      log_warn("skipping %s: %s", candidate, status_message());
    } else if (stated != list.steps[i]) {
      log_warn("skipping %s: its manifest is of step %lld", candidate, (long long)stated);
    } else {
      status = durable_path(path, path_size, "%s", candidate);
      found = list.steps[i];
    }
  }
  free(list.steps);
  TRY(status);
  compare_latest(output, found);
  *step_p = found;
  return STATUS_OK;
}

static bool is_step(const char *path) {
  struct stat info;
  char manifest[DURABLE_PATH];
  return durable_path(manifest, sizeof manifest, "%s/manifest.json", path) == STATUS_OK && stat(manifest, &info) == 0;
}

bool checkpoint_is_directory(const char *path) {
  bool found = is_step(path);
  DIR *directory = found ? NULL : opendir(path);
  for (struct dirent *entry; directory && !found && (entry = readdir(directory));)
    found = checkpoint_step_number(entry->d_name, false) >= 0;
  if (directory) closedir(directory);
  return found;
}

enum status checkpoint_resolve(const char *path, char *resolved, size_t size) {
  struct stat info;
  int64_t step = -1;
  TRY(durable_path(resolved, size, "%s", path));
  if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode) || is_step(path)) return STATUS_OK;
  TRY(checkpoint_find_latest(path, resolved, size, &step));
  if (step >= 0) return STATUS_OK;
  return status_set(STATUS_USAGE, "%s: neither a step directory nor an adapter, and no whole step is in it", path);
}
