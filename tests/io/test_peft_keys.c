/*
 * The tensors of an adapter that we export are named and shaped as PEFT's own file
 * of the same adapter: for every model of tests/golden, whose golden.json lists
 * them. PEFT cannot adapt q, k and v apart where they are fused: those lists leave
 * the fused linear out, and gpt2-peft's has nothing else.
 */
#include <glob.h>
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/base_model.h"
#include "io/log.h"
#include "io/peft.h"
#include "io/safetensors.h"
#include "scratch.h"

/* Sizes of a whole linear, by its meaning. */
static void linear_size(const struct model_facts *f, int module, int64_t *in, int64_t *out) {
  int64_t q = f->n_heads * f->head_dim, kv = f->n_kv_heads * f->head_dim, D = f->d_model, F = f->d_ffn;
  const int64_t ins[MODULE_COUNT] = {D, D, D, q, D, D, F}, outs[MODULE_COUNT] = {q, kv, kv, D, F, F, D};
  *in = ins[module];
  *out = outs[module];
}

static void add(struct adapter_set *set, const struct model_facts *facts, int layer, int module, int64_t r,
                double alpha) {
  int64_t in, out;
  linear_size(facts, module, &in, &out);
  set->modules[set->n_modules++] = (struct adapter_module){.layer = layer,
                                                           .module = (enum module)module,
                                                           .r = r,
                                                           .in = in,
                                                           .out = out,
                                                           .alpha = alpha,
                                                           .scale = alpha / (double)r,
                                                           .A = calloc((size_t)(r * in), sizeof(float)),
                                                           .B = calloc((size_t)(out * r), sizeof(float))};
}

/* The golden's adapters; without a list, PEFT's one on the fused linear: q, k and v. */
static void make_set(const json_t *golden, const struct model_facts *facts, struct adapter_set *set) {
  const json_t *rows = json_object_get(golden, "modules"), *row;
  int64_t r = json_integer_value(json_object_get(golden, "r"));
  size_t i;
  *set = (struct adapter_set){.modules = calloc((size_t)facts->n_layers * MODULE_COUNT, sizeof *set->modules)};
  json_array_foreach(rows, i, row)
      add(set, facts, (int)json_integer_value(json_object_get(row, "layer")),
          module_from_name(json_string_value(json_object_get(row, "module"))),
          json_integer_value(json_object_get(row, "r")), json_number_value(json_object_get(row, "alpha")));
  for (int layer = 0; json_array_size(rows) == 0 && layer < facts->n_layers; layer++)
    for (int module = MODULE_Q; module <= MODULE_V; module++) add(set, facts, layer, module, r, 1);
}

/* How many tensors of the file belong to fused linears. */
static int64_t count_fused(const struct safetensors *file, const struct arch *arch) {
  int64_t n = 0;
  if (arch->qkv_layout == QKV_SEPARATE) return 0;
  for (int64_t i = 0; i < file->n_tensors; i++) n += strstr(file->tensors[i].name, arch->qkv) != NULL;
  return n;
}

/* Ranks are ours: several of one adapter become one, and q, k and v are stacked. */
static void check_keys(const char *name, const json_t *golden, const struct model_facts *facts) {
  json_t *wanted = json_object_get(golden, "peft_keys"), *shape;
  struct safetensors *file = NULL;
  const struct arch *arch = arch_find(facts->family);
  char path[128];
  const char *key;
  int64_t n = 0;
  assert_true(json_object_size(wanted) > 0);
  snprintf(path, sizeof path, "%s/adapter_model.safetensors", scratch_root);
  expect_ok(safetensors_open(path, &file));
  json_object_foreach(wanted, key, shape) {
    const struct safetensors_tensor *tensor = safetensors_find(file, key);
    if (!tensor) fail_msg("%s: the export lacks %s", name, key);
    int rank_axis = strstr(key, ".lora_B.") ? 1 : 0;
    assert_int_equal(tensor->n_dims, 2);
    assert_int_equal(tensor->shape[1 - rank_axis], json_integer_value(json_array_get(shape, (size_t)(1 - rank_axis))));
    n += arch->qkv_layout == QKV_SEPARATE || !strstr(key, arch->qkv);
  }
  n += count_fused(file, arch);
  if (arch->qkv_layout != QKV_SEPARATE) assert_int_equal(count_fused(file, arch), 2 * facts->n_layers);
  if (file->n_tensors != n) fail_msg("%s: %d tensors, not %d", name, (int)file->n_tensors, (int)n);
  safetensors_close(&file);
}

static void test_keys_are_pefts(void **state) {
  (void)state;
  glob_t found;
  assert_int_equal(glob(SOURCE_DIR "/tests/golden/*/golden.json", 0, NULL, &found), 0);
  assert_true(found.gl_pathc >= 16);
  for (size_t i = 0; i < found.gl_pathc; i++) {
    struct model_facts facts;
    struct adapter_set set;
    char config[512];
    json_t *golden = json_load_file(found.gl_pathv[i], 0, NULL);
    assert_non_null(golden);
    const char *name = json_string_value(json_object_get(golden, "case"));
    snprintf(config, sizeof config, "%s/tests/golden/%s/config.json", SOURCE_DIR, name);
    expect_ok(model_facts_read(config, 1 << 20, &facts));
    make_set(golden, &facts, &set);
    expect_ok(peft_write(scratch_root, &set, &facts, ""));
    check_keys(name, golden, &facts);
    adapter_set_free(&set);
    json_decref(golden);
  }
  globfree(&found);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_keys_are_pefts, scratch_setup, scratch_teardown),
  };
  log_setup(0, 1, LOG_WARN);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
