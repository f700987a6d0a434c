/* GGUF: any bytes give a model whose every slice can be read, or an error. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/base_model.h"
#include "io/gguf.h"

/* The getters that the tokenizer uses, on a file that need not be a model. */
static void read_keys(const char *path) {
  struct gguf *gguf = NULL;
  if (gguf_open(path, &gguf) != STATUS_OK) return;
  struct gguf_string *strings = NULL, model;
  float *scores = NULL;
  int32_t *types = NULL;
  int64_t n;
  unsigned sum = 0;
  if (gguf_get_string(gguf, "tokenizer.ggml.model", &model) == STATUS_OK)
    for (size_t i = 0; i < model.length; i++) sum += (unsigned char)model.text[i];
  if (gguf_get_strings(gguf, "tokenizer.ggml.tokens", &strings, &n) == STATUS_OK)
    for (int64_t i = 0; i < n; i++)
      for (size_t j = 0; j < strings[i].length; j++) sum += (unsigned char)strings[i].text[j];
  gguf_get_f32s(gguf, "tokenizer.ggml.scores", &scores, &n);
  gguf_get_i32s(gguf, "tokenizer.ggml.token_type", &types, &n);
  if (sum == UINT32_MAX) abort(); /* keeps the reads above */
  free(strings);
  free(scores);
  free(types);
  gguf_close(&gguf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char path[64];
  int fd = memfd_create("gguf", MFD_CLOEXEC);
  if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  read_keys(path);
  struct tensor_source *source = NULL;
  if (base_model_open(path, &source) == STATUS_OK)
    for (int64_t i = 0; i < source->n_tensors; i++) {
      const struct tensor_info *info = source->at(source, i);
      int64_t cols = info->shape[info->n_dims - 1];
      float value;
      if (info->n_dims <= 2 && cols > 0 && (info->n_dims == 1 || info->shape[0] > 0) &&
          base_model_read_f32(source, info, info->n_dims == 2 ? info->shape[0] - 1 : 0, 1, cols - 1, 1, &value, 1) !=
              STATUS_OK)
        abort();
    }
  base_model_close(&source);
  close(fd);
  return 0;
}
