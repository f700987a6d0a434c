/*
 * rng.h: random numbers as pure functions of what they are for.
 *
 * A number depends on (seed, purpose, a, b, c, index) only, never on a rank,
 * a layout or the order of calls: every layout draws the same initial factors,
 * dropout masks and sample order. The generator is Philox4x32-10 (Salmon,
 * Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011), as
 * in Random123 and curand.
 *
 * Mapping, part of the contract (changing it changes every run):
 *   key[0], key[1]          low and high half of the seed
 *   counter[0], counter[1]  low and high half of block = index / 4
 *   counter[2]              a, by convention the optimizer step or the epoch
 *   counter[3]              purpose << 28 | c << 16 | b, where b < 65536 is by
 *                           convention the layer and c < 4096 the module
 *   output word             index % 4 of the block
 * `index` is the global element index: in the whole tensor, not in a shard.
 */
#ifndef LORASHARD_DIST_RNG_H
#define LORASHARD_DIST_RNG_H

#include <assert.h>
#include <math.h>
#include <stdint.h>

/* What numbers are for; the values are part of the contract. At most 16. */
enum rng_purpose {
  RNG_INIT = 0,      /* initial A */
  RNG_DROPOUT = 1,   /* masks on an adapter's input */
  RNG_ORDER = 2,     /* order of samples */
  RNG_SAMPLE = 3,    /* sampling of tokens in generation */
  RNG_SYNTHETIC = 4, /* made-up weights and data */
};

/* The bijection itself: four words out of a counter and a key. */
static inline void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t x0 = counter[0], x1 = counter[1], x2 = counter[2], x3 = counter[3];
  uint32_t k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53u * x0;
    uint64_t p1 = (uint64_t)0xCD9E8D57u * x2;
    x0 = (uint32_t)(p1 >> 32) ^ x1 ^ k0;
    x1 = (uint32_t)p1;
    x2 = (uint32_t)(p0 >> 32) ^ x3 ^ k1;
    x3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = x0;
  out[1] = x1;
  out[2] = x2;
  out[3] = x3;
}

/* The four words of elements 4 * block .. 4 * block + 3, for loops over many
 * neighbours: out[i] is rng_u32(.., 4 * block + i). */
static inline void rng_block(uint64_t seed, enum rng_purpose purpose, uint32_t a, uint32_t b, uint32_t c,
                             uint64_t block, uint32_t out[4]) {
  assert(b < 65536 && c < 4096 && (uint32_t)purpose < 16);
  const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), a, (uint32_t)purpose << 28 | c << 16 | b};
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  philox4x32(counter, key, out);
}

/* 32 random bits. */
static inline uint32_t rng_u32(uint64_t seed, enum rng_purpose purpose, uint32_t a, uint32_t b, uint32_t c,
                               uint64_t index) {
  uint32_t out[4];
  rng_block(seed, purpose, a, b, c, index >> 2, out);
  return out[index & 3];
}

/* Random bits as a number strictly between 0 and 1, exactly representable:
 * (bits + 1/2) / 2^32. Rounded to float it may become 1. */
static inline double rng_to_double(uint32_t bits) { return ((double)bits + 0.5) * 0x1p-32; }

static inline double rng_uniform(uint64_t seed, enum rng_purpose purpose, uint32_t a, uint32_t b, uint32_t c,
                                 uint64_t index) {
  return rng_to_double(rng_u32(seed, purpose, a, b, c, index));
}

/* A standard normal number by Box-Muller in double: elements 4k and 4k + 1 are
 * the cosine and sine branch of words 0 and 1 of block k, 4k + 2 and 4k + 3 of
 * words 2 and 3. At most 6.8 in size. */
static inline double rng_gaussian(uint64_t seed, enum rng_purpose purpose, uint32_t a, uint32_t b, uint32_t c,
                                  uint64_t index) {
  uint32_t out[4];
  rng_block(seed, purpose, a, b, c, index >> 2, out);
  const uint32_t *pair = out + (index & 2);
  double radius = sqrt(-2.0 * log(rng_to_double(pair[0])));
  double angle = 6.283185307179586476925 * rng_to_double(pair[1]);
  return radius * ((index & 1) ? sin(angle) : cos(angle));
}

#endif
