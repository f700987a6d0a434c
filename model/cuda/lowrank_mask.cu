/*
 * lowrank_mask.cu: dropout on an adapter's input.
 *
 * Feature f of global row i is kept if 16 random bits are >= threshold: half
 * f % 2 (low first) of rng_u32(seed, RNG_DROPOUT, step, layer, module,
 * i 2^19 + f / 2) of dist/rng.h, as in model/cpu/lowrank_mask.c. One Philox
 * block serves eight features, and these are a thread's: in a shard whose first
 * feature is not a multiple of eight, the first thread of a row has fewer.
 */
#include "dist/rng.h"
#include "model/cuda/philox.cuh"
#include "model/cuda/rows.cuh"

enum { FEATURES = 8, ROW_SHIFT = 17 /* log2 of the blocks of a global row */ };

struct mask_args {
  int64_t M, n;
  struct tensor_view x, y;
  const int64_t *row_ids;
  int64_t first_block; /* of column 0, within the row's */
  int skip;            /* features of it in front of column 0 */
  uint32_t step, word3, threshold;
  float scale;
  uint64_t seed;
};

/* y = x masked, or y += x masked with ADD. Without VECTORS element by element. */
template <bool ADD, bool VECTORS, typename T, typename U>
__global__ void __launch_bounds__(ROWS_THREADS) mask_kernel(struct mask_args args, int log_width) {
  const int64_t block = rows_vector(log_width), column = block * FEATURES - args.skip;
  if (column >= args.n) return;
  for (int64_t m = rows_first(log_width); m < args.M; m += rows_step(log_width)) {
    const uint64_t number = ((uint64_t)args.row_ids[m] << ROW_SHIFT) + (uint64_t)(args.first_block + block);
    const uint32_t counter[4] = {(uint32_t)number, (uint32_t)(number >> 32), args.step, args.word3};
    uint32_t bits[4];
    philox(counter, args.seed, bits);

    const T *from = row_of<const T>(args.x, m) + column;
    U *to = row_of<U>(args.y, m) + column;
    values<FEATURES> x, y = {};
    if constexpr (VECTORS) {
      x = get_values<FEATURES>(from, args.n - column);
      if (ADD) y = get_values<FEATURES>(to, args.n - column);
    } else {
#pragma unroll
      for (int i = 0; i < FEATURES; i++) {
        const bool inside = column + i >= 0 && column + i < args.n;
        x.v[i] = inside ? get(from + i) : 0.0f;
        if (ADD) y.v[i] = inside ? get(to + i) : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < FEATURES; i++) {
      const bool kept = (bits[i / 2] >> i % 2 * 16 & 0xffff) >= args.threshold;
      const float masked = kept ? x.v[i] * args.scale : 0.0f;
      y.v[i] = ADD ? y.v[i] + masked : masked;
    }
    if constexpr (VECTORS) {
      put_values<FEATURES>(to, args.n - column, y);
    } else {
#pragma unroll
      for (int i = 0; i < FEATURES; i++) {
        if (column + i >= 0 && column + i < args.n) put(to + i, y.v[i]);
      }
    }
  }
}

/* p is rounded to a 65536th, and what is kept is scaled by the rounded p, so the mean is exact. */
static struct mask_args mask_args(int64_t M, int64_t n, struct tensor_view x, struct tensor_view y,
                                  const struct lowrank_dropout *dropout) {
  struct mask_args args = {};
  args.M = M, args.n = n, args.x = x, args.y = y, args.row_ids = dropout->row_ids, args.seed = dropout->seed;
  args.first_block = dropout->feature / FEATURES;
  args.skip = (int)(dropout->feature % FEATURES);
  args.step = (uint32_t)dropout->step;
  args.word3 = (uint32_t)RNG_DROPOUT << 28 | (uint32_t)dropout->module << 16 | (uint32_t)dropout->layer;
  long threshold = lrintf(dropout->p * 65536.0f);
  args.threshold = threshold > 65535 ? 65535 : (uint32_t)threshold; /* p < 1 may round to 1 */
  args.scale = 65536.0f / (65536.0f - (float)args.threshold);
  return args;
}

template <bool ADD, typename T, typename U>
static enum status launch_mask(struct device *d, struct mask_args args) {
  struct rows_layout layout = rows_layout(args.M, cuda_div_up(args.n + args.skip, FEATURES), 0);
  if (args.skip == 0 && cuda_vector_view(args.x, FEATURES) && cuda_vector_view(args.y, FEATURES)) {
    CUDA_LAUNCH(d, (mask_kernel<ADD, true, T, U>), layout.grid, ROWS_THREADS, 0, args, layout.log_width);
  } else {
    CUDA_LAUNCH(d, (mask_kernel<ADD, false, T, U>), layout.grid, ROWS_THREADS, 0, args, layout.log_width);
  }
  return STATUS_OK;
}

extern "C" enum status cuda_mask_copy(struct device *d, int64_t M, int64_t n, struct tensor_view x,
                                      const struct lowrank_dropout *dropout, struct tensor_view y) {
  if (M == 0 || n == 0) return STATUS_OK;
  if (!(dropout->p > 0)) return cuda_cast(d, M, n, x, y);
  struct mask_args args = mask_args(M, n, x, y, dropout);
  CUDA_WITH_TYPE(x.dtype, T, CUDA_WITH_TYPE(y.dtype, U, return (launch_mask<false, T, U>(d, args))));
}

extern "C" enum status cuda_mask_add(struct device *d, int64_t M, int64_t n, struct tensor_view g,
                                     const struct lowrank_dropout *dropout, struct tensor_view dx) {
  if (M == 0 || n == 0) return STATUS_OK;
  if (!(dropout->p > 0)) return cuda_add(d, M, n, g, NULL, dx);
  struct mask_args args = mask_args(M, n, g, dx, dropout);
  CUDA_WITH_TYPE(g.dtype, T, return (launch_mask<true, T, float>(d, args)));
}
