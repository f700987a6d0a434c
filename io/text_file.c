#include "io/text_file.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "io/file_read.h"

#define CHUNK_MIN  ((uint64_t)1 << 20)
#define CHUNKS_MAX 512 /* each is a file and a mapping later: big files get bigger chunks */
#define LINE_MAX   ((uint64_t)256 << 20)
#define BLOCK      ((size_t)1 << 20)
#define E2E_LINES  100

bool text_next_line(const char *data, size_t length, size_t *at, struct text_span *line) {
  if (*at >= length) return false;
  const char *begin = data + *at;
  const char *end = memchr(begin, '\n', length - *at);
  size_t n = end ? (size_t)(end - begin) : length - *at;
  *at += n + (end ? 1 : 0);
  if (n > 0 && begin[n - 1] == '\r') n--;
  *line = (struct text_span){begin, n};
  return true;
}

bool text_blank(struct text_span line) {
  for (size_t i = 0; i < line.length; i++)
    if (!memchr(" \t\r\n\v\f", line.text[i], 6)) return false;
  return true;
}

/* The scan's place in the file. */
struct scan {
  struct text_file *file;
  uint64_t chunk_size;
  uint64_t position;
  int64_t line; /* of the byte at position */
  unsigned char previous;
  uint64_t begin;
  int64_t begin_line;
};

