/*
 * gemv.c: the product of a few rows with a frozen weight, as decoding asks for.
 *
 * A matrix product would pack or expand W for rows that are not there. Here
 * each row of W is read once, its weights are expanded in registers and
 * multiplied with the rows of x on the spot. As in linear.c the product is
 * that of x's type: beside bf16 rows a weight is rounded to bf16 first.
 *
 * A thread makes whole elements of y, each in one order of additions, which
 * does not depend on the number of rows either.
 */
#include "model/cpu/cpu_internal.h"
#include "model/cpu/quant_lanes.h"

enum {
  PIECE_ROWS = 16,           /* rows of W dealt out at a time */
  AHEAD = 1024,              /* bytes of W asked for before they are needed: two rows by turns look like no stream */
  THREADS_WEIGHTS = 1 << 15, /* fewer weights are done before threads have started */
};

struct gemv {
  const struct weight *W;
  struct tensor_view y;
  const void *x[CPU_GEMV_ROWS]; /* rows; those that are not there are the first */
  const float *bias;
  int64_t M, groups; /* of QUANT_GROUP columns; what is left over is added one by one */
  size_t row_bytes;  /* of W */
  enum dtype x_dtype;
  bool accumulate;
};

/* A group of weights, expanded; where x is bf16, rounded to it and, if the processor multiplies pairs of them, packed.
 */
struct group {
#ifdef __AVX512BF16__
  __m512bh pairs;
#endif
  vf w[QUANT_VECTORS];
};

VF_INLINE void load_group(enum dtype dtype, enum dtype x_dtype, const uint8_t *block, vf scale, int index,
                          struct group *group) {
#ifdef __AVX512BF16__
  if (x_dtype == DTYPE_BF16 && dtype == DTYPE_BF16) {
    group->pairs = (__m512bh)_mm512_loadu_si512(block);
    return;
  }
#endif
#pragma GCC unroll 8
  for (int v = 0; v < QUANT_VECTORS; v++) group->w[v] = quant_vector(dtype, block, scale, index, v);
  if (x_dtype != DTYPE_BF16) return;
#ifdef __AVX512BF16__
  group->pairs = _mm512_cvtne2ps_pbh((__m512)group->w[1], (__m512)group->w[0]);
#else
#pragma GCC unroll 8
  for (int v = 0; v < QUANT_VECTORS; v++) group->w[v] = vf_from_bf16(vf_to_bf16(group->w[v]));
#endif
}

/* sum += w x over a group; vectors of f32 go into two sums in turn. */
VF_INLINE void add_group(enum dtype x_dtype, const struct group *group, const char *x, vf sum[2]) {
#ifdef __AVX512BF16__
  if (x_dtype == DTYPE_BF16) {
    sum[0] = (vf)_mm512_dpbf16_ps((__m512)sum[0], group->pairs, (__m512bh)_mm512_loadu_si512(x));
    return;
  }
#endif
#pragma GCC unroll 8
  for (int v = 0; v < QUANT_VECTORS; v++) sum[v % 2] += group->w[v] * vf_get(x_dtype, x, v * VF_LANES);
}

/* The columns of row n after the last whole group, in plain formats and int8 only. */
static float add_rest(const struct gemv *job, int64_t n, const char *x, float sum) {
  for (int64_t k = job->groups * QUANT_GROUP; k < job->W->n_in; k++) {
    float w, value;
    cpu_expand_row(job->W, n, k, 1, DTYPE_F32, &w);
    cpu_load(job->x_dtype, x + (size_t)k * cpu_element_bytes(job->x_dtype), 1, &value);
    if (job->x_dtype == DTYPE_BF16) w = cpu_bf16_value(cpu_bf16_bits(w));
    sum += w * value;
  }
  return sum;
}

/* y[m, n] = or += the sum of all groups, the rest and the bias. */
VF_INLINE void put(const struct gemv *job, int64_t m, int64_t n, const vf sum[2]) {
  float value = vf_sum(sum[0] + sum[1]), old;
  if (job->groups * QUANT_GROUP < job->W->n_in) value = add_rest(job, n, job->x[m], value);
  if (job->bias) value += job->bias[n];
  void *at = cpu_at(job->y, m, n);
  if (job->accumulate) {
    cpu_load(job->y.dtype, at, 1, &old);
    value += old;
  }
  cpu_store(job->y.dtype, &value, 1, at);
}

