/*
 * int8 and nf4: against bitsandbytes (tests/golden/make_nf4.py), and what must hold
 * for any matrix. Where nothing is said equal means equal to the bit.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/quant.h"

enum { ROWS = 64, COLUMNS = 256, BLOCKS = COLUMNS / QUANT_NF4_BLOCK, N = ROWS * COLUMNS };

/* tests/golden/nf4.bin */
static struct {
  float matrix[N];
  uint8_t numbers[N];
  float largest[ROWS * BLOCKS];
  float map[256];
} golden;

static int read_golden(void **state) {
  (void)state;
  FILE *file = fopen(SOURCE_DIR "/tests/golden/nf4.bin", "rb");
  if (!file) return -1;
  size_t n = fread(&golden, 1, sizeof golden, file);
  int more = fgetc(file);
  fclose(file);
  return n == sizeof golden && more == EOF ? 0 : -1;
}

static struct quant_nf4 planes_new(int64_t rows, int64_t columns) {
  int64_t blocks = columns / QUANT_NF4_BLOCK, tiles = (rows + QUANT_NF4_TILE - 1) / QUANT_NF4_TILE;
  struct quant_nf4 planes = {malloc((size_t)(rows * columns / 2)), malloc((size_t)(rows * blocks)),
                             malloc((size_t)(2 * tiles * blocks) * sizeof(float))};
  assert_true(planes.numbers && planes.codes && planes.tiles);
  return planes;
}

static void planes_free(struct quant_nf4 *planes) {
  free(planes->numbers);
  free(planes->codes);
  free(planes->tiles);
}

static void test_numbers_are_those_of_bitsandbytes(void **state) {
  (void)state;
  for (int block = 0; block < ROWS * BLOCKS; block++) {
    uint8_t numbers[QUANT_NF4_BLOCK];
    float largest = quant_nf4_block(golden.matrix + block * QUANT_NF4_BLOCK, numbers);
    assert_true(largest == golden.largest[block]);
    assert_memory_equal(numbers, golden.numbers + block * QUANT_NF4_BLOCK, sizeof numbers);
  }
}

static void test_map_is_that_of_bitsandbytes(void **state) {
  (void)state;
  static const float tile[2] = {1, 0};
  for (int code = 0; code < 256; code++) {
    float value = quant_nf4_scale((uint8_t)code, tile);
    assert_true(value == golden.map[code]);
    assert_true(code == 0 || golden.map[code - 1] < golden.map[code]);
  }
}

/* The table is the paper's (appendix E): from the quantiles of a normal distribution between 1/2 and 0.9677083, eight
 * above zero and seven below, so that the ends are 1. Here by bisection of erf; bitsandbytes' own table came from f32
 * arithmetic, 2e-7 at most from this. */
static double normal_quantile(double p) {
  double low = -10, high = 10;
  for (int i = 0; i < 200; i++) {
    double middle = (low + high) / 2;
    if ((1 + erf(middle / sqrt(2))) / 2 < p)
      low = middle;
    else
      high = middle;
  }
  return low;
}

static void test_values_are_the_papers(void **state) {
  (void)state;
  const double end = 0.9677083;
  for (int i = 0; i < 16; i++) {
    double p = i < 7 ? 1 - (end + (0.5 - end) * i / 7) : end + (0.5 - end) * (15 - i) / 8;
    double want = i == 7 ? 0 : normal_quantile(p) / normal_quantile(end);
    if (fabs(want - (double)quant_nf4_values[i]) > 3e-7)
      fail_msg("value %d is %.9g, the paper's %.9g", i, (double)quant_nf4_values[i], want);
  }
}

/* A scale is the nearest that the tile's map has: half a step from it at most, and a rounding of the two sums. */
static void test_scales_are_the_nearest(void **state) {
  (void)state;
  struct quant_nf4 planes = planes_new(ROWS, COLUMNS);
  quant_pack_nf4(golden.matrix, ROWS, COLUMNS, &planes);
  for (int block = 0; block < ROWS * BLOCKS; block++) {
    const float *tile = planes.tiles + 2 * (block / BLOCKS / QUANT_NF4_TILE * BLOCKS + block % BLOCKS);
    double error = fabs((double)quant_nf4_scale(planes.codes[block], tile) - (double)golden.largest[block]);
    for (int code = 0; code < 256; code++) {
      double other = fabs((double)quant_nf4_scale((uint8_t)code, tile) - (double)golden.largest[block]);
      if (error > other + 4 * 0x1p-24 * ((double)tile[0] + fabs((double)tile[1])))
        fail_msg("block %d: code %d is nearer than %d", block, code, planes.codes[block]);
    }
  }
  for (int tile = 0; tile < ROWS / QUANT_NF4_TILE * BLOCKS; tile++) {
    double sum = 0;
    for (int r = 0; r < QUANT_NF4_TILE; r++)
      sum += (double)golden.largest[(tile / BLOCKS * QUANT_NF4_TILE + r) * BLOCKS + tile % BLOCKS];
    assert_true(planes.tiles[2 * tile + 1] == (float)(sum / QUANT_NF4_TILE));
  }
  planes_free(&planes);
}

