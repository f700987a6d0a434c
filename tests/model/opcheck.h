/*
 * opcheck.h: helpers of the op tests: the device under test and memory that
 * both it and the test reach, random fill, matrices with guard zones,
 * comparison with a double reference.
 *
 * The tests run on the device that LORASHARD_TEST_DEVICE names. Every operand
 * of a slot comes from opcheck_alloc or what is made of it.
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
#include "tests/test_device.h"

#define opcheck_ok(expression)                                       \
  do {                                                               \
    if ((expression) != STATUS_OK) fail_msg("%s", status_message()); \
  } while (0)

/* --- the device under test -------------------------------------------------- */

static inline bool opcheck_on_cpu(void) { return strcmp(test_device(), "cpu") == 0; }

static inline struct device *opcheck_open(struct device_options options) {
  struct device *d = NULL;
  options.name = test_device();
  opcheck_ok(device_open(&options, &d));
  return d;
}

/* Opening a GPU takes long: all tests of a program share one, which stays open until the program ends. */
static inline struct device *opcheck_gpu(void) {
  static struct device *gpu;
  if (!gpu) gpu = opcheck_open((struct device_options){0});
  return gpu;
}

/* On the CPU a new device of n threads. */
static inline struct device *opcheck_device(int n_threads) {
  return opcheck_on_cpu() ? opcheck_open((struct device_options){.n_threads = n_threads}) : opcheck_gpu();
}

static inline void opcheck_close(struct device **d) {
  if (opcheck_on_cpu()) device_close(d);
}

/* Results with 1 to this many threads must have the same bits. Where threads
 * mean nothing this compares a call with its repetition, for which two do. */
enum { OPCHECK_MOST_THREADS = 3 };
static inline int opcheck_thread_counts(void) { return opcheck_on_cpu() ? OPCHECK_MOST_THREADS : 2; }

/* Call a slot and wait for its results: opcheck_run(d, cast, M, n, x, y). */
#define opcheck_run(d, slot, ...)                 \
  do {                                            \
    opcheck_ok((d)->ops->slot((d), __VA_ARGS__)); \
    opcheck_ok(device_synchronize(d));            \
  } while (0)

/* The error that a term adds to an f32 sum of products, as a share of the sum of
 * their sizes: half a last place for each rounding. The tensor cores of a GPU
 * cut off instead of rounding, which loses up to a whole one. */
static inline double opcheck_rounding(enum dtype operand) {
  return opcheck_on_cpu() || operand != DTYPE_BF16 ? 0x1p-24 : 0x1p-23;
}

/* --- memory of the device that the test reads and writes too ----------------- */

/* A bit pattern that is a NaN in both formats, so that reading it shows. */
#define OPCHECK_PATTERN 0xffabffabu

static inline void opcheck_fill_pattern(void *p, size_t bytes) {
  uint32_t pattern = OPCHECK_PATTERN;
  for (size_t i = 0; i < bytes; i++) ((uint8_t *)p)[i] = ((uint8_t *)&pattern)[i % 4];
}

/* Guard zones of this many bytes lie around memory that no sanitizer watches;
 * the first one holds the size. As much as the alignment of device memory. */
enum { OPCHECK_ZONE = 256 };

/* Memory filled with the pattern; the test's until opcheck_release. On the CPU exactly as long as asked, so that a
 * sanitizer sees what goes past it. */
static inline void *opcheck_alloc(size_t bytes) {
  char *block;
  if (opcheck_on_cpu()) {
    block = malloc(bytes ? bytes : 1);
    assert_non_null(block);
    opcheck_fill_pattern(block, bytes);
    return block;
  }
  void *memory;
  opcheck_ok(device_host_alloc(opcheck_gpu(), bytes + 2 * OPCHECK_ZONE, "test", &memory));
  block = memory;
  opcheck_fill_pattern(block, OPCHECK_ZONE + bytes);
  opcheck_fill_pattern(block + OPCHECK_ZONE + bytes, OPCHECK_ZONE); /* begins anew, as opcheck_release looks for it */
  memcpy(block, &bytes, sizeof bytes);
  return block + OPCHECK_ZONE;
}