/* Columns n and `next` of y, which share the reading of x; everything about the loops is known to the compiler. */
VF_INLINE void dot_columns(enum dtype dtype, enum dtype x_dtype, int rows, const struct gemv *job, int64_t n,
                           int64_t next) {
  const int per_block = quant_block(dtype) / QUANT_GROUP, bytes = quant_block_bytes(dtype);
  const uint8_t *block = (const uint8_t *)job->W->data + (size_t)n * job->row_bytes;
  const size_t apart = (size_t)(next - n) * job->row_bytes;
  size_t at = 0; /* bytes into a row of x */
  vf sum[2][CPU_GEMV_ROWS][2] = {{{{0}}}};
  for (int64_t g = 0; g < job->groups; g += per_block, block += bytes) {
    __builtin_prefetch(block + AHEAD);
    __builtin_prefetch(block + apart + AHEAD);
    const vf scale[2] = {quant_plane_scale(dtype, job->W, n, g / per_block),
                         quant_plane_scale(dtype, job->W, next, g / per_block)};
#pragma GCC unroll 8
    for (int i = 0; i < per_block; i++) {
      struct group group[2];
      load_group(dtype, x_dtype, block, scale[0], i, &group[0]);
      load_group(dtype, x_dtype, block + apart, scale[1], i, &group[1]);
#pragma GCC unroll 4
      for (int m = 0; m < rows; m++) {
        add_group(x_dtype, &group[0], (const char *)job->x[m] + at, sum[0][m]);
        add_group(x_dtype, &group[1], (const char *)job->x[m] + at, sum[1][m]);
      }
      at += QUANT_GROUP * cpu_element_bytes(x_dtype);
    }
  }
  for (int m = 0; m < rows && m < job->M; m++) {
    put(job, m, n, sum[0][m]);
    if (next > n) put(job, m, next, sum[1][m]);
  }
}

/* Columns [first, end) of y. */
VF_INLINE void dot_rows(enum dtype dtype, const struct gemv *job, int64_t first, int64_t end) {
  bool one = job->M == 1, bf16 = job->x_dtype == DTYPE_BF16;
  for (int64_t n = first; n < end; n += 2) {
    int64_t next = n + 1 < end ? n + 1 : n;
    if (bf16 && one) dot_columns(dtype, DTYPE_BF16, 1, job, n, next);
    if (bf16 && !one) dot_columns(dtype, DTYPE_BF16, CPU_GEMV_ROWS, job, n, next);
    if (!bf16 && one) dot_columns(dtype, DTYPE_F32, 1, job, n, next);
    if (!bf16 && !one) dot_columns(dtype, DTYPE_F32, CPU_GEMV_ROWS, job, n, next);
  }
}

static void dot_piece(const struct gemv *job, int64_t first, int64_t end) {
  switch (job->W->dtype) {
#define DOT_CASE(dtype)               \
  case dtype:                         \
    dot_rows(dtype, job, first, end); \
    break;
    DOT_CASE(DTYPE_F32)
    DOT_CASE(DTYPE_F16)
    DOT_CASE(DTYPE_BF16)
    DOT_CASE(DTYPE_Q4_0)
    DOT_CASE(DTYPE_Q4_1)
    DOT_CASE(DTYPE_Q5_0)
    DOT_CASE(DTYPE_Q5_1)
    DOT_CASE(DTYPE_Q8_0)
    DOT_CASE(DTYPE_Q4_K)
    DOT_CASE(DTYPE_Q6_K)
    DOT_CASE(DTYPE_F8)
    DOT_CASE(DTYPE_INT8)
    DOT_CASE(DTYPE_NF4)
#undef DOT_CASE
    case DTYPE_COUNT:
      break;
  }
}

void cpu_gemv(const struct device *d, int64_t M, struct tensor_view x, const struct weight *W, const float *bias,
              struct tensor_view y, bool accumulate) {
  struct gemv job = {.W = W,
                     .y = y,
                     .bias = bias,
                     .M = M,
                     .groups = W->n_in / QUANT_GROUP,
                     .row_bytes = dtype_bytes(W->dtype, W->n_in),
                     .x_dtype = x.dtype,
                     .accumulate = accumulate};
  for (int64_t m = 0; m < CPU_GEMV_ROWS; m++) job.x[m] = cpu_at(x, m < M ? m : 0, 0);
  int64_t n_pieces = (W->n_out + PIECE_ROWS - 1) / PIECE_ROWS;
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (W->n_out * W->n_in > THREADS_WEIGHTS)
  for (int64_t piece = 0; piece < n_pieces; piece++) {
    int64_t first = piece * PIECE_ROWS, end = first + PIECE_ROWS;
    dot_piece(&job, first, end < W->n_out ? end : W->n_out);
  }
}