/* Rows expand to value * scale, and any part of a row to that part. */
static void test_expansion(void **state) {
  (void)state;
  struct quant_nf4 planes = planes_new(ROWS, COLUMNS);
  float row[COLUMNS], part[2 * QUANT_NF4_BLOCK];
  quant_pack_nf4(golden.matrix, ROWS, COLUMNS, &planes);
  for (int r = 0; r < ROWS; r++) {
    quant_expand_nf4(&planes, COLUMNS, r, 0, COLUMNS, row);
    for (int c = 0; c < COLUMNS; c++) {
      int block = c / QUANT_NF4_BLOCK;
      float scale =
          quant_nf4_scale(planes.codes[r * BLOCKS + block], planes.tiles + 2 * (r / QUANT_NF4_TILE * BLOCKS + block));
      assert_true(row[c] == quant_nf4_values[golden.numbers[r * COLUMNS + c]] * scale);
    }
    quant_expand_nf4(&planes, COLUMNS, r, QUANT_NF4_BLOCK, 2 * QUANT_NF4_BLOCK, part);
    assert_memory_equal(part, row + QUANT_NF4_BLOCK, sizeof part);
  }
  planes_free(&planes);
}

/* Every part that begins at a tile and ends at one, or at the end of a matrix whose last tile is short. */
static void test_parts_are_those_of_the_whole(void **state) {
  (void)state;
  enum { SHORT = ROWS - 9 };
  struct quant_nf4 whole = planes_new(SHORT, COLUMNS);
  float want[COLUMNS], got[COLUMNS], *slice = malloc(N * sizeof *slice);
  quant_pack_nf4(golden.matrix, SHORT, COLUMNS, &whole);
  for (int row = 0; row < SHORT; row += QUANT_NF4_TILE) {
    for (int column = 0; column < COLUMNS; column += QUANT_NF4_BLOCK) {
      int rows = SHORT - row, columns = COLUMNS - column;
      struct quant_nf4 part = planes_new(rows, columns);
      for (int r = 0; r < rows; r++)
        memcpy(slice + r * columns, golden.matrix + (row + r) * COLUMNS + column, (size_t)columns * sizeof *slice);
      quant_pack_nf4(slice, rows, columns, &part);
      for (int r = 0; r < rows; r++) {
        quant_expand_nf4(&whole, COLUMNS, row + r, column, columns, want);
        quant_expand_nf4(&part, columns, r, 0, columns, got);
        assert_memory_equal(got, want, (size_t)columns * sizeof *got);
      }
      planes_free(&part);
    }
  }
  free(slice);
  planes_free(&whole);
}

/* Zeros stay zeros beside blocks that are not; a tile with an infinity or a NaN has no finite weight but for its
 * neighbours. */
static void test_zeros_and_no_numbers(void **state) {
  (void)state;
  static const float bad[] = {INFINITY, -INFINITY, NAN};
  float *matrix = malloc(N * sizeof *matrix), row[COLUMNS];
  struct quant_nf4 planes = planes_new(ROWS, COLUMNS);
  for (int i = 0; i < 3; i++) {
    memcpy(matrix, golden.matrix, N * sizeof *matrix);
    memset(matrix, 0, QUANT_NF4_BLOCK * sizeof *matrix);
    matrix[5 * COLUMNS + 70] = bad[i];
    quant_pack_nf4(matrix, ROWS, COLUMNS, &planes);
    for (int r = 0; r < ROWS; r++) {
      quant_expand_nf4(&planes, COLUMNS, r, 0, COLUMNS, row);
      for (int c = 0; c < COLUMNS; c++) {
        assert_int_equal(!isfinite(row[c]), r < QUANT_NF4_TILE && c / QUANT_NF4_BLOCK == 1);
        if (r == 0 && c < QUANT_NF4_BLOCK) assert_true(row[c] == 0);
      }
    }
  }
  planes_free(&planes);
  free(matrix);
}

static float uniform(uint64_t *seed) {
  *seed = *seed * 6364136223846793005u + 1442695040888963407u;
  return (float)((double)(*seed >> 11) * 0x1p-52 - 1);
}

