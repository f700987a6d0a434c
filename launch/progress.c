#include "launch/progress.h"

#include <inttypes.h>
#include <unistd.h>

#define LINE_SECONDS   5.0 /* between lines in a file */
#define REDRAW_SECONDS 0.1 /* between redraws on a terminal */

void progress_begin(struct progress *progress, FILE *out, int64_t first, int64_t total, double now) {
  *progress = (struct progress){.out = out,
                                .terminal = isatty(fileno(out)),
                                .first = first,
                                .total = total,
                                .start = now,
                                .shown = now - LINE_SECONDS};
}

/* "1:02:03" or "2:03"; "?" where nothing is known. */
static void format_duration(double seconds, char *text, size_t size) {
  if (!(seconds >= 0 && seconds < 1e9)) {
    snprintf(text, size, "?");
    return;
  }
  long whole = (long)(seconds + 0.5);
  if (whole >= 3600)
    snprintf(text, size, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
  else
    snprintf(text, size, "%ld:%02ld", whole / 60, whole % 60);
}

void progress_clear(struct progress *progress) {
  if (!progress->terminal || progress->width == 0) return;
  fprintf(progress->out, "\r%*s\r", (int)progress->width, "");
  fflush(progress->out);
  progress->width = 0;
}

void progress_step(struct progress *progress, double now, int64_t step, double loss, double tokens_per_second) {
  bool last = step >= progress->total;
  double pause = progress->terminal ? REDRAW_SECONDS : LINE_SECONDS;
  if (!last && now - progress->shown < pause) return;
  char left[32], line[160];
  int64_t done = step - progress->first;
  double per_step = done > 0 ? (now - progress->start) / (double)done : -1;
  format_duration(per_step < 0 ? -1 : per_step * (double)(progress->total - step), left, sizeof left);
  int length = snprintf(line, sizeof line, "lorashard: step %" PRId64 "/%" PRId64 "  loss %.4f  %.0f tokens/s  %s left",
                        step, progress->total, loss, tokens_per_second, left);
  if (progress->terminal) {
    int blank = (int)progress->width > length ? (int)progress->width - length : 0;
    fprintf(progress->out, "\r%s%*s", line, blank, "");
    progress->width = (size_t)length;
  } else {
    fprintf(progress->out, "%s\n", line);
  }
  fflush(progress->out);
  progress->shown = now;
}

void progress_end(struct progress *progress) {
  if (progress->terminal && progress->width > 0) fputc('\n', progress->out);
  fflush(progress->out);
  progress->width = 0;
}
