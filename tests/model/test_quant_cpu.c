#include "model/cpu/cpu_internal.h"
#include "tests/model/opcheck_weights.h"

/* Fast and reference expansion agree in every bit, for f32 and, after one
 * rounding, for bf16: no tolerance. NaN equals NaN. */
static void assert_same(enum dtype dtype, int64_t i, float got, float want) {
  if (isnan(got) && isnan(want)) return;
  if (memcmp(&got, &want, sizeof got) != 0) {
    fail_msg("%s[%lld]: got %.9g, want %.9g", dtype_name(dtype), (long long)i, got, want);
  }
}

/* Rows of any type against the weights' values. */
static void check_rows(const struct opcheck_weights *w) {
  int64_t n = w->weight.n_in;
  enum dtype dtype = w->weight.dtype;
  struct opcheck_matrix f32 = opcheck_matrix(DTYPE_F32, 1, n, 0), bf16 = opcheck_matrix(DTYPE_BF16, 1, n, 0);
  for (int64_t r = 0; r < w->weight.n_out; r++) {
    cpu_expand_row(&w->weight, r, 0, n, DTYPE_F32, f32.view.data);
    cpu_expand_row(&w->weight, r, 0, n, DTYPE_BF16, bf16.view.data);
    opcheck_guard("f32", &f32);
    opcheck_guard("bf16", &bf16);
    for (int64_t i = 0; i < n; i++) {
      float want = w->value[r * n + i];
      assert_same(dtype, i, opcheck_get(f32.view, 0, i), want);
      assert_same(dtype, i, opcheck_get(bf16.view, 0, i), bf16_to_f32(f32_to_bf16(want)));
    }
  }
  opcheck_free(&f32);
  opcheck_free(&bf16);
}

/* Blocks in one piece. */
static void check_expand(enum dtype dtype, const void *data, int64_t n) {
  float *want = malloc((size_t)n * 4);
  struct opcheck_matrix f32 = opcheck_matrix(DTYPE_F32, 1, n, 0), bf16 = opcheck_matrix(DTYPE_BF16, 1, n, 0);
  quant_expand_f32(dtype, data, n, want);
  cpu_expand(dtype, data, n, DTYPE_F32, f32.view.data);
  cpu_expand(dtype, data, n, DTYPE_BF16, bf16.view.data);
  opcheck_guard("f32", &f32);
  opcheck_guard("bf16", &bf16);
  for (int64_t i = 0; i < n; i++) {
    assert_same(dtype, i, opcheck_get(f32.view, 0, i), want[i]);
    assert_same(dtype, i, opcheck_get(bf16.view, 0, i), bf16_to_f32(f32_to_bf16(want[i])));
  }
  free(want);
  opcheck_free(&f32);
  opcheck_free(&bf16);
}

static void random_blocks(void **state) {
  (void)state;
  for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
    int64_t block = dtype_block((enum dtype)dtype);
    for (int64_t blocks = 1; blocks < 70; blocks += 17) { /* below, at and over one piece of 1024 */
      struct opcheck_weights w = opcheck_weights((enum dtype)dtype, 1, blocks * block, (uint64_t)(dtype + blocks));
      if (!dtype_in_planes((enum dtype)dtype)) check_expand((enum dtype)dtype, w.data, blocks * block);
      check_rows(&w);
      opcheck_weights_free(&w);
    }
  }
}

/* Rows of several tiles of nf4 and of the last, short one; rows of int8 with weights left over after whole groups. Some
 * scales are no numbers: their blocks are none either. */
static void planes(void **state) {
  (void)state;
  static const int64_t widths[] = {64, 192, 1088, 2112};
  for (int i = 0; i < 8; i++) {
    bool nf4 = i % 2;
    struct opcheck_weights w =
        opcheck_weights(nf4 ? DTYPE_NF4 : DTYPE_INT8, 107, widths[i / 2] - (nf4 ? 0 : 19), 20 + i);
    check_rows(&w);
    w.scales[3] = NAN, w.scales[6] = INFINITY, w.scales[7] = 0;
    struct quant_nf4 all = {w.data, w.codes, w.scales};
    for (int64_t r = 0, n = w.weight.n_in; r < w.weight.n_out; r++) {
      if (nf4)
        quant_expand_nf4(&all, n, r, 0, n, w.value + r * n);
      else
        quant_expand_int8((const int8_t *)w.data + r * n, n, w.scales[r], w.value + r * n);
    }
    check_rows(&w);
    opcheck_weights_free(&w);
  }
}

/* Every byte random, so scales are denormal, infinite and NaN too, and every
 * number of a group occurs with every scale. */
static void any_bytes(void **state) {
  (void)state;
  uint64_t seed = 3;
  for (int dtype = DTYPE_Q4_0; !dtype_in_planes((enum dtype)dtype); dtype++) {
    int64_t n = 200 * 256;
    size_t bytes = dtype_bytes((enum dtype)dtype, n);
    uint8_t *data = malloc(bytes);
    for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)opcheck_next(&seed);
    check_expand((enum dtype)dtype, data, n);
    free(data);
  }
}

/* All 65536 halves; bf16 likewise. */
static void every_half(void **state) {
  (void)state;
  static uint16_t bits[65536];
  for (int i = 0; i < 65536; i++) bits[i] = (uint16_t)i;
  check_expand(DTYPE_F16, bits, 65536);
  check_expand(DTYPE_BF16, bits, 65536);
}

/* Ties, overflow, denormals, infinities and NaNs with low payload bits. */
static void bf16_rounding(void **state) {
  (void)state;
  static const uint32_t words[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x3f807fff, 0x7f7fffff, 0x7f7f7fff, 0x7f800000,
                                   0xff800000, 0x7f800001, 0xffc00000, 0x00000001, 0x00008000, 0x00018000, 0x80000000};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
    float value;
    memcpy(&value, &words[i], sizeof value);
    assert_int_equal(cpu_bf16_bits(value), f32_to_bf16(value));
  }
}

/* A tile of rows and columns, with 1 and 3 threads. */
static void tiles(void **state) {
  (void)state;
  for (int threads = 1; threads <= 3; threads += 2) {
    struct device_options options = {.name = "cpu", .n_threads = threads}; /* whatever the other tests run on */
    struct device *d;
    opcheck_ok(device_open(&options, &d));
    for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
      enum { N = 41, K = 1024, ROW = 30, ROWS = 7, COLUMN = 256, COLUMNS = 512 };
      struct opcheck_weights w = opcheck_weights((enum dtype)dtype, N, K, 9);
      struct opcheck_matrix tile = opcheck_matrix(DTYPE_F32, ROWS, COLUMNS, 0);
      cpu_expand_tile(d, &w.weight, ROW, ROWS, COLUMN, COLUMNS, DTYPE_F32, tile.view.data);
      opcheck_guard("tile", &tile);
      for (int64_t r = 0; r < ROWS; r++) {
        for (int64_t c = 0; c < COLUMNS; c++) {
          assert_same((enum dtype)dtype, r * COLUMNS + c, opcheck_get(tile.view, r, c),
                      w.value[(ROW + r) * K + COLUMN + c]);
        }
      }
      opcheck_free(&tile);
      opcheck_weights_free(&w);
    }
    device_close(&d);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(random_blocks), cmocka_unit_test(planes),        cmocka_unit_test(any_bytes),
      cmocka_unit_test(every_half),    cmocka_unit_test(bf16_rounding), cmocka_unit_test(tiles),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
