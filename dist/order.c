#include "dist/order.h"

#include <assert.h>

#include "dist/rng.h"

/* Four rounds make a Feistel network look random on large domains; tiny ones
 * need more, and eight cost nothing beside a training step. */
#define ROUNDS 8

/* One pass over [0, 4^half_bits). */
static uint64_t permute(uint64_t seed, uint32_t epoch, int half_bits, uint64_t x) {
  const uint64_t mask = ((uint64_t)1 << half_bits) - 1;
  uint64_t left = x >> half_bits, right = x & mask;
  for (uint32_t round = 0; round < ROUNDS; round++) {
    uint32_t out[4];
    rng_block(seed, RNG_ORDER, epoch, round, (uint32_t)half_bits, right, out);
    uint64_t next = left ^ (out[0] & mask);
    left = right;
    right = next;
  }
  return left << half_bits | right;
}

int64_t order_index(uint64_t seed, int64_t epoch, int64_t n, int64_t i) {
  assert(n >= 1 && n <= (int64_t)1 << 40 && i >= 0 && i < n && epoch >= 0 && epoch <= UINT32_MAX);
  int half_bits = 1;
  while ((int64_t)1 << (2 * half_bits) < n) half_bits++;
  /* Walk the cycle until it comes back into [0, n). It does: i lies on it. The
   * domain is less than four times n, so this takes under four passes on
   * average. */
  uint64_t x = (uint64_t)i;
  do x = permute(seed, (uint32_t)epoch, half_bits, x);
  while (x >= (uint64_t)n);
  return (int64_t)x;
}
