/*
 * opcheck.h: helpers of the op tests: random fill, matrices with guard zones,
 * comparison with a double reference.
 */
#ifndef LORASHARD_TESTS_MODEL_OPCHECK_H
#define LORASHARD_TESTS_MODEL_OPCHECK_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka.h needs the headers above first. */
#include <cmocka.h>

#include "io/quant.h"
#include "model/device.h"
#include "model/ops.h"

/* --- random numbers: splitmix64, so that a failure repeats ---------------- */

static inline uint64_t opcheck_next(uint64_t *seed) {
  uint64_t z = *seed += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/* Uniform in [-1, 1). */
static inline float opcheck_uniform(uint64_t *seed) { return (float)(int32_t)(opcheck_next(seed) >> 32) * 0x1p-31f; }

static inline void opcheck_fill(float *x, int64_t n, float scale, uint64_t seed) {
  for (int64_t i = 0; i < n; i++) x[i] = scale * opcheck_uniform(&seed);
}

/* --- matrices with guard zones -------------------------------------------- */

/* A matrix [rows, columns] with ld > columns, and OPCHECK_GUARD elements before
 * and after. All elements outside [rows, columns] hold a bit pattern (a NaN in
 * both formats, so that reading it shows too) that opcheck_guard looks for. */
#define OPCHECK_GUARD   64
#define OPCHECK_PATTERN 0xffabffabu

struct opcheck_matrix {
  struct tensor_view view;
  int64_t rows, columns;
  void *block;
  int64_t block_elements;
};

static inline size_t opcheck_bytes(enum dtype dtype) { return dtype == DTYPE_BF16 ? 2 : 4; }

static inline float opcheck_get(struct tensor_view x, int64_t row, int64_t column) {
  int64_t i = row * x.ld + column;
  return x.dtype == DTYPE_BF16 ? bf16_to_f32(((const uint16_t *)x.data)[i]) : ((const float *)x.data)[i];
}

static inline void opcheck_set(struct tensor_view x, int64_t row, int64_t column, float value) {
  int64_t i = row * x.ld + column;
  if (x.dtype == DTYPE_BF16) {
    ((uint16_t *)x.data)[i] = f32_to_bf16(value);
  } else {
    ((float *)x.data)[i] = value;
  }
}

/* `pad` more elements per row than columns. Elements are set to the pattern. */
static inline struct opcheck_matrix opcheck_matrix(enum dtype dtype, int64_t rows, int64_t columns, int64_t pad) {
  struct opcheck_matrix m = {.rows = rows, .columns = columns};
  m.block_elements = rows * (columns + pad) + 2 * OPCHECK_GUARD;
  size_t bytes = (size_t)m.block_elements * opcheck_bytes(dtype);
  m.block = malloc(bytes);
  assert_non_null(m.block);
  uint32_t pattern = OPCHECK_PATTERN;
  for (size_t i = 0; i < bytes; i++) ((uint8_t *)m.block)[i] = ((uint8_t *)&pattern)[i % 4];
  m.view = (struct tensor_view){
      .data = (char *)m.block + OPCHECK_GUARD * opcheck_bytes(dtype), .ld = columns + pad, .dtype = dtype};
  return m;
}

static inline struct opcheck_matrix opcheck_random(enum dtype dtype, int64_t rows, int64_t columns, int64_t pad,
                                                   float scale, uint64_t seed) {
  struct opcheck_matrix m = opcheck_matrix(dtype, rows, columns, pad);
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < columns; c++) opcheck_set(m.view, r, c, scale * opcheck_uniform(&seed));
  }
  return m;
}

static inline struct opcheck_matrix opcheck_copy(const struct opcheck_matrix *m) {
  struct opcheck_matrix copy = *m;
  size_t bytes = (size_t)m->block_elements * opcheck_bytes(m->view.dtype);
  copy.block = malloc(bytes);
  assert_non_null(copy.block);
  memcpy(copy.block, m->block, bytes);
  copy.view.data = (char *)copy.block + OPCHECK_GUARD * opcheck_bytes(m->view.dtype);
  return copy;
}

