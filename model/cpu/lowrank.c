/*
 * lowrank.c: the adapter's products: h = drop(x) A', y += scale h B', and their
 * backward. Everything is computed in f32 whatever the activations' type.
 *
 * A whole forward or backward is its two halves one after the other, so both
 * give the same bits. Only u, which lives between backward's halves, differs:
 * what a caller carries is [M, r], what stays inside is padded already.
 */
#include <assert.h>

#include "model/cpu/lowrank_products.h"

/* Scratch of a backward half; parts that it does not need are NULL. */
struct lowrank_scratch {
  float *packed; /* project's factor (expand) */
  float *padded; /* [M, padded r] copy of h or u if that is not padded */
  float *sums;   /* [padded r, n] */
  uint8_t *mask; /* [M, n] with dropout (project) */
};

/* Bytes of each, 0 for those that are not needed. */
struct lowrank_sizes {
  int64_t packed, padded, sums, mask;
};

static enum status scratch_take(struct device *d, struct lowrank_sizes sizes, struct lowrank_scratch *s) {
  enum { ALIGNMENT = 64 };
  const int64_t bytes[] = {lowrank_pad(sizes.packed, ALIGNMENT), lowrank_pad(sizes.padded, ALIGNMENT),
                           lowrank_pad(sizes.sums, ALIGNMENT), sizes.mask};
  void *block, *parts[4];
  TRY(cpu_scratch(d, CPU_SCRATCH_LOWRANK, (size_t)(bytes[0] + bytes[1] + bytes[2] + bytes[3]), &block));
  char *next = block;
  for (int i = 0; i < 4; i++) {
    parts[i] = bytes[i] ? next : NULL;
    next += bytes[i];
  }
  *s = (struct lowrank_scratch){parts[0], parts[1], parts[2], parts[3]};
  return STATUS_OK;
}

static enum status check_rank(const struct lowrank *pair) {
  if (pair->r >= 1 && pair->r <= LOWRANK_MAX_R) return STATUS_OK;
  return status_set(STATUS_USAGE, "adapter rank %lld: the cpu takes 1 to %d", (long long)pair->r, LOWRANK_MAX_R);
}

static int64_t float_bytes(int64_t n) { return n * (int64_t)sizeof(float); }

/* --- forward ---------------------------------------------------------------- */

enum status cpu_lowrank_project_forward(struct device *d, int64_t M, struct tensor_view x, const struct lowrank *pair,
                                        float *h) {
  TRY(check_rank(pair));
  if (M == 0) return STATUS_OK;
  const int64_t r = pair->r, K = pair->n_in;
  void *packed;
  TRY(cpu_scratch(d, CPU_SCRATCH_LOWRANK, (size_t)float_bytes(lowrank_packed_size(K, r)), &packed));
  lowrank_products_pack(d, pair->A, 1, K, K, r, packed);
  lowrank_products_project(d, &(struct lowrank_projection){.x = x,
                                                           .M = M,
                                                           .K = K,
                                                           .r = r,
                                                           .packed = packed,
                                                           .dropout = pair->dropout.p > 0 ? &pair->dropout : NULL,
                                                           .scale = 1,
                                                           .out = h,
                                                           .columns = r});
  return STATUS_OK;
}

enum status cpu_lowrank_expand_forward(struct device *d, int64_t M, const float *h, const struct lowrank *pair,
                                       struct tensor_view y) {
  TRY(check_rank(pair));
  if (M == 0) return STATUS_OK;
  const int64_t r = pair->r, N = pair->n_out;
  void *G;
  TRY(cpu_scratch(d, CPU_SCRATCH_LOWRANK, (size_t)float_bytes(r * N), &G));
  lowrank_products_transpose(d, pair->B, N, r, G);
  lowrank_products_spread(
      d, &(struct lowrank_spreading){.y = y, .M = M, .N = N, .r = r, .c = h, .ldc = r, .scale = pair->scale, .G = G});
  return STATUS_OK;
}

enum status cpu_lowrank_forward(struct device *d, int64_t M, struct tensor_view x, const struct lowrank *pair, float *h,
                                struct tensor_view y) {
  TRY(cpu_lowrank_project_forward(d, M, x, pair, h));
  return cpu_lowrank_expand_forward(d, M, h, pair, y);
}

/* --- backward ---------------------------------------------------------------- */

