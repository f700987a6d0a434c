/*
 * lowrank.c: the adapter's products: h = drop(x) A', y += scale h B', and their
 * backward.
 *
 * With bf16 activations the products run on tensor cores: A, B, h and u = scale
 * dy B are rounded to bf16 and their rank padded to a multiple of PAD; sums are
 * f32. With f32 activations everything is f32 and used where it lies. Scale and
 * += are the product's alpha and beta, so y, dx and the gradients are passed over
 * once.
 *
 * The slots of one half queue the same products as the whole ones, so they give
 * the same bits. A half knows the type of its own activations only: where x is
 * bf16 and y or dy f32, the half of these is computed in f32. u of a bf16 dy is
 * rounded also where it leaves as f32.
 *
 * Dropout copies x, masked, to scratch; in pieces of rows, since x of the widest
 * linear may be a large part of the memory.
 */
#include <assert.h>

#include "model/cuda/cuda_internal.h"

enum { LARGEST_R = 1024 /* as on the cpu */, PAD = 8, MASKED_BYTES = 64 << 20, MASKED_UNIT = 128, SCRATCH_UNIT = 256 };

/* A call's operands in the type of its products. r: R, padded in bf16. */
struct operands {
  struct device *d;
  const struct lowrank *pair;
  int64_t M, r;
  enum dtype dtype;
  struct tensor_view A;      /* [r, K] */
  struct tensor_view B;      /* [N, r] */
  struct tensor_view h;      /* [M, r] */
  struct tensor_view u;      /* [M, r]; backward */
  struct tensor_view wide_h; /* [M, r] f32: h with the padding; bf16 forward */
  struct tensor_view dy;     /* [M, N]; backward, data NULL if dy has the type */
  struct tensor_view masked; /* [piece, K]; with dropout */
  int64_t piece;             /* rows that are masked at a time; M without dropout */
};

static int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }
static int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

/* --- scratch --------------------------------------------------------------- */

/* What a call does. */
enum { PROJECT = 1, EXPAND = 2, BACKWARD = 4 };

/* A dense matrix at the next place of a block; with a NULL block the place is only counted. */
static struct tensor_view take(char *block, size_t *used, int64_t rows, int64_t columns, enum dtype dtype) {
  struct tensor_view view = {block ? block + *used : NULL, columns, dtype};
  *used += (size_t)round_up((int64_t)dtype_bytes(dtype, rows * columns), SCRATCH_UNIT);
  return view;
}

static size_t scratch_layout(struct operands *o, int parts, bool convert_dy, char *block) {
  const struct lowrank *pair = o->pair;
  const bool rounds = o->dtype == DTYPE_BF16, projects = parts & PROJECT, expands = parts & EXPAND;
  const bool backward = parts & BACKWARD;
  int64_t width = round_up(pair->n_in, PAD);
  size_t used = 0;
  if (rounds && projects) o->A = take(block, &used, o->r, width, o->dtype);
  if (rounds && expands) {
    o->B = take(block, &used, pair->n_out, o->r, o->dtype);
    o->h = take(block, &used, o->M, o->r, o->dtype);
  }
  if (backward && (rounds || (projects && expands))) o->u = take(block, &used, o->M, o->r, o->dtype);
  if (rounds && projects && !backward && o->r != pair->r) o->wide_h = take(block, &used, o->M, o->r, DTYPE_F32);
  if (convert_dy) o->dy = take(block, &used, o->M, pair->n_out, o->dtype);
  if (projects && pair->dropout.p > 0) o->masked = take(block, &used, o->piece, width, o->dtype);
  return used;
}

/* Operands of a call. h and u are the caller's, [M, R], in or out; NULL where a call has none. What has to be rounded
 * is not yet. */
static enum status operands_take(struct device *d, int64_t M, const struct lowrank *pair, enum dtype dtype, int parts,
                                 const float *h, const float *u, bool convert_dy, struct operands *o) {
  void *block;
  if (pair->r < 1 || pair->r > LARGEST_R) {
    return status_set(STATUS_USAGE, "adapter rank %lld: the gpu takes 1 to %d", (long long)pair->r, LARGEST_R);
  }
  *o = (struct operands){
      .d = d,
      .pair = pair,
      .M = M,
      .r = dtype == DTYPE_BF16 ? round_up(pair->r, PAD) : pair->r,
      .dtype = dtype,
      .A = {(void *)pair->A, pair->n_in, DTYPE_F32},
      .B = {(void *)pair->B, pair->r, DTYPE_F32},
      .h = {(void *)h, pair->r, DTYPE_F32},
      .u = {(void *)u, pair->r, DTYPE_F32},
      .piece = M,
  };
  if (parts & PROJECT && pair->dropout.p > 0 && pair->n_in > 0) {
    int64_t rows = MASKED_BYTES / (int64_t)dtype_bytes(dtype, pair->n_in) / MASKED_UNIT * MASKED_UNIT;
    o->piece = at_most(rows < MASKED_UNIT ? MASKED_UNIT : rows, M);
  }
  TRY(cuda_scratch(d, CUDA_SCRATCH_LOWRANK, scratch_layout(o, parts, convert_dy, NULL), &block));
  scratch_layout(o, parts, convert_dy, block);
  return STATUS_OK;
}

