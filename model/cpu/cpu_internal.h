/*
 * cpu_internal.h: what the files of model/cpu share. Nothing outside
 * model/cpu (and its tests) includes it.
 *
 * Threads: every parallel region says num_threads(device->n_threads). Work is
 * split over outputs (rows, features), in pieces whose size does not depend on
 * the number of threads; no sum is split over threads.
 */
#ifndef LORASHARD_MODEL_CPU_INTERNAL_H
#define LORASHARD_MODEL_CPU_INTERNAL_H

#include <stdint.h>
#include <string.h>

#include "model/device.h"
#include "model/ops.h"

/* Blocks that the device keeps between calls. A block is valid until the next
 * cpu_scratch with the same use; slots of one file may share a use when one
 * never calls the other. */
enum cpu_scratch_use {
  CPU_SCRATCH_WEIGHT,    /* linear.c: expanded tile of W */
  CPU_SCRATCH_OPERAND,   /* gemm_onednn.c: operands and results in another type */
  CPU_SCRATCH_GEMM,      /* gemm_onednn.c: the library's own scratch */
  CPU_SCRATCH_LOWRANK,   /* lowrank.c: what one half needs */
  CPU_SCRATCH_LOWRANK_U, /* lowrank.c: u between the halves of a backward */
  CPU_SCRATCH_WORK,      /* norms, attention, cross-entropy and the other slots */
  CPU_SCRATCH_COUNT,
};

struct cpu_block {
  void *data;
  size_t bytes;
};

struct cpu_gemm_cache; /* gemm_onednn.c */

struct cpu_state {
  struct cpu_block scratch[CPU_SCRATCH_COUNT];
  struct cpu_gemm_cache *gemm;
  void *stage; /* [DEVICE_STAGE_BYTES] once asked for */
};

static inline struct cpu_state *cpu_state(const struct device *d) { return d->state; }

/* At least `bytes` of 64-byte aligned memory, content undefined. Grows the
 * block when it is too small (counted in device->allocations). Not thread-safe:
 * call it outside parallel regions. */
enum status cpu_scratch(struct device *d, enum cpu_scratch_use use, size_t bytes, void **block_p);

/* --- number formats ------------------------------------------------------ */

