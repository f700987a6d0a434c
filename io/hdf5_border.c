/*
 * hdf5_border.c: the only door to HDF5's global state: one lock, one way of
 * turning its error stack into a line, one way of opening and of finishing.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/checkpoint_internal.h"

/* H5Pset_file_locking came with 1.10.7, left out 1.12.0, and is in all later. */
#if H5_VERSION_GE(1, 12, 1) || (H5_VERSION_GE(1, 10, 7) && !H5_VERSION_GE(1, 11, 0))
#define HAVE_FILE_LOCKING_PROPERTY 1
#else
#define HAVE_FILE_LOCKING_PROPERTY 0
#endif

static pthread_mutex_t hdf5_mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static bool plugins_off; /* guarded by hdf5_mutex */

void hdf5_enter(void) {
  pthread_mutex_lock(&hdf5_mutex);
  if (!plugins_off) {
    /* Before the first call, in which later versions of HDF5 load what these name. */
    setenv("HDF5_PLUGIN_PRELOAD", "::", 1);
    unsetenv("HDF5_VOL_CONNECTOR");
    unsetenv("HDF5_DRIVER");
  }
  /* A thread-safe build of HDF5 has one error stack per thread. */
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  if (!plugins_off) {
    H5PLset_loading_state(0);
    plugins_off = true;
  }
}

void hdf5_leave(void) { pthread_mutex_unlock(&hdf5_mutex); }

/* Walking upward, the first entry is the innermost. */
static herr_t take_innermost(unsigned n, const H5E_error2_t *error, void *reason_p) {
  if (n == 0 && error->desc) snprintf(reason_p, 400, "%s", error->desc);
  return 0;
}

enum status hdf5_fail(enum status code, const char *path, const char *call, const char *file, int line) {
  char reason[400] = "no reason given", function[48] = "HDF5";
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_innermost, reason);
  H5Eclear2(H5E_DEFAULT);
  const char *name = strstr(call, "H5");
  if (name) snprintf(function, sizeof function, "%.*s", (int)strcspn(name, "("), name);
  const char *base = strrchr(file, '/');
  bool locking = strstr(reason, "lock file") != NULL;
  return status_set(code, "%s: %s at %s:%d: %s%s", path, function, base ? base + 1 : file, line, reason,
                    locking               ? "; set the environment variable HDF5_USE_FILE_LOCKING to FALSE"
                    : code == STATUS_DATA ? "; the file is damaged, copy it again or take another"
                                          : "");
}

void hdf5_release(hid_t id) {
  if (id >= 0) H5Idec_ref(id);
}

static hid_t access_list(void) {
  hid_t list = H5Pcreate(H5P_FILE_ACCESS);
  if (list < 0) return list;
#if H5_VERSION_GE(1, 10, 2)
  herr_t bounds = H5Pset_libver_bounds(list, H5F_LIBVER_V110, H5F_LIBVER_V110);
#else
  herr_t bounds = H5Pset_libver_bounds(list, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
#endif
  herr_t degree = H5Pset_fclose_degree(list, H5F_CLOSE_STRONG);
  herr_t locking = 0;
#if HAVE_FILE_LOCKING_PROPERTY
  locking = H5Pset_file_locking(list, 0, 1);
#endif
  if (bounds >= 0 && degree >= 0 && locking >= 0) return list;
  H5Pclose(list);
  return -1;
}

static enum status check_signature(const char *path, int64_t *size_p) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return status_set(STATUS_DATA, "%s: cannot open: %s", path, strerror(errno));
  struct stat info;
  unsigned char head[9] = {0};
  bool regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  ssize_t n = regular ? pread(fd, head, sizeof head, 0) : 0;
  close(fd);
  if (!regular) return status_set(STATUS_DATA, "%s: not a regular file", path);
  if (n < (ssize_t)sizeof head || memcmp(head, "\211HDF\r\n\032\n", 8) != 0)
    return status_set(STATUS_DATA, "%s: not an HDF5 file; name an adapter.h5, a checkpoint directory or a PEFT folder",
                      path);
  if (head[8] < 2 || head[8] > 3)
    return status_set(STATUS_DATA,
                      "%s: HDF5 superblock version %d has no checksums; convert it with "
                      "h5repack --low=2 --high=2",
                      path, head[8]);
  *size_p = info.st_size;
  return STATUS_OK;
}