/* Rows of x from `row` on, through the dropout if there is one. */
static enum status input_rows(const struct operands *o, struct tensor_view x, int64_t row, int64_t n_rows,
                              struct tensor_view *rows_p) {
  *rows_p = tensor_view_rows(x, row);
  if (o->pair->dropout.p <= 0) return STATUS_OK;
  struct lowrank_dropout dropout = o->pair->dropout;
  dropout.row_ids += row;
  TRY(cuda_mask_copy(o->d, n_rows, o->pair->n_in, *rows_p, &dropout, o->masked));
  *rows_p = o->masked;
  return STATUS_OK;
}

/* --- rounding -------------------------------------------------------------- */

static struct cuda_rounding rounding_A(const struct operands *o) {
  const struct lowrank *pair = o->pair;
  return (struct cuda_rounding){pair->A, pair->n_in, pair->r, pair->n_in, o->A.data, o->r, o->A.ld};
}

static struct cuda_rounding rounding_B(const struct operands *o) {
  const struct lowrank *pair = o->pair;
  return (struct cuda_rounding){pair->B, pair->r, pair->n_out, pair->r, o->B.data, pair->n_out, o->r};
}

/* h or u, [M, R], into its place. */
static struct cuda_rounding rounding_narrow(const struct operands *o, const float *x, struct tensor_view place) {
  return (struct cuda_rounding){x, o->pair->r, o->M, o->pair->r, place.data, o->M, o->r};
}

/* Only bf16 products have anything to round. */
static enum status round_some(const struct operands *o, const struct cuda_rounding *roundings, int n) {
  return o->dtype == DTYPE_BF16 ? cuda_round(o->d, roundings, n) : STATUS_OK;
}
#define ROUND(o, n, ...) round_some(o, (struct cuda_rounding[]){__VA_ARGS__}, n)

/* --- products -------------------------------------------------------------- */

/* c[m, n] = or += alpha op(a)[m, k] op(b)[k, n] in the operands' type. */
static struct cuda_product product(const struct operands *o, int64_t m, int64_t n, int64_t k, struct tensor_view a,
                                   struct tensor_view b, struct tensor_view c, float alpha, bool accumulate) {
  return (struct cuda_product){
      .m = m,
      .n = n,
      .k = k,
      .a = a.data,
      .lda = a.ld,
      .b = b.data,
      .ldb = b.ld,
      .c = c.data,
      .ldc = c.ld,
      .ab_dtype = o->dtype,
      .c_dtype = c.dtype,
      .alpha = alpha,
      .accumulate = accumulate,
  };
}

/* h [M, R] = drop(x) A', piece by piece. */
static enum status project(const struct operands *o, struct tensor_view x, float *h) {
  const struct tensor_view h_out = {h, o->pair->r, DTYPE_F32};
  const bool padded = o->wide_h.data != NULL;
  const struct tensor_view sums = padded ? o->wide_h : h_out;
  for (int64_t row = 0; row < o->M; row += o->piece) {
    int64_t n_rows = at_most(o->piece, o->M - row);
    struct tensor_view input;
    TRY(input_rows(o, x, row, n_rows, &input));
    struct cuda_product down =
        product(o, n_rows, o->r, o->pair->n_in, input, o->A, tensor_view_rows(sums, row), 1, false);
    down.b_transposed = true;
    TRY(cuda_gemm(o->d, &down, NULL));
  }
  return padded ? cuda_cast(o->d, o->M, o->pair->r, sums, h_out) : STATUS_OK;
}

/* y += scale h B' */
static enum status expand(const struct operands *o, struct tensor_view y) {
  struct cuda_product up = product(o, o->M, o->pair->n_out, o->r, o->h, o->B, y, o->pair->scale, true);
  up.b_transposed = true;
  return cuda_gemm(o->d, &up, NULL);
}

/* u = scale dy B;  dB += scale dy' h. dy has the products' type. */
static enum status expand_backward(const struct operands *o, struct tensor_view dy) {
  const struct lowrank *pair = o->pair;
  const struct tensor_view dB = {pair->dB, pair->r, DTYPE_F32};
  struct cuda_product to_u = product(o, o->M, o->r, pair->n_out, dy, o->B, o->u, pair->scale, false);
  TRY(cuda_gemm(o->d, &to_u, NULL));
  struct cuda_product to_B = product(o, pair->n_out, pair->r, o->M, dy, o->h, dB, pair->scale, true);
  to_B.a_transposed = true;
  return cuda_gemm(o->d, &to_B, NULL);
}

