/*
 * cuda_internal.h: what the files of model/cuda share. Nothing outside
 * model/cuda (and its tests) includes it. C and CUDA C.
 *
 * .c files hold host code, .cu files the kernels and the slots that launch them.
 * Everything is queued on one compute stream, cuda_state(d)->stream; no slot
 * waits for it but sum_squares.
 */
#ifndef LORASHARD_MODEL_CUDA_CUDA_INTERNAL_H
#define LORASHARD_MODEL_CUDA_CUDA_INTERNAL_H

#include <stdint.h>

#include "model/cuda/check.h"
#include "model/device.h"
#include "model/device_backend.h"
#include "model/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Blocks that the device keeps between calls. A block is valid until the next
 * cuda_scratch with the same use; slots of one file may share a use when one
 * never calls the other. */
enum cuda_scratch_use {
  CUDA_SCRATCH_WEIGHT,  /* linear.c: expanded tile of W */
  CUDA_SCRATCH_OPERAND, /* gemm_cublaslt.c: operands in another type or layout */
  CUDA_SCRATCH_LOWRANK, /* lowrank.c */
  CUDA_SCRATCH_WORK,    /* attention, sum_squares */
  CUDA_SCRATCH_COUNT,
};

enum { CUDA_RETIRED_MOST = 128 }; /* each is half as large again as the one before */

struct cuda_block {
  void *data;
  size_t bytes;
};

struct cuda_gemm_cache; /* gemm_cublaslt.c: handle, workspace, plans by shape */
struct cuda_graphs;     /* graph.c */

struct cuda_state {
  int index; /* of the GPU among the visible ones */
  cudaStream_t stream;
  struct cudaDeviceProp properties;
  struct cuda_block scratch[CUDA_SCRATCH_COUNT];
  struct cuda_block retired[CUDA_RETIRED_MOST]; /* outgrown ones that recorded graphs may use */
  int n_retired;
  struct cuda_gemm_cache *gemm;
  struct cuda_graphs *graphs;
  void *stage[2]; /* pinned, [DEVICE_STAGE_BYTES] each */
  cudaEvent_t stage_sent[2];
  int stage_turn; /* the buffer that stage_take gave out last */
  device_watch_func_t *watch;
  void *watch_context;
  bool tf32;
};

static inline struct cuda_state *cuda_state(const struct device *d) { return (struct cuda_state *)d->state; }
static inline cudaStream_t cuda_stream(const struct device *d) { return cuda_state(d)->stream; }

/* At least `bytes` of device memory, 256-byte aligned, content undefined. Grows the block when it
 * is too small (counted in device->allocations; STATUS_DEVICE while a graph is recorded). */
enum status cuda_scratch(struct device *d, enum cuda_scratch_use use, size_t bytes, void **block_p);

/* After a kernel launch: its error, if any, as a status. */
enum status cuda_launched(const char *kernel, const char *file, int line);

/* --- gemm_cublaslt.c ------------------------------------------------------- */

/* What is done to a product before it is stored. */
enum cuda_epilogue {
  CUDA_EPILOGUE_NONE,
  CUDA_EPILOGUE_BIAS,     /* + bias[n] */
  CUDA_EPILOGUE_GELU_AUX, /* + bias[n] (may be NULL); aux = that; c = gelu_tanh(aux) */
};

/* c[m, n] = alpha op(a)[m, k] op(b)[k, n] + (accumulate ? c : 0), then the epilogue.
 * All row-major; ld is the distance of rows as stored. a is stored [m, k], or [k, m]
 * with a_transposed; b is stored [k, n], or [n, k] with b_transposed. a and b have
 * one dtype, f32 or bf16; c is f32 or bf16; sums are f32. bias f32, device. */
struct cuda_product {
  int64_t m, n, k;
  const void *a, *b;
  void *c;
  int64_t lda, ldb, ldc;
  bool a_transposed, b_transposed, accumulate;
  enum dtype ab_dtype, c_dtype;
  float alpha;
  enum cuda_epilogue epilogue;
  const float *bias;
  void *aux; /* [m, n] of c_dtype, distance ldaux */
  int64_t ldaux;
};
/* STATUS_OK also for m, n or k of 0. *fits false (and nothing queued) when the
 * library has no way to do this epilogue; fits may be NULL with CUDA_EPILOGUE_NONE. */
enum status cuda_gemm(struct device *d, const struct cuda_product *product, bool *fits);

