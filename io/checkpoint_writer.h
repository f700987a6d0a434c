/*
 * checkpoint_writer.h: writes a shard on a background thread from a snapshot,
 * so that the training loop does not wait for the disk.
 *
 *   checkpoint_writer_submit(w, directory, file, ...);   copies, returns at once
 *   ... steps ...
 *   checkpoint_writer_poll(w, &done);                    then publish
 */
#ifndef LORASHARD_IO_CHECKPOINT_WRITER_H
#define LORASHARD_IO_CHECKPOINT_WRITER_H

#include "io/checkpoint.h"

struct checkpoint_writer;

/* Start the thread (with all signals blocked). The writer is the caller's. */
enum status checkpoint_writer_create(struct checkpoint_writer **writer_p);

/* Copy everything, the arrays' data too, and let the thread write it as
 * checkpoint_write_shard does. The copy's buffers are allocated by the first
 * call and used again; they grow only if a later call needs more. One write at
 * a time: STATUS_USAGE while one is in flight, and the error of a finished
 * write that nobody asked for yet is returned instead of starting another. */
enum status checkpoint_writer_submit(struct checkpoint_writer *writer, const char *directory, const char *file,
                                     const struct checkpoint_header *header, const struct checkpoint_module *modules,
                                     int n_modules, const struct checkpoint_array *arrays, int n_arrays);

/* After a shard was written (by this writer, and every other one): let the thread
 * call checkpoint_publish with the header and modules of that snapshot.
 * config_text is borrowed until it is done. STATUS_USAGE while a write is in
 * flight. */
enum status checkpoint_writer_publish(struct checkpoint_writer *writer, const char *output, int64_t step,
                                      const char *config_text, int keep_last);

/* *done_p: nothing is in flight. Returns the error of the finished write, once. */
enum status checkpoint_writer_poll(struct checkpoint_writer *writer, bool *done_p);

/* Wait until nothing is in flight; returns like poll. */
enum status checkpoint_writer_wait(struct checkpoint_writer *writer);

/* Finish what is in flight, end the thread. NULL is fine; sets the pointer to
 * NULL. */
void checkpoint_writer_destroy(struct checkpoint_writer **writer_p);

#endif
