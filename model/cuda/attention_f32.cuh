/*
 * attention_f32.cuh: tiles of f32 rows in shared memory and products of them, on the ordinary units.
 *
 * A block has 16 x 16 threads. Of a product of scores [N, N] thread (y, x) has rows R y + i and columns x + 16 j, i, j
 * < R = N / 16; of sums [N, WIDTH] it has the same rows and four columns from 4 x + 64 c on, c < WIDTH / 64. WIDTH is
 * the head's width rounded up; the columns that fill up are 0.
 */
#ifndef LORASHARD_MODEL_CUDA_ATTENTION_F32_CUH
#define LORASHARD_MODEL_CUDA_ATTENTION_F32_CUH

#include "model/cuda/attention.cuh"

#define F32_THREADS 256

template <int N_, int WIDTH_>
struct f32_shape {
  static constexpr int N = N_, WIDTH = WIDTH_, R = N / 16, C = WIDTH / 64;
  static constexpr int LD = WIDTH + 4, TILE = N * LD;           /* floats: of a row, of a tile of rows */
  static constexpr int SCORE_LD = N + 4, SCORES = N * SCORE_LD; /* of a tile of scores */
};

__device__ __forceinline__ int f32_x() { return (int)(threadIdx.x % 16); }
__device__ __forceinline__ int f32_y() { return (int)(threadIdx.x / 16); }

/* Rows from `row` on of the head at `column`; rows from `end` on and columns from head_dim on are 0. */
template <class SHAPE>
__device__ __forceinline__ void f32_load(float *dst, const struct tensor_view &view, int column, int32_t row,
                                         int32_t end, int head_dim, bool copies) {
  const float *src = (const float *)view.data + column;
  for (int at = (int)threadIdx.x; at < SHAPE::N * SHAPE::WIDTH / 4; at += F32_THREADS) {
    int r = at / (SHAPE::WIDTH / 4), c = at % (SHAPE::WIDTH / 4) * 4;
    struct four x = {{0, 0, 0, 0}};
    if (row + r < end) {
      const float *from = src + ((int64_t)row + r) * view.ld + c;
      if (copies) {
        if (c < head_dim) x = get4(from);
      } else {
#pragma unroll
        for (int i = 0; i < 4; i++) x.v[i] = c + i < head_dim ? from[i] : 0;
      }
    }
    put4(dst + r * SHAPE::LD + c, x);
  }
}

/* score[i][j] = row R y + i of a times row x + 16 j of b */
template <class SHAPE>
__device__ __forceinline__ void f32_scores(const float *a, const float *b, int head_dim,
                                           float (&score)[SHAPE::R][SHAPE::R]) {
  a += f32_y() * SHAPE::R * SHAPE::LD;
  b += f32_x() * SHAPE::LD;
#pragma unroll
  for (int i = 0; i < SHAPE::R; i++) {
#pragma unroll
    for (int j = 0; j < SHAPE::R; j++) score[i][j] = 0;
  }
  for (int c = 0; c < head_dim; c += 4) {
    struct four left[SHAPE::R], right[SHAPE::R];
#pragma unroll
    for (int i = 0; i < SHAPE::R; i++) {
      left[i] = get4(a + i * SHAPE::LD + c);
      right[i] = get4(b + i * 16 * SHAPE::LD + c);
    }
#pragma unroll
    for (int i = 0; i < SHAPE::R; i++) {
#pragma unroll
      for (int j = 0; j < SHAPE::R; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) score[i][j] = fmaf(left[i].v[e], right[j].v[e], score[i][j]);
      }
    }
  }
}

/* A thread's scores to their place in a tile [N, SCORE_LD]. */
template <class SHAPE>
__device__ __forceinline__ void f32_keep(const float (&score)[SHAPE::R][SHAPE::R], float *scores) {
#pragma unroll
  for (int i = 0; i < SHAPE::R; i++) {
#pragma unroll
    for (int j = 0; j < SHAPE::R; j++) {
      scores[(f32_y() * SHAPE::R + i) * SHAPE::SCORE_LD + f32_x() + 16 * j] = score[i][j];
    }
  }
}

/* sum += scores[N, N] b[N, WIDTH] */
template <class SHAPE>
__device__ __forceinline__ void f32_add(const float *scores, const float *b, struct four (&sum)[SHAPE::R][SHAPE::C]) {
  scores += f32_y() * SHAPE::R * SHAPE::SCORE_LD;
  b += 4 * f32_x();
  for (int k = 0; k < SHAPE::N; k += 4) {
    struct four left[SHAPE::R];
#pragma unroll
    for (int i = 0; i < SHAPE::R; i++) left[i] = get4(scores + i * SHAPE::SCORE_LD + k);
#pragma unroll
    for (int e = 0; e < 4; e++) {
#pragma unroll
      for (int c = 0; c < SHAPE::C; c++) {
        struct four right = get4(b + (k + e) * SHAPE::LD + 64 * c);
#pragma unroll
        for (int i = 0; i < SHAPE::R; i++) {
#pragma unroll
          for (int n = 0; n < 4; n++) sum[i][c].v[n] = fmaf(left[i].v[e], right.v[n], sum[i][c].v[n]);
        }
      }
    }
  }
}

template <class SHAPE>
__device__ __forceinline__ void f32_clear(struct four (&sum)[SHAPE::R][SHAPE::C]) {
#pragma unroll
  for (int i = 0; i < SHAPE::R; i++) {
#pragma unroll
    for (int c = 0; c < SHAPE::C; c++) sum[i][c] = {{0, 0, 0, 0}};
  }
}

/* Row i of a thread's sums, times scale, to row `row` of the head at `column`. */
template <class SHAPE>
__device__ __forceinline__ void f32_store(const struct four (&sum)[SHAPE::C], float scale,
                                          const struct tensor_view &view, int column, int64_t row, int head_dim) {
  float *dst = (float *)view.data + row * view.ld + column + 4 * f32_x();
#pragma unroll
  for (int c = 0; c < SHAPE::C; c++) {
#pragma unroll
    for (int n = 0; n < 4; n++) {
      if (4 * f32_x() + 64 * c + n < head_dim) dst[64 * c + n] = sum[c].v[n] * scale;
    }
  }
}

#endif
