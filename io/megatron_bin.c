#include "io/megatron_bin.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/file_read.h"

#define HEADER_SIZE 34

enum { TYPE_U8 = 1, TYPE_I8, TYPE_I16, TYPE_I32, TYPE_I64, TYPE_F64, TYPE_F32, TYPE_U16 };

static uint64_t read_u64(const uint8_t *at) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; i--) value = value << 8 | at[i];
  return value;
}

static uint32_t read_u32(const uint8_t *at) {
  return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static int type_bytes(int type) {
  static const int bytes[] = {0, 1, 1, 2, 4, 8, 0, 0, 2};
  return type > 0 && type <= TYPE_U16 ? bytes[type] : 0;
}

/* Sequences of one document follow each other without a gap. */
static enum status check_document(const struct megatron_index *index, uint64_t begin, uint64_t end, uint64_t bin_size,
                                  const char *path) {
  uint64_t expected = 0;
  for (uint64_t s = begin; s < end; s++) {
    uint64_t offset = read_u64(index->offsets + 8 * s);
    uint32_t length = read_u32(index->lengths + 4 * s);
    if (length > INT32_MAX)
      return status_set(STATUS_DATA, "%s: sequence %llu has a negative length", path, (unsigned long long)s);
    uint64_t bytes = (uint64_t)length * (uint64_t)index->token_bytes;
    if (offset > bin_size || bytes > bin_size - offset || offset % (uint64_t)index->token_bytes != 0)
      return status_set(STATUS_DATA,
                        "%s: sequence %llu lies outside the .bin of %llu bytes; do the files belong "
                        "together?",
                        path, (unsigned long long)s, (unsigned long long)bin_size);
    if (s > begin && offset != expected)
      return status_set(STATUS_DATA, "%s: sequence %llu does not follow the one before it in its document", path,
                        (unsigned long long)s);
    expected = offset + bytes;
  }
  return STATUS_OK;
}

static enum status check_documents(const struct megatron_index *index, uint64_t n_sequences, uint64_t n_entries,
                                   uint64_t bin_size, const char *path) {
  if (read_u64(index->documents) != 0 || read_u64(index->documents + 8 * (n_entries - 1)) != n_sequences)
    return status_set(STATUS_DATA, "%s: the documents do not begin at sequence 0 and end at %llu", path,
                      (unsigned long long)n_sequences);
  for (uint64_t d = 0; d + 1 < n_entries; d++) {
    uint64_t begin = read_u64(index->documents + 8 * d), end = read_u64(index->documents + 8 * (d + 1));
    if (end < begin || end > n_sequences)
      return status_set(STATUS_DATA, "%s: document %llu ends at sequence %llu, outside its bounds", path,
                        (unsigned long long)d, (unsigned long long)end);
    TRY(check_document(index, begin, end, bin_size, path));
  }
  return STATUS_OK;
}

enum status megatron_index_parse(const uint8_t *image, size_t size, uint64_t bin_size, const char *path,
                                 struct megatron_index *index) {
  if (size < HEADER_SIZE || memcmp(image, "MMIDIDX\0\0", 9) != 0)
    return status_set(STATUS_DATA, "%s: not a Megatron index (no MMIDIDX); only files of preprocess_data are read",
                      path);
  uint64_t version = read_u64(image + 9);
  if (version != 1)
    return status_set(STATUS_DATA, "%s: index version %llu; only 1 is known", path, (unsigned long long)version);
  struct megatron_index made = {.token_type = image[17], .token_bytes = type_bytes(image[17])};
  if (made.token_bytes == 0)
    return status_set(STATUS_DATA, "%s: token type %d is not an integer; write u16 or i32", path, made.token_type);
  uint64_t n_sequences = read_u64(image + 18), n_entries = read_u64(image + 26), rest = size - HEADER_SIZE;
  if (n_entries == 0 || n_sequences > rest / 12 || n_entries > rest / 8 || n_sequences * 12 + n_entries * 8 > rest)
    return status_set(STATUS_DATA, "%s: %zu bytes do not hold %llu sequences and %llu document ends; copy it again",
                      path, size, (unsigned long long)n_sequences, (unsigned long long)n_entries);
  made.lengths = image + HEADER_SIZE;
  made.offsets = made.lengths + 4 * n_sequences;
  made.documents = made.offsets + 8 * n_sequences;
  const uint8_t *modes = made.documents + 8 * n_entries;
  uint64_t more = rest - n_sequences * 12 - n_entries * 8;
  if (more != 0 && more != n_sequences)
    return status_set(STATUS_DATA, "%s: %llu bytes after the documents; copy it again", path, (unsigned long long)more);
  for (uint64_t i = 0; i < more; i++)
    if (modes[i] != 0) return status_set(STATUS_DATA, "%s: multimodal data; only text is read", path);
  made.n_documents = (int64_t)(n_entries - 1);
  TRY(check_documents(&made, n_sequences, n_entries, bin_size, path));
  *index = made;
  return STATUS_OK;
}

void megatron_index_document(const struct megatron_index *index, int64_t document, int64_t *first_p, int64_t *n_p) {
  uint64_t begin = read_u64(index->documents + 8 * document), end = read_u64(index->documents + 8 * (document + 1));
  *first_p = *n_p = 0;
  if (begin == end) return;
  uint64_t offset = read_u64(index->offsets + 8 * begin), last = read_u64(index->offsets + 8 * (end - 1));
  uint64_t bytes = (uint64_t)index->token_bytes;
  *first_p = (int64_t)(offset / bytes);
  *n_p = (int64_t)((last - offset) / bytes + read_u32(index->lengths + 4 * (end - 1)));
}

struct megatron_bin {
  struct megatron_index index;
  uint8_t *tokens, *image; /* mapped; NULL if the file is empty */
  size_t tokens_size, image_size;
};

static enum status map_file(const char *path, uint8_t **data_p, size_t *size_p) {
  int fd = -1;
  uint64_t size = 0;
  TRY(file_open_read(path, &fd, &size));
  void *data = NULL;
  int reason = 0;
  if (size > 0) {
    data = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, fd, 0);
    reason = errno;
  }
  close(fd);
  if (data == MAP_FAILED) return status_set(STATUS_SYSTEM, "%s: cannot map: %s", path, strerror(reason));
  *data_p = data;
  *size_p = (size_t)size;
  return STATUS_OK;
}

