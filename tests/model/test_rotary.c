/*
 * Rotary embedding against a double reference.
 */
#include "opcheck.h"

enum { MAX_POSITION = 40 };

static void solve(enum dtype dtype, int64_t M, int heads, int head_dim, int n, bool interleaved) {
  struct device *d = opcheck_device(2), *single = opcheck_device(1);
  int64_t width = (int64_t)heads * head_dim;
  struct opcheck_matrix x = opcheck_random(dtype, M, width, 3, 2, 9), given = opcheck_copy(&x);
  float *table = opcheck_floats((int64_t)MAX_POSITION * n);
  int32_t *positions = opcheck_alloc((size_t)M * sizeof *positions);
  double *want = malloc((size_t)(M * width) * sizeof *want);
  assert_non_null(want);
  for (int p = 0; p < MAX_POSITION; p++) {
    for (int i = 0; i < n / 2; i++) {
      table[p * n + 2 * i] = cosf((float)p * powf(10000, -2.0f * (float)i / (float)n));
      table[p * n + 2 * i + 1] = sinf((float)p * powf(10000, -2.0f * (float)i / (float)n));
    }
  }
  for (int64_t m = 0; m < M; m++) positions[m] = (int32_t)(m * 7 % MAX_POSITION);
  for (int64_t m = 0; m < M; m++) {
    for (int64_t c = 0; c < width; c++) want[m * width + c] = opcheck_get(given.view, m, c);
    for (int h = 0; h < heads; h++) {
      for (int i = 0; i < n / 2; i++) {
        int64_t a = m * width + h * head_dim + (interleaved ? 2 * i : i), b = a + (interleaved ? 1 : n / 2);
        double c = table[positions[m] * n + 2 * i], s = table[positions[m] * n + 2 * i + 1], xa = want[a], xb = want[b];
        want[a] = xa * c - xb * s;
        want[b] = xb * c + xa * s;
      }
    }
  }
  /* two products and a sum of values below 3: three roundings of 6e-8; bf16 rounds the result once, half a last place
   */
  double relative = dtype == DTYPE_BF16 ? 0x1p-8 : 0;
  opcheck_run(d, rotary, M, heads, head_dim, n, interleaved, positions, table, false, x.view);
  opcheck_near("forward", &x, want, 6e-7, relative);
  struct opcheck_matrix again = opcheck_copy(&given);
  opcheck_run(single, rotary, M, heads, head_dim, n, interleaved, positions, table, false, again.view);
  opcheck_same_bits("threads", &again, &x);
  /* backward undoes forward, up to the roundings of both */
  opcheck_run(d, rotary, M, heads, head_dim, n, interleaved, positions, table, true, x.view);
  for (int64_t m = 0; m < M; m++) {
    for (int64_t c = 0; c < width; c++) want[m * width + c] = opcheck_get(given.view, m, c);
  }
  opcheck_near("backward", &x, want, dtype == DTYPE_BF16 ? 3 * 0x1p-7 : 1.5e-6, 0);
  opcheck_guard("x", &x);
  opcheck_free(&x), opcheck_free(&given), opcheck_free(&again);
  opcheck_release(table), opcheck_release(positions), free(want);
  opcheck_close(&d), opcheck_close(&single);
}

static void test_rotary(void **state) {
  (void)state;
  int shapes[][4] = {/* M, heads, head_dim, n */
                     {1, 1, 8, 8},   {3, 2, 64, 64},  {17, 9, 64, 16}, {5, 3, 80, 20},
                     {3, 2, 30, 30}, {2, 1, 256, 64}, {4, 1, 6, 2},    {2, 2, 128, 128}};
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    for (int variant = 0; variant < 4; variant++) {
      solve(variant & 1 ? DTYPE_BF16 : DTYPE_F32, shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], variant & 2);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_rotary)};
  return opcheck_run_group(tests);
}
