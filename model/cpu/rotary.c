/*
 * rotary.c: rotation of pairs of a head's first n dims (Su et al., arXiv
 * 2104.09864), in place. Pairs are (i, i + n/2), or (2i, 2i + 1) interleaved.
 */
#include "model/cpu/cpu_internal.h"
#include "model/cpu/vmath.h"

/* Even and odd lanes of two vectors, and the two vectors again from both. */
#if VF_LANES == 16
#define EVEN \
  { 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30 }
#define LEFT \
  { 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23 }
#elif VF_LANES == 8
#define EVEN \
  { 0, 2, 4, 6, 8, 10, 12, 14 }
#define LEFT \
  { 0, 8, 1, 9, 2, 10, 3, 11 }
#else
#define EVEN \
  { 0, 2, 4, 6 }
#define LEFT \
  { 0, 4, 1, 5 }
#endif
VF_INLINE vf even(vf a, vf b) { return __builtin_shuffle(a, b, (vi)EVEN); }
VF_INLINE vf odd(vf a, vf b) { return __builtin_shuffle(a, b, (vi)EVEN + 1); }
VF_INLINE vf zip_low(vf a, vf b) { return __builtin_shuffle(a, b, (vi)LEFT); }
VF_INLINE vf zip_high(vf a, vf b) { return __builtin_shuffle(a, b, (vi)LEFT + VF_LANES / 2); }

/* 2 VF_LANES elements from i of a row of n, a tail filled up with 0. */
struct pair {
  vf a, b;
};
VF_INLINE struct pair get_two(enum dtype dtype, const void *row, int64_t i, int64_t n) {
  return (struct pair){vf_get_row(dtype, row, i, n, 0),
                       i + VF_LANES < n ? vf_get_row(dtype, row, i + VF_LANES, n, 0) : (vf){0}};
}
VF_INLINE void put_two(enum dtype dtype, void *row, int64_t i, int64_t n, struct pair x) {
  vf_put_row(dtype, row, i, n, x.a);
  if (i + VF_LANES < n) vf_put_row(dtype, row, i + VF_LANES, n, x.b);
}

VF_INLINE struct pair turn(struct pair x, vf cosine, vf sine) {
  return (struct pair){x.a * cosine - x.b * sine, x.b * cosine + x.a * sine};
}

/* All heads of a row. table: [n/2][2] cosine and sine. */
VF_INLINE void rotate_row(enum dtype dtype, int heads, int head_dim, int n, bool interleaved, const float *table,
                          float sign, void *x) {
  int half = n / 2;
  for (int i = 0; i < half; i += VF_LANES) {
    struct pair angle = get_two(DTYPE_F32, table, 2 * (int64_t)i, n);
    vf cosine = even(angle.a, angle.b), sine = sign * odd(angle.a, angle.b);
    for (int h = 0; h < heads; h++) {
      char *head = (char *)x + (size_t)h * (size_t)head_dim * cpu_element_bytes(dtype);
      if (interleaved) {
        struct pair two = get_two(dtype, head, 2 * (int64_t)i, n);
        struct pair turned = turn((struct pair){even(two.a, two.b), odd(two.a, two.b)}, cosine, sine);
        put_two(dtype, head, 2 * (int64_t)i, n,
                (struct pair){zip_low(turned.a, turned.b), zip_high(turned.a, turned.b)});
      } else {
        char *second = head + (size_t)half * cpu_element_bytes(dtype);
        struct pair two = {vf_get_row(dtype, head, i, half, 0), vf_get_row(dtype, second, i, half, 0)};
        struct pair turned = turn(two, cosine, sine);
        vf_put_row(dtype, head, i, half, turned.a);
        vf_put_row(dtype, second, i, half, turned.b);
      }
    }
  }
}

enum status cpu_rotary(struct device *d, int64_t M, int heads, int head_dim, int n, bool interleaved,
                       const int32_t *positions, const float *cos_sin, bool backward, struct tensor_view x) {
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) {
    const float *table = cos_sin + (int64_t)positions[m] * n;
    float sign = backward ? -1 : 1;
    void *row = cpu_at(x, m, 0);
    if (x.dtype == DTYPE_BF16) {
      rotate_row(DTYPE_BF16, heads, head_dim, n, interleaved, table, sign, row);
    } else {
      rotate_row(DTYPE_F32, heads, head_dim, n, interleaved, table, sign, row);
    }
  }
  return STATUS_OK;
}