static inline float cpu_bf16_value(uint16_t bits) {
  uint32_t word = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

/* Round to nearest even; NaN stays NaN. Written so that gcc vectorises it. */
static inline uint16_t cpu_bf16_bits(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  uint32_t rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  uint32_t quiet = (word >> 16) | 0x40;
  return (uint16_t)((word & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

static inline size_t cpu_element_bytes(enum dtype dtype) { return dtype == DTYPE_BF16 ? 2 : 4; }

/* Address of element (row, column) of a view. */
static inline void *cpu_at(struct tensor_view x, int64_t row, int64_t column) {
  return (char *)x.data + (size_t)(row * x.ld + column) * cpu_element_bytes(x.dtype);
}

/* n contiguous elements of f32 or bf16 to f32, and back. */
static inline void cpu_load(enum dtype dtype, const void *restrict src, int64_t n, float *restrict dst) {
  if (dtype == DTYPE_F32) {
    memcpy(dst, src, (size_t)n * sizeof *dst);
  } else {
    const uint16_t *bits = src;
    for (int64_t i = 0; i < n; i++) dst[i] = cpu_bf16_value(bits[i]);
  }
}
static inline void cpu_store(enum dtype dtype, const float *restrict src, int64_t n, void *restrict dst) {
  if (dtype == DTYPE_F32) {
    memcpy(dst, src, (size_t)n * sizeof *src);
  } else {
    uint16_t *bits = dst;
    for (int64_t i = 0; i < n; i++) bits[i] = cpu_bf16_bits(src[i]);
  }
}

/* --- quant.c ------------------------------------------------------------- */

/* n weights of any dtype that is not in planes (n a multiple of its block) to f32: exactly
 * quant_expand_f32's values; or to bf16: those, rounded once. One thread. */
void cpu_expand(enum dtype dtype, const void *restrict src, int64_t n, enum dtype dst_dtype, void *restrict dst);

/* Weights [column, column + n) of a row of W, of any dtype, likewise. column and n
 * are multiples of W's block. */
void cpu_expand_row(const struct weight *W, int64_t row, int64_t column, int64_t n, enum dtype dst_dtype,
                    void *restrict dst);

/* Rows [row, row + n_rows) and columns [column, column + n_columns) of W to
 * dst [n_rows, n_columns], parallel over rows. column and n_columns are
 * multiples of W's block. */
void cpu_expand_tile(const struct device *d, const struct weight *W, int64_t row, int64_t n_rows, int64_t column,
                     int64_t n_columns, enum dtype dst_dtype, void *dst);

/* --- gemv.c -------------------------------------------------------------- */

/* cpu_linear_forward for 1 to CPU_GEMV_ROWS rows and n_in >= 1. */
enum { CPU_GEMV_ROWS = 4 };
void cpu_gemv(const struct device *d, int64_t M, struct tensor_view x, const struct weight *W, const float *bias,
              struct tensor_view y, bool accumulate);

/* --- gemm_onednn.c ------------------------------------------------------- */

/* c[m, n] = a[m, k] b[k, n] + bias[n], or += with accumulate; f32 sums. a is
 * row-major with distance lda; b likewise, or stored as its transpose [n, k]
 * with b_transposed. a and b have one dtype, f32 or bf16; c is f32 or bf16.
 * bias is f32 or NULL. k >= 1. */
struct cpu_product {
  int64_t m, n, k;
  const void *a, *b;
  const float *bias;
  void *c;
  int64_t lda, ldb, ldc;
  enum dtype ab_dtype, c_dtype;
  bool b_transposed, accumulate;
};
enum status cpu_gemm(struct device *d, const struct cpu_product *product);

enum status cpu_gemm_open(struct device *d, struct cpu_gemm_cache **cache_p);
void cpu_gemm_close(struct cpu_gemm_cache **cache_p);
/* Name, version and instruction set of the library. */
void cpu_gemm_describe(char *text, size_t size);

/* --- the slots of struct ops, in its order ------------------------------- */

enum status cpu_linear_forward(struct device *d, int64_t M, struct tensor_view x, const struct weight *W,
                               const float *bias, struct tensor_view y, bool accumulate);
enum status cpu_linear_backward(struct device *d, int64_t M, struct tensor_view dy, const struct weight *W,
                                struct tensor_view dx, bool accumulate);
enum status cpu_linear_activation_forward(struct device *d, enum activation kind, int64_t M, struct tensor_view x,
                                          const struct weight *W, const float *bias, struct tensor_view pre,
                                          struct tensor_view h);
enum status cpu_lowrank_forward(struct device *d, int64_t M, struct tensor_view x, const struct lowrank *pair, float *h,
                                struct tensor_view y);
enum status cpu_lowrank_backward(struct device *d, int64_t M, struct tensor_view x, const float *h,
                                 struct tensor_view dy, const struct lowrank *pair, struct tensor_view dx);
enum status cpu_lowrank_project_forward(struct device *d, int64_t M, struct tensor_view x, const struct lowrank *pair,
                                        float *h);
enum status cpu_lowrank_expand_forward(struct device *d, int64_t M, const float *h, const struct lowrank *pair,
                                       struct tensor_view y);
enum status cpu_lowrank_expand_backward(struct device *d, int64_t M, const float *h, struct tensor_view dy,
                                        const struct lowrank *pair, float *u);
enum status cpu_lowrank_project_backward(struct device *d, int64_t M, struct tensor_view x, const float *u,
                                         const struct lowrank *pair, struct tensor_view dx);
enum status cpu_norm_forward(struct device *d, enum norm_kind kind, int64_t M, int64_t n, struct tensor_view x,
                             const float *w, const float *b, float eps, struct tensor_view y, float *stats);
enum status cpu_norm_apply(struct device *d, enum norm_kind kind, int64_t M, int64_t n, struct tensor_view x,
                           const float *w, const float *b, const float *stats, struct tensor_view y);
enum status cpu_norm_backward(struct device *d, enum norm_kind kind, int64_t M, int64_t n, struct tensor_view x,
                              const float *w, const float *stats, struct tensor_view dy, struct tensor_view dx);
enum status cpu_head_norm_forward(struct device *d, int64_t M, int heads, int head_dim, struct tensor_view x,
                                  const float *w, float eps, struct tensor_view y, float *stats);
enum status cpu_head_norm_backward(struct device *d, int64_t M, int heads, int head_dim, struct tensor_view x,
                                   const float *w, const float *stats, struct tensor_view dy, struct tensor_view dx);
enum status cpu_rotary(struct device *d, int64_t M, int heads, int head_dim, int n, bool interleaved,
                       const int32_t *positions, const float *cos_sin, bool backward, struct tensor_view x);
enum status cpu_attention_forward(struct device *d, const struct attention_args *args);
enum status cpu_attention_backward(struct device *d, const struct attention_args *args, int64_t M,
                                   struct tensor_view d_o, struct tensor_view dq, struct tensor_view dk,
                                   struct tensor_view dv);
enum status cpu_activation_forward(struct device *d, enum activation kind, int64_t M, int64_t n,
                                   struct tensor_view gate, struct tensor_view up, struct tensor_view h);
enum status cpu_activation_backward(struct device *d, enum activation kind, int64_t M, int64_t n,
                                    struct tensor_view gate, struct tensor_view up, struct tensor_view dh,
                                    struct tensor_view dgate, struct tensor_view dup);
enum status cpu_zero(struct device *d, int64_t M, int64_t n, struct tensor_view x);
enum status cpu_embedding(struct device *d, int64_t M, const int32_t *ids, int64_t first, const struct weight *W,
                          struct tensor_view x);
enum status cpu_add_rows(struct device *d, int64_t M, int64_t n, const int32_t *rows, int64_t offset,
                         const float *table, struct tensor_view x);
enum status cpu_add(struct device *d, int64_t M, int64_t n, struct tensor_view y, const float *bias,
                    struct tensor_view x);
enum status cpu_cast(struct device *d, int64_t M, int64_t n, struct tensor_view x, struct tensor_view y);
enum status cpu_gather_rows(struct device *d, int64_t M, int64_t n, const int32_t *rows, struct tensor_view x,
                            struct tensor_view y);
enum status cpu_scatter_rows(struct device *d, int64_t M, int64_t n, const int32_t *rows, struct tensor_view x,
                             struct tensor_view y);
enum status cpu_xent_max(struct device *d, int64_t M, int64_t V, struct tensor_view logits, float *max);
enum status cpu_xent_sum(struct device *d, int64_t M, int64_t V, struct tensor_view logits, const float *max,
                         const int32_t *targets, int64_t first, float *sum, float *target);
enum status cpu_xent_backward(struct device *d, int64_t M, int64_t V, struct tensor_view logits, const float *max,
                              const float *sum, const int32_t *targets, int64_t first, float g, struct tensor_view out);
enum status cpu_adamw(struct device *d, const struct adamw_args *args);
enum status cpu_sum_squares(struct device *d, const float *x, int64_t n, double *sum);

/* table.c: all of the above. */
extern const struct ops cpu_ops;

#endif
