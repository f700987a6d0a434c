/*
 * ops.h: the arithmetic of the transformer, as one table of functions per
 * device. The transformer is written once, against this table; model/cpu and
 * model/cuda fill it. No slot is ever empty.
 *
 * Alphabet: M rows (tokens of a micro-batch), K inputs and N outputs of a
 * linear, R adapter rank, H query heads and G KV heads of this rank, E width
 * of a head, V this rank's vocabulary rows. All matrices are row-major; ld is
 * the distance of rows in elements. "act" buffers hold struct tensor_view's
 * dtype, f32 or bf16 (the compute type); everything else is f32. Accumulation
 * is always f32 (or wider). Each output says "=" (overwritten) or "+=".
 *
 * Every pointer is to memory of the device (model/device.h), integers and
 * segments included; what is passed by value, and the result of sum_squares, is
 * the host's. Work is queued in the order of the calls; results are there after
 * device_copy_out or device_synchronize.
 *
 * Determinism: results do not depend on the number of threads, and a call
 * repeated gives the same bits.
 */
#ifndef LORASHARD_MODEL_OPS_H
#define LORASHARD_MODEL_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/dtype.h"
#include "io/model_facts.h"
#include "io/status.h"

#ifdef __cplusplus /* the kernels of model/cuda are CUDA C */
extern "C" {
#endif

struct device; /* threads, scratch, caches of prepared products; model/device.h */

/* A matrix in device memory, f32 or bf16. */
struct tensor_view {
  void *data;
  int64_t ld;
  enum dtype dtype; /* DTYPE_F32 or DTYPE_BF16 */
};

/* The part of a view from a column, or a row, on. */
static inline struct tensor_view tensor_view_columns(struct tensor_view view, int64_t first) {
  view.data = (char *)view.data + dtype_bytes(view.dtype, first);
  return view;
}
static inline struct tensor_view tensor_view_rows(struct tensor_view view, int64_t first) {
  return tensor_view_columns(view, first * view.ld);
}

/* A frozen weight [n_out, n_in], any dtype; rows contiguous. Expanded tile by
 * tile next to the product where its dtype is not the activations'. int8 and nf4
 * have planes beside the numbers (io/quant.h): a part of a whole matrix that begins
 * at a tile of nf4. */
struct weight {
  const void *data;
  enum dtype dtype;
  int64_t n_out, n_in;
  const uint8_t *codes; /* nf4: [n_out, n_in / 64] */
  const float *scales;  /* int8: [n_out]; nf4: [ceil(n_out / 32), n_in / 64, 2] */
};

/* Dropout on an adapter's input. A mask bit is a function of (seed, step,
 * layer, module, global row, global feature) only. */
struct lowrank_dropout {
  float p; /* 0: none, the rest is not read */
  uint64_t seed;
  int64_t step;
  int layer, module;
  const int64_t *row_ids; /* [M] global position ids of the rows */
  int64_t feature;        /* global index of column 0 (row-parallel shards) */
};

/* A low-rank pair on a linear: y += scale (x A') B'. The launch layer fills it,
 * model/linear consumes it. Local parts: A [R, n_in], B [n_out, R]. */
struct lowrank {
  const float *A, *B;
  float *dA, *dB; /* same shapes; += in backward */
  int64_t r, n_in, n_out;
  float scale;
  struct lowrank_dropout dropout;
};

/* Query rows [q, q + n_q) attend to key rows [k, k + n_k), causally aligned at
 * the end: query i sees keys j <= i + n_k - n_q. One document, or one decoded
 * sequence. */
struct segment {
  int32_t q, n_q, k, n_k;
};

struct attention_args {
  struct tensor_view q, k, v, o;  /* [.., H E] [.., G E] [.., G E] [.., H E]; act */
  int64_t n_rows;                 /* rows of q and o */
  const struct segment *segments; /* in rising order of q and of k, not overlapping */
  int n_segments;
  int n_heads, n_kv_heads; /* of this rank */
  int head_dim;
  const int32_t *kv_of_head; /* [n_heads] local KV head of each local query head */
  float scale;
  int64_t window;     /* 0: none; else j > i - window too */
  const float *alibi; /* [n_heads] slopes, or NULL: score += slope (j - i) */
  float *lse;         /* [n_heads, lse_ld] log-sum-exp of each query row; = in forward, may be NULL there */
  int64_t lse_ld;
};

struct adamw_args {
  float *w, *m, *v; /* [n] parameters and moments; updated */
  const float *g;   /* [n] gradient */
  int64_t n;
  float lr, beta1, beta2, eps, weight_decay;
  float g_scale; /* multiplied into g first (clipping) */
  int64_t t;     /* 1-based step of the bias correction */
};

struct ops {
  const char *name; /* "cpu", "cuda" */

  /* y[M, N] = x[M, K] W' (+ bias[N]), or += with accumulate. x act or f32; y act or f32. A device may round bias to
   * the type of y first. */
  enum status (*linear_forward)(struct device *d, int64_t M, struct tensor_view x, const struct weight *W,
                                const float *bias, struct tensor_view y, bool accumulate);
  /* dx[M, K] = dy[M, N] W, or += with accumulate. dy act or f32; dx f32 or act. */
  enum status (*linear_backward)(struct device *d, int64_t M, struct tensor_view dy, const struct weight *W,
                                 struct tensor_view dx, bool accumulate);

  /* A linear and the activation behind it: pre[M, N] = x W' + bias; h = act(pre). All act; bias may be NULL. */
  enum status (*linear_activation_forward)(struct device *d, enum activation kind, int64_t M, struct tensor_view x,
                                           const struct weight *W, const float *bias, struct tensor_view pre,
                                           struct tensor_view h);

  /* h[M, R] = drop(x)[M, K] A';  y[M, N] += scale h B'. h is f32, kept for backward. */
  enum status (*lowrank_forward)(struct device *d, int64_t M, struct tensor_view x, const struct lowrank *pair,
                                 float *h, struct tensor_view y);
  /* u = scale dy B;  dB += scale dy' h;  dA += u' drop(x);  dx[M, K] += drop'(u A) unless dx.data is NULL.
   * dx is f32. */
  enum status (*lowrank_backward)(struct device *d, int64_t M, struct tensor_view x, const float *h,
                                  struct tensor_view dy, const struct lowrank *pair, struct tensor_view dx);

  /* Halves of the two above, for callers between whose halves h and u travel over tp (sequence parallelism) or
   * that need only one of them (recomputation). The masks are those of pair->dropout's rows.
   * h[M, R] = drop(x)[M, K] A': the bits of lowrank_forward's h. */
  enum status (*lowrank_project_forward)(struct device *d, int64_t M, struct tensor_view x, const struct lowrank *pair,
                                         float *h);
  /* y[M, N] += scale h B'. */
  enum status (*lowrank_expand_forward)(struct device *d, int64_t M, const float *h, const struct lowrank *pair,
                                        struct tensor_view y);
  /* u[M, R] = scale dy B;  dB += scale dy' h. */
  enum status (*lowrank_expand_backward)(struct device *d, int64_t M, const float *h, struct tensor_view dy,
                                         const struct lowrank *pair, float *u);
  /* dA += u' drop(x);  dx[M, K] += drop'(u A) unless dx.data is NULL. dx is f32. */
  enum status (*lowrank_project_backward)(struct device *d, int64_t M, struct tensor_view x, const float *u,
                                          const struct lowrank *pair, struct tensor_view dx);

  /* y[M, n] = norm(x) * w (+ b). x f32; stats [M, 2] = (mean, 1/std) (mean 0 for RMS); b may be NULL. */
  enum status (*norm_forward)(struct device *d, enum norm_kind kind, int64_t M, int64_t n, struct tensor_view x,
                              const float *w, const float *b, float eps, struct tensor_view y, float *stats);
  /* The same y again from saved stats (recomputation). */
  enum status (*norm_apply)(struct device *d, enum norm_kind kind, int64_t M, int64_t n, struct tensor_view x,
                            const float *w, const float *b, const float *stats, struct tensor_view y);
  /* dx += d norm / d x applied to dy. x f32, dy f32, dx f32. */
  enum status (*norm_backward)(struct device *d, enum norm_kind kind, int64_t M, int64_t n, struct tensor_view x,
                               const float *w, const float *stats, struct tensor_view dy, struct tensor_view dx);

  /* qwen3: RMSNorm over each head: y[M, heads, E] = x * rstd * w[E]; stats [M, heads] = rstd. act in and out. */
  enum status (*head_norm_forward)(struct device *d, int64_t M, int heads, int head_dim, struct tensor_view x,
                                   const float *w, float eps, struct tensor_view y, float *stats);
  /* dx = ; dy, x, dx act; dx may be dy. */
  enum status (*head_norm_backward)(struct device *d, int64_t M, int heads, int head_dim, struct tensor_view x,
                                    const float *w, const float *stats, struct tensor_view dy, struct tensor_view dx);

  /* Rotate the first n dims of every head of x [M, heads head_dim] in place by cos_sin[position][n/2][2];
   * `backward` rotates the other way. */
  enum status (*rotary)(struct device *d, int64_t M, int heads, int head_dim, int n, bool interleaved,
                        const int32_t *positions, const float *cos_sin, bool backward, struct tensor_view x);

  /* o = softmax(scale q k' + mask) v; lse =. Rows that no segment covers are left alone. */
  enum status (*attention_forward)(struct device *d, const struct attention_args *args);
  /* dq = dk = dv = (act; each row is covered by some segment or set to 0); args' o and lse are forward's. M: rows. */
  enum status (*attention_backward)(struct device *d, const struct attention_args *args, int64_t M,
                                    struct tensor_view d_o, struct tensor_view dq, struct tensor_view dk,
                                    struct tensor_view dv);

  /* h = act(gate) * up, or act(up) when gate.data is NULL. All act. */
  enum status (*activation_forward)(struct device *d, enum activation kind, int64_t M, int64_t n,
                                    struct tensor_view gate, struct tensor_view up, struct tensor_view h);
  /* dgate = , dup = ; may alias gate and up (in place). dh act. */
  enum status (*activation_backward)(struct device *d, enum activation kind, int64_t M, int64_t n,
                                     struct tensor_view gate, struct tensor_view up, struct tensor_view dh,
                                     struct tensor_view dgate, struct tensor_view dup);

  /* x[M, n] (f32) = row (ids[m] - first) of W, or 0 where it is not in [0, n_out). */
  enum status (*embedding)(struct device *d, int64_t M, const int32_t *ids, int64_t first, const struct weight *W,
                           struct tensor_view x);
  /* x[M, n] (f32) += table[rows[m] + offset] ([.., n], f32). */
  enum status (*add_rows)(struct device *d, int64_t M, int64_t n, const int32_t *rows, int64_t offset,
                          const float *table, struct tensor_view x);
  /* x[M, n] (f32) += y (f32 or act) + bias (may be NULL). y.data may be NULL: bias alone. */
  enum status (*add)(struct device *d, int64_t M, int64_t n, struct tensor_view y, const float *bias,
                     struct tensor_view x);
  /* x[M, n] = 0. */
  enum status (*zero)(struct device *d, int64_t M, int64_t n, struct tensor_view x);
  /* Copy with conversion: y = x. */
  enum status (*cast)(struct device *d, int64_t M, int64_t n, struct tensor_view x, struct tensor_view y);
  /* y[i] = x[rows[i]] for i < M; and y[rows[i]] = x[i], other rows untouched. */
  enum status (*gather_rows)(struct device *d, int64_t M, int64_t n, const int32_t *rows, struct tensor_view x,
                             struct tensor_view y);
  enum status (*scatter_rows)(struct device *d, int64_t M, int64_t n, const int32_t *rows, struct tensor_view x,
                              struct tensor_view y);

  /* Vocabulary-parallel cross-entropy on a chunk of logits [M, V] f32 (this rank's columns, V may be 0).
   * 1. max[m] = largest logit (-INFINITY if V is 0).
   * 2. sum[m] = sum exp(logit - max[m]) with the max over all ranks; target[m] = logit of the target - max[m] if
   *    it is in [first, first + V), else 0.
   * 3. logits = (exp(logit - max) / sum - [target]) * g, rounded to `out` (act; may alias logits if f32). Rows
   *    whose target is < 0 give 0. */
  enum status (*xent_max)(struct device *d, int64_t M, int64_t V, struct tensor_view logits, float *max);
  enum status (*xent_sum)(struct device *d, int64_t M, int64_t V, struct tensor_view logits, const float *max,
                          const int32_t *targets, int64_t first, float *sum, float *target);
  enum status (*xent_backward)(struct device *d, int64_t M, int64_t V, struct tensor_view logits, const float *max,
                               const float *sum, const int32_t *targets, int64_t first, float g,
                               struct tensor_view out);

  /* Decoupled weight decay: w -= lr (m^ / (sqrt(v^) + eps) + weight_decay w). */
  enum status (*adamw)(struct device *d, const struct adamw_args *args);
  /* *sum = sum of squares in f64, in a fixed order. */
  enum status (*sum_squares)(struct device *d, const float *x, int64_t n, double *sum);
};

#ifdef __cplusplus
}
#endif

#endif
