/*
 * bench_ops: the time of every operation of a device's table at the shapes of a
 * training step of Llama-3-8B (bf16, one rank, adapters on all linears, a row of 2048 tokens), beside
 * its floor: the bytes it must move at the device's copy rate, or the products
 * it must make at the rate of a large matrix product, whichever is longer. Prints a
 * Markdown table.
 *
 *   bench_ops [--device auto|cpu|cuda] [--dtype bf16|f32] [--tokens N] [--seq-len N] [--r N] [--head-rows N]
 *             [--tflops RATE] [--gbps RATE] [--seconds S] [--only TEXT] [--tiny] [--once]
 *
 * --tflops and --gbps are the two rates, where another program has measured them; else they are measured here by
 * linear_forward and cast. A time is the median over five loops of --seconds each; calls of a loop are queued
 * without waiting, inputs are the same in each, so that small ones may come from a cache: shares above 100 % are
 * possible.
 * --once calls each operation once and measures nothing (for compute-sanitizer); --tiny takes small odd sizes.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "io/quant.h"
#include "model/device.h"

enum { MAX_BUFFERS = 32, LOOPS = 5, MAX_CALLS = 2000, PATTERN = (1 << 20) + 7 };

struct options {
  const char *device, *dtype, *only;
  int64_t tokens, seq_len, r, head_rows;
  double tflops, gbps, seconds;
  bool tiny, once;
};

struct sizes {
  int64_t M, D, F, V, adapters; /* adapters: their parameters */
  int64_t seq, r, head_rows;
  int H, G, E;
};

/* What the operation at hand is called with. */
struct operands {
  int64_t M, n;
  int heads;
  bool accumulate;
  enum norm_kind norm;
  struct tensor_view x, y, dx, dy, up, pre;
  struct weight W;
  struct lowrank pair;
  struct attention_args attention;
  struct tensor_view dk, dv;
  struct adamw_args adamw;
  const int32_t *ints;
  float *w, *stats, *h, *max, *sum;
};

struct bench {
  struct options options;
  struct sizes s;
  enum dtype act;
  struct device *d;
  struct operands o;
  void *buffers[MAX_BUFFERS]; /* of the operation at hand */
  size_t buffer_bytes[MAX_BUFFERS];
  int n_buffers, n_failed;
  double flops, bandwidth; /* a second, of the floors */
  float *pattern;          /* [PATTERN] uniform in [-1, 1) */
  uint16_t *pattern_bf16;
};

typedef enum status call_func_t(struct bench *b);

/* call_NAME(b): the operation with operands `o`. */
#define CALL(name, ...)                             \
  static enum status call_##name(struct bench *b) { \
    const struct operands *o = &b->o;               \
    return b->d->ops->name(b->d, __VA_ARGS__);      \
  }

