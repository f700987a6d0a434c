/*
 * attention_tile.cuh: tiles of bf16 rows in shared memory, and the products of
 * attention from them, for the tensor cores (mma.cuh).
 *
 * A tile is [rows, HEAD], a row 2 HEAD bytes and some padding. ldmatrix reads 16
 * bytes of each of 8 rows at once; they have to lie in different banks. Rows of a
 * multiple of 128 bytes have their 16-byte chunks exchanged (chunk c of row r is
 * at place c ^ r % 8), others are padded to an odd number of chunks.
 */
#ifndef LORASHARD_MODEL_CUDA_ATTENTION_TILE_CUH
#define LORASHARD_MODEL_CUDA_ATTENTION_TILE_CUH

#include "model/cuda/attention.cuh"
#include "model/cuda/mma.cuh"

/* Loops over the steps of a product: the portable bodies are calls, unrolled they would only take long to compile. */
#define TILE_UNROLL _Pragma("unroll (PLAIN ? 1 : 32)")

template <int HEAD>
struct tile {
  static constexpr int CHUNKS = HEAD / 8;
  static constexpr bool EXCHANGED = CHUNKS % 8 == 0;
  static constexpr int STRIDE = 16 * (EXCHANGED ? CHUNKS : CHUNKS | 1); /* bytes of a row */

  static __device__ __forceinline__ uint32_t at(unsigned row, unsigned chunk) {
    return row * STRIDE + ((EXCHANGED ? chunk ^ (row & 7) : chunk) << 4);
  }
  /* The place `chunks` further right, an even number; `offset` is in columns 0 and 1 of the chunks. */
  static __device__ __forceinline__ uint32_t right(uint32_t offset, int chunks) {
    return EXCHANGED ? offset ^ (uint32_t)(chunks << 4) : offset + (uint32_t)(chunks << 4);
  }
  /* For ldmatrix: where a lane's row of four matrices is. Two by two as they lie: A of a product as stored, or B with
   * its depth along the rows (transposed). */
  static __device__ __forceinline__ uint32_t lane_square(unsigned lane) { return at(lane & 15, lane >> 4); }
  /* The same with the second and third exchanged: B with its depth along the columns. */
  static __device__ __forceinline__ uint32_t lane_exchanged(unsigned lane) {
    return at((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
  }
};

/* Start loading ROWS rows from `row` on, of the head at `column`; rows from `end` on and columns from head_dim on are
 * 0. All THREADS threads of the block. */
template <bool PLAIN, int HEAD, int ROWS, int THREADS>
__device__ __forceinline__ void tile_load(unsigned char *dst, const struct tensor_view &view, int column, int32_t row,
                                          int32_t end, int head_dim, bool copies) {
  constexpr unsigned CHUNKS = tile<HEAD>::CHUNKS;
  unsigned thread = in_place(threadIdx.x);
  const uint16_t *src = (const uint16_t *)view.data + column;
  if (copies) {
    src += (int64_t)row * view.ld;
#pragma unroll
    for (unsigned i = 0; i < (ROWS * CHUNKS + THREADS - 1) / THREADS; i++) {
      unsigned at = i * THREADS + thread, r = at / CHUNKS, chunk = at % CHUNKS;
      if (ROWS * CHUNKS % THREADS != 0 && at >= ROWS * CHUNKS) break;
      bool wanted = (int)r < end - row && (int)chunk * 8 < head_dim;
      copy16_start<PLAIN>(dst + tile<HEAD>::at(r, chunk), wanted ? src + r * view.ld + chunk * 8 : src, wanted);
    }
    return;
  }
  for (unsigned at = thread; at < ROWS * HEAD; at += THREADS) { /* rare: heads of odd sizes */
    unsigned r = at / HEAD, c = at % HEAD;
    bool wanted = (int)r < end - row && (int)c < head_dim;
    uint16_t x = wanted ? src[((int64_t)row + r) * view.ld + c] : (uint16_t)0;
    *(uint16_t *)(dst + tile<HEAD>::at(r, c / 8) + c % 8 * 2) = x;
  }
}

/* One warp writes its 16 TILES rows of sums, times `scale` each, as bf16: columns [0, COLUMNS) to the head's columns
 * from `first` on, by way of `tile_rows`, rows of a tile that nobody else uses now. Bit r of `rows`: write row r. */
template <int HEAD, int TILES, int COLUMNS>
__device__ __forceinline__ void tile_store(const float (&sum)[TILES][COLUMNS / 8][4], const float (&scale)[TILES][2],
                                           unsigned char *tile_rows, const struct tensor_view &view, int column,
                                           int first, int32_t row, uint32_t rows, int head_dim, bool stores) {
  int lane = threadIdx.x % CUDA_WARP;
#pragma unroll
  for (int m = 0; m < TILES; m++) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        uint32_t pair = bf16_pair(sum[m][n][2 * i] * scale[m][i], sum[m][n][2 * i + 1] * scale[m][i]);
        *(uint32_t *)(tile_rows + tile<HEAD>::at(16 * m + 8 * i + lane / 4, n) + 4 * (lane % 4)) = pair;
      }
    }
  }
  __syncwarp();
  uint16_t *dst = (uint16_t *)view.data + column + first;
  int n_columns = min(COLUMNS, head_dim - first);
  if (stores) {
    for (int at = lane; at < 16 * TILES * (COLUMNS / 8); at += CUDA_WARP) {
      int r = at / (COLUMNS / 8), chunk = at % (COLUMNS / 8);
      if ((rows >> r & 1) == 0 || chunk * 8 >= n_columns) continue;
      *(uint4 *)(dst + (int64_t)(row + r) * view.ld + chunk * 8) =
          *(const uint4 *)(tile_rows + tile<HEAD>::at(r, chunk));
    }
    return;
  }
  for (int r = 0; r < 16 * TILES; r++) {
    if ((rows >> r & 1) == 0) continue;
    for (int c = lane; c < n_columns; c += CUDA_WARP) {
      dst[(int64_t)(row + r) * view.ld + c] = *(const uint16_t *)(tile_rows + tile<HEAD>::at(r, c / 8) + c % 8 * 2);
    }
  }
}

