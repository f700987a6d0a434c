/*
 * Our own adapter files as a set of modules in memory.
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

#include "io/peft.h"
#include "scratch.h"

static const char *at_root(const char *name) {
  static char paths[4][256];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", scratch_root, name);
  return path;
}

static float *random_values(int64_t n, unsigned seed) {
  float *values = malloc((size_t)n * sizeof *values);
  for (int64_t i = 0; i < n; i++) {
    seed = seed * 1664525u + 1013904223u;
    values[i] = (float)(seed >> 8) / (float)(1 << 23) - 1.0f;
  }
  return values;
}

static void test_read(void **state) {
  (void)state;
  struct model_facts facts = {
      .family = "llama", .n_layers = 3, .d_model = 16, .n_heads = 4, .n_kv_heads = 2, .head_dim = 4, .d_ffn = 24};
  struct checkpoint_header header = {.method = "lora", .step = 3, .base_family = "llama"}, read;
  struct checkpoint_module modules[2] = {
      {.group = "layers/2/up", .r = 2, .in = 16, .out = 24, .alpha = 4, .rslora = true},
      {.group = "layers/0/k", .r = 3, .in = 16, .out = 8, .alpha = 6}};
  struct checkpoint_array arrays[4];
  struct adapter_set set;
  for (int i = 0; i < 4; i++) {
    const struct checkpoint_module *module = &modules[i / 2];
    bool is_a = i % 2 == 0;
    arrays[i] =
        (struct checkpoint_array){.rows = is_a ? module->r : module->out, .cols = is_a ? module->in : module->r};
    strcpy(arrays[i].group, module->group);
    strcpy(arrays[i].name, is_a ? "A" : "B");
    arrays[i].part_rows = arrays[i].rows;
    arrays[i].part_cols = arrays[i].cols;
    arrays[i].data = random_values(arrays[i].rows * arrays[i].cols, (unsigned)i);
  }
  expect_ok(checkpoint_write_file(at_root("own.h5"), &header, modules, 2, "", arrays, 4));
  expect_ok(adapter_set_read(at_root("own.h5"), &facts, &set, &read));
  assert_int_equal(read.step, 3);
  assert_int_equal(set.n_modules, 2);
  assert_int_equal(set.modules[0].layer, 0);
  assert_int_equal(set.modules[0].module, MODULE_K);
  assert_true(set.modules[0].scale == 2.0 && set.modules[1].scale == 4 / sqrt(2.0));
  assert_memory_equal(set.modules[1].A, arrays[0].data, 2 * 16 * sizeof(float));
  assert_memory_equal(set.modules[1].B, arrays[1].data, 24 * 2 * sizeof(float));
  adapter_set_free(&set);
  expect_ok(adapter_set_read(at_root("own.h5"), NULL, &set, NULL));
  adapter_set_free(&set);
  facts.d_ffn = 48;
  expect_refused(adapter_set_read(at_root("own.h5"), &facts, &set, NULL), STATUS_USAGE, "layers/2/up", NULL);
  modules[0].r = 4; /* the group says 4, the arrays have 2 */
  expect_ok(checkpoint_write_file(at_root("own.h5"), &header, modules, 2, "", arrays, 4));
  expect_refused(adapter_set_read(at_root("own.h5"), NULL, &set, NULL), STATUS_DATA,
                 "layers/2/up/A is [2, 16], not [4, 16]", NULL);
  modules[0].r = 2;
  strcpy(modules[0].group, "layers/2/elbow");
  strcpy(arrays[0].group, modules[0].group);
  strcpy(arrays[1].group, modules[0].group);
  expect_ok(checkpoint_write_file(at_root("own.h5"), &header, modules, 2, "", arrays, 4));
  expect_refused(adapter_set_read(at_root("own.h5"), NULL, &set, NULL), STATUS_DATA, "layers/2/elbow", NULL);
  /* A module without its B. */
  strcpy(modules[0].group, "layers/2/up");
  strcpy(arrays[0].group, modules[0].group);
  expect_ok(checkpoint_write_file(at_root("own.h5"), &header, modules, 2, "",
                                  (struct checkpoint_array[]){arrays[0], arrays[2], arrays[3]}, 3));
  expect_refused(adapter_set_read(at_root("own.h5"), NULL, &set, NULL), STATUS_DATA, "has no layers/2/up/B", NULL);
  for (int i = 0; i < 4; i++) free(arrays[i].data);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_read, scratch_setup, scratch_teardown)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
