#include "io/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_SIZE 4096
#define MAX_LINE  (64 * 1024) /* far above what metrics_append writes */

struct metrics {
  int fd;
  char path[PATH_SIZE];
};

static enum status failed(const char *path, const char *what) {
  return status_set(STATUS_SYSTEM, "%s: cannot %s: %s", path, what, strerror(errno));
}

/* True for a whole line of a step up to last_step. */
static bool keep_line(const char *line, size_t length, int64_t last_step) {
  if (length == 0 || length > MAX_LINE || line[length - 1] != '\n') return false;
  json_t *object = json_loadb(line, length, 0, NULL);
  json_t *step = json_object_get(object, "step");
  bool keep = json_is_integer(step) && json_integer_value(step) <= last_step;
  json_decref(object);
  return keep;
}

/* Copy the lines to be kept; the number of others is added to *n_cut. */
static enum status copy_lines(FILE *from, FILE *to, int64_t last_step, const char *path, int64_t *n_cut) {
  char *line = malloc(MAX_LINE + 2);
  if (!line) return status_set(STATUS_SYSTEM, "%s: no memory to read it", path);
  bool inside = false; /* within a line that is too long for the buffer */
  while (fgets(line, MAX_LINE + 2, from)) {
    size_t length = strlen(line);
    bool whole = !inside && keep_line(line, length, last_step);
    if (whole)
      fwrite(line, 1, length, to);
    else if (!inside)
      ++*n_cut;
    inside = length > 0 && line[length - 1] != '\n';
  }
  free(line);
  if (ferror(from)) return failed(path, "read");
  if (fflush(to) != 0 || ferror(to) || fsync(fileno(to)) != 0) return failed(path, "write its new version");
  return STATUS_OK;
}

/* Make a rename in the folder of `path` last. */
static enum status sync_folder(const char *path) {
  char copy[PATH_SIZE];
  snprintf(copy, sizeof copy, "%s", path);
  int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return failed(path, "open its folder");
  int rc = fsync(fd);
  close(fd);
  return rc == 0 ? STATUS_OK : failed(path, "sync its folder");
}

/* Replace the file by its lines up to last_step, if it has others. */
static enum status cut_lines(const char *path, int64_t last_step) {
  FILE *from = fopen(path, "re");
  if (!from) return errno == ENOENT ? STATUS_OK : failed(path, "open");
  char temporary[PATH_SIZE + 8];
  snprintf(temporary, sizeof temporary, "%s.tmp", path);
  unlink(temporary); /* what an ended run left, or a link to somewhere else */
  FILE *to = fopen(temporary, "wxe");
  if (!to) {
    fclose(from);
    return failed(temporary, "create");
  }
  int64_t n_cut = 0;
  enum status status = copy_lines(from, to, last_step, path, &n_cut);
  fclose(from);
  if (fclose(to) != 0 && status == STATUS_OK) status = failed(temporary, "write");
  if (status == STATUS_OK && n_cut > 0) {
    if (rename(temporary, path) == 0) return sync_folder(path);
    status = failed(path, "replace");
  }
  unlink(temporary);
  return status;
}

enum status metrics_open(const char *path, int64_t last_step, struct metrics **metrics_p) {
  if (strlen(path) >= PATH_SIZE) return status_set(STATUS_SYSTEM, "%.80s...: the path is too long", path);
  TRY(cut_lines(path, last_step));
  struct metrics *metrics = calloc(1, sizeof *metrics);
  if (!metrics) return status_set(STATUS_SYSTEM, "%s: no memory to open it", path);
  snprintf(metrics->path, sizeof metrics->path, "%s", path);
  metrics->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (metrics->fd < 0) {
    free(metrics);
    return failed(path, "open");
  }
  *metrics_p = metrics;
  return STATUS_OK;
}

/* jansson has no NaN; JSON neither. */
static json_t *real(double value) { return isfinite(value) ? json_real(value) : json_null(); }

static json_t *comm_object(const struct metrics_comm *comm) {
  return json_pack("{s:I, s:I}", "calls", (json_int_t)comm->calls, "bytes", (json_int_t)comm->bytes);
}

static json_t *step_object(const struct metrics_step *step) {
  json_t *comm = json_pack("{s:o, s:o, s:o, s:o, s:o}", "tp", comm_object(&step->comm.tp), "dp",
                           comm_object(&step->comm.dp), "stage", comm_object(&step->comm.stage), "pp",
                           comm_object(&step->comm.pp), "control", comm_object(&step->comm.control));
  json_t *object =
      json_pack("{s:I, s:o, s:o, s:o, s:o, s:I, s:o, s:o, s:o, s:I}", "step", (json_int_t)step->step, "epoch",
                real(step->epoch), "loss", real(step->loss), "grad_norm", real(step->grad_norm), "lr", real(step->lr),
                "tokens", (json_int_t)step->tokens, "tokens_per_second", real(step->tokens_per_second), "step_seconds",
                real(step->step_seconds), "comm", comm, "peak_rss_bytes", (json_int_t)step->peak_rss_bytes);
  if (object && step->has_eval_loss && json_object_set_new(object, "eval_loss", real(step->eval_loss)) != 0) {
    json_decref(object);
    return NULL;
  }
  return object;
}

/* One write(2) a line, so that a reader or a kill sees whole lines. */
static enum status write_line(struct metrics *metrics, const char *text, size_t length) {
  while (length > 0) {
    ssize_t written = write(metrics->fd, text, length);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return failed(metrics->path, "write");
    text += written;
    length -= (size_t)written;
  }
  return STATUS_OK;
}

enum status metrics_append(struct metrics *metrics, const struct metrics_step *step) {
  json_t *object = step_object(step);
  char *text = object ? json_dumps(object, JSON_COMPACT | JSON_PRESERVE_ORDER) : NULL;
  json_decref(object);
  if (!text) return status_set(STATUS_SYSTEM, "%s: no memory to write a line", metrics->path);
  size_t length = strlen(text);
  text[length] = '\n'; /* in the place of the terminating zero */
  enum status status = write_line(metrics, text, length + 1);
  free(text);
  return status;
}

void metrics_close(struct metrics **metrics_p) {
  if (!*metrics_p) return;
  close((*metrics_p)->fd);
  free(*metrics_p);
  *metrics_p = NULL;
}
