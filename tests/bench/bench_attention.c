/*
 * bench_attention: rate of attention in GF/s and as a share of this machine's
 * f32 peak (measured by a loop of register products), forward and backward.
 * Counted are the products over visible pairs only: 4 E per pair and head
 * forward, 10 E backward.
 *
 *   bench_attention [repeats]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/cpu/vmath.h"
#include "model/device.h"

enum { ROWS = 2048, HEADS = 9, KV_HEADS = 3, DIM = 64 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* GF/s of one core: independent multiply-adds on registers. */
static double core_peak(void) {
  enum { CHAINS = 12, TURNS = 2000000 };
  double best = 0;
  for (int repeat = 0; repeat < 5; repeat++) {
    vf sum[CHAINS];
    vf factor = vf_set(0.999f), term = vf_set(1e-3f);
    for (int i = 0; i < CHAINS; i++) sum[i] = vf_set((float)i);
    double start = now();
    for (int turn = 0; turn < TURNS; turn++) {
#pragma GCC unroll 12
      for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * factor + term;
    }
    double rate = 2.0 * VF_LANES * CHAINS * TURNS / (now() - start) * 1e-9;
    volatile float sink = 0; /* the loop's result is used */
    for (int i = 0; i < CHAINS; i++) sink += sum[i][0];
    if (rate > best) best = rate;
  }
  return best;
}

struct buffers {
  struct tensor_view q, k, v, o, d_o, dq, dk, dv;
  float *lse;
};

static struct tensor_view view_make(enum dtype dtype, int64_t columns) {
  size_t bytes = (size_t)(ROWS * columns) * (dtype == DTYPE_BF16 ? 2 : 4);
  struct tensor_view x = {.data = aligned_alloc(64, bytes), .ld = columns, .dtype = dtype};
  if (!x.data) exit(1);
  for (int64_t i = 0; i < ROWS * columns; i++) {
    float value = (float)(i * 2654435761u % 1000) * 2e-3f - 1;
    vf_put_part(dtype, x.data, i, 1, vf_set(value));
  }
  return x;
}

static void bench(const char *name, int length, enum dtype dtype, int n_threads, int repeats, double peak) {
  static const int32_t kv_of_head[HEADS] = {0, 0, 0, 1, 1, 1, 2, 2, 2};
  struct segment segments[ROWS];
  int n = 0;
  double pairs = 0;
  for (int row = 0; row + length <= ROWS; row += length) {
    segments[n++] = (struct segment){.q = row, .n_q = length, .k = row, .n_k = length};
    pairs += length * (length + 1) / 2.0;
  }
  struct buffers b = {
      view_make(dtype, HEADS * DIM),    view_make(dtype, KV_HEADS * DIM), view_make(dtype, KV_HEADS * DIM),
      view_make(dtype, HEADS * DIM),    view_make(dtype, HEADS * DIM),    view_make(dtype, HEADS * DIM),
      view_make(dtype, KV_HEADS * DIM), view_make(dtype, KV_HEADS * DIM), malloc(sizeof(float) * HEADS * ROWS)};
  struct attention_args args = {.q = b.q,
                                .k = b.k,
                                .v = b.v,
                                .o = b.o,
                                .n_rows = ROWS,
                                .segments = segments,
                                .n_segments = n,
                                .n_heads = HEADS,
                                .n_kv_heads = KV_HEADS,
                                .head_dim = DIM,
                                .kv_of_head = kv_of_head,
                                .scale = 0.125f,
                                .lse = b.lse,
                                .lse_ld = ROWS};
  struct device *d = NULL;
  const struct device_options options = {.name = "cpu", .n_threads = n_threads};
  if (!b.lse || device_open(&options, &d) != STATUS_OK) exit(1);
  double forward[64], backward[64];
  for (int i = -2; i < repeats; i++) { /* two rounds to warm up */
    double start = now();
    if (d->ops->attention_forward(d, &args) != STATUS_OK) exit(1);
    double middle = now();
    if (d->ops->attention_backward(d, &args, ROWS, b.d_o, b.dq, b.dk, b.dv) != STATUS_OK) exit(1);
    if (i < 0) continue;
    forward[i] = middle - start;
    backward[i] = now() - middle;
  }
  qsort(forward, (size_t)repeats, sizeof *forward, ascending);
  qsort(backward, (size_t)repeats, sizeof *backward, ascending);
  double f = forward[repeats / 2], g = backward[repeats / 2], work = pairs * HEADS * DIM;
  printf("%-12s %-4s %d thread%s  forward %6.2f ms %4.0f GF/s %3.0f %%   backward %6.2f ms %4.0f GF/s %3.0f %%\n", name,
         dtype_name(dtype), n_threads, n_threads > 1 ? "s" : " ", f * 1e3, 4e-9 * work / f,
         4e-7 * work / f / peak / n_threads, g * 1e3, 10e-9 * work / g, 10e-7 * work / g / peak / n_threads);
  device_close(&d);
  void *all[] = {b.q.data, b.k.data, b.v.data, b.o.data, b.d_o.data, b.dq.data, b.dk.data, b.dv.data, b.lse};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

int main(int argc, char **argv) {
  int repeats = argc > 1 ? atoi(argv[1]) : 15;
  if (repeats < 1 || repeats > 64) repeats = 15;
  double peak = core_peak();
  printf("peak of one core, f32: %.0f GF/s; %d heads of %d, %d KV heads, %d rows, medians of %d\n", peak, HEADS, DIM,
         KV_HEADS, ROWS, repeats);
  for (int n_threads = 1; n_threads <= 2; n_threads++) {
    for (int bf16 = 0; bf16 < 2; bf16++) {
      enum dtype dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
      bench("4 x 512", 512, dtype, n_threads, repeats, peak);
      bench("1 x 2048", 2048, dtype, n_threads, repeats, peak);
      bench("48 packed", 48, dtype, n_threads, repeats, peak);
    }
  }
  return 0;
}