/* d[16 TILES, 8 COLUMNS] = A B' over the heads' width, A [16 TILES, HEAD] from `a_rows` and B [8 COLUMNS, HEAD]. */
template <bool PLAIN, int HEAD, int TILES, int COLUMNS>
__device__ __forceinline__ void tile_product_heads(float (&d)[TILES][COLUMNS][4], const unsigned char *a_rows,
                                                   const unsigned char *b) {
  typedef tile<HEAD> shape;
  unsigned lane = in_place(threadIdx.x % CUDA_WARP);
  uint32_t a_at = shape::lane_square(lane), b_at = shape::lane_exchanged(lane);
  TILE_UNROLL
  for (int m = 0; m < TILES; m++) {
    TILE_UNROLL
    for (int n = 0; n < COLUMNS; n++) d[m][n][0] = d[m][n][1] = d[m][n][2] = d[m][n][3] = 0;
  }
  TILE_UNROLL
  for (int k = 0; k < HEAD / 16; k++) {
    uint32_t left[TILES][4];
    TILE_UNROLL
    for (int m = 0; m < TILES; m++) {
      ldmatrix4<PLAIN>(left[m], a_rows, shape::right(a_at, 2 * k) + 16 * m * shape::STRIDE);
    }
    TILE_UNROLL
    for (int n = 0; n < COLUMNS / 2; n++) {
      uint32_t right[4];
      ldmatrix4<PLAIN>(right, b, shape::right(b_at, 2 * k) + 16 * n * shape::STRIDE);
      TILE_UNROLL
      for (int m = 0; m < TILES; m++) {
        mma_bf16<PLAIN>(d[m][2 * n], left[m], right[0], right[1]);
        mma_bf16<PLAIN>(d[m][2 * n + 1], left[m], right[2], right[3]);
      }
    }
  }
}

/* d[16 TILES, COLUMNS] += P B: P [16 TILES, 16 DEPTH] in registers as A, B [16 DEPTH, HEAD], its columns from 16 first
 * on. */
template <bool PLAIN, int HEAD, int TILES, int COLUMNS, int DEPTH>
__device__ __forceinline__ void tile_product_rows(float (&d)[TILES][COLUMNS / 8][4],
                                                  const uint32_t (&p)[TILES][DEPTH][4], const unsigned char *b,
                                                  int first) {
  typedef tile<HEAD> shape;
  uint32_t b_at = shape::lane_square(in_place(threadIdx.x % CUDA_WARP));
  TILE_UNROLL
  for (int k = 0; k < DEPTH; k++) {
    TILE_UNROLL
    for (int n = 0; n < COLUMNS / 16; n++) {
      uint32_t right[4];
      ldmatrix4_transposed<PLAIN>(right, b, shape::right(b_at, 2 * (first + n)) + 16 * k * shape::STRIDE);
      TILE_UNROLL
      for (int m = 0; m < TILES; m++) {
        mma_bf16<PLAIN>(d[m][2 * n], p[m][k], right[0], right[1]);
        mma_bf16<PLAIN>(d[m][2 * n + 1], p[m][k], right[2], right[3]);
      }
    }
  }
}

/* Sums in the layout of D, rounded, in the layout of A. */
template <int TILES, int COLUMNS>
__device__ __forceinline__ void tile_round(const float (&d)[TILES][COLUMNS][4], uint32_t (&p)[TILES][COLUMNS / 2][4]) {
#pragma unroll
  for (int m = 0; m < TILES; m++) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 2; n++) {
      p[m][n][0] = bf16_pair(d[m][2 * n][0], d[m][2 * n][1]);
      p[m][n][1] = bf16_pair(d[m][2 * n][2], d[m][2 * n][3]);
      p[m][n][2] = bf16_pair(d[m][2 * n + 1][0], d[m][2 * n + 1][1]);
      p[m][n][3] = bf16_pair(d[m][2 * n + 1][2], d[m][2 * n + 1][3]);
    }
  }
}

/* Sum and largest over the four lanes that share a row of D. */
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(CUDA_FULL, x, 1);
  return x + __shfl_xor_sync(CUDA_FULL, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(CUDA_FULL, x, 1));
  return fmaxf(x, __shfl_xor_sync(CUDA_FULL, x, 2));
}

#endif
