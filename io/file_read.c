#include "io/file_read.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* One call never asks for more: Linux caps a read near 2 GiB anyway. */
#define READ_MAX ((size_t)1 << 30)

enum status file_open_read(const char *path, int *fd_p, uint64_t *size_p) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer must not hold us up */
  if (fd < 0) {
    enum status code = errno == ENOENT || errno == ENOTDIR ? STATUS_USAGE : STATUS_SYSTEM;
    return status_set(code, "%s: cannot open: %s; check the path", path, strerror(errno));
  }
  struct stat info;
  if (fstat(fd, &info) != 0) {
    int reason = errno;
    close(fd);
    return status_set(STATUS_SYSTEM, "%s: cannot stat: %s", path, strerror(reason));
  }
  if (!S_ISREG(info.st_mode)) {
    close(fd);
    return status_set(STATUS_USAGE, "%s: not a regular file; name a file", path);
  }
  *fd_p = fd;
  *size_p = (uint64_t)info.st_size;
  return STATUS_OK;
}

enum status file_read_at(int fd, const char *path, uint64_t offset, void *dst, size_t n) {
  char *at = dst;
  while (n > 0) {
    ssize_t got = pread(fd, at, n < READ_MAX ? n : READ_MAX, (off_t)offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      return status_set(STATUS_SYSTEM, "%s: reading at byte %llu: %s", path, (unsigned long long)offset,
                        strerror(errno));
    if (got == 0)
      return status_set(STATUS_DATA, "%s: ends at byte %llu, %zu bytes too early; copy or download it again", path,
                        (unsigned long long)offset, n);
    at += got;
    offset += (uint64_t)got;
    n -= (size_t)got;
  }
  return STATUS_OK;
}

enum status file_read_text(const char *path, size_t limit, char **text_p, size_t *length_p) {
  int fd = -1;
  uint64_t size = 0;
  TRY(file_open_read(path, &fd, &size));
  enum status status = STATUS_OK;
  char *text = NULL;
  if (size > limit) {
    status = status_set(STATUS_DATA, "%s: %llu bytes, more than the %zu such a file may have", path,
                        (unsigned long long)size, limit);
    goto out;
  }
  text = malloc((size_t)size + 1);
  if (!text) {
    status = status_set(STATUS_SYSTEM, "%s: no memory for %llu bytes", path, (unsigned long long)size);
    goto out;
  }
  TRY_OUT(file_read_at(fd, path, 0, text, (size_t)size));
  text[size] = '\0';
  *text_p = text;
  *length_p = (size_t)size;
  text = NULL;
out:
  free(text);
  close(fd);
  return status;
}
