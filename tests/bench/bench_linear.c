/*
 * bench_linear: speed of the products with frozen weights and of the low-rank
 * pairs beside them, at SmolLM2-135M's shapes. Prints GF/s of the fastest call and, per layer, the
 * share of the pairs. Usage: bench_linear [threads [rank [rows [dropout]]]]
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "io/quant.h"
#include "model/device.h"

enum { REPEATS = 15, N_SHAPES = 4 };

static const struct {
  const char *name;
  int64_t n_in, n_out;
  int per_layer;
} shapes[N_SHAPES] = {{"q, o", 576, 576, 2}, {"k, v", 576, 192, 2}, {"gate, up", 576, 1536, 2}, {"down", 1536, 576, 1}};

struct workload {
  struct device *d;
  int64_t M;
  struct tensor_view x, y, dx;
  struct weight W;
  struct lowrank pair;
  float *h;
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void check(enum status status) {
  if (status == STATUS_OK) return;
  fprintf(stderr, "bench_linear: %s\n", status_message());
  exit(status_exit_code(status));
}

static void *filled(struct device *d, int64_t n, enum dtype dtype) {
  void *memory;
  check(device_alloc(d, (size_t)n * 4, "bench", &memory));
  for (int64_t i = 0; i < n; i++) {
    float value = (float)((i * 2654435761u >> 7) % 1000) * 1e-3f - 0.5f;
    if (dtype == DTYPE_BF16) {
      ((uint16_t *)memory)[i] = f32_to_bf16(value);
    } else {
      ((float *)memory)[i] = value;
    }
  }
  return memory;
}

static enum status forward(struct workload *w) {
  return w->d->ops->linear_forward(w->d, w->M, w->x, &w->W, NULL, w->y, false);
}
static enum status backward(struct workload *w) {
  return w->d->ops->linear_backward(w->d, w->M, w->y, &w->W, w->dx, false);
}
static enum status pair_forward(struct workload *w) {
  return w->d->ops->lowrank_forward(w->d, w->M, w->x, &w->pair, w->h, w->y);
}
static enum status pair_backward(struct workload *w) {
  return w->d->ops->lowrank_backward(w->d, w->M, w->x, w->h, w->y, &w->pair, w->dx);
}

/* Seconds of the fastest call: other load on the machine can only add. */
static double timed(enum status (*call)(struct workload *), struct workload *w) {
  double fastest = INFINITY;
  check(call(w));
  for (int i = 0; i < REPEATS; i++) {
    double start = now();
    check(call(w));
    fastest = fmin(fastest, now() - start);
  }
  return fastest;
}

static void run_type(struct device *d, enum dtype act, enum dtype weight, int64_t M, int64_t r, float dropout) {
  double linear_total = 0, pair_total = 0;
  for (int i = 0; i < N_SHAPES; i++) {
    int64_t K = shapes[i].n_in, N = shapes[i].n_out;
    int64_t *row_ids = filled(d, 2 * M, DTYPE_F32);
    for (int64_t m = 0; m < M; m++) row_ids[m] = m;
    struct workload w = {
        .d = d,
        .M = M,
        .x = {filled(d, M * K, act), K, act},
        .y = {filled(d, M * N, act), N, act},
        .dx = {filled(d, M * K, DTYPE_F32), K, DTYPE_F32},
        .W = {filled(d, N * K, weight), weight, N, K},
        .pair = {filled(d, r * K, DTYPE_F32),
                 filled(d, r * N, DTYPE_F32),
                 filled(d, r * K, DTYPE_F32),
                 filled(d, r * N, DTYPE_F32),
                 r,
                 K,
                 N,
                 1e-3f,
                 {.p = dropout, .row_ids = row_ids}},
        .h = filled(d, M * r, DTYPE_F32),
    };
    double f = timed(forward, &w), b = timed(backward, &w);
    double pf = timed(pair_forward, &w), pb = timed(pair_backward, &w);
    double gf = 2e-9 * (double)(M * N * K), pair_gf = 2e-9 * (double)(M * r * (N + K));
    printf(
        "%-5s weights %-4s %-9s forward %6.1f GF/s, backward %6.1f GF/s; pair %7.1f us (%5.1f GF/s), %7.1f us (%5.1f "
        "GF/s)\n",
        dtype_name(act), dtype_name(weight), shapes[i].name, gf / f, gf / b, 1e6 * pf, pair_gf / pf, 1e6 * pb,
        2 * pair_gf / pb);
    linear_total += shapes[i].per_layer * (f + b);
    pair_total += shapes[i].per_layer * (pf + pb);
  }
  printf("%-5s weights %-4s one layer: products %.2f ms, pairs of rank %lld %.2f ms = %.1f %%\n", dtype_name(act),
         dtype_name(weight), 1e3 * linear_total, (long long)r, 1e3 * pair_total, 100 * pair_total / linear_total);
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 0;
  int64_t r = argc > 2 ? atoi(argv[2]) : 8, M = argc > 3 ? atoi(argv[3]) : 2048;
  float dropout = argc > 4 ? strtof(argv[4], NULL) : 0;
  struct device *d = NULL;
  char text[512];
  check(device_open(&(struct device_options){.name = "cpu", .n_threads = threads}, &d));
  device_describe(d, text, sizeof text);
  printf("%s; %lld rows\n", text, (long long)M);
  run_type(d, DTYPE_F32, DTYPE_F32, M, r, dropout);
  run_type(d, DTYPE_BF16, DTYPE_BF16, M, r, dropout);
  run_type(d, DTYPE_F32, DTYPE_BF16, M, r, dropout);
  run_type(d, DTYPE_BF16, DTYPE_F32, M, r, dropout);
  device_close(&d);
  return 0;
}