/* On Gaussian weights quantising the scales adds less than a hundredth to the error of the numbers. */
static void test_error(void **state) {
  (void)state;
  enum { WIDE = 1024 };
  float *matrix = malloc(ROWS * WIDE * sizeof *matrix), *row = malloc(WIDE * sizeof *row);
  struct quant_nf4 planes = planes_new(ROWS, WIDE);
  double error = 0, first = 0, size = 0;
  uint64_t seed = 3;
  for (int i = 0; i < ROWS * WIDE; i++) {
    float sum = 0;
    for (int k = 0; k < 12; k++) sum += uniform(&seed);
    matrix[i] = 0.02f * sum;
  }
  quant_pack_nf4(matrix, ROWS, WIDE, &planes);
  for (int r = 0; r < ROWS; r++) {
    quant_expand_nf4(&planes, WIDE, r, 0, WIDE, row);
    for (int c = 0; c < WIDE; c++) {
      uint8_t numbers[QUANT_NF4_BLOCK];
      const float *block = matrix + r * WIDE + c / QUANT_NF4_BLOCK * QUANT_NF4_BLOCK;
      double value = (double)matrix[r * WIDE + c];
      double largest = (double)quant_nf4_block(block, numbers);
      double once = (double)quant_nf4_values[numbers[c % QUANT_NF4_BLOCK]] * largest - value;
      error += ((double)row[c] - value) * ((double)row[c] - value);
      first += once * once;
      size += value * value;
    }
  }
  print_message("nf4: error %.4f of the deviation, %.4f before the scales are quantised\n", sqrt(error / size),
                sqrt(first / size));
  assert_true(sqrt(error / first) < 1.01);
  planes_free(&planes);
  free(matrix);
  free(row);
}

/* The nearest number, the even one in the middle; both ends are 127. */
static void test_int8_rounding(void **state) {
  (void)state;
  int8_t number;
  for (int i = -127; i < 127; i++) {
    static const float fractions[] = {0, 0.25f, 0.5f, 0.75f, 1};
    for (int f = 0; f < 5; f++) {
      float value = 0.125f * ((float)i + fractions[f]);
      int want = f < 2 ? i : f > 2 ? i + 1 : i % 2 ? i + 1 : i;
      quant_pack_int8(&value, 1, 0.125f, &number);
      assert_int_equal(number, want);
    }
  }
}

static void test_int8_rows(void **state) {
  (void)state;
  int8_t numbers[COLUMNS];
  float row[COLUMNS];
  for (int r = 0; r < ROWS; r++) {
    const float *src = golden.matrix + r * COLUMNS;
    float largest = quant_largest(src, COLUMNS), want = 0, scale = quant_int8_scale(largest);
    for (int c = 0; c < COLUMNS; c++) want = fmaxf(want, fabsf(src[c]));
    assert_true(largest == want);
    quant_pack_int8(src, COLUMNS, scale, numbers);
    quant_expand_int8(numbers, COLUMNS, scale, row);
    for (int c = 0; c < COLUMNS; c++) {
      /* Half a step, and a rounding each of the scale (127 of which add up), the quotient and the product. */
      double error = fabs((double)row[c] - (double)src[c]);
      assert_true(error <= 0.5 * (double)scale + 4 * 0x1p-24 * (double)largest);
      if (fabsf(src[c]) == largest && largest > 0) assert_int_equal(abs(numbers[c]), 127);
    }
  }
}

/* Zeros; a scale that is too small to have all its bits; a row with a weight that is not finite has none that is. */
static void test_int8_extremes(void **state) {
  (void)state;
  float row[4] = {0, -0.0f, 0, 0}, got[4];
  int8_t numbers[4];
  assert_true(quant_int8_scale(quant_largest(row, 4)) == 0);
  quant_pack_int8(row, 4, 0, numbers);
  for (int i = 0; i < 4; i++) assert_int_equal(numbers[i], 0);
  row[1] = -2e-43f, row[2] = 1e-43f;
  quant_pack_int8(row, 4, quant_int8_scale(quant_largest(row, 4)), numbers);
  assert_true(numbers[1] < 0 && numbers[1] >= -127 && numbers[2] > 0 && numbers[0] == 0);
  for (int i = 0; i < 3; i++) {
    row[3] = (float[]){INFINITY, -INFINITY, NAN}[i];
    float scale = quant_int8_scale(quant_largest(row, 4));
    quant_pack_int8(row, 4, scale, numbers);
    quant_expand_int8(numbers, 4, scale, got);
    for (int k = 0; k < 4; k++) assert_false(isfinite(got[k]));
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_numbers_are_those_of_bitsandbytes),
      cmocka_unit_test(test_map_is_that_of_bitsandbytes),
      cmocka_unit_test(test_values_are_the_papers),
      cmocka_unit_test(test_scales_are_the_nearest),
      cmocka_unit_test(test_expansion),
      cmocka_unit_test(test_parts_are_those_of_the_whole),
      cmocka_unit_test(test_zeros_and_no_numbers),
      cmocka_unit_test(test_error),
      cmocka_unit_test(test_int8_rounding),
      cmocka_unit_test(test_int8_rows),
      cmocka_unit_test(test_int8_extremes),
  };
  return cmocka_run_group_tests(tests, read_golden, NULL);
}