static inline void opcheck_release(void *p) {
  if (opcheck_on_cpu() || !p) {
    free(p);
    return;
  }
  char *block = (char *)p - OPCHECK_ZONE, zone[OPCHECK_ZONE];
  size_t bytes;
  memcpy(&bytes, block, sizeof bytes);
  opcheck_fill_pattern(zone, sizeof zone);
  if (memcmp(block + sizeof bytes, zone + sizeof bytes, OPCHECK_ZONE - sizeof bytes) != 0 ||
      memcmp(block + OPCHECK_ZONE + bytes, zone, OPCHECK_ZONE) != 0)
    fail_msg("memory around an operand of %zu bytes was written", bytes);
  device_host_free(opcheck_gpu(), block);
}

/* A copy of `content` for the device. */
static inline void *opcheck_place(const void *content, size_t bytes) {
  void *p = opcheck_alloc(bytes);
  if (bytes) memcpy(p, content, bytes);
  return p;
}

static inline float *opcheck_floats(int64_t n) { return opcheck_alloc((size_t)n * sizeof(float)); }

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

static inline float *opcheck_random_floats(int64_t n, float scale, uint64_t seed) {
  float *x = opcheck_floats(n);
  opcheck_fill(x, n, scale, seed);
  return x;
}

/* --- matrices with guard zones -------------------------------------------- */

/* A matrix [rows, columns] with ld > columns, and OPCHECK_GUARD elements before
 * and after. All elements outside [rows, columns] hold the pattern, which
 * opcheck_guard looks for. */
#define OPCHECK_GUARD 64

/* Rows of matrices made from now on begin at a multiple of this many elements. */
static int64_t opcheck_row_unit = 1;

/* Rows whose distance is odd, as the tests ask for, leave a GPU only its slow ways: loads of single elements,
 * products of copies. From now on rows are aligned, as models have them. False on the CPU, which reads both alike. */
static inline bool opcheck_align_rows(void) {
  if (opcheck_on_cpu()) return false;
  opcheck_row_unit = 16;
  return true;
}

/* All tests, and where it makes a difference again with aligned rows. */
#define opcheck_run_group(tests)                     \
  (cmocka_run_group_tests(tests, NULL, NULL) != 0 || \
   (opcheck_align_rows() && cmocka_run_group_tests(tests, NULL, NULL) != 0))

struct opcheck_matrix {
  struct tensor_view view;
  int64_t rows, columns;
  void *block;
  int64_t block_elements;
  int64_t start; /* elements of the block in front of the view's first */
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

/* Columns [before, before + columns) of rows of ld elements, as one of several matrices that lie side by side.
 * Elements are set to the pattern. */
static inline struct opcheck_matrix opcheck_columns(enum dtype dtype, int64_t rows, int64_t columns, int64_t before,
                                                    int64_t ld) {
  struct opcheck_matrix m = {.rows = rows, .columns = columns, .start = OPCHECK_GUARD + before};
  m.block_elements = rows * ld + 2 * OPCHECK_GUARD;
  m.block = opcheck_alloc((size_t)m.block_elements * opcheck_bytes(dtype));
  m.view =
      (struct tensor_view){.data = (char *)m.block + (size_t)m.start * opcheck_bytes(dtype), .ld = ld, .dtype = dtype};
  return m;
}

/* `pad` more elements per row than columns, or some more for aligned rows. */
static inline struct opcheck_matrix opcheck_matrix(enum dtype dtype, int64_t rows, int64_t columns, int64_t pad) {
  int64_t ld = (columns + pad + opcheck_row_unit - 1) / opcheck_row_unit * opcheck_row_unit;
  return opcheck_columns(dtype, rows, columns, 0, ld);
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
  copy.block = opcheck_place(m->block, (size_t)m->block_elements * opcheck_bytes(m->view.dtype));
  copy.view.data = (char *)copy.block + (size_t)m->start * opcheck_bytes(m->view.dtype);
  return copy;
}

static inline void opcheck_free(struct opcheck_matrix *m) {
  opcheck_release(m->block);
  m->block = NULL;
}

/* Fails if anything outside the matrix was written. */
static inline void opcheck_guard(const char *name, const struct opcheck_matrix *m) {
  size_t size = opcheck_bytes(m->view.dtype);
  uint32_t pattern = OPCHECK_PATTERN;
  for (int64_t i = 0; i < m->block_elements; i++) {
    int64_t at = i - m->start;
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

#endif
