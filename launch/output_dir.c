#include "launch/output_dir.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/checkpoint.h"
#include "io/durable.h"
#include "launch/run_status.h"

static enum status make_directories(const char *path) {
  char part[4096];
  size_t length = strlen(path);
  if (length == 0 || length >= sizeof part) return status_set(STATUS_USAGE, "output: no usable directory name");
  memcpy(part, path, length + 1);
  for (char *slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
    *slash = 0;
    if (mkdir(part, 0777) != 0 && errno != EEXIST)
      return status_set(STATUS_SYSTEM, "cannot create %s: %s", part, strerror(errno));
    *slash = '/';
  }
  if (mkdir(part, 0777) != 0 && errno != EEXIST)
    return status_set(STATUS_SYSTEM, "cannot create output directory %s: %s", path, strerror(errno));
  struct stat info;
  if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode))
    return status_set(STATUS_USAGE, "output %s is not a directory", path);
  if (access(path, W_OK | X_OK) != 0)
    return status_set(STATUS_SYSTEM, "output directory %s cannot be written: %s", path, strerror(errno));
  return STATUS_OK;
}

static bool is_step(const char *name) {
  return checkpoint_step_number(name, false) >= 0 || checkpoint_step_number(name, true) >= 0;
}
static bool is_run_file(const char *name) {
  return strcmp(name, "latest") == 0 || strcmp(name, "metrics.jsonl") == 0 || strcmp(name, "config.yaml") == 0 ||
         strcmp(name, RUN_STATUS_FILE) == 0;
}

/* Does the directory hold a run; with `remove`, take the run's files away. */
static enum status scan(const char *path, bool remove, bool *found) {
  enum status status = STATUS_OK;
  DIR *directory = opendir(path);
  if (!directory) return status_set(STATUS_SYSTEM, "cannot read output directory %s: %s", path, strerror(errno));
  for (struct dirent *entry; (entry = readdir(directory)) && status == STATUS_OK;) {
    char file[4096];
    if (!is_step(entry->d_name) && !is_run_file(entry->d_name)) continue;
    *found = true;
    if (!remove) continue;
    status = durable_path(file, sizeof file, "%s/%s", path, entry->d_name);
    if (status != STATUS_OK) break;
    if (is_step(entry->d_name))
      status = durable_remove_directory(file);
    else if (unlink(file) != 0 && errno != ENOENT)
      status = status_set(STATUS_SYSTEM, "cannot remove %s: %s", file, strerror(errno));
  }
  closedir(directory);
  return status;
}

enum status output_dir_prepare(const char *path, bool resume, bool overwrite) {
  bool found = false;
  if (!resume || access(path, F_OK) == 0) {
    TRY(make_directories(path));
    TRY(scan(path, false, &found));
  }
  if (resume && !found)
    return status_set(STATUS_USAGE,
                      "--resume: %s holds no run to go on with: name the output of that run, or leave out "
                      "--resume to begin one",
                      path);
  if (found && !resume && !overwrite)
    return status_set(STATUS_USAGE,
                      "output directory %s holds another run: give another output, --resume to go on with it, "
                      "or --overwrite to replace it",
                      path);
  return STATUS_OK;
}

enum status output_dir_clear(const char *path) {
  bool found = false;
  return scan(path, true, &found);
}

bool output_dir_holds(const char *output, const char *path) {
  char inner[PATH_MAX], outer[PATH_MAX];
  if (!realpath(output, outer) || !realpath(path, inner)) return false;
  size_t length = strlen(outer);
  return strncmp(inner, outer, length) == 0 && (inner[length] == '/' || inner[length] == 0);
}