/* dA += u' drop(x);  dx += drop'(u A), piece by piece. */
static enum status project_backward(const struct operands *o, struct tensor_view x, struct tensor_view dx) {
  const struct lowrank *pair = o->pair;
  const struct tensor_view dA = {pair->dA, pair->n_in, DTYPE_F32};
  for (int64_t row = 0; row < o->M; row += o->piece) {
    int64_t n_rows = at_most(o->piece, o->M - row);
    struct tensor_view input, u = tensor_view_rows(o->u, row);
    TRY(input_rows(o, x, row, n_rows, &input));
    struct cuda_product to_A = product(o, pair->r, pair->n_in, n_rows, u, input, dA, 1, true);
    to_A.a_transposed = true;
    TRY(cuda_gemm(o->d, &to_A, NULL));
    if (!dx.data) continue;
    const bool masked = pair->dropout.p > 0;
    struct tensor_view to = tensor_view_rows(dx, row);
    struct cuda_product to_x = product(o, n_rows, pair->n_in, o->r, u, o->A, masked ? o->masked : to, 1, !masked);
    TRY(cuda_gemm(o->d, &to_x, NULL));
    if (!masked) continue;
    struct lowrank_dropout dropout = pair->dropout;
    dropout.row_ids += row;
    TRY(cuda_mask_add(o->d, n_rows, pair->n_in, o->masked, &dropout, to));
  }
  return STATUS_OK;
}

/* --- slots ------------------------------------------------------------------ */

enum status cuda_lowrank_forward(struct device *d, int64_t M, struct tensor_view x, const struct lowrank *pair,
                                 float *h, struct tensor_view y) {
  struct operands o;
  if (M == 0) return STATUS_OK;
  TRY(operands_take(d, M, pair, x.dtype, PROJECT | EXPAND, h, NULL, false, &o));
  TRY(ROUND(&o, 2, rounding_A(&o), rounding_B(&o)));
  TRY(project(&o, x, h));
  TRY(ROUND(&o, 1, rounding_narrow(&o, h, o.h)));
  return expand(&o, y);
}

enum status cuda_lowrank_project_forward(struct device *d, int64_t M, struct tensor_view x, const struct lowrank *pair,
                                         float *h) {
  struct operands o;
  if (M == 0) return STATUS_OK;
  TRY(operands_take(d, M, pair, x.dtype, PROJECT, h, NULL, false, &o));
  TRY(ROUND(&o, 1, rounding_A(&o)));
  return project(&o, x, h);
}

enum status cuda_lowrank_expand_forward(struct device *d, int64_t M, const float *h, const struct lowrank *pair,
                                        struct tensor_view y) {
  struct operands o;
  if (M == 0) return STATUS_OK;
  TRY(operands_take(d, M, pair, y.dtype, EXPAND, h, NULL, false, &o));
  TRY(ROUND(&o, 2, rounding_B(&o), rounding_narrow(&o, h, o.h)));
  return expand(&o, y);
}

enum status cuda_lowrank_backward(struct device *d, int64_t M, struct tensor_view x, const float *h,
                                  struct tensor_view dy, const struct lowrank *pair, struct tensor_view dx) {
  assert(!dx.data || dx.dtype == DTYPE_F32);
  struct operands o;
  if (M == 0) return STATUS_OK;
  TRY(operands_take(d, M, pair, x.dtype, PROJECT | EXPAND | BACKWARD, h, NULL, dy.dtype != x.dtype, &o));
  TRY(ROUND(&o, dx.data ? 3 : 2, rounding_B(&o), rounding_narrow(&o, h, o.h), rounding_A(&o))); /* only dx needs A */
  if (o.dy.data) {
    TRY(cuda_cast(d, M, pair->n_out, dy, o.dy));
    dy = o.dy;
  }
  TRY(expand_backward(&o, dy));
  return project_backward(&o, x, dx);
}

enum status cuda_lowrank_expand_backward(struct device *d, int64_t M, const float *h, struct tensor_view dy,
                                         const struct lowrank *pair, float *u) {
  struct operands o;
  if (M == 0) return STATUS_OK;
  TRY(operands_take(d, M, pair, dy.dtype, EXPAND | BACKWARD, h, u, false, &o));
  TRY(ROUND(&o, 2, rounding_B(&o), rounding_narrow(&o, h, o.h)));
  TRY(expand_backward(&o, dy));
  if (o.u.data == u) return STATUS_OK;
  return cuda_cast(d, M, pair->r, o.u, (struct tensor_view){u, pair->r, DTYPE_F32});
}

enum status cuda_lowrank_project_backward(struct device *d, int64_t M, struct tensor_view x, const float *u,
                                          const struct lowrank *pair, struct tensor_view dx) {
  assert(!dx.data || dx.dtype == DTYPE_F32);
  struct operands o;
  if (M == 0) return STATUS_OK;
  TRY(operands_take(d, M, pair, x.dtype, PROJECT | BACKWARD, NULL, u, false, &o));
  TRY(ROUND(&o, dx.data ? 2 : 1, rounding_narrow(&o, u, o.u), rounding_A(&o)));
  return project_backward(&o, x, dx);
}
