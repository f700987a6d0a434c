#include "io/checkpoint_writer.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/checkpoint_internal.h"
#include "io/durable.h"
#include "io/thread.h"

enum writer_state { WRITER_IDLE, WRITER_BUSY, WRITER_ENDING };

struct checkpoint_writer {
  pthread_t thread;
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  enum writer_state state; /* guarded by mutex, as result and message */
  enum status result;      /* of the last write, until asked for */
  char message[1024];
  /* The snapshot: the caller's while idle, the thread's while busy. */
  char directory[DURABLE_PATH]; /* of the shard; OUTPUT when publishing */
  char file[CHECKPOINT_NAME];
  bool publishing; /* what the thread is to do: publish, or write a shard */
  int64_t step;
  const char *config_text;
  int keep_last;
  struct checkpoint_header header;
  struct checkpoint_module *modules;
  struct checkpoint_array *arrays;
  float *data; /* all parts, one after the other */
  int n_modules, n_arrays;
  size_t modules_capacity, arrays_capacity, data_capacity;
};

static enum status work(struct checkpoint_writer *w) {
  if (w->publishing)
    return checkpoint_publish(w->directory, w->step, &w->header, w->modules, w->n_modules, w->config_text,
                              w->keep_last);
  return checkpoint_write_shard(w->directory, w->file, &w->header, w->modules, w->n_modules, w->arrays, w->n_arrays);
}

static void *run(void *writer_p) {
  struct checkpoint_writer *w = writer_p;
  pthread_mutex_lock(&w->mutex);
  for (;;) {
    while (w->state == WRITER_IDLE) pthread_cond_wait(&w->changed, &w->mutex);
    if (w->state == WRITER_ENDING) break;
    pthread_mutex_unlock(&w->mutex);
    enum status status = work(w);
    pthread_mutex_lock(&w->mutex);
    w->result = status;
    if (status != STATUS_OK) snprintf(w->message, sizeof w->message, "%s", status_message());
    w->state = WRITER_IDLE;
    pthread_cond_broadcast(&w->changed);
  }
  pthread_mutex_unlock(&w->mutex);
  return NULL;
}

enum status checkpoint_writer_create(struct checkpoint_writer **writer_p) {
  struct checkpoint_writer *w = calloc(1, sizeof *w);
  if (!w) return status_set(STATUS_SYSTEM, "checkpoint writer: out of memory");
  pthread_mutex_init(&w->mutex, NULL);
  pthread_cond_init(&w->changed, NULL);
  /* The first entry changes the environment, which other threads may read by the time of the first checkpoint. */
  hdf5_enter();
  hdf5_leave();
  int error = thread_start(&w->thread, run, w);
  if (error) {
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->mutex);
    free(w);
    return status_set(STATUS_SYSTEM, "checkpoint writer: cannot start its thread: %s", strerror(error));
  }
  *writer_p = w;
  return STATUS_OK;
}

static enum status reserve(void **buffer, size_t *capacity, size_t bytes) {
  if (bytes <= *capacity) return STATUS_OK;
  void *larger = realloc(*buffer, bytes);
  if (!larger) return status_set(STATUS_SYSTEM, "checkpoint writer: out of memory for a snapshot of %zu bytes", bytes);
  *buffer = larger;
  *capacity = bytes;
  return STATUS_OK;
}

static size_t part_floats(const struct checkpoint_array *array) {
  return array->part_rows > 0 && array->part_cols > 0 ? (size_t)array->part_rows * (size_t)array->part_cols : 0;
}

static enum status take_snapshot(struct checkpoint_writer *w, const struct checkpoint_module *modules, int n_modules,
                                 const struct checkpoint_array *arrays, int n_arrays) {
  size_t total = 0;
  for (int i = 0; i < n_arrays; i++) total += part_floats(&arrays[i]);
  TRY(reserve((void **)&w->modules, &w->modules_capacity, (size_t)n_modules * sizeof *modules));
  TRY(reserve((void **)&w->arrays, &w->arrays_capacity, (size_t)n_arrays * sizeof *arrays));
  TRY(reserve((void **)&w->data, &w->data_capacity, total * sizeof(float)));
  if (n_modules > 0) memcpy(w->modules, modules, (size_t)n_modules * sizeof *modules);
  if (n_arrays > 0) memcpy(w->arrays, arrays, (size_t)n_arrays * sizeof *arrays);
  float *next = w->data;
  for (int i = 0; i < n_arrays; i++) {
    size_t n = part_floats(&arrays[i]);
    if (n == 0) continue;
    memcpy(next, arrays[i].data, n * sizeof(float));
    w->arrays[i].data = next;
    next += n;
  }
  w->n_modules = n_modules;
  w->n_arrays = n_arrays;
  return STATUS_OK;
}

