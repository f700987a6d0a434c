/*
 * opcheck_weights.h: random stored weights of any dtype for the op tests.
 */
#ifndef LORASHARD_TESTS_MODEL_OPCHECK_WEIGHTS_H
#define LORASHARD_TESTS_MODEL_OPCHECK_WEIGHTS_H

#include "tests/model/opcheck.h"

struct opcheck_weights {
  struct weight weight;
  void *data;     /* exactly as long as the weights */
  uint8_t *codes; /* NULL but for nf4, scales but for int8 and nf4 */
  float *scales;
  float *value; /* [n_out, n_in], by quant_expand_f32, quant_expand_int8, quant_expand_nf4 */
};

/* Offsets of the f16 scales in a block; random bytes there could be NaN. So could f8's scale and numbers. */
static inline void opcheck_set_scales(enum dtype dtype, uint8_t *block, uint64_t *seed) {
  static const int scales[DTYPE_COUNT][2] = {
      [DTYPE_Q4_0] = {0, -1},  [DTYPE_Q4_1] = {0, 2},  [DTYPE_Q5_0] = {0, -1},   [DTYPE_Q5_1] = {0, 2},
      [DTYPE_Q8_0] = {0, -1},  [DTYPE_Q4_K] = {0, 2},  [DTYPE_Q6_K] = {208, -1}, [DTYPE_F8] = {-1, -1},
      [DTYPE_INT8] = {-1, -1}, [DTYPE_NF4] = {-1, -1},
  };
  if (dtype == DTYPE_F8) {
    float scale = 0.001f * opcheck_uniform(seed);
    memcpy(block, &scale, sizeof scale);
    for (int i = 4; i < 36; i++)
      if ((block[i] & 0x7f) == 0x7f) block[i] = 0;
  }
  for (int i = 0; i < 2; i++) {
    if (scales[dtype][i] < 0) continue;
    uint16_t half = f32_to_f16(0.01f * opcheck_uniform(seed));
    memcpy(block + scales[dtype][i], &half, sizeof half);
  }
}

/* Random planes for numbers that are there, and what all of them stand for. */
static inline void opcheck_set_planes(struct opcheck_weights *w, uint64_t *seed) {
  int64_t n_out = w->weight.n_out, n_in = w->weight.n_in, blocks = n_in / QUANT_NF4_BLOCK;
  bool nf4 = w->weight.dtype == DTYPE_NF4;
  int64_t n_codes = nf4 ? n_out * blocks : 0;
  int64_t n_scales = nf4 ? 2 * ((n_out + QUANT_NF4_TILE - 1) / QUANT_NF4_TILE) * blocks : n_out;
  if (nf4) w->codes = opcheck_alloc((size_t)n_codes);
  w->scales = opcheck_alloc((size_t)n_scales * sizeof *w->scales);
  for (int64_t i = 0; i < n_codes; i++) w->codes[i] = (uint8_t)opcheck_next(seed);
  for (int64_t i = 0; i < n_scales; i++) w->scales[i] = (nf4 ? 0.1f : 0.01f) * opcheck_uniform(seed);
  w->weight.codes = w->codes;
  w->weight.scales = w->scales;
  struct quant_nf4 planes = {w->data, w->codes, w->scales};
  for (int64_t r = 0; r < n_out; r++) {
    float *row = w->value + r * n_in;
    if (nf4)
      quant_expand_nf4(&planes, n_in, r, 0, n_in, row);
    else
      quant_expand_int8((const int8_t *)w->data + r * n_in, n_in, w->scales[r], row);
  }
}

static inline struct opcheck_weights opcheck_weights(enum dtype dtype, int64_t n_out, int64_t n_in, uint64_t seed) {
  struct opcheck_weights w = {0};
  int64_t n = n_out * n_in;
  w.data = opcheck_alloc(dtype_bytes(dtype, n));
  w.value = malloc((size_t)(n ? n : 1) * sizeof *w.value);
  assert_non_null(w.value);
  uint8_t *at = w.data;
  for (int64_t i = 0; i < n / dtype_block(dtype); i++, at += dtype_block_bytes(dtype)) {
    if (dtype_quantised(dtype)) {
      for (size_t b = 0; b < dtype_block_bytes(dtype); b++) at[b] = (uint8_t)opcheck_next(&seed);
      opcheck_set_scales(dtype, at, &seed);
      continue;
    }
    float value = 0.5f * opcheck_uniform(&seed);
    uint16_t half = dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
    memcpy(at, dtype == DTYPE_F32 ? (void *)&value : (void *)&half, dtype_block_bytes(dtype));
  }
  w.weight = (struct weight){.data = w.data, .dtype = dtype, .n_out = n_out, .n_in = n_in};
  if (dtype_in_planes(dtype))
    opcheck_set_planes(&w, &seed);
  else
    quant_expand_f32(dtype, w.data, n, w.value);
  return w;
}

static inline void opcheck_weights_free(struct opcheck_weights *w) {
  opcheck_release(w->data);
  opcheck_release(w->codes);
  opcheck_release(w->scales);
  free(w->value);
}

#endif
