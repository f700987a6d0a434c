#include "launch/output_dir.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "io/checkpoint.h"
#include "io/durable.h"
#include "io/log.h"
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
  return checkpoint_step_number(name, false) >= 0 || checkpoint_is_leftover(name);
}
static bool is_run_file(const char *name) {
  return strcmp(name, "latest") == 0 || strcmp(name, "metrics.jsonl") == 0 || strcmp(name, "config.yaml") == 0 ||
         strcmp(name, RUN_STATUS_FILE) == 0;
}

/* Does the directory hold a run; see whether all of it can be taken away; take it away. */
enum what { FIND, CHECK, REMOVE };

static enum status scan(const char *path, enum what what, bool *found) {
  enum status status = STATUS_OK;
  DIR *directory = opendir(path);
  if (!directory) return status_set(STATUS_SYSTEM, "cannot read output directory %s: %s", path, strerror(errno));
  for (struct dirent *entry; (entry = readdir(directory)) && status == STATUS_OK;) {
    char file[4096];
    if (!is_step(entry->d_name) && !is_run_file(entry->d_name)) continue;
    *found = true;
    if (what == FIND) continue;
    status = durable_path(file, sizeof file, "%s/%s", path, entry->d_name);
    if (status != STATUS_OK) break;
    if (is_step(entry->d_name))
      status = what == CHECK ? durable_check_plain(file) : durable_remove_directory(file);
    else if (what == REMOVE && unlink(file) != 0 && errno != ENOENT)
      status = status_set(STATUS_SYSTEM, "cannot remove %s: %s", file, strerror(errno));
  }
  closedir(directory);
  return status;
}

enum status output_dir_prepare(const char *path, bool resume, bool overwrite) {
  bool found = false;
  if (!resume || access(path, F_OK) == 0) {
    TRY(make_directories(path));
    TRY(scan(path, overwrite ? CHECK : FIND, &found));
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

#define LOCK_FILE "%s/.lock"

/* The one who had the lock may have removed the file meanwhile: then somebody may make and lock it anew. */
static bool is_the_file(int fd, const char *file) {
  struct stat own, present;
  return fstat(fd, &own) == 0 && stat(file, &present) == 0 && own.st_dev == present.st_dev &&
         own.st_ino == present.st_ino;
}

/* Open the file and lock it: 0, EAGAIN while somebody else has it, ENOTSUP where there are no locks, or what went
 * wrong. *fd_p is open if it is 0 or EAGAIN. */
static int try_lock(const char *file, int *fd_p) {
  struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  for (int attempt = 0; attempt < 100; attempt++) {
    int fd = *fd_p = open(file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    if (fd < 0) return errno;
    int error = fcntl(fd, F_OFD_SETLK, &whole) == 0 ? 0 : errno;
    if (error == EACCES || error == EAGAIN) return EAGAIN;
    if (error == 0 && is_the_file(fd, file)) return 0;
    close(fd);
    *fd_p = -1;
    if (error == ENOLCK || error == EOPNOTSUPP || error == ENOSYS || error == EINVAL) return ENOTSUP;
    if (error != 0 && error != EINTR && error != ESTALE) return error;
  }
  return EBUSY;
}

/* Who has the lock, as it wrote down itself. */
static void read_owner(int fd, char *owner, size_t size) {
  ssize_t n = pread(fd, owner, size - 1, 0);
  owner[n > 0 ? n : 0] = 0;
  owner[strcspn(owner, "\n")] = 0;
  for (char *c = owner; *c; c++)
    if (!isprint((unsigned char)*c)) *c = '?';
  if (!*owner) snprintf(owner, size, "another job");
}

static void write_owner(int fd) {
  char host[HOST_NAME_MAX + 1] = "", text[HOST_NAME_MAX + 64];
  gethostname(host, sizeof host - 1);
  int n = snprintf(text, sizeof text, "process %d on %s\n", (int)getpid(), host);
  if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)n, 0) != n)
    log_debug("%s: who has the lock cannot be written down", strerror(errno));
}

enum status output_dir_lock(const char *path, double patience, bool (*stop)(void), int *lock_p) {
  const struct timespec moment = {.tv_nsec = 100 * 1000 * 1000};
  char file[DURABLE_PATH], owner[HOST_NAME_MAX + 64];
  int error, fd;
  bool told = false;
  *lock_p = -1;
  TRY(durable_path(file, sizeof file, LOCK_FILE, path));
  for (double left = patience; (error = try_lock(file, &fd)) == EAGAIN && left > 0 && !stop(); left -= 0.1) {
    read_owner(fd, owner, sizeof owner);
    close(fd);
    if (!told) log_info("%s is being written by %s: waiting up to %.0f s for its end", path, owner, patience);
    told = true;
    nanosleep(&moment, NULL);
  }
  if (error == 0) {
    write_owner(fd);
    *lock_p = fd;
    return STATUS_OK;
  }
  if (error == ENOTSUP) {
    log_warn("%s: its file system has no locks: no other job may write to it", path);
    return STATUS_OK;
  }
  if (fd < 0) return status_set(STATUS_SYSTEM, "cannot lock %s: %s", file, strerror(error));
  read_owner(fd, owner, sizeof owner);
  close(fd);
  if (stop()) return STATUS_OK;
  return status_set(STATUS_USAGE, "output directory %s is being written by %s: give another output, or end that job",
                    path, owner);
}

void output_dir_unlock(const char *path, int lock) {
  char file[DURABLE_PATH];
  if (lock < 0) return;
  if (durable_path(file, sizeof file, LOCK_FILE, path) == STATUS_OK) unlink(file);
  close(lock);
}

enum status output_dir_clear(const char *path) {
  bool found = false;
  return scan(path, REMOVE, &found);
}

bool output_dir_holds(const char *output, const char *path) {
  char inner[PATH_MAX], outer[PATH_MAX];
  if (!realpath(output, outer) || !realpath(path, inner)) return false;
  size_t length = strlen(outer);
  return strncmp(inner, outer, length) == 0 && (inner[length] == '/' || inner[length] == 0);
}
