/* safetensors: any bytes give tensors that lie in the file, or an error. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char path[64];
  int fd = memfd_create("safetensors", MFD_CLOEXEC);
  if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  struct safetensors *file = NULL;
  if (safetensors_open(path, &file) == STATUS_OK)
    for (int64_t i = 0; i < file->n_tensors; i++) { /* the last byte of each is there, one more is refused */
      char byte;
      const struct safetensors_tensor *tensor = &file->tensors[i];
      if (tensor->bytes > 0 && safetensors_read(file, tensor, tensor->bytes - 1, 1, &byte) != STATUS_OK) abort();
      if (safetensors_read(file, tensor, tensor->bytes, 1, &byte) == STATUS_OK) abort();
    }
  safetensors_close(&file);
  close(fd);
  return 0;
}