enum status cuda_gemm_open(struct device *d, struct cuda_gemm_cache **cache_p);
void cuda_gemm_close(struct device *d, struct cuda_gemm_cache **cache_p);
/* "cuBLASLt 13.1". */
void cuda_gemm_describe(char *text, size_t size);

/* --- graph.c --------------------------------------------------------------- */

enum status cuda_graphs_open(struct cuda_graphs **graphs_p);
void cuda_graphs_close(struct cuda_graphs **graphs_p);
enum status cuda_graph_begin(struct device *d, const void *key, size_t key_bytes, int *slot_p, bool *repeated_p);
enum status cuda_graph_end(struct device *d);
/* For what cannot be recorded (allocating, waiting, freeing): STATUS_DEVICE while a graph is
 * recorded, "WHAT while a graph is recorded", and the recording is dropped. */
enum status cuda_graph_forbids(struct device *d, const char *what);
/* Drop the recording, if any; nothing of it has run. Leaves status_message as it is. */
void cuda_graph_abandon(struct device *d);
/* Drop all records: something whose address they hold has moved. */
void cuda_graphs_forget(struct device *d);

/* --- quant.cu -------------------------------------------------------------- */

/* Rows [row, row + n_rows) and columns [column, column + n_columns) of W, any
 * dtype, to dst [n_rows, n_columns] of dst_dtype (f32 or bf16; rounded once).
 * column and n_columns are multiples of W's block. */
enum status cuda_expand_tile(struct device *d, const struct weight *W, int64_t row, int64_t n_rows, int64_t column,
                             int64_t n_columns, enum dtype dst_dtype, void *dst);

/* --- round.cu -------------------------------------------------------------- */

/* Matrices to be rounded to bf16: x [rows, columns] with distance ld to y
 * [padded_rows, padded_columns], dense, padded_columns a multiple of 4; what is
 * added is 0. One launch for all. */
struct cuda_rounding {
  const float *x;
  int64_t ld, rows, columns;
  void *y;
  int64_t padded_rows, padded_columns;
};
enum { CUDA_ROUNDINGS = 3 };
/* n of 1 to CUDA_ROUNDINGS. */
enum status cuda_round(struct device *d, const struct cuda_rounding *roundings, int n);

/* --- lowrank_mask.cu ------------------------------------------------------- */

/* y[M, n] = x masked and scaled by the dropout of its rows and columns (Philox, model/cpu/lowrank_mask.c's masks
 * bit for bit). y f32 or bf16. */
enum status cuda_mask_copy(struct device *d, int64_t M, int64_t n, struct tensor_view x,
                           const struct lowrank_dropout *dropout, struct tensor_view y);
/* dx[M, n] (f32) += g (f32 or bf16) masked and scaled likewise. */
enum status cuda_mask_add(struct device *d, int64_t M, int64_t n, struct tensor_view g,
                          const struct lowrank_dropout *dropout, struct tensor_view dx);

/* Attention kernels in use: "own kernels (bf16: mma.sync, f32: fma)". attention.cu */
const char *cuda_attention_describe(void);

/* The slots attention_forward and attention_backward without tensor cores, for tests. */
enum status cuda_attention_forward_plain(struct device *d, const struct attention_args *args);
enum status cuda_attention_backward_plain(struct device *d, const struct attention_args *args, int64_t M,
                                          struct tensor_view d_o, struct tensor_view dq, struct tensor_view dk,
                                          struct tensor_view dv);

/* --- the slots of struct ops, in its order --------------------------------- */

enum status cuda_linear_forward(struct device *d, int64_t M, struct tensor_view x, const struct weight *W,
                                const float *bias, struct tensor_view y, bool accumulate);
enum status cuda_linear_backward(struct device *d, int64_t M, struct tensor_view dy, const struct weight *W,
                                 struct tensor_view dx, bool accumulate);
enum status cuda_linear_activation_forward(struct device *d, enum activation kind, int64_t M, struct tensor_view x,
                                           const struct weight *W, const float *bias, struct tensor_view pre,
                                           struct tensor_view h);
enum status cuda_lowrank_forward(struct device *d, int64_t M, struct tensor_view x, const struct lowrank *pair,
                                 float *h, struct tensor_view y);
enum status cuda_lowrank_backward(struct device *d, int64_t M, struct tensor_view x, const float *h,
                                  struct tensor_view dy, const struct lowrank *pair, struct tensor_view dx);
