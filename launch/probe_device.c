/*
 * Rates of a rank's device: products as linears do them, and a sum of two large
 * vectors for the memory.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "io/log.h"
#include "io/quant.h"
#include "launch/probe.h"

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

enum status probe_seconds(const struct probe *probe, probe_func_t *func, void *context, bool active, int calls,
                          double *seconds_p) {
  double seconds[PROBE_REPEATS] = {0};
  const int repeats = probe->quick ? 3 : PROBE_REPEATS;
  for (int r = -1; r < repeats; r++) { /* the first is not counted: buffers and connections are made in it */
    TRY(comm_barrier(probe->mesh->control));
    double begin = now();
    for (int i = 0; active && i < calls; i++) TRY(func(context));
    TRY(device_synchronize(probe->device));
    if (active && r >= 0) seconds[r] = (now() - begin) / calls;
  }
  TRY(comm_all_reduce_f64(probe->mesh->control, seconds, repeats, REDUCE_MAX));
  qsort(seconds, (size_t)repeats, sizeof *seconds, by_value);
  *seconds_p = seconds[repeats / 2];
  return STATUS_OK;
}

/* --- matrix products --- */

struct product {
  struct device *device;
  int64_t M;
  struct weight W;
  struct tensor_view x, y;
};

static enum status multiply(void *context) {
  const struct product *p = context;
  return p->device->ops->linear_forward(p->device, p->M, p->x, &p->W, NULL, p->y, false);
}

/* Device memory of n numbers of a dtype: of all sizes and signs, since products of zeros may be faster. */
static enum status make_numbers(struct device *device, int64_t n, enum dtype dtype, void **memory_p) {
  enum { PIECE = 4096 };
  uint32_t state = 1;
  char piece[PIECE * sizeof(float)];
  void *memory = NULL;
  TRY(device_alloc(device, dtype_bytes(dtype, n), "a probe", &memory));
  for (int64_t i = 0; i < PIECE; i++) {
    state = state * 1664525u + 1013904223u;
    float value = (float)(state >> 8) * 0x1p-24f - 0.5f;
    if (dtype == DTYPE_F32)
      ((float *)piece)[i] = value;
    else
      ((uint16_t *)piece)[i] = f32_to_bf16(value);
  }
  enum status status = STATUS_OK;
  for (int64_t first = 0; first < n && status == STATUS_OK; first += PIECE) {
    int64_t now = n - first < PIECE ? n - first : PIECE;
    status = device_copy_in(device, (char *)memory + dtype_bytes(dtype, first), piece, dtype_bytes(dtype, now));
  }
  if (status == STATUS_OK)
    *memory_p = memory;
  else
    device_free(device, memory, dtype_bytes(dtype, n));
  return status;
}

enum status probe_products(const struct probe *probe, struct device *device, enum dtype dtype, const char *what,
                           double *rate_p) {
  enum status status = STATUS_OK;
  const int64_t K = probe->quick ? 512 : device->host_memory ? 2048 : 8192, M = device->host_memory ? K / 2 : K;
  void *W = NULL, *x = NULL, *y = NULL;
  double seconds;
  TRY_OUT(make_numbers(device, K * K, dtype, &W));
  TRY_OUT(make_numbers(device, M * K, dtype, &x));
  TRY_OUT(make_numbers(device, M * K, dtype, &y));
  struct product product = {
      device, M, {.data = W, .dtype = dtype, .n_out = K, .n_in = K}, {x, K, dtype}, {y, K, dtype}};
  const struct probe here = {probe->mesh, device, probe->quick};
  TRY_OUT(probe_seconds(&here, multiply, &product, true, 1, &seconds));
  *rate_p = 2.0 * (double)M * (double)K * (double)K / seconds;
  log_info("%-5s products of [%lld, %lld] by [%lld, %lld]: %.4g TFLOP/s a rank", what, (long long)M, (long long)K,
           (long long)K, (long long)K, 1e-12 * *rate_p);
out:
  device_free(device, W, dtype_bytes(dtype, K * K));
  device_free(device, x, dtype_bytes(dtype, M * K));
  device_free(device, y, dtype_bytes(dtype, M * K));
  return status;
}

/* --- memory --- */

struct sum {
  struct device *device;
  int64_t M, n;
  struct tensor_view x, y;
};

static enum status add(void *context) {
  const struct sum *s = context;
  return s->device->ops->add(s->device, s->M, s->n, s->y, NULL, s->x);
}

static enum status probe_memory(const struct probe *probe, double *bandwidth_p) {
  enum status status = STATUS_OK;
  struct device *device = probe->device;
  /* Each of the two is larger than a rank's share of any cache. */
  const int64_t n = 4096, M = probe->quick ? 256 : device->host_memory ? 8192 : 32768;
  const size_t bytes = (size_t)(M * n) * sizeof(float);
  void *x = NULL, *y = NULL;
  double seconds;
  TRY_OUT(device_alloc(device, bytes, "a probe", &x));
  TRY_OUT(device_alloc(device, bytes, "a probe", &y));
  struct sum sum = {device, M, n, {x, n, DTYPE_F32}, {y, n, DTYPE_F32}};
  TRY_OUT(probe_seconds(probe, add, &sum, true, 1, &seconds));
  *bandwidth_p = 3.0 * (double)bytes / seconds; /* x and y are read, x is written */
  log_info("memory: x += y of 2 x %zu MB: %.4g GB/s a rank", bytes >> 20, 1e-9 * *bandwidth_p);
out:
  device_free(device, x, bytes);
  device_free(device, y, bytes);
  return status;
}

enum status probe_device(const struct probe *probe, struct cluster *cluster) {
  struct cluster_device *to = &cluster->device;
  TRY(probe_products(probe, probe->device, DTYPE_F32, "f32", &to->matrix[CLUSTER_F32].achieved));
  TRY(probe_products(probe, probe->device, DTYPE_BF16, "bf16", &to->matrix[CLUSTER_BF16].achieved));
  return probe_memory(probe, &to->bandwidth);
}
