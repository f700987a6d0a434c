#include "dist/rng.h"
#include "model/cpu/lowrank_kernels.h"

enum { FEATURES_PER_BLOCK = 8, LANES = 8, AT_ONCE = LANES * FEATURES_PER_BLOCK, ROW_SHIFT = 17 };

uint32_t lowrank_drop_threshold(const struct lowrank_dropout *dropout) {
  long threshold = lrintf(dropout->p * 65536.0f);
  return threshold > 65535 ? 65535 : (uint32_t)threshold; /* p < 1 may round to 1 */
}

/* philox4x32 of dist/rng.h on eight neighbouring blocks: 32-bit numbers in
 * 64-bit lanes, so that a line is one vector operation. The 16-bit
 * halves come out in the order of the features. */
typedef uint64_t lanes __attribute__((vector_size(8 * LANES)));

static void philox_lanes(uint64_t block, uint32_t a, uint32_t word3, uint64_t seed, uint16_t halves[AT_ONCE]) {
  const uint64_t low = 0xffffffffu;
  lanes number;
  for (int b = 0; b < LANES; b++) number[b] = block + (uint64_t)b;
  lanes x0 = number & low, x1 = number >> 32, x2 = (lanes){0} + a, x3 = (lanes){0} + word3;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++) {
    lanes p0 = x0 * 0xD2511F53u, p1 = x2 * 0xCD9E8D57u;
    x0 = (p1 >> 32) ^ x1 ^ (uint64_t)k0;
    x1 = p1 & low;
    x2 = (p0 >> 32) ^ x3 ^ (uint64_t)k1;
    x3 = p0 & low;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  lanes even = x0 | x1 << 32, odd = x2 | x3 << 32;
  lanes first = __builtin_shuffle(even, odd, (lanes){0, 8, 1, 9, 2, 10, 3, 11});
  lanes second = __builtin_shuffle(even, odd, (lanes){4, 12, 5, 13, 6, 14, 7, 15});
  memcpy(halves, &first, sizeof first);
  memcpy(halves + sizeof first / sizeof *halves, &second, sizeof second);
}

void lowrank_mask(const struct lowrank_dropout *dropout, int64_t row, int64_t feature, int64_t n, uint8_t *mask) {
  const uint16_t threshold = (uint16_t)lowrank_drop_threshold(dropout);
  const uint32_t word3 = (uint32_t)RNG_DROPOUT << 28 | (uint32_t)dropout->module << 16 | (uint32_t)dropout->layer;
  int64_t skip = feature % FEATURES_PER_BLOCK;
  uint64_t block = ((uint64_t)row << ROW_SHIFT) + (uint64_t)(feature / FEATURES_PER_BLOCK);
  for (int64_t at = -skip; at < n; at += AT_ONCE, block += LANES) {
    uint16_t halves[AT_ONCE];
    uint8_t keep[AT_ONCE];
    philox_lanes(block, (uint32_t)dropout->step, word3, dropout->seed, halves);
    for (int i = 0; i < AT_ONCE; i++) keep[i] = halves[i] >= threshold;
    int64_t from = at < 0 ? 0 : at, to = at + AT_ONCE < n ? at + AT_ONCE : n;
    memcpy(mask + from, keep + (from - at), (size_t)(to - from));
  }
}