static inline void opcheck_free(struct opcheck_matrix *m) {
  free(m->block);
  m->block = NULL;
}

/* Fails if anything outside the matrix was written. */
static inline void opcheck_guard(const char *name, const struct opcheck_matrix *m) {
  size_t size = opcheck_bytes(m->view.dtype);
  uint32_t pattern = OPCHECK_PATTERN;
  for (int64_t i = 0; i < m->block_elements; i++) {
    int64_t at = i - OPCHECK_GUARD;
    bool inside = at >= 0 && at < m->rows * m->view.ld && at % m->view.ld < m->columns;
    if (inside || memcmp((char *)m->block + (size_t)i * size, &pattern, size) == 0) continue;
    fail_msg("%s: element %lld from its start (ld %lld) lies outside and was written", name, (long long)at,
             (long long)m->view.ld);
  }
}

/* Same shape, dtype and bits. */
static inline void opcheck_same_bits(const char *name, const struct opcheck_matrix *a, const struct opcheck_matrix *b) {
  for (int64_t r = 0; r < a->rows; r++) {
    for (int64_t c = 0; c < a->columns; c++) {
      float x = opcheck_get(a->view, r, c), y = opcheck_get(b->view, r, c);
      if (memcmp(&x, &y, sizeof x) != 0) {
        fail_msg("%s[%lld, %lld]: %.9g and %.9g differ", name, (long long)r, (long long)c, x, y);
      }
    }
  }
}

/* --- comparison ------------------------------------------------------------ */

/* |got - want| <= absolute + relative |want|, in double. Prints tensor, index,
 * both values and the share of the tolerance of the worst element when it
 * fails. Returns the worst share, so that a test can show how close it is. */
struct opcheck_worst {
  const char *name;
  double share, got, want;
  int64_t row, column;
};

static inline void opcheck_compare(struct opcheck_worst *worst, int64_t row, int64_t column, double got, double want,
                                   double absolute, double relative) {
  double share = fabs(got - want) / (absolute + relative * fabs(want));
  if (got == want) share = 0;
  if (isnan(got) != isnan(want) || (isnan(share) && !isnan(want))) share = INFINITY;
  if (share > worst->share) {
    *worst = (struct opcheck_worst){
        .name = worst->name, .share = share, .got = got, .want = want, .row = row, .column = column};
  }
}

static inline double opcheck_report(const struct opcheck_worst *worst) {
  if (worst->share > 1) {
    fail_msg("%s[%lld, %lld]: got %.9g, want %.9g, %.3g of the tolerance", worst->name, (long long)worst->row,
             (long long)worst->column, worst->got, worst->want, worst->share);
  }
  return worst->share;
}

/* A view against want [rows, columns], dense. */
static inline double opcheck_near(const char *name, const struct opcheck_matrix *got, const double *want,
                                  double absolute, double relative) {
  struct opcheck_worst worst = {.name = name};
  for (int64_t r = 0; r < got->rows; r++) {
    for (int64_t c = 0; c < got->columns; c++) {
      opcheck_compare(&worst, r, c, opcheck_get(got->view, r, c), want[r * got->columns + c], absolute, relative);
    }
  }
  return opcheck_report(&worst);
}

/* A plain f32 array. */
static inline double opcheck_near_array(const char *name, const float *got, const double *want, int64_t n,
                                        double absolute, double relative) {
  struct opcheck_worst worst = {.name = name};
  for (int64_t i = 0; i < n; i++) opcheck_compare(&worst, 0, i, got[i], want[i], absolute, relative);
  return opcheck_report(&worst);
}

/* A device of n threads; fails the test if it does not open. */
static inline struct device *opcheck_device(int n_threads) {
  struct device *d = NULL;
  if (device_open("cpu", n_threads, &d) != STATUS_OK) fail_msg("%s", status_message());
  return d;
}

#define opcheck_ok(expression)                                       \
  do {                                                               \
    if ((expression) != STATUS_OK) fail_msg("%s", status_message()); \
  } while (0)

#endif