enum status megatron_bin_open(const char *path, struct megatron_bin **bin_p) {
  size_t length = strlen(path);
  if (length < 4 || strcmp(path + length - 4, ".bin") != 0)
    return status_set(STATUS_USAGE, "%s: tokens are read from a .bin with an .idx beside it; name the .bin", path);
  enum status status = STATUS_OK;
  struct megatron_bin *bin = calloc(1, sizeof *bin);
  char *index_path = strdup(path);
  if (!bin || !index_path) TRY_OUT(status_set(STATUS_SYSTEM, "%s: no memory to open", path));
  memcpy(index_path + length - 4, ".idx", 4);
  TRY_OUT(map_file(path, &bin->tokens, &bin->tokens_size));
  TRY_OUT(map_file(index_path, &bin->image, &bin->image_size));
  TRY_OUT(megatron_index_parse(bin->image, bin->image_size, bin->tokens_size, index_path, &bin->index));
  *bin_p = bin;
  bin = NULL;
out:
  free(index_path);
  megatron_bin_close(&bin);
  return status;
}

void megatron_bin_close(struct megatron_bin **bin_p) {
  struct megatron_bin *bin = *bin_p;
  if (!bin) return;
  if (bin->tokens) munmap(bin->tokens, bin->tokens_size);
  if (bin->image) munmap(bin->image, bin->image_size);
  free(bin);
  *bin_p = NULL;
}

const struct megatron_index *megatron_bin_index(const struct megatron_bin *bin) { return &bin->index; }

static int64_t read_token(const uint8_t *at, int type) {
  switch (type) {
    case TYPE_U8:
      return at[0];
    case TYPE_I8:
      return (int8_t)at[0];
    case TYPE_I16:
      return (int16_t)(at[0] | at[1] << 8);
    case TYPE_U16:
      return at[0] | at[1] << 8;
    case TYPE_I32:
      return (int32_t)read_u32(at);
    default:
      return (int64_t)read_u64(at);
  }
}

void megatron_bin_read(const struct megatron_bin *bin, int64_t first, int64_t n, int32_t *ids) {
  const int bytes = bin->index.token_bytes, type = bin->index.token_type;
  const uint8_t *at = bin->tokens + first * bytes;
  for (int64_t i = 0; i < n; i++, at += bytes) {
    int64_t id = read_token(at, type);
    ids[i] = id < 0 || id > INT32_MAX ? INT32_MAX : (int32_t)id;
  }
}