/* With the mutex held: hand out the result of the last write, once. */
static enum status take_result(struct checkpoint_writer *w) {
  enum status result = w->result;
  w->result = STATUS_OK;
  return result == STATUS_OK ? STATUS_OK : status_set(result, "%s", w->message);
}

enum status checkpoint_writer_submit(struct checkpoint_writer *w, const char *directory, const char *file,
                                     const struct checkpoint_header *header, const struct checkpoint_module *modules,
                                     int n_modules, const struct checkpoint_array *arrays, int n_arrays) {
  enum status status = STATUS_OK;
  pthread_mutex_lock(&w->mutex);
  if (w->state != WRITER_IDLE) {
    status = status_set(STATUS_USAGE, "%s/%s: the write of %s/%s is still in flight", directory, file, w->directory,
                        w->file);
    goto out;
  }
  TRY_OUT(take_result(w));
  TRY_OUT(durable_path(w->directory, sizeof w->directory, "%s", directory));
  TRY_OUT(durable_path(w->file, sizeof w->file, "%s", file));
  w->header = *header;
  TRY_OUT(take_snapshot(w, modules, n_modules, arrays, n_arrays));
  w->publishing = false;
  w->state = WRITER_BUSY;
  pthread_cond_broadcast(&w->changed);
out:
  pthread_mutex_unlock(&w->mutex);
  return status;
}

enum status checkpoint_writer_publish(struct checkpoint_writer *w, const char *output, int64_t step,
                                      const char *config_text, int keep_last) {
  enum status status = STATUS_OK;
  pthread_mutex_lock(&w->mutex);
  if (w->state != WRITER_IDLE) {
    status = status_set(STATUS_USAGE, "%s: the write of %s/%s is still in flight", output, w->directory, w->file);
    goto out;
  }
  TRY_OUT(take_result(w));
  TRY_OUT(durable_path(w->directory, sizeof w->directory, "%s", output));
  w->publishing = true;
  w->step = step;
  w->config_text = config_text;
  w->keep_last = keep_last;
  w->state = WRITER_BUSY;
  pthread_cond_broadcast(&w->changed);
out:
  pthread_mutex_unlock(&w->mutex);
  return status;
}

enum status checkpoint_writer_poll(struct checkpoint_writer *w, bool *done_p) {
  pthread_mutex_lock(&w->mutex);
  *done_p = w->state == WRITER_IDLE;
  enum status status = *done_p ? take_result(w) : STATUS_OK;
  pthread_mutex_unlock(&w->mutex);
  return status;
}

enum status checkpoint_writer_wait(struct checkpoint_writer *w) {
  pthread_mutex_lock(&w->mutex);
  while (w->state == WRITER_BUSY) pthread_cond_wait(&w->changed, &w->mutex);
  enum status status = take_result(w);
  pthread_mutex_unlock(&w->mutex);
  return status;
}

void checkpoint_writer_destroy(struct checkpoint_writer **writer_p) {
  struct checkpoint_writer *w = writer_p ? *writer_p : NULL;
  if (!w) return;
  pthread_mutex_lock(&w->mutex);
  while (w->state == WRITER_BUSY) pthread_cond_wait(&w->changed, &w->mutex);
  w->state = WRITER_ENDING;
  pthread_cond_broadcast(&w->changed);
  pthread_mutex_unlock(&w->mutex);
  pthread_join(w->thread, NULL);
  pthread_cond_destroy(&w->changed);
  pthread_mutex_destroy(&w->mutex);
  free(w->modules);
  free(w->arrays);
  free(w->data);
  free(w);
  *writer_p = NULL;
}
