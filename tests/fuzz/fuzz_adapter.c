/*
 * adapter.h5 from anyone: opening and reading every part must end with a status,
 * whatever the bytes. HDF5 wants a file, so each input is written to one.
 *
 * HDF5's own decoders see only what passes its checksums of metadata, which this
 * program insists on (superblock 2 or 3).
 * seeds: tests/fuzz/seeds/adapter */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "io/checkpoint.h"

#define MAX_INPUT (1 << 20)

/* HDF5 1.10 leaks what it had decoded when a checksum fails. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:libhdf5"; }

static void read_all(const struct checkpoint *checkpoint) {
  const struct checkpoint_array *arrays;
  int n = checkpoint_arrays(checkpoint, &arrays);
  for (int i = 0; i < n; i++) {
    struct checkpoint_array part = arrays[i];
    /* A file of a megabyte cannot hold more than that. */
    if (part.rows * part.cols > MAX_INPUT) abort();
    part.row = part.rows / 2;
    part.part_rows = part.rows - part.row;
    part.col = part.cols / 2;
    part.part_cols = part.cols - part.col;
    part.data = malloc((size_t)(part.part_rows * part.part_cols) * sizeof(float));
    if (part.data) checkpoint_read(checkpoint, &part);
    free(part.data);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size > MAX_INPUT) return 0;
  char path[64];
  snprintf(path, sizeof path, "/tmp/fuzz_adapter_%ld.h5", (long)getpid());
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (fd < 0) abort();
  if (write(fd, data, size) != (ssize_t)size) abort();
  close(fd);
  struct checkpoint *checkpoint = NULL;
  if (checkpoint_open(path, &checkpoint) == STATUS_OK) read_all(checkpoint);
  checkpoint_close(&checkpoint);
  unlink(path);
  return 0;
}
