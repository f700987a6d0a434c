#include "io/token_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

/* "LSTOK" and the layout's version; reads differently in the other byte order. */
#define MAGIC 0x00014b4f54534cULL

struct header {
  uint64_t magic, key[2], number, n_docs, n_words, digest[2];
};
_Static_assert(sizeof(struct header) == 64, "the payload stays aligned");

#define HASHED offsetof(struct header, digest)

/* False without memory for the hash's state. */
static bool digest_image(const void *image, size_t size, uint64_t digest[2]) {
  XXH3_state_t *hash = XXH3_createState();
  if (!hash) return false;
  XXH3_128bits_reset(hash);
  XXH3_128bits_update(hash, image, HASHED);
  XXH3_128bits_update(hash, (const char *)image + sizeof(struct header), size - sizeof(struct header));
  XXH128_hash_t value = XXH3_128bits_digest(hash);
  XXH3_freeState(hash);
  digest[0] = value.low64;
  digest[1] = value.high64;
  return true;
}

bool token_chunk_parse(const void *image, size_t size, const uint64_t key[2], int number, struct token_chunk *chunk) {
  struct header header;
  if (size < sizeof header) return false;
  memcpy(&header, image, sizeof header);
  if (header.magic != MAGIC || header.key[0] != key[0] || header.key[1] != key[1]) return false;
  if (header.number != (uint64_t)number) return false;
  uint64_t payload = size - sizeof header;
  if (header.n_docs > payload / 8 || header.n_words > payload / 4) return false;
  if (header.n_docs * 8 + header.n_words * 4 != payload) return false;
  uint64_t digest[2];
  if (!digest_image(image, size, digest)) return false;
  if (digest[0] != header.digest[0] || digest[1] != header.digest[1]) return false;
  const uint64_t *ends = (const uint64_t *)((const char *)image + sizeof header);
  for (uint64_t i = 0; i < header.n_docs; i++)
    if (ends[i] > header.n_words || (i > 0 && ends[i] < ends[i - 1])) return false;
  if (header.n_docs > 0 && ends[header.n_docs - 1] != header.n_words) return false;
  chunk->n_docs = (int64_t)header.n_docs;
  chunk->n_words = (int64_t)header.n_words;
  chunk->doc_ends = ends;
  chunk->words = (const uint32_t *)(ends + header.n_docs);
  return true;
}

void token_chunk_free(struct token_chunk *chunk) {
  if (chunk->mapped)
    munmap(chunk->image, chunk->size);
  else
    free(chunk->image);
  *chunk = (struct token_chunk){0};
}

void token_builder_free(struct token_builder *builder) {
  free(builder->words);
  free(builder->doc_ends);
  *builder = (struct token_builder){0};
}

/* Room for `more` entries of `size` bytes after n. */
static enum status grow(void **array, int64_t *capacity, int64_t n, int64_t more, size_t size) {
  if (n + more <= *capacity) return STATUS_OK;
  int64_t wanted = *capacity * 2 > n + more ? *capacity * 2 : n + more + 1024;
  void *bigger = realloc(*array, (size_t)wanted * size);
  if (!bigger) return status_set(STATUS_SYSTEM, "no memory for %lld tokens", (long long)wanted);
  *array = bigger;
  *capacity = wanted;
  return STATUS_OK;
}

enum status token_builder_add(struct token_builder *builder, const struct token_list *ids,
                              const struct token_list *mask) {
  TRY(grow((void **)&builder->words, &builder->word_capacity, builder->n_words, ids->n, sizeof *builder->words));
  for (int64_t i = 0; i < ids->n; i++)
    builder->words[builder->n_words++] = (uint32_t)ids->ids[i] | (mask->ids[i] ? TOKEN_TARGET : 0);
  return STATUS_OK;
}

enum status token_builder_end_document(struct token_builder *builder) {
  TRY(grow((void **)&builder->doc_ends, &builder->doc_capacity, builder->n_docs, 1, sizeof *builder->doc_ends));
  builder->doc_ends[builder->n_docs++] = (uint64_t)builder->n_words;
  return STATUS_OK;
}

