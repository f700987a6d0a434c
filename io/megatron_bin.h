/*
 * megatron_bin.h: tokenised data of Megatron-LM, X.bin with X.idx.
 *
 * Index: 9 bytes "MMIDIDX\0\0", u64 version 1, u8 type of a token (1 u8, 2 i8,
 * 3 i16, 4 i32, 5 i64, 8 u16; 6 f64 and 7 f32 are refused), u64 S, u64 K, i32
 * lengths[S], i64 byte offsets[S] into .bin, i64 documents[K] (sequence numbers
 * from 0 to S), perhaps i8 modes[S]. Little-endian, unaligned.
 */
#ifndef LORASHARD_IO_MEGATRON_BIN_H
#define LORASHARD_IO_MEGATRON_BIN_H

#include <stddef.h>
#include <stdint.h>

#include "io/status.h"

/* An index in memory, checked as a whole. */
struct megatron_index {
  int64_t n_documents;
  int token_type, token_bytes;
  const uint8_t *lengths, *offsets, *documents; /* into the image */
};

/* Check the image of an index against the size of its .bin. Every document must
 * be one run of bytes inside .bin. `path` is for messages (STATUS_DATA). */
enum status megatron_index_parse(const uint8_t *image, size_t size, uint64_t bin_size, const char *path,
                                 struct megatron_index *index);

/* First token (counted from the start of .bin) and number of tokens of a
 * document. */
void megatron_index_document(const struct megatron_index *index, int64_t document, int64_t *first_p, int64_t *n_p);

struct megatron_bin;

/* Map `path`, which ends in .bin, and the .idx beside it. */
enum status megatron_bin_open(const char *path, struct megatron_bin **bin_p);
void megatron_bin_close(struct megatron_bin **bin_p);

const struct megatron_index *megatron_bin_index(const struct megatron_bin *bin);

/* Tokens [first, first + n) of .bin, which must lie in a document. One that is
 * negative or above 2^31 - 1 becomes 2^31 - 1, which no vocabulary has. */
void megatron_bin_read(const struct megatron_bin *bin, int64_t first, int64_t n, int32_t *ids);

#endif
