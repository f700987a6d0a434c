/*
 * base_model.h: opens a base model from a path. Target io.
 */
#ifndef LORASHARD_IO_BASE_MODEL_H
#define LORASHARD_IO_BASE_MODEL_H

#include "io/tensor_source.h"

#define FINGERPRINT_SIZE 33 /* 32 hexadecimal digits and a zero */

/* Open a Hugging Face folder (config.json + safetensors), a .gguf file, or
 * "synthetic:MODEL" (io/synthetic.h), which reads no file.
 * Every header is checked against its file's size; no weight is read. On
 * success *source_p is the caller's, to be closed with base_model_close.
 * Errors: STATUS_USAGE (no such path, unsupported kind named), STATUS_DATA. */
enum status base_model_open(const char *path, struct tensor_source **source_p);

/* Close; NULL and half-opened are fine; sets the pointer to NULL. */
void base_model_close(struct tensor_source **source_p);

/* Copy rows and columns like source->read, as f32 whatever the dtype. Any col
 * and n_cols (expands the covering blocks). dst_stride in elements. */
enum status base_model_read_f32(struct tensor_source *source, const struct tensor_info *info, int64_t row,
                                int64_t n_rows, int64_t col, int64_t n_cols, float *dst, int64_t dst_stride);

/* A digest that tells one base from another: of the facts, of every tensor's
 * name, dtype and shape, and of up to 4 KiB of each of 16 evenly chosen
 * tensors. Reads at most 64 KiB; not added to bytes_read. */
enum status base_model_fingerprint(struct tensor_source *source, char fingerprint[FINGERPRINT_SIZE]);

/* Fill facts from the text of a config.json alone (planning, tests). `name` is
 * for messages. */
enum status model_facts_parse(const char *json, size_t length, const char *name, struct model_facts *facts);

/* The same from a file of at most `limit` bytes. */
enum status model_facts_read(const char *path, size_t limit, struct model_facts *facts);

#endif