enum status hdf5_open(const char *path, hid_t *file_p, int64_t *size_p) {
  enum status status = STATUS_OK;
  TRY(check_signature(path, size_p));
  hid_t list = -1;
  H5_TRY_OUT(STATUS_SYSTEM, path, list = access_list());
  hid_t file = -1;
  H5_TRY_OUT(STATUS_DATA, path, file = H5Fopen(path, H5F_ACC_RDONLY, list));
  *file_p = file;
out:
  hdf5_release(list);
  return status;
}

/* Allocated blocks beyond the end of the file are used up by the writes that
 * follow: data_bytes never exceeds the final size. */
static enum status reserve(const struct hdf5_output *output, int64_t bytes) {
  if (bytes <= 0 || fallocate(output->fd, FALLOC_FL_KEEP_SIZE, 0, bytes) == 0) return STATUS_OK;
  if (errno != ENOSPC && errno != EDQUOT && errno != EFBIG) return STATUS_OK; /* this file system cannot reserve */
  return status_set(STATUS_SYSTEM, "%s: no room for %lld bytes: %s", output->temporary, (long long)bytes,
                    strerror(errno));
}

enum status hdf5_create(const char *path, int64_t data_bytes, struct hdf5_output *output) {
  enum status status = STATUS_OK;
  hid_t access = -1, creation = -1;
  *output = (struct hdf5_output){.file = -1, .fd = -1};
  TRY(durable_path(output->path, sizeof output->path, "%s", path));
  TRY(durable_path(output->temporary, sizeof output->temporary, "%s.tmp", path));
  TRY(durable_create(output->temporary, &output->fd));
  TRY_OUT(reserve(output, data_bytes));
  H5_TRY_OUT(STATUS_SYSTEM, path, access = access_list());
  H5_TRY_OUT(STATUS_SYSTEM, path, hdf5_use_driver(access, output));
  H5_TRY_OUT(STATUS_SYSTEM, path, creation = hdf5_untimed(H5P_FILE_CREATE));
  H5_TRY_OUT(STATUS_SYSTEM, output->temporary,
             output->file = H5Fcreate(output->temporary, H5F_ACC_TRUNC, creation, access));
out:
  hdf5_release(access);
  hdf5_release(creation);
  return status == STATUS_OK ? status : hdf5_finish(output, status);
}

enum status hdf5_check(const struct hdf5_output *output) {
  if (!output->error) return STATUS_OK;
  return status_set(STATUS_SYSTEM, "%s: cannot write: %s", output->temporary, strerror(output->error));
}

static enum status close_file(struct hdf5_output *output, enum status status) {
  if (status == STATUS_OK && H5Fflush(output->file, H5F_SCOPE_GLOBAL) < 0)
    status = hdf5_fail(STATUS_SYSTEM, output->temporary, "H5Fflush", __FILE__, __LINE__);
  if (status == STATUS_OK && H5Fget_obj_count(output->file, H5F_OBJ_ALL | H5F_OBJ_LOCAL) != 1)
    status = status_set(STATUS_SYSTEM, "%s: HDF5 objects were left open", output->temporary);
  if (H5Fclose(output->file) < 0 && status == STATUS_OK)
    status = hdf5_fail(STATUS_SYSTEM, output->temporary, "H5Fclose", __FILE__, __LINE__);
  H5Eclear2(H5E_DEFAULT);
  output->file = -1;
  return status == STATUS_OK ? hdf5_check(output) : status;
}

enum status hdf5_finish(struct hdf5_output *output, enum status status) {
  if (output->file >= 0) status = close_file(output, status);
  if (status == STATUS_OK && fsync(output->fd) != 0)
    status = status_set(STATUS_SYSTEM, "%s: cannot flush to disk: %s", output->temporary, strerror(errno));
  if (close(output->fd) != 0 && status == STATUS_OK)
    status = status_set(STATUS_SYSTEM, "%s: cannot close: %s", output->temporary, strerror(errno));
  output->fd = -1;
  if (status != STATUS_OK) {
    unlink(output->temporary);
    return status;
  }
  return durable_rename(output->temporary, output->path);
}