enum status token_builder_finish(const struct token_builder *builder, const uint64_t key[2], int number,
                                 struct token_chunk *chunk) {
  size_t ends = (size_t)builder->n_docs * 8, words = (size_t)builder->n_words * 4;
  size_t size = sizeof(struct header) + ends + words;
  char *image = malloc(size);
  if (!image) return status_set(STATUS_SYSTEM, "no memory for %zu bytes of tokens", size);
  struct header header = {
      MAGIC, {key[0], key[1]}, (uint64_t)number, (uint64_t)builder->n_docs, (uint64_t)builder->n_words, {0, 0}};
  if (ends) memcpy(image + sizeof header, builder->doc_ends, ends);
  if (words) memcpy(image + sizeof header + ends, builder->words, words);
  memcpy(image, &header, sizeof header);
  if (!digest_image(image, size, header.digest)) {
    free(image);
    return status_set(STATUS_SYSTEM, "no memory for a digest");
  }
  memcpy(image, &header, sizeof header);
  *chunk = (struct token_chunk){.n_docs = builder->n_docs, .n_words = builder->n_words, .image = image, .size = size};
  chunk->doc_ends = (const uint64_t *)(image + sizeof header);
  chunk->words = (const uint32_t *)(image + sizeof header + ends);
  return STATUS_OK;
}

enum status token_cache_folder(const char *cache_dir, const uint64_t key[2], char **folder_p) {
  char *folder = NULL;
  if (asprintf(&folder, "%s/%016llx%016llx", cache_dir, (unsigned long long)key[1], (unsigned long long)key[0]) < 0)
    return status_set(STATUS_SYSTEM, "%s: no memory for a path", cache_dir);
  *folder_p = folder;
  return STATUS_OK;
}

enum status token_cache_make_folder(const char *folder) {
  char *path = strdup(folder);
  if (!path) return status_set(STATUS_SYSTEM, "%s: no memory for a path", folder);
  enum status status = STATUS_OK;
  for (char *slash = path + 1; status == STATUS_OK; slash++) {
    slash = strchrnul(slash, '/');
    char kept = *slash;
    *slash = '\0';
    if (mkdir(path, 0777) != 0 && errno != EEXIST)
      status = status_set(STATUS_SYSTEM,
                          "%s: cannot make the token cache's folder: %s; make its parent "
                          "writable",
                          path, strerror(errno));
    *slash = kept;
    if (!kept) break;
  }
  free(path);
  return status;
}

static enum status write_all(int fd, const char *path, const char *data, size_t n) {
  while (n > 0) {
    ssize_t done = write(fd, data, n);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return status_set(STATUS_SYSTEM, "%s: cannot write: %s; make room there", path, strerror(errno));
    data += done;
    n -= (size_t)done;
  }
  return STATUS_OK;
}

enum status token_cache_store(const char *folder, int number, const struct token_chunk *chunk) {
  char *path = NULL, *temporary = NULL;
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  enum status status = STATUS_OK;
  int fd = -1;
  /* Unique also among hosts that share the folder and a process number. */
  if (asprintf(&path, "%s/chunk-%05d.tok", folder, number) < 0) path = NULL;
  if (!path ||
      asprintf(&temporary, "%s.%ld-%lld%09ld.tmp", path, (long)getpid(), (long long)now.tv_sec, now.tv_nsec) < 0) {
    temporary = NULL;
    TRY_OUT(status_set(STATUS_SYSTEM, "%s: no memory for a path", folder));
  }
  fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) TRY_OUT(status_set(STATUS_SYSTEM, "%s: cannot make: %s", temporary, strerror(errno)));
  status = write_all(fd, temporary, chunk->image, chunk->size);
  if (close(fd) != 0 && status == STATUS_OK)
    status = status_set(STATUS_SYSTEM, "%s: cannot write: %s", temporary, strerror(errno));
  if (status == STATUS_OK && rename(temporary, path) != 0)
    status = status_set(STATUS_SYSTEM, "%s: cannot rename: %s", temporary, strerror(errno));
  if (status != STATUS_OK) unlink(temporary);
out:
  free(path);
  free(temporary);
  return status;
}

bool token_cache_load(const char *folder, const uint64_t key[2], int number, struct token_chunk *chunk) {
  char *path = NULL;
  if (asprintf(&path, "%s/chunk-%05d.tok", folder, number) < 0) return false;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  free(path);
  if (fd < 0) return false;
  struct stat info;
  void *image = MAP_FAILED;
  size_t size = 0;
  if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size >= (off_t)sizeof(struct header)) {
    size = (size_t)info.st_size;
    image = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
  }
  close(fd);
  if (image == MAP_FAILED) return false;
  struct token_chunk made = {.image = image, .size = size, .mapped = true};
  if (!token_chunk_parse(image, size, key, number, &made)) {
    munmap(image, size);
    return false;
  }
  *chunk = made;
  return true;
}