/* u [M, r] = scale dy B, at distance ldu, where columns from r on are 0;  dB += scale dy' h. */
static enum status expand_backward(struct device *d, int64_t M, const float *h, struct tensor_view dy,
                                   const struct lowrank *pair, float *u, int64_t ldu) {
  const int64_t r = pair->r, N = pair->n_out, padded = lowrank_pad(r, LOWRANK_PAD);
  struct lowrank_scratch s;
  TRY(scratch_take(d,
                   (struct lowrank_sizes){.packed = float_bytes(lowrank_packed_size(N, r)),
                                          .padded = padded != r ? float_bytes(M * padded) : 0,
                                          .sums = float_bytes(padded * N)},
                   &s));
  lowrank_products_pack(d, pair->B, r, 1, N, r, s.packed);
  lowrank_products_project(
      d, &(struct lowrank_projection){
             .x = dy, .M = M, .K = N, .r = r, .packed = s.packed, .scale = pair->scale, .out = u, .columns = ldu});

  /* dB is summed as its transpose [r, N]. */
  if (s.padded) lowrank_products_pad(d, M, r, padded, h, s.padded);
  const struct lowrank_token_sums t = {
      .x = dy, .M = M, .n = N, .c = s.padded ? s.padded : h, .r = r, .padded = padded, .sums = s.sums};
  lowrank_products_token_sums(d, &t, pair->scale, pair->dB, 1, r);
  return STATUS_OK;
}

/* dA += u' drop(x);  dx += drop'(u A) unless dx.data is NULL. u as expand_backward leaves it. */
static enum status project_backward(struct device *d, int64_t M, struct tensor_view x, const float *u, int64_t ldu,
                                    const struct lowrank *pair, struct tensor_view dx) {
  const int64_t r = pair->r, K = pair->n_in, padded = lowrank_pad(r, LOWRANK_PAD);
  const bool drops = pair->dropout.p > 0;
  const float mask_scale = drops ? lowrank_products_keep_scale(&pair->dropout) : 1;
  struct lowrank_scratch s;
  TRY(scratch_take(d,
                   (struct lowrank_sizes){.padded = padded != ldu ? float_bytes(M * padded) : 0,
                                          .sums = float_bytes(padded * K),
                                          .mask = drops ? M * K : 0},
                   &s));
  if (s.mask) lowrank_products_mask(d, M, K, &pair->dropout, s.mask);
  if (s.padded) lowrank_products_pad(d, M, r, padded, u, s.padded);
  const float *c = s.padded ? s.padded : u;
  const struct lowrank_token_sums t = {.x = x,
                                       .M = M,
                                       .n = K,
                                       .c = c,
                                       .r = r,
                                       .padded = padded,
                                       .sums = s.sums,
                                       .mask = s.mask,
                                       .mask_scale = mask_scale};
  lowrank_products_token_sums(d, &t, 1, pair->dA, K, 1);
  if (!dx.data) return STATUS_OK;
  lowrank_products_spread(d, &(struct lowrank_spreading){.y = dx,
                                                         .M = M,
                                                         .N = K,
                                                         .r = r,
                                                         .c = c,
                                                         .ldc = padded,
                                                         .scale = 1,
                                                         .G = pair->A,
                                                         .mask = s.mask,
                                                         .mask_scale = mask_scale});
  return STATUS_OK;
}

enum status cpu_lowrank_expand_backward(struct device *d, int64_t M, const float *h, struct tensor_view dy,
                                        const struct lowrank *pair, float *u) {
  TRY(check_rank(pair));
  return M == 0 ? STATUS_OK : expand_backward(d, M, h, dy, pair, u, pair->r);
}

enum status cpu_lowrank_project_backward(struct device *d, int64_t M, struct tensor_view x, const float *u,
                                         const struct lowrank *pair, struct tensor_view dx) {
  assert(!dx.data || dx.dtype == DTYPE_F32);
  TRY(check_rank(pair));
  return M == 0 ? STATUS_OK : project_backward(d, M, x, u, pair->r, pair, dx);
}

enum status cpu_lowrank_backward(struct device *d, int64_t M, struct tensor_view x, const float *h,
                                 struct tensor_view dy, const struct lowrank *pair, struct tensor_view dx) {
  assert(!dx.data || dx.dtype == DTYPE_F32);
  TRY(check_rank(pair));
  if (M == 0) return STATUS_OK;
  const int64_t padded = lowrank_pad(pair->r, LOWRANK_PAD);
  void *u;
  TRY(cpu_scratch(d, CPU_SCRATCH_LOWRANK_U, (size_t)float_bytes(M * padded), &u));
  TRY(expand_backward(d, M, h, dy, pair, u, padded));
  return project_backward(d, M, x, u, padded, pair, dx);
}
