/*
 * hdf5_driver.c: the file driver that checkpoints are written through.
 *
 * HDF5 does not recover from a failed write: the object that was being written
 * stays open inside the library, and the process crashes when HDF5 closes down
 * at exit. So this driver never fails. It remembers the first error in the
 * hdf5_output, keeps what could not be written in memory for the few writes
 * that still follow, and the writer gives up at its next look at the error.
 * It also leaves the file descriptor with us, so that it can be synced.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/checkpoint_internal.h"
#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

/* Bytes that did not reach the disk. */
struct unwritten {
  struct unwritten *next;
  haddr_t at;
  size_t size;
  unsigned char bytes[];
};

struct driver_file {
  H5FD_t common; /* must be first */
  struct hdf5_output *output;
  haddr_t eoa, eof;
  struct unwritten *first, **last;
};

static H5FD_t *driver_open(const char *name, unsigned flags, hid_t list, haddr_t max) {
  (void)name;
  (void)flags;
  (void)max;
  struct hdf5_output *const *output = H5Pget_driver_info(list);
  struct driver_file *file = output ? calloc(1, sizeof *file) : NULL;
  if (!file) return NULL;
  file->output = *output;
  file->last = &file->first;
  return &file->common;
}

static herr_t driver_close(H5FD_t *common) {
  struct driver_file *file = (struct driver_file *)common;
  for (struct unwritten *piece = file->first, *next; piece; piece = next) {
    next = piece->next;
    free(piece);
  }
  free(file);
  return 0;
}

static int driver_compare(const H5FD_t *a, const H5FD_t *b) {
  int x = ((const struct driver_file *)a)->output->fd, y = ((const struct driver_file *)b)->output->fd;
  return (x > y) - (x < y);
}

static herr_t driver_query(const H5FD_t *common, unsigned long *flags) {
  (void)common;
  *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
           H5FD_FEAT_AGGREGATE_SMALLDATA;
#ifdef H5FD_FEAT_DEFAULT_VFD_COMPATIBLE
  *flags |= H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
#endif
  return 0;
}

static haddr_t driver_get_eoa(const H5FD_t *common, H5FD_mem_t type) {
  (void)type;
  return ((const struct driver_file *)common)->eoa;
}

static herr_t driver_set_eoa(H5FD_t *common, H5FD_mem_t type, haddr_t address) {
  (void)type;
  ((struct driver_file *)common)->eoa = address;
  return 0;
}

static haddr_t driver_get_eof(const H5FD_t *common, H5FD_mem_t type) {
  (void)type;
  return ((const struct driver_file *)common)->eof;
}

/* What lies behind the end, or cannot be read, is zeros. */
static void read_disk(struct hdf5_output *output, haddr_t at, size_t size, unsigned char *buffer) {
  while (size > 0) {
    ssize_t n = pread(output->fd, buffer, size, (off_t)at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && !output->error) output->error = errno;
    if (n <= 0) break;
    buffer += n;
    size -= (size_t)n;
    at += (haddr_t)n;
  }
  memset(buffer, 0, size);
}

static herr_t driver_read(H5FD_t *common, H5FD_mem_t type, hid_t list, haddr_t at, size_t size, void *buffer) {
  (void)type;
  (void)list;
  struct driver_file *file = (struct driver_file *)common;
  read_disk(file->output, at, size, buffer);
  for (const struct unwritten *piece = file->first; piece; piece = piece->next) {
    haddr_t begin = piece->at > at ? piece->at : at;
    haddr_t end = piece->at + piece->size < at + size ? piece->at + piece->size : at + size;
    if (begin < end)
      memcpy((unsigned char *)buffer + (begin - at), piece->bytes + (begin - piece->at), (size_t)(end - begin));
  }
  return 0;
}

static void keep_unwritten(struct driver_file *file, haddr_t at, size_t size, const void *buffer) {
  struct unwritten *piece = malloc(sizeof *piece + size);
  if (!piece) return; /* an error is recorded already; the file is given up */
  *piece = (struct unwritten){.at = at, .size = size};
  memcpy(piece->bytes, buffer, size);
  *file->last = piece;
  file->last = &piece->next;
}

static herr_t driver_write(H5FD_t *common, H5FD_mem_t type, hid_t list, haddr_t at, size_t size, const void *buffer) {
  (void)type;
  (void)list;
  struct driver_file *file = (struct driver_file *)common;
  struct hdf5_output *output = file->output;
  const unsigned char *next = buffer;
  if (at + size > file->eof) file->eof = at + size;
  while (size > 0 && !output->error) {
    ssize_t n = pwrite(output->fd, next, size, (off_t)at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      output->error = n < 0 ? errno : EIO;
      break;
    }
    next += n;
    size -= (size_t)n;
    at += (haddr_t)n;
  }
  if (size > 0) keep_unwritten(file, at, size, next);
  return 0;
}

static herr_t driver_truncate(H5FD_t *common, hid_t list, hbool_t closing) {
  (void)list;
  (void)closing;
  struct driver_file *file = (struct driver_file *)common;
  struct hdf5_output *output = file->output;
  if (file->eoa != file->eof && !output->error && ftruncate(output->fd, (off_t)file->eoa) != 0) output->error = errno;
  file->eof = file->eoa;
  return 0;
}

static const H5FD_class_t driver_class = {
#if H5_VERSION_GE(1, 13, 0)
    .version = H5FD_CLASS_VERSION,
    .value = (H5FD_class_value_t)332, /* from the range for private use */
#endif
    .name = "lorashard",
    .maxaddr = INT64_MAX,
    .fc_degree = H5F_CLOSE_STRONG,
    .fapl_size = sizeof(struct hdf5_output *),
    .open = driver_open,
    .close = driver_close,
    .cmp = driver_compare,
    .query = driver_query,
    .get_eoa = driver_get_eoa,
    .set_eoa = driver_set_eoa,
    .get_eof = driver_get_eof,
    .read = driver_read,
    .write = driver_write,
    .truncate = driver_truncate,
    .fl_map = H5FD_FLMAP_DICHOTOMY,
};

herr_t hdf5_use_driver(hid_t access_list, struct hdf5_output *output) {
  static hid_t driver = -1; /* guarded by hdf5_enter's lock */
  if (driver < 0) driver = H5FDregister(&driver_class);
  return driver < 0 ? -1 : H5Pset_driver(access_list, driver, &output);
}