static bool white(unsigned char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* May a chunk end before byte `c`? A stream without lines is cut between
 * characters, or at last anywhere. */
static bool may_cut(const struct scan *scan, unsigned char c) {
  uint64_t length = scan->position - scan->begin;
  if (length < scan->chunk_size) return false;
  if (scan->file->format != RECORD_STREAM) return scan->previous == '\n';
  if (scan->previous == '\n' && !white(c)) return true;
  return length >= 4 * scan->chunk_size && ((c & 0xc0) != 0x80 || length >= 8 * scan->chunk_size);
}

static enum status end_chunk(struct scan *scan) {
  struct text_file *file = scan->file;
  if (scan->position == scan->begin) return STATUS_OK;
  if ((file->n_chunks & (file->n_chunks - 1)) == 0) {
    size_t capacity = file->n_chunks ? 2 * (size_t)file->n_chunks : 1;
    struct text_chunk *chunks = realloc(file->chunks, capacity * sizeof *chunks);
    if (!chunks) return status_set(STATUS_SYSTEM, "%s: no memory for %zu chunks", file->path, capacity);
    file->chunks = chunks;
  }
  file->chunks[file->n_chunks++] = (struct text_chunk){scan->begin, scan->position, scan->begin_line};
  scan->begin = scan->position;
  scan->begin_line = scan->line;
  return STATUS_OK;
}

static enum status scan_block(struct scan *scan, const unsigned char *block, size_t n) {
  for (size_t i = 0; i < n; i++, scan->position++) {
    if (scan->position < scan->begin) continue; /* the BOM */
    if (may_cut(scan, block[i])) TRY(end_chunk(scan));
    if (scan->position - scan->begin >= scan->chunk_size + LINE_MAX)
      return status_set(STATUS_DATA, "%s:%lld: line longer than 256 MiB; is this a text file?", scan->file->path,
                        (long long)scan->line);
    scan->previous = block[i];
    if (block[i] == '\n') scan->line++;
  }
  return STATUS_OK;
}

static enum status scan_file(struct text_file *file, uint64_t begin) {
  struct scan scan = {.file = file, .begin = begin, .line = 1, .begin_line = 1};
  scan.chunk_size = file->size / CHUNKS_MAX > CHUNK_MIN ? file->size / CHUNKS_MAX : CHUNK_MIN;
  enum status status = STATUS_OK;
  unsigned char *block = malloc(BLOCK);
  XXH3_state_t *hash = XXH3_createState();
  if (!block || !hash) TRY_OUT(status_set(STATUS_SYSTEM, "%s: no memory to read", file->path));
  XXH3_128bits_reset(hash);
  for (uint64_t at = 0; at < file->size;) {
    size_t n = file->size - at < BLOCK ? (size_t)(file->size - at) : BLOCK;
    TRY_OUT(file_read_at(file->fd, file->path, at, block, n));
    XXH3_128bits_update(hash, block, n);
    TRY_OUT(scan_block(&scan, block, n));
    at += n;
  }
  TRY_OUT(end_chunk(&scan));
  XXH128_hash_t digest = XXH3_128bits_digest(hash);
  file->digest[0] = digest.low64;
  file->digest[1] = digest.high64;
out:
  free(block);
  XXH3_freeState(hash);
  return status;
}

/* e2e or plain text, by the first lines. A last line that the head does not
 * hold whole does not count. */
static enum record_format detect_text(const char *head, size_t length, bool whole) {
  struct text_span line;
  int lines = 0;
  for (size_t at = 0; lines < E2E_LINES && text_next_line(head, length, &at, &line);) {
    if (at == length && !whole && head[length - 1] != '\n') break;
    if (text_blank(line)) continue;
    if (record_count_bars(line.text, line.length) != 1) return RECORD_STREAM;
    lines++;
  }
  return lines ? RECORD_E2E : RECORD_STREAM;
}

/* The first object's keys decide. A file without one has no records, of
 * whatever format. */
static enum status detect_json(struct text_file *file) {
  file->format = RECORD_TEXT;
  for (int chunk = 0; chunk < file->n_chunks; chunk++) {
    char *data = NULL;
    size_t length = 0;
    TRY(text_file_read(file, chunk, &data, &length));
    struct text_span line = {0};
    int64_t number = file->chunks[chunk].first_line - 1;
    bool found = false;
    for (size_t at = 0; !found && text_next_line(data, length, &at, &line); number++) found = !text_blank(line);
    enum status status = STATUS_OK;
    if (found) {
      struct record record = {0};
      status = record_parse_json(line.text, line.length, RECORD_AUTO, &record);
      if (status == STATUS_OK) file->format = record.format;
      record_free(&record);
    }
    free(data);
    if (status != STATUS_OK) return status_prefix(status, "%s:%lld", file->path, (long long)number);
    if (found) break;
  }
  return STATUS_OK;
}

static enum status read_head(struct text_file *file, bool lines_of_json, uint64_t *begin_p) {
  size_t n = file->size < BLOCK ? (size_t)file->size : BLOCK;
  char *head = malloc(n + 1);
  if (!head) return status_set(STATUS_SYSTEM, "%s: no memory to read", file->path);
  enum status status = STATUS_OK;
  size_t skip = 0;
  TRY_OUT(file_read_at(file->fd, file->path, 0, head, n));
  if (n >= 2 && (memcmp(head, "\xff\xfe", 2) == 0 || memcmp(head, "\xfe\xff", 2) == 0))
    TRY_OUT(status_set(STATUS_DATA, "%s: is UTF-16; convert it to UTF-8", file->path));
  if (n >= 3 && memcmp(head, "\xef\xbb\xbf", 3) == 0) skip = 3;
  if (!lines_of_json && file->format == RECORD_AUTO) file->format = detect_text(head + skip, n - skip, n == file->size);
  *begin_p = skip;
out:
  free(head);
  return status;
}

enum status text_file_open(const char *path, enum record_format format, bool lines_of_json, struct text_file *file) {
  struct text_file made = {.path = path, .format = format, .fd = -1};
  enum status status = STATUS_OK;
  uint64_t begin = 0;
  TRY_OUT(file_open_read(path, &made.fd, &made.size));
  TRY_OUT(read_head(&made, lines_of_json, &begin));
  TRY_OUT(scan_file(&made, begin));
  if (made.format == RECORD_AUTO) TRY_OUT(detect_json(&made));
  *file = made;
  return STATUS_OK;
out:
  text_file_close(&made);
  return status;
}

void text_file_close(struct text_file *file) {
  if (file->fd >= 0) close(file->fd);
  free(file->chunks);
  *file = (struct text_file){.fd = -1};
}

enum status text_file_read(const struct text_file *file, int chunk, char **data_p, size_t *length_p) {
  const struct text_chunk *part = &file->chunks[chunk];
  size_t length = (size_t)(part->end - part->begin);
  char *data = malloc(length);
  if (!data) return status_set(STATUS_SYSTEM, "%s: no memory for %zu bytes", file->path, length);
  enum status status = file_read_at(file->fd, file->path, part->begin, data, length);
  if (status != STATUS_OK) {
    free(data);
    return status;
  }
  *data_p = data;
  *length_p = length;
  return STATUS_OK;
}
