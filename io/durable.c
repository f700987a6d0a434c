#include "io/durable.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum status durable_path(char *buffer, size_t size, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int used = vsnprintf(buffer, size, format, args);
  va_end(args);
  if (used >= 0 && (size_t)used < size) return STATUS_OK;
  return status_set(STATUS_USAGE, "%.80s...: path is longer than %zu bytes", buffer, size - 1);
}

enum status durable_sync(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return status_set(STATUS_SYSTEM, "%s: cannot open it to flush: %s", path, strerror(errno));
  int failed = fsync(fd);
  int error = errno;
  close(fd);
  /* Some file systems cannot sync a directory; their renames are ordered. */
  if (failed && error != EINVAL && error != EROFS)
    return status_set(STATUS_SYSTEM, "%s: cannot flush to disk: %s", path, strerror(error));
  return STATUS_OK;
}

enum status durable_sync_parent(const char *path) {
  char parent[DURABLE_PATH];
  TRY(durable_path(parent, sizeof parent, "%s", path));
  size_t length = strlen(parent);
  while (length > 1 && parent[length - 1] == '/') parent[--length] = 0;
  char *slash = strrchr(parent, '/');
  if (!slash) return durable_sync(".");
  slash[slash == parent] = 0;
  return durable_sync(parent);
}

enum status durable_create(const char *path, int *fd_p) {
  if (unlink(path) != 0 && errno != ENOENT)
    return status_set(STATUS_SYSTEM, "%s: cannot create: %s", path, strerror(errno));
  int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return status_set(STATUS_SYSTEM, "%s: cannot create: %s", path, strerror(errno));
  *fd_p = fd;
  return STATUS_OK;
}

enum status durable_rename(const char *temporary, const char *path) {
  if (rename(temporary, path) != 0) {
    enum status status = status_set(STATUS_SYSTEM, "%s: cannot rename %s to it: %s", path, temporary, strerror(errno));
    unlink(temporary);
    return status;
  }
  return durable_sync_parent(path);
}

static enum status write_all(int fd, const char *path, const char *text, size_t length) {
  while (length > 0) {
    ssize_t n = write(fd, text, length);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return status_set(STATUS_SYSTEM, "%s: cannot write: %s", path, strerror(errno));
    text += n;
    length -= (size_t)n;
  }
  if (fsync(fd) != 0) return status_set(STATUS_SYSTEM, "%s: cannot flush to disk: %s", path, strerror(errno));
  return STATUS_OK;
}

enum status durable_write(const char *path, const char *text, size_t length) {
  char temporary[DURABLE_PATH];
  TRY(durable_path(temporary, sizeof temporary, "%s.tmp", path));
  int fd;
  TRY(durable_create(temporary, &fd));
  enum status status = write_all(fd, temporary, text, length);
  if (close(fd) != 0 && status == STATUS_OK)
    status = status_set(STATUS_SYSTEM, "%s: cannot close: %s", temporary, strerror(errno));
  if (status != STATUS_OK) {
    unlink(temporary);
    return status;
  }
  return durable_rename(temporary, path);
}

enum status durable_check_plain(const char *path) {
  struct stat info;
  if (lstat(path, &info) != 0 || !S_ISDIR(info.st_mode)) return STATUS_OK;
  DIR *directory = opendir(path);
  if (!directory) return status_set(STATUS_SYSTEM, "%s: cannot list: %s", path, strerror(errno));
  enum status status = STATUS_OK;
  for (struct dirent *entry; status == STATUS_OK && (entry = readdir(directory));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    if (fstatat(dirfd(directory), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(info.st_mode))
      status = status_set(STATUS_SYSTEM, "%s/%s: a folder that is not of lorashard's making; move it elsewhere", path,
                          entry->d_name);
  }
  closedir(directory);
  return status;
}

enum status durable_remove_directory(const char *path) {
  TRY(durable_check_plain(path));
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  DIR *directory = fd < 0 ? NULL : fdopendir(fd);
  if (!directory) {
    int error = errno;
    if (fd >= 0) close(fd);
    if (error == ENOENT || ((error == ENOTDIR || error == ELOOP) && unlink(path) == 0)) return STATUS_OK;
    return status_set(STATUS_SYSTEM, "%s: cannot open it to remove it: %s", path, strerror(error));
  }
  enum status status = STATUS_OK;
  for (struct dirent *entry; status == STATUS_OK && (entry = readdir(directory));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    if (unlinkat(dirfd(directory), entry->d_name, 0) != 0 && errno != ENOENT)
      status = status_set(STATUS_SYSTEM, "%s/%s: cannot remove: %s", path, entry->d_name, strerror(errno));
  }
  closedir(directory);
  if (status == STATUS_OK && rmdir(path) != 0 && errno != ENOENT)
    status = status_set(STATUS_SYSTEM, "%s: cannot remove: %s", path, strerror(errno));
  return status;
}