static void check(enum status status) {
  if (status == STATUS_OK) return;
  fprintf(stderr, "bench_ops: %s\n", status_message());
  exit(status_exit_code(status));
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* --- memory ------------------------------------------------------------------ */

static void *memory(struct bench *b, size_t bytes) {
  if (b->n_buffers == MAX_BUFFERS) abort();
  check(device_alloc(b->d, bytes, "benchmark", &b->buffers[b->n_buffers]));
  b->buffer_bytes[b->n_buffers] = bytes;
  return b->buffers[b->n_buffers++];
}

static void release(struct bench *b) {
  check(device_synchronize(b->d));
  for (; b->n_buffers > 0; b->n_buffers--)
    device_free(b->d, b->buffers[b->n_buffers - 1], b->buffer_bytes[b->n_buffers - 1]);
  memset(&b->o, 0, sizeof b->o);
}

/* Copy `period` bytes of src again and again over `bytes` of device memory. */
static void *filled(struct bench *b, size_t bytes, const void *src, size_t period) {
  char *data = memory(b, bytes);
  for (size_t at = 0; at < bytes; at += period)
    check(device_copy_in(b->d, data + at, src, bytes - at < period ? bytes - at : period));
  return data;
}

static float *floats(struct bench *b, int64_t n) {
  return filled(b, (size_t)n * sizeof(float), b->pattern, PATTERN * sizeof(float));
}

static struct tensor_view matrix(struct bench *b, int64_t rows, int64_t columns, enum dtype dtype) {
  size_t bytes = dtype_bytes(dtype, rows * columns);
  const void *src = dtype == DTYPE_BF16 ? (const void *)b->pattern_bf16 : b->pattern;
  return (struct tensor_view){filled(b, bytes, src, dtype_bytes(dtype, PATTERN)), columns, dtype};
}

/* i-th value: i * factor modulo n. */
static int32_t *integers(struct bench *b, int64_t count, int64_t factor, int64_t n) {
  int32_t *values = malloc((size_t)count * sizeof *values);
  if (!values) exit(1);
  for (int64_t i = 0; i < count; i++) values[i] = (int32_t)(i * factor % n);
  int32_t *data = filled(b, (size_t)count * sizeof *values, values, (size_t)count * sizeof *values);
  free(values);
  return data;
}

static struct weight plain_weight(struct bench *b, int64_t n_out, int64_t n_in) {
  return (struct weight){matrix(b, n_out, n_in, b->act).data, b->act, n_out, n_in};
}

static struct weight q4_k_weight(struct bench *b, int64_t n_out, int64_t n_in) {
  enum { BLOCKS = 4099 };
  const size_t block = dtype_block_bytes(DTYPE_Q4_K);
  const uint16_t scale = f32_to_f16(0.01f);
  uint8_t *blocks = malloc(BLOCKS * block);
  if (!blocks) exit(1);
  for (size_t i = 0; i < BLOCKS * block; i++) blocks[i] = (uint8_t)((i * 2654435761u) >> 13);
  for (size_t i = 0; i < BLOCKS; i++) {
    memcpy(blocks + i * block, &scale, sizeof scale); /* random bytes could be NaN here */
    memcpy(blocks + i * block + 2, &scale, sizeof scale);
  }
  struct weight W = {filled(b, dtype_bytes(DTYPE_Q4_K, n_out * n_in), blocks, BLOCKS * block), DTYPE_Q4_K, n_out, n_in};
  free(blocks);
  return W;
}

static double act_bytes(const struct bench *b, double n) { return n * (b->act == DTYPE_BF16 ? 2 : 4); }

/* --- measuring --------------------------------------------------------------- */

static enum status loop(struct bench *b, call_func_t *call, int n, double *seconds) {
  double start = now();
  for (int i = 0; i < n; i++) TRY(call(b));
  TRY(device_synchronize(b->d));
  *seconds = now() - start;
  return STATUS_OK;
}

/* Median seconds of one call. */
static enum status time_of(struct bench *b, call_func_t *call, double *seconds) {
  double one, loops[LOOPS];
  TRY(loop(b, call, 2, &one)); /* scratch grows, plans are made */
  TRY(loop(b, call, 1, &one));
  double wanted = b->options.seconds / (one > 1e-7 ? one : 1e-7);
  int n = wanted < 1 ? 1 : wanted > MAX_CALLS ? MAX_CALLS : (int)wanted;
  for (int i = 0; i < LOOPS; i++) {
    TRY(loop(b, call, n, &loops[i]));
    loops[i] /= n;
  }
  qsort(loops, LOOPS, sizeof *loops, ascending);
  *seconds = loops[LOOPS / 2];
  return STATUS_OK;
}

/* One row of the table, the shape in printf style. Operands are ready in b->o; `bytes` and `products` (multiplications
 * and additions) are the least that the operation can do with. */
__attribute__((format(printf, 6, 7))) static void row(struct bench *b, const char *op, call_func_t *call, double bytes,
                                                      double products, const char *shape, ...) {
  double seconds = 0;
  if (b->options.only && !strstr(op, b->options.only)) return;
  enum status status = b->options.once ? loop(b, call, 1, &seconds) : time_of(b, call, &seconds);
  double moving = bytes / b->bandwidth, multiplying = products / b->flops;
  double least = moving > multiplying ? moving : multiplying;
  va_list arguments;
  va_start(arguments, shape);
  printf("| %s | ", op);
  vprintf(shape, arguments);
  va_end(arguments);
  if (status != STATUS_OK)
    printf(" | failed: %s |\n", status_message());
  else if (b->options.once)
    printf(" | called |\n");
  else
    printf(" | %.1f | %.1f | %s | %.0f %% |\n", 1e6 * seconds, 1e6 * least, moving > multiplying ? "bytes" : "products",
           100 * least / seconds);
  b->n_failed += status != STATUS_OK;
  fflush(stdout);
}

/* --- linears ----------------------------------------------------------------- */

CALL(linear_forward, o->M, o->x, &o->W, NULL, o->y, false)
CALL(linear_backward, o->M, o->dy, &o->W, o->dx, o->accumulate)
CALL(linear_activation_forward, ACTIVATION_GELU_TANH, o->M, o->x, &o->W, o->w, o->pre, o->y)

struct linear_case {
  const char *name;
  int64_t M, n_out, n_in;
  bool f32_output, accumulate, quantised;
};

static void linear(struct bench *b, const struct linear_case *c) {
  const int64_t M = c->M, n_out = c->n_out, n_in = c->n_in;
  const double m = (double)M, n = (double)n_out, k = (double)n_in;
  const enum dtype y = c->f32_output ? DTYPE_F32 : b->act;
  b->o.M = M;
  b->o.accumulate = c->accumulate;
  b->o.W = c->quantised ? q4_k_weight(b, n_out, n_in) : plain_weight(b, n_out, n_in);
  b->o.x = matrix(b, M, n_in, b->act);
  b->o.y = matrix(b, M, n_out, y);
  b->o.dy = matrix(b, M, n_out, b->act);
  b->o.dx = matrix(b, M, n_in, DTYPE_F32);
  const double weights = (double)dtype_bytes(b->o.W.dtype, n_out * n_in);
  row(b, "linear_forward", call_linear_forward, weights + act_bytes(b, m * k) + (double)dtype_bytes(y, M * n_out),
      2 * m * n * k, "%s: %" PRId64 " x %" PRId64 " -> %" PRId64, c->name, M, n_in, n_out);
  row(b, "linear_backward", call_linear_backward, weights + act_bytes(b, m * n) + (c->accumulate ? 8 : 4) * m * k,
      2 * m * n * k, "%s: %" PRId64 " x %" PRId64 " -> %" PRId64 "%s", c->name, M, n_out, n_in,
      c->accumulate ? ", added" : "");
  release(b);
}

static void linears(struct bench *b) {
  const struct sizes *s = &b->s;
  const int64_t q = (int64_t)s->H * s->E, kv = (int64_t)s->G * s->E;
  const struct linear_case cases[] = {
      {"q", s->M, q, s->D, false, false, false},
      {"k", s->M, kv, s->D, false, true, false},
      {"o", s->M, s->D, q, true, false, false},
      {"gate", s->M, s->F, s->D, false, true, false},
      {"down", s->M, s->D, s->F, true, false, false},
      {"head", s->head_rows, s->V, s->D, true, false, false},
      {"gate, q4_k", s->M, s->F, s->D, false, true, true},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) linear(b, &cases[i]);

  const int64_t F = 4 * s->D;
  const double m = (double)s->M, n = (double)F, k = (double)s->D;
  b->o.M = s->M;
  b->o.W = plain_weight(b, F, s->D);
  b->o.w = floats(b, F);
  b->o.x = matrix(b, s->M, s->D, b->act);
  b->o.pre = matrix(b, s->M, F, b->act);
  b->o.y = matrix(b, s->M, F, b->act);
  row(b, "linear_activation_forward", call_linear_activation_forward, act_bytes(b, n * k + m * k + 2 * m * n),
      2 * m * n * k, "gelu, bias: %" PRId64 " x %" PRId64 " -> %" PRId64, s->M, s->D, F);
  release(b);
}

/* --- adapters ---------------------------------------------------------------- */

CALL(lowrank_forward, o->M, o->x, &o->pair, o->h, o->y)
CALL(lowrank_backward, o->M, o->x, o->h, o->dy, &o->pair, o->dx)

static void lowrank(struct bench *b, const char *name, int64_t n_out, int64_t n_in, bool f32_output, float dropout) {
  const int64_t M = b->s.M, r = b->s.r;
  const double m = (double)M, n = (double)n_out, k = (double)n_in, R = (double)r;
  const enum dtype y = f32_output ? DTYPE_F32 : b->act;
  const char *how = dropout > 0 ? ", dropout" : "";
  struct lowrank *pair = &b->o.pair;
  *pair = (struct lowrank){floats(b, r * n_in), floats(b, n_out * r), NULL, NULL, r, n_in, n_out, 0.5f, {.p = dropout}};
  pair->dA = floats(b, r * n_in);
  pair->dB = floats(b, n_out * r);
  if (dropout > 0) {
    int64_t *ids = calloc((size_t)M, sizeof *ids);
    if (!ids) exit(1);
    for (int64_t i = 0; i < M; i++) ids[i] = i;
    pair->dropout.row_ids = filled(b, (size_t)M * sizeof *ids, ids, (size_t)M * sizeof *ids);
    free(ids);
  }
  b->o.M = M;
  b->o.x = matrix(b, M, n_in, b->act);
  b->o.h = floats(b, M * r);
  b->o.y = matrix(b, M, n_out, y);
  b->o.dy = matrix(b, M, n_out, b->act);
  b->o.dx = matrix(b, M, n_in, DTYPE_F32);
  const double factors = 4 * R * (n + k), h = 4 * m * R;
  row(b, "lowrank_forward", call_lowrank_forward,
      act_bytes(b, m * k) + factors + h + 2 * (double)dtype_bytes(y, M * n_out), 2 * m * R * (n + k),
      "%s: %" PRId64 " x %" PRId64 " -> %" PRId64 " -> %" PRId64 "%s", name, M, n_in, r, n_out, how);
  row(b, "lowrank_backward", call_lowrank_backward, act_bytes(b, m * k + m * n) + 3 * factors + h + 8 * m * k,
      4 * m * R * (n + k), "%s: %" PRId64 " x %" PRId64 " -> %" PRId64 " -> %" PRId64 "%s", name, M, n_in, r, n_out,
      how);
  release(b);
}

/* --- norms, rotary, activations ----------------------------------------------- */

CALL(norm_forward, o->norm, o->M, o->n, o->x, o->w, NULL, 1e-5f, o->y, o->stats)
CALL(norm_apply, o->norm, o->M, o->n, o->x, o->w, NULL, o->stats, o->y)
CALL(norm_backward, o->norm, o->M, o->n, o->x, o->w, o->stats, o->dy, o->dx)
CALL(head_norm_forward, o->M, o->heads, b->s.E, o->x, o->w, 1e-5f, o->y, o->stats)
CALL(head_norm_backward, o->M, o->heads, b->s.E, o->x, o->w, o->stats, o->dy, o->y)
CALL(rotary, o->M, o->heads, b->s.E, b->s.E, false, o->ints, o->w, false, o->x)
CALL(activation_forward, ACTIVATION_SILU, o->M, o->n, o->x, o->up, o->y)
CALL(activation_backward, ACTIVATION_SILU, o->M, o->n, o->x, o->up, o->dy, o->x, o->up)

static void norms(struct bench *b) {
  static const char *const names[] = {[NORM_LAYER] = "layer", [NORM_RMS] = "rms"};
  const int64_t M = b->s.M, D = b->s.D;
  const double mn = (double)M * (double)D;
  for (enum norm_kind kind = NORM_LAYER; kind <= NORM_RMS; kind++) {
    b->o = (struct operands){.M = M, .n = D, .norm = kind, .x = matrix(b, M, D, DTYPE_F32)};
    b->o.w = floats(b, D);
    b->o.stats = floats(b, 2 * M);
    b->o.y = matrix(b, M, D, b->act);
    b->o.dy = matrix(b, M, D, DTYPE_F32);
    b->o.dx = matrix(b, M, D, DTYPE_F32);
    row(b, "norm_forward", call_norm_forward, 4 * mn + act_bytes(b, mn), 0, "%s: %" PRId64 " x %" PRId64, names[kind],
        M, D);
    row(b, "norm_apply", call_norm_apply, 4 * mn + act_bytes(b, mn), 0, "%s: %" PRId64 " x %" PRId64, names[kind], M,
        D);
    row(b, "norm_backward", call_norm_backward, 16 * mn, 0, "%s: %" PRId64 " x %" PRId64, names[kind], M, D);
    release(b);
  }
}

static void heads(struct bench *b) {
  const int64_t M = b->s.M, width = (int64_t)b->s.H * b->s.E;
  const double mn = (double)M * (double)width;
  b->o = (struct operands){.M = M, .heads = b->s.H, .x = matrix(b, M, width, b->act)};
  b->o.y = matrix(b, M, width, b->act);
  b->o.dy = matrix(b, M, width, b->act);
  b->o.stats = floats(b, M * b->s.H);
  b->o.ints = integers(b, M, 1, b->s.seq);
  b->o.w = floats(b, b->s.seq * b->s.E);
  row(b, "head_norm_forward", call_head_norm_forward, act_bytes(b, 2 * mn), 0, "%" PRId64 " x %d x %d", M, b->s.H,
      b->s.E);
  row(b, "head_norm_backward", call_head_norm_backward, act_bytes(b, 3 * mn), 0, "%" PRId64 " x %d x %d", M, b->s.H,
      b->s.E);
  row(b, "rotary", call_rotary, act_bytes(b, 2 * mn), 0, "%" PRId64 " x %d x %d", M, b->s.H, b->s.E);
  release(b);
}

static void activations(struct bench *b) {
  const int64_t M = b->s.M, F = b->s.F;
  const double mn = (double)M * (double)F;
  b->o = (struct operands){.M = M, .n = F, .x = matrix(b, M, F, b->act)};
  b->o.up = matrix(b, M, F, b->act);
  b->o.y = matrix(b, M, F, b->act);
  b->o.dy = matrix(b, M, F, b->act);
  row(b, "activation_forward", call_activation_forward, act_bytes(b, 3 * mn), 0, "silu, gated: %" PRId64 " x %" PRId64,
      M, F);
  row(b, "activation_backward", call_activation_backward, act_bytes(b, 5 * mn), 0,
      "silu, gated: %" PRId64 " x %" PRId64, M, F);
  release(b);
}

/* --- attention --------------------------------------------------------------- */

CALL(attention_forward, &o->attention)
CALL(attention_backward, &o->attention, o->M, o->dy, o->dx, o->dk, o->dv)

/* Documents of `length` rows, one behind the other. Counted are products over visible pairs: 4 E a pair and head
 * forward, 10 E backward, where the scores are made again. */
static void attention(struct bench *b, int64_t length) {
  const struct sizes *s = &b->s;
  const int64_t M = s->M, q = (int64_t)s->H * s->E, kv = (int64_t)s->G * s->E, all = q + 2 * kv;
  struct segment *segments = calloc((size_t)(M / length + 1), sizeof *segments);
  if (!segments) exit(1);
  int n = 0;
  double pairs = 0;
  for (int64_t at = 0; at < M; at += length, n++) {
    int32_t rows = (int32_t)(M - at < length ? M - at : length);
    segments[n] = (struct segment){(int32_t)at, rows, (int32_t)at, rows};
    pairs += 0.5 * rows * (rows + 1.0);
  }
  const size_t bytes = (size_t)n * sizeof *segments;
  int32_t kv_of_head[64];
  for (int head = 0; head < s->H; head++) kv_of_head[head] = head / (s->H / s->G);
  struct tensor_view in = matrix(b, M, all, b->act), d_in = matrix(b, M, all, b->act);
  b->o.M = M;
  b->o.dy = matrix(b, M, q, b->act);
  b->o.dx = d_in;
  b->o.dk = tensor_view_columns(d_in, q);
  b->o.dv = tensor_view_columns(d_in, q + kv);
  struct attention_args *args = &b->o.attention;
  *args = (struct attention_args){in,
                                  tensor_view_columns(in, q),
                                  tensor_view_columns(in, q + kv),
                                  matrix(b, M, q, b->act),
                                  .n_rows = M,
                                  .n_segments = n,
                                  .scale = 0.1f,
                                  .lse_ld = M};
  args->segments = filled(b, bytes, segments, bytes);
  args->n_heads = s->H;
  args->n_kv_heads = s->G;
  args->head_dim = s->E;
  args->kv_of_head = filled(b, sizeof kv_of_head, kv_of_head, sizeof kv_of_head);
  args->lse = floats(b, s->H * M);
  free(segments);
  const double work = pairs * s->H * s->E, width = (double)(all + q);
  row(b, "attention_forward", call_attention_forward, act_bytes(b, (double)M * width), 4 * work,
      "%d x %" PRId64 " rows, %d heads of %d, %d KV heads", n, length, s->H, s->E, s->G);
  row(b, "attention_backward", call_attention_backward, act_bytes(b, 2 * (double)M * width), 10 * work,
      "%d x %" PRId64 " rows, %d heads of %d, %d KV heads", n, length, s->H, s->E, s->G);
  release(b);
}

/* --- rows -------------------------------------------------------------------- */

CALL(embedding, o->M, o->ints, 0, &o->W, o->x)
CALL(add_rows, o->M, o->n, o->ints, 0, o->w, o->x)
CALL(add, o->M, o->n, o->dx, NULL, o->x)
CALL(zero, o->M, o->n, o->x)
CALL(cast, o->M, o->n, o->x, o->y)
CALL(gather_rows, o->M, o->n, o->ints, o->x, o->dx)
CALL(scatter_rows, o->M, o->n, o->ints, o->x, o->dx)

static void rows(struct bench *b) {
  const int64_t M = b->s.M, D = b->s.D;
  const double mn = (double)M * (double)D;
  b->o = (struct operands){.M = M, .n = D, .W = plain_weight(b, b->s.V, D), .x = matrix(b, M, D, DTYPE_F32)};
  b->o.ints = integers(b, M, 7919, b->s.V);
  row(b, "embedding", call_embedding, act_bytes(b, mn) + 4 * mn, 0, "%" PRId64 " x %" PRId64, M, D);
  b->o.dx = matrix(b, M, D, DTYPE_F32);
  b->o.y = matrix(b, M, D, b->act);
  b->o.w = floats(b, b->s.seq * D);
  b->o.ints = integers(b, M, 1, b->s.seq);
  row(b, "add_rows", call_add_rows, 12 * mn, 0, "%" PRId64 " x %" PRId64, M, D);
  row(b, "add", call_add, 12 * mn, 0, "%" PRId64 " x %" PRId64, M, D);
  row(b, "zero", call_zero, 4 * mn, 0, "%" PRId64 " x %" PRId64, M, D);
  row(b, "cast", call_cast, 4 * mn + act_bytes(b, mn), 0, "%" PRId64 " x %" PRId64, M, D);
  b->o.ints = integers(b, M, 1, M);
  row(b, "gather_rows", call_gather_rows, 8 * mn, 0, "%" PRId64 " x %" PRId64, M, D);
  row(b, "scatter_rows", call_scatter_rows, 8 * mn, 0, "%" PRId64 " x %" PRId64, M, D);
  release(b);
}

/* --- loss and optimizer ------------------------------------------------------ */

CALL(xent_max, o->M, o->n, o->x, o->max)
CALL(xent_sum, o->M, o->n, o->x, o->max, o->ints, 0, o->sum, o->stats)
CALL(xent_backward, o->M, o->n, o->x, o->max, o->sum, o->ints, 0, 1e-4f, o->y)
CALL(adamw, &o->adamw)
CALL(sum_squares, o->adamw.g, o->adamw.n, &(double){0})

static void loss(struct bench *b) {
  const int64_t M = b->s.head_rows, V = b->s.V;
  const double mn = (double)M * (double)V;
  b->o = (struct operands){.M = M, .n = V, .x = matrix(b, M, V, DTYPE_F32), .ints = integers(b, M, 7919, V)};
  b->o.max = floats(b, M);
  b->o.sum = floats(b, M);
  b->o.stats = floats(b, M);
  b->o.y = matrix(b, M, V, b->act);
  row(b, "xent_max", call_xent_max, 4 * mn, 0, "%" PRId64 " x %" PRId64, M, V);
  row(b, "xent_sum", call_xent_sum, 4 * mn, 0, "%" PRId64 " x %" PRId64, M, V);
  row(b, "xent_backward", call_xent_backward, 4 * mn + act_bytes(b, mn), 0, "%" PRId64 " x %" PRId64, M, V);
  release(b);
}

static void optimizer(struct bench *b) {
  const int64_t n = b->s.adapters;
  b->o.adamw = (struct adamw_args){floats(b, n), NULL, NULL, floats(b, n), n, 1e-4f, 0.9f, 0.999f, 1e-8f, 0, 1, 1};
  b->o.adamw.m = memory(b, (size_t)n * sizeof(float));
  b->o.adamw.v = memory(b, (size_t)n * sizeof(float));
  row(b, "adamw", call_adamw, 28 * (double)n, 0, "%" PRId64, n);
  row(b, "sum_squares", call_sum_squares, 4 * (double)n, 0, "%" PRId64, n);
  release(b);
}

/* --- the whole ---------------------------------------------------------------- */

/* The two rates of the floors, as they are given or by the device's own copy and product. */
static void measure_rates(struct bench *b) {
  const int64_t n = b->options.tiny ? 64 : 8192;
  double seconds;
  b->flops = 1e12 * b->options.tflops;
  b->bandwidth = 1e9 * b->options.gbps;
  if (b->options.once) return;
  if (b->bandwidth == 0) {
    b->o = (struct operands){.M = n, .n = n, .x = matrix(b, n, n, DTYPE_F32), .y = matrix(b, n, n, DTYPE_F32)};
    check(time_of(b, call_cast, &seconds));
    b->bandwidth = 8.0 * (double)(n * n) / seconds;
    release(b);
  }
  if (b->flops == 0) {
    b->o = (struct operands){.M = n, .x = matrix(b, n, n, b->act), .W = plain_weight(b, n, n)};
    b->o.y = matrix(b, n, n, b->act);
    check(time_of(b, call_linear_forward, &seconds));
    b->flops = 2.0 * (double)n * (double)n * (double)n / seconds;
    release(b);
  }
  printf("Floors: copies at %.0f GB/s (read and written bytes together; %s), %s products at %.4g TFLOP/s (%s).\n\n",
         1e-9 * b->bandwidth, b->options.gbps > 0 ? "given" : "cast f32 to f32", dtype_name(b->act), 1e-12 * b->flops,
         b->options.tflops > 0 ? "given" : "linear_forward");
}

static void all(struct bench *b) {
  const struct sizes *s = &b->s;
  const int64_t q = (int64_t)s->H * s->E;
  printf(b->options.once
             ? "| operation | shape | |\n|---|---|---|\n"
             : "| operation | shape | time, us | floor, us | limit | floor / time |\n|---|---|---|---|---|---|\n");
  linears(b);
  lowrank(b, "q", q, s->D, false, 0);
  lowrank(b, "gate", s->F, s->D, false, 0);
  lowrank(b, "down", s->D, s->F, true, 0);
  lowrank(b, "q", q, s->D, false, 0.1f);
  attention(b, s->seq);
  attention(b, s->seq / 4 + 1);
  norms(b);
  heads(b);
  activations(b);
  rows(b);
  loss(b);
  optimizer(b);
}

static void usage(const char *option) {
  fprintf(stderr, "bench_ops: wrong or incomplete option %s; the file's first lines list them\n", option);
  exit(2);
}

static void parse(int argc, char **argv, struct options *o) {
  *o = (struct options){"auto", "bf16", NULL, 2048, 2048, 16, 2048, 0, 0, 0.1, false, false};
  const struct {
    const char *name;
    const char **text;
    int64_t *integer;
    double *number;
  } options[] = {
      {"--device", &o->device, NULL, NULL},       {"--dtype", &o->dtype, NULL, NULL},
      {"--only", &o->only, NULL, NULL},           {"--tokens", NULL, &o->tokens, NULL},
      {"--seq-len", NULL, &o->seq_len, NULL},     {"--r", NULL, &o->r, NULL},
      {"--head-rows", NULL, &o->head_rows, NULL}, {"--tflops", NULL, NULL, &o->tflops},
      {"--gbps", NULL, NULL, &o->gbps},           {"--seconds", NULL, NULL, &o->seconds},
  };
  const int n_options = sizeof options / sizeof *options;
  for (int i = 1; i < argc; i++) {
    int k = 0;
    if (strcmp(argv[i], "--tiny") == 0) o->tiny = true;
    if (strcmp(argv[i], "--once") == 0) o->once = true;
    if (strcmp(argv[i], "--tiny") == 0 || strcmp(argv[i], "--once") == 0) continue;
    while (k < n_options && strcmp(argv[i], options[k].name) != 0) k++;
    if (k == n_options || i + 1 == argc) usage(argv[i]);
    const char *value = argv[++i];
    if (options[k].text) *options[k].text = value;
    if (options[k].integer) *options[k].integer = atoll(value);
    if (options[k].number) *options[k].number = atof(value);
  }
  if (o->tokens < 1 || o->seq_len < 4 || o->r < 1 || o->head_rows < 1) usage("(a size is too small)");
}

int main(int argc, char **argv) {
  static struct bench b;
  parse(argc, argv, &b.options);
  const struct options *o = &b.options;
  b.act = strcmp(o->dtype, "f32") == 0 ? DTYPE_F32 : DTYPE_BF16;
  b.s = (struct sizes){o->tokens, 4096, 14336, 128256, 0, o->seq_len, o->r, o->head_rows, 32, 8, 128};
  b.s.adapters = 32 * o->r * 81920; /* inputs and outputs of a layer's seven linears */
  if (o->tiny) b.s = (struct sizes){77, 256, 172, 500, 5001, 44, 5, 13, 6, 2, 32};

  b.pattern = malloc(PATTERN * sizeof *b.pattern);
  b.pattern_bf16 = malloc(PATTERN * sizeof *b.pattern_bf16);
  if (!b.pattern || !b.pattern_bf16) return 1;
  uint32_t state = 1;
  for (int i = 0; i < PATTERN; i++) {
    state = state * 1664525u + 1013904223u;
    b.pattern[i] = (float)(int32_t)state * 0x1p-31f;
    b.pattern_bf16[i] = f32_to_bf16(b.pattern[i]);
  }
  const struct device_options device = {.name = o->device};
  check(device_open(&device, &b.d));
  char text[512];
  device_describe(b.d, text, sizeof text);
  printf("%s; compute %s.\n\n", text, dtype_name(b.act));
  measure_rates(&b);
  all(&b);
  device_close(&b.d);
  return b.n_failed > 0;
}
