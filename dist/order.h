/*
 * order.h: the order of samples, a keyed permutation per epoch.
 */
#ifndef LORASHARD_DIST_ORDER_H
#define LORASHARD_DIST_ORDER_H

#include <stdint.h>

/* Sample at place i of epoch `epoch`: a permutation of [0, n) for each (seed,
 * epoch), the same on every rank, with no table. 1 <= n <= 2^40, 0 <= i < n,
 * 0 <= epoch < 2^32. About 16 Philox blocks a call. Source: a balanced Feistel
 * network on the next power of four, cycle walking (Black and Rogaway, "Ciphers
 * with arbitrary finite domains", 2002). */
int64_t order_index(uint64_t seed, int64_t epoch, int64_t n, int64_t i);

#endif