enum status cuda_lowrank_project_forward(struct device *d, int64_t M, struct tensor_view x, const struct lowrank *pair,
                                         float *h);
enum status cuda_lowrank_expand_forward(struct device *d, int64_t M, const float *h, const struct lowrank *pair,
                                        struct tensor_view y);
enum status cuda_lowrank_expand_backward(struct device *d, int64_t M, const float *h, struct tensor_view dy,
                                         const struct lowrank *pair, float *u);
enum status cuda_lowrank_project_backward(struct device *d, int64_t M, struct tensor_view x, const float *u,
                                          const struct lowrank *pair, struct tensor_view dx);
enum status cuda_norm_forward(struct device *d, enum norm_kind kind, int64_t M, int64_t n, struct tensor_view x,
                              const float *w, const float *b, float eps, struct tensor_view y, float *stats);
enum status cuda_norm_apply(struct device *d, enum norm_kind kind, int64_t M, int64_t n, struct tensor_view x,
                            const float *w, const float *b, const float *stats, struct tensor_view y);
enum status cuda_norm_backward(struct device *d, enum norm_kind kind, int64_t M, int64_t n, struct tensor_view x,
                               const float *w, const float *stats, struct tensor_view dy, struct tensor_view dx);
enum status cuda_head_norm_forward(struct device *d, int64_t M, int heads, int head_dim, struct tensor_view x,
                                   const float *w, float eps, struct tensor_view y, float *stats);
enum status cuda_head_norm_backward(struct device *d, int64_t M, int heads, int head_dim, struct tensor_view x,
                                    const float *w, const float *stats, struct tensor_view dy, struct tensor_view dx);
enum status cuda_rotary(struct device *d, int64_t M, int heads, int head_dim, int n, bool interleaved,
                        const int32_t *positions, const float *cos_sin, bool backward, struct tensor_view x);
enum status cuda_attention_forward(struct device *d, const struct attention_args *args);
enum status cuda_attention_backward(struct device *d, const struct attention_args *args, int64_t M,
                                    struct tensor_view d_o, struct tensor_view dq, struct tensor_view dk,
                                    struct tensor_view dv);
enum status cuda_activation_forward(struct device *d, enum activation kind, int64_t M, int64_t n,
                                    struct tensor_view gate, struct tensor_view up, struct tensor_view h);
enum status cuda_activation_backward(struct device *d, enum activation kind, int64_t M, int64_t n,
                                     struct tensor_view gate, struct tensor_view up, struct tensor_view dh,
                                     struct tensor_view dgate, struct tensor_view dup);
enum status cuda_embedding(struct device *d, int64_t M, const int32_t *ids, int64_t first, const struct weight *W,
                           struct tensor_view x);
enum status cuda_add_rows(struct device *d, int64_t M, int64_t n, const int32_t *rows, int64_t offset,
                          const float *table, struct tensor_view x);
enum status cuda_add(struct device *d, int64_t M, int64_t n, struct tensor_view y, const float *bias,
                     struct tensor_view x);
enum status cuda_zero(struct device *d, int64_t M, int64_t n, struct tensor_view x);
enum status cuda_cast(struct device *d, int64_t M, int64_t n, struct tensor_view x, struct tensor_view y);
enum status cuda_gather_rows(struct device *d, int64_t M, int64_t n, const int32_t *rows, struct tensor_view x,
                             struct tensor_view y);
enum status cuda_scatter_rows(struct device *d, int64_t M, int64_t n, const int32_t *rows, struct tensor_view x,
                              struct tensor_view y);
enum status cuda_xent_max(struct device *d, int64_t M, int64_t V, struct tensor_view logits, float *max);
enum status cuda_xent_sum(struct device *d, int64_t M, int64_t V, struct tensor_view logits, const float *max,
                          const int32_t *targets, int64_t first, float *sum, float *target);
enum status cuda_xent_backward(struct device *d, int64_t M, int64_t V, struct tensor_view logits, const float *max,
                               const float *sum, const int32_t *targets, int64_t first, float g,
                               struct tensor_view out);
enum status cuda_adamw(struct device *d, const struct adamw_args *args);
enum status cuda_sum_squares(struct device *d, const float *x, int64_t n, double *sum);

/* table.c: all of the above. */
extern const struct ops cuda_ops;

#ifdef __cplusplus
}
#endif

#endif
