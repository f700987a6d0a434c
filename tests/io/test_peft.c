/*
 * PEFT adapter folders, against folders and numbers that PEFT itself made
 * (tests/golden/make_peft.py): reading gives PEFT's ranks, scales and weight
 * changes, writing gives PEFT's keys and shapes and loses nothing.
 */
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/base_model.h"
#include "io/log.h"
#include "io/peft.h"
#include "io/safetensors.h"
#include "scratch.h"

static const char *const cases[] = {"gpt2", "llama", "neox"};
#define N_CASES 3

static const char *fixture(const char *name, const char *file) {
  static char paths[4][256];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/peft/%s%s%s", FIXTURES, name, file ? "/" : "", file ? file : "");
  return path;
}

static const char *at_root(const char *name) {
  static char paths[4][256];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", scratch_root, name);
  return path;
}

static json_t *load(const char *path) {
  json_error_t error;
  json_t *json = json_load_file(path, 0, &error);
  if (!json) fail_msg("%s: %s", path, error.text);
  return json;
}

static struct model_facts facts_of(const char *name) {
  struct model_facts facts;
  json_t *config = load(fixture(name, "config.json"));
  char *text = json_dumps(config, 0);
  expect_ok(model_facts_parse(text, strlen(text), name, &facts));
  free(text);
  json_decref(config);
  return facts;
}

/* --- dense changes of weights --- */

/* Row of a part's output j in the fused linear, from the published layouts:
 * gpt2 [q | k | v], neox [head][q k v][head_dim]. */
static int64_t row_in_linear(const struct model_facts *facts, enum module module, int64_t j) {
  if (strcmp(facts->family, "gpt2") == 0 && module <= MODULE_V) return (int64_t)module * facts->d_model + j;
  if (strcmp(facts->family, "gpt_neox") == 0 && module <= MODULE_V)
    return j / facts->head_dim * 3 * facts->head_dim + (int64_t)module * facts->head_dim + j % facts->head_dim;
  return j;
}

/* What the set adds to the weight of this path: [rows, cols], f64. */
static void dense_change(const struct adapter_set *set, const struct model_facts *facts, const char *path, int64_t rows,
                         int64_t cols, double *change) {
  const struct arch *arch = arch_find(facts->family);
  memset(change, 0, (size_t)(rows * cols) * sizeof *change);
  for (int m = 0; m < set->n_modules; m++) {
    const struct adapter_module *module = &set->modules[m];
    char module_path[128];
    arch_module_path(arch, module->layer, module->module, module_path);
    if (strcmp(module_path, path) != 0) continue;
    assert_int_equal(module->in, cols);
    for (int64_t j = 0; j < module->out; j++)
      for (int64_t c = 0; c < cols; c++)
        for (int64_t k = 0; k < module->r; k++)
          change[row_in_linear(facts, module->module, j) * cols + c] +=
              module->scale * (double)module->B[j * module->r + k] * (double)module->A[k * cols + c];
  }
}

/* Compare with PEFT's delta weights. PEFT multiplies in f32: at most 5 products
 * of factors below 4 and a scale below 8, so 1e-6 of the largest entry times a
 * few roundings; 2e-6 is what is allowed, one wrong row or scale is 1e-1. */
static void check_changes(const char *name, const struct adapter_set *set, const struct model_facts *facts) {
  struct safetensors *file = NULL;
  expect_ok(safetensors_open(fixture(name, "delta.safetensors"), &file));
  assert_true(file->n_tensors > 0);
  for (int64_t t = 0; t < file->n_tensors; t++) {
    const struct safetensors_tensor *tensor = &file->tensors[t];
    int64_t rows = tensor->shape[0], cols = tensor->shape[1];
    float *expected = malloc(tensor->bytes);
    double *change = malloc((size_t)(rows * cols) * sizeof *change), largest = 0;
    expect_ok(safetensors_read(file, tensor, 0, tensor->bytes, expected));
    dense_change(set, facts, tensor->name, rows, cols, change);
    for (int64_t i = 0; i < rows * cols; i++) largest = fmax(largest, fabs((double)expected[i]));
    for (int64_t i = 0; i < rows * cols; i++)
      if (fabs(change[i] - (double)expected[i]) > 2e-6 * largest)
        fail_msg("%s: %s element %ld: %.9g, PEFT %.9g", name, tensor->name, (long)i, change[i], (double)expected[i]);
    free(change);
    free(expected);
  }
  safetensors_close(&file);
}

/* --- reading --- */

static void test_reads_peft(void **state) {
  (void)state;
  for (int c = 0; c < N_CASES; c++) {
    struct model_facts facts = facts_of(cases[c]);
    struct adapter_set set;
    expect_ok(peft_read(fixture(cases[c], NULL), &facts, &set));
    check_changes(cases[c], &set, &facts);
    json_t *expected = load(fixture(cases[c], "expected.json"));
    json_t *modules = json_object_get(expected, "modules");
    for (int m = 0; m < set.n_modules; m++) {
      char path[128];
      arch_module_path(arch_find(facts.family), set.modules[m].layer, set.modules[m].module, path);
      json_t *module = json_object_get(modules, path);
      assert_non_null(module);
      assert_int_equal(set.modules[m].r, json_integer_value(json_object_get(module, "r")));
      assert_true(fabs(set.modules[m].scale - json_number_value(json_object_get(module, "scale"))) < 1e-12);
      if (m > 0)
        assert_true(set.modules[m].layer * 10 + (int)set.modules[m].module >
                    set.modules[m - 1].layer * 10 + (int)set.modules[m - 1].module);
    }
    json_decref(expected);
    adapter_set_free(&set);
  }
}

static void test_read_any(void **state) {
  (void)state;
  struct model_facts facts = facts_of("llama");
  struct adapter_set set;
  struct checkpoint_header header = {.step = 9};
  assert_true(peft_is_folder(fixture("llama", NULL)));
  assert_false(peft_is_folder(scratch_root));
  assert_false(peft_is_folder(fixture("llama", "config.json")));
  expect_ok(adapter_set_read(fixture("llama", NULL), &facts, &set, &header));
  assert_int_equal(set.n_modules, 14);
  assert_int_equal(header.step, 0);
  adapter_set_free(&set);
  expect_refused(adapter_set_read(fixture("llama", NULL), NULL, &set, NULL), STATUS_USAGE, "base", NULL);
  expect_refused(adapter_set_read(scratch_root, &facts, &set, NULL), STATUS_USAGE, "whole step", NULL);
}

/* --- writing --- */

/* The file's keys and shapes are those that PEFT saves for one common rank; a
 * rank of our own is put in place of PEFT's. */
static void check_keys(const char *name, const char *folder, int64_t r) {
  json_t *expected = load(fixture(name, "expected.json")), *uniform = json_object_get(expected, "uniform"), *shape;
  json_int_t peft_r = json_integer_value(json_object_get(expected, "uniform_r"));
  struct safetensors *file = NULL;
  char path[300];
  const char *key;
  snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
  expect_ok(safetensors_open(path, &file));
  assert_int_equal(file->n_tensors, json_object_size(uniform));
  json_object_foreach(uniform, key, shape) {
    const struct safetensors_tensor *tensor = safetensors_find(file, key);
    if (!tensor) fail_msg("%s lacks %s", path, key);
    assert_int_equal(tensor->dtype, DTYPE_F32);
    for (int d = 0; d < 2; d++) {
      json_int_t size = json_integer_value(json_array_get(shape, (size_t)d));
      bool is_rank = d == (strstr(key, "lora_B") != NULL);
      assert_int_equal(tensor->shape[d], is_rank ? r : size);
      if (is_rank) assert_int_equal(size, peft_r);
    }
  }
  safetensors_close(&file);
  json_decref(expected);
}

static int64_t largest_rank(const struct adapter_set *set, bool fused) {
  int64_t largest = 0, sum = 0;
  for (int m = 0; m < set->n_modules; m++) {
    sum = fused && m > 0 && set->modules[m].module <= MODULE_V && set->modules[m].module != MODULE_Q ? sum : 0;
    sum += set->modules[m].r;
    if (sum > largest) largest = sum;
  }
  return largest;
}

/* PEFT -> set -> PEFT in the uniform form -> set: the same weight changes, with
 * one rank and one scale and no patterns left. */
static void test_round_trip(void **state) {
  (void)state;
  for (int c = 0; c < N_CASES; c++) {
    struct model_facts facts = facts_of(cases[c]);
    struct adapter_set set, back;
    const char *folder = at_root(cases[c]);
    expect_ok(peft_read(fixture(cases[c], NULL), &facts, &set));
    expect_ok(peft_write(folder, &set, &facts, "some/base"));
    int64_t r = largest_rank(&set, strcmp(cases[c], "llama") != 0);
    check_keys(cases[c], folder, r);
    char path[300];
    snprintf(path, sizeof path, "%s/adapter_config.json", folder);
    json_t *config = load(path);
    assert_int_equal(json_object_size(json_object_get(config, "rank_pattern")), 0);
    assert_int_equal(json_object_size(json_object_get(config, "alpha_pattern")), 0);
    assert_int_equal(json_integer_value(json_object_get(config, "r")), r);
    assert_true(json_is_false(json_object_get(config, "use_rslora")));
    assert_int_equal(json_is_true(json_object_get(config, "fan_in_fan_out")), strcmp(cases[c], "gpt2") == 0);
    assert_string_equal(json_string_value(json_object_get(config, "base_model_name_or_path")), "some/base");
    double scale = json_number_value(json_object_get(config, "lora_alpha")) / (double)r;
    json_decref(config);
    expect_ok(peft_read(folder, &facts, &back));
    for (int m = 0; m < back.n_modules; m++) assert_true(fabs(back.modules[m].scale - scale) < 1e-12);
    check_changes(cases[c], &back, &facts);
    adapter_set_free(&set);
    adapter_set_free(&back);
  }
}

static float *random_values(int64_t n, unsigned seed) {
  float *values = malloc((size_t)n * sizeof *values);
  for (int64_t i = 0; i < n; i++) {
    seed = seed * 1664525u + 1013904223u;
    values[i] = (float)(seed >> 8) / (float)(1 << 23) - 1.0f;
  }
  return values;
}

static void add_module(struct adapter_set *set, int layer, enum module module, int64_t in, int64_t out, int64_t r,
                       double alpha) {
  set->modules = realloc(set->modules, (size_t)(set->n_modules + 1) * sizeof *set->modules);
  unsigned seed = (unsigned)(layer * 100 + (int)module);
  set->modules[set->n_modules++] = (struct adapter_module){.layer = layer,
                                                           .module = module,
                                                           .r = r,
                                                           .in = in,
                                                           .out = out,
                                                           .alpha = alpha,
                                                           .scale = alpha / (double)r,
                                                           .A = random_values(r * in, seed),
                                                           .B = random_values(out * r, seed + 50)};
}

/* Separate q and v on a fused base come back as they were, to the bit: stacked
 * and split again, without a k that was never there. */
static void test_fused_separate(void **state) {
  (void)state;
  for (int c = 0; c < 3; c += 2) { /* gpt2 and neox */
    struct model_facts facts = facts_of(cases[c]);
    struct adapter_set set = {0}, back;
    for (int layer = 0; layer < 2; layer++) {
      add_module(&set, layer, MODULE_Q, 16, 16, 4, 32);
      add_module(&set, layer, MODULE_V, 16, 16, 4, 32);
    }
    const char *folder = at_root("separate");
    expect_ok(peft_write(folder, &set, &facts, NULL));
    char path[300];
    snprintf(path, sizeof path, "%s/adapter_config.json", folder);
    json_t *config = load(path), *targets = json_object_get(config, "target_modules");
    assert_int_equal(json_integer_value(json_object_get(config, "r")), 8);
    assert_int_equal(json_integer_value(json_object_get(config, "lora_alpha")), 64);
    assert_true(json_is_null(json_object_get(config, "base_model_name_or_path")));
    assert_int_equal(json_array_size(targets), 1);
    assert_string_equal(json_string_value(json_array_get(targets, 0)), c ? "query_key_value" : "c_attn");
    json_decref(config);
    expect_ok(peft_read(folder, &facts, &back));
    assert_int_equal(back.n_modules, 4);
    for (int m = 0; m < 4; m++) {
      const struct adapter_module *a = &set.modules[m], *b = &back.modules[m];
      assert_int_equal(a->layer, b->layer);
      assert_int_equal(a->module, b->module);
      assert_int_equal(a->r, b->r);
      assert_true(a->alpha == b->alpha && a->scale == b->scale);
      assert_memory_equal(a->A, b->A, (size_t)(a->r * a->in) * sizeof(float));
      assert_memory_equal(a->B, b->B, (size_t)(a->out * a->r) * sizeof(float));
    }
    adapter_set_free(&set);
    adapter_set_free(&back);
  }
}

/* Every module alone: its own name is chosen (gpt2 has two c_proj), its change
 * survives; a part of the layers is written as full paths. */
static void test_every_module_alone(void **state) {
  (void)state;
  for (int c = 0; c < N_CASES; c++) {
    struct model_facts facts = facts_of(cases[c]);
    for (int m = 0; m < MODULE_COUNT; m++) {
      if (!facts.gated && m == MODULE_GATE) continue;
      for (int part = 0; part < 2; part++) {
        struct adapter_set set = {0}, back;
        int64_t in = m == MODULE_DOWN ? facts.d_ffn : 16;
        int64_t out = m == MODULE_GATE || m == MODULE_UP ? facts.d_ffn : 16;
        if (m == MODULE_K || m == MODULE_V) out = facts.n_kv_heads * facts.head_dim;
        for (int layer = part; layer < facts.n_layers; layer++)
          add_module(&set, layer, (enum module)m, in, out, 2 + layer, 3 + layer);
        expect_ok(peft_write(at_root("alone"), &set, &facts, ""));
        expect_ok(peft_read(at_root("alone"), &facts, &back));
        assert_int_equal(back.n_modules, set.n_modules);
        for (int i = 0; i < set.n_modules; i++) {
          double *wanted = malloc((size_t)(3 * in * out) * sizeof *wanted);
          double *got = malloc((size_t)(3 * in * out) * sizeof *got);
          char path[128];
          arch_module_path(arch_find(facts.family), set.modules[i].layer, (enum module)m, path);
          dense_change(&set, &facts, path, 3 * out, in, wanted);
          dense_change(&back, &facts, path, 3 * out, in, got);
          /* One rounding of B where its scale was folded: 6e-8 of at most 4 x 2. */
          for (int64_t k = 0; k < 3 * in * out; k++) assert_true(fabs(wanted[k] - got[k]) < 1e-6);
          free(wanted);
          free(got);
        }
        adapter_set_free(&set);
        adapter_set_free(&back);
      }
    }
  }
}

/* --- refusals --- */

/* Copy of a case's folder with one field of its configuration changed (value:
 * JSON text) or, with value NULL, removed. */
static const char *changed(const char *name, const char *field, const char *value) {
  char command[700], path[300];
  const char *folder = at_root("changed");
  snprintf(command, sizeof command, "rm -rf %s && cp -r %s %s", folder, fixture(name, NULL), folder);
  assert_int_equal(system(command), 0);
  snprintf(path, sizeof path, "%s/adapter_config.json", folder);
  json_t *config = load(path);
  if (value)
    json_object_set_new(config, field, json_loads(value, JSON_DECODE_ANY, NULL));
  else
    json_object_del(config, field);
  assert_int_equal(json_dump_file(config, path, 0), 0);
  json_decref(config);
  return folder;
}

static void test_refuses_configurations(void **state) {
  (void)state;
  static const struct {
    const char *name, *field, *value, *word;
  } rows[] = {
      {"gpt2", "use_dora", "true", "use_dora"},
      {"gpt2", "lora_bias", "true", "lora_bias"},
      {"gpt2", "bias", "\"all\"", "bias is all"},
      {"gpt2", "peft_type", "\"LOHA\"", "peft_type is LOHA"},
      {"gpt2", "modules_to_save", "[\"lm_head\"]", "modules_to_save"},
      {"gpt2", "init_lora_weights", "\"pissa\"", "pissa"},
      {"gpt2", "layer_replication", "[[0, 1]]", "layer_replication"},
      {"gpt2", "a_new_feature", "{\"on\": 1}", "a_new_feature"},
      {"gpt2", "r", "5", "lora_A.weight: [4, 16]"},
      {"gpt2", "r", "\"4\"", "r is not a number"},
      {"gpt2", "lora_alpha", "null", "lora_alpha"},
      {"gpt2", "rank_pattern", "{}", "mlp.c_fc.lora_A.weight: [2, 16]"},
      {"gpt2", "rank_pattern", "{\"c_fc(\": 2}", "no regular expression"},
      {"gpt2", "target_modules", "[\"c_attn\", \"c_proj\"]", "does not select it"},
      {"gpt2", "target_modules", "[\"c_attn\", \"attn.c_proj\", \"c_fc\"]", "mlp.c_proj"},
      {"gpt2", "target_modules", "\"(a+)+$|((x*)*)*y\"", "transformer.h.0"},
      {"llama", "layers_to_transform", "[0]", "does not select it"},
      {"llama", "layers_to_transform", "null", "layers.1.self_attn.q_proj is missing"},
      {"llama", "layers_pattern", "\"blocks\"", "does not select it"},
      {"llama", "exclude_modules", "[\"gate_proj\"]", "does not select it"},
      {"llama", "exclude_modules", "\".*gate_proj\"", "does not select it"},
      {"neox", "target_modules", "\"gpt_neox.layers.0..*\"", "does not select it"},
      {"neox", "layers_to_transform", "[0]", "target_modules as a list"},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    struct model_facts facts = facts_of(rows[i].name);
    struct adapter_set set;
    expect_refused(peft_read(changed(rows[i].name, rows[i].field, rows[i].value), &facts, &set), STATUS_DATA,
                   rows[i].word, NULL);
    assert_null(set.modules);
  }
}

static void test_accepts_configurations(void **state) {
  (void)state;
  static const struct {
    const char *name, *field, *value;
  } rows[] = {
      {"gpt2", "a_new_feature", "null"},
      {"gpt2", "target_modules", "\"all-linear\""},
      {"gpt2", "target_modules", "\".*\""},
      {"gpt2", "init_lora_weights", "\"gaussian\""},
      {"gpt2", "task_type", NULL},
      {"llama", "layers_pattern", "\"layers\""},
      {"llama", "layers_pattern", "[\"h\", \"layers\"]"},
      {"neox", "target_modules", "[\"query_key_value\", \"dense\", \"dense_h_to_4h\", \"dense_4h_to_h\"]"},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    struct model_facts facts = facts_of(rows[i].name);
    struct adapter_set set;
    expect_ok(peft_read(changed(rows[i].name, rows[i].field, rows[i].value), &facts, &set));
    check_changes(rows[i].name, &set, &facts);
    adapter_set_free(&set);
  }
}

/* Rewrite the adapter's tensors under names made by `rename` (NULL: left out). */
static void rename_tensors(const char *folder, void (*change)(const char *name, char *renamed)) {
  char path[300], renamed[64][200];
  struct safetensors *file = NULL;
  struct safetensors_entry entries[64];
  struct safetensors_writer *writer = NULL;
  int64_t n = 0, kept[64];
  snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
  expect_ok(safetensors_open(path, &file));
  for (int64_t i = 0; i < file->n_tensors; i++) {
    const struct safetensors_tensor *tensor = &file->tensors[i];
    change(tensor->name, renamed[n]);
    if (!renamed[n][0]) continue;
    kept[n] = i;
    entries[n] = (struct safetensors_entry){
        .name = renamed[n], .dtype = tensor->dtype, .n_dims = 2, .shape = {tensor->shape[0], tensor->shape[1]}};
    n++;
  }
  expect_ok(safetensors_writer_create(path, entries, n, &writer));
  for (int64_t i = 0; i < n; i++) {
    const struct safetensors_tensor *tensor = &file->tensors[kept[i]];
    void *data = malloc(tensor->bytes);
    expect_ok(safetensors_read(file, tensor, 0, tensor->bytes, data));
    expect_ok(safetensors_writer_append(writer, data, tensor->bytes));
    free(data);
  }
  expect_ok(safetensors_writer_finish(&writer));
  safetensors_close(&file);
}

static void with_adapter_name(const char *name, char *renamed) {
  int stem = (int)(strlen(name) - strlen(".weight"));
  snprintf(renamed, 200, "%.*s.default.weight", stem, name);
}
static void without_prefix(const char *name, char *renamed) {
  snprintf(renamed, 200, "%s", name + strlen("base_model.model."));
}
static void one_missing(const char *name, char *renamed) {
  snprintf(renamed, 200, "%s", strstr(name, "h.1.mlp.c_fc.lora_B") ? "" : name);
}
static void one_dora(const char *name, char *renamed) {
  snprintf(renamed, 200, "%s",
           strstr(name, "h.1.mlp.c_fc.lora_B")
               ? "base_model.model.transformer.h.1.mlp.c_fc.lora_magnitude_vector.weight"
               : name);
}
static void one_saved(const char *name, char *renamed) {
  snprintf(renamed, 200, "%s", strstr(name, "h.1.mlp.c_fc.lora_B") ? "base_model.model.lm_head.weight" : name);
}
static void one_embedding(const char *name, char *renamed) {
  snprintf(renamed, 200, "%s",
           strstr(name, "h.1.mlp.c_fc.lora_B") ? "base_model.model.transformer.wte.lora_embedding_A" : name);
}
static void another_layer(const char *name, char *renamed) {
  snprintf(renamed, 200, "%s", name);
  char *layer = strstr(renamed, "h.1.");
  if (layer) layer[2] = '7';
}
static void twice(const char *name, char *renamed) {
  if (strstr(name, "h.1.mlp.c_fc.lora_B"))
    strcpy(renamed, "base_model.model.transformer.h.0.mlp.c_fc.lora_B.default.weight");
  else
    snprintf(renamed, 200, "%s", name);
}

static void test_names_of_tensors(void **state) {
  (void)state;
  static const struct {
    void (*change)(const char *name, char *renamed);
    const char *word;
  } rows[] = {{with_adapter_name, NULL},
              {without_prefix, "does not begin with base_model.model."},
              {one_missing, "lora_B of transformer.h.1.mlp.c_fc is missing"},
              {one_dora, "DoRA"},
              {one_saved, "lm_head.weight: modules_to_save"},
              {one_embedding, "embeddings"},
              {another_layer, "no module transformer.h.7."},
              {twice, "same factor"}};
  struct model_facts facts = facts_of("gpt2");
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    struct adapter_set set;
    const char *folder = changed("gpt2", "revision", "null");
    rename_tensors(folder, rows[i].change);
    if (rows[i].word) {
      expect_refused(peft_read(folder, &facts, &set), STATUS_DATA, rows[i].word, NULL);
    } else {
      expect_ok(peft_read(folder, &facts, &set));
      check_changes("gpt2", &set, &facts);
      adapter_set_free(&set);
    }
  }
}

static void test_refuses_pickle_and_misfits(void **state) {
  (void)state;
  struct model_facts facts = facts_of("gpt2"), other = facts_of("gpt2");
  struct adapter_set set;
  const char *folder = changed("gpt2", "revision", "null");
  char from[300], to[300];
  other.d_ffn = 128;
  expect_refused(peft_read(folder, &other, &set), STATUS_DATA, "mlp.c_fc.lora_B.weight", NULL);
  other.n_layers = 1;
  expect_refused(peft_read(folder, &other, &set), STATUS_DATA, "transformer.h.1", NULL);
  snprintf(from, sizeof from, "%s/adapter_model.safetensors", folder);
  snprintf(to, sizeof to, "%s/adapter_model.bin", folder);
  assert_int_equal(rename(from, to), 0);
  assert_true(peft_is_folder(folder));
  expect_refused(peft_read(folder, &facts, &set), STATUS_DATA, "pickle", NULL);
  struct adapter_set wrong = {0};
  expect_refused(peft_write(at_root("wrong"), &wrong, &facts, ""), STATUS_USAGE, "no module", NULL);
  add_module(&wrong, 0, MODULE_GATE, 16, 64, 2, 2);
  expect_refused(peft_write(at_root("wrong"), &wrong, &facts, ""), STATUS_USAGE, "no such module", NULL);
  wrong.modules[0].module = MODULE_O;
  expect_refused(peft_write(at_root("wrong"), &wrong, &facts, ""), STATUS_USAGE, "layers/0/o [16 -> 64]", NULL);
  free(wrong.modules[0].A);
  wrong.modules[0].A = NULL;
  expect_refused(peft_write(at_root("wrong"), &wrong, &facts, ""), STATUS_USAGE, "no factors", NULL);
  assert_int_not_equal(access(at_root("wrong"), F_OK), 0);
  adapter_set_free(&wrong);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_reads_peft, scratch_setup, scratch_teardown),
      cmocka_unit_test_setup_teardown(test_read_any, scratch_setup, scratch_teardown),
      cmocka_unit_test_setup_teardown(test_round_trip, scratch_setup, scratch_teardown),
      cmocka_unit_test_setup_teardown(test_fused_separate, scratch_setup, scratch_teardown),
      cmocka_unit_test_setup_teardown(test_every_module_alone, scratch_setup, scratch_teardown),
      cmocka_unit_test_setup_teardown(test_refuses_configurations, scratch_setup, scratch_teardown),
      cmocka_unit_test_setup_teardown(test_accepts_configurations, scratch_setup, scratch_teardown),
      cmocka_unit_test_setup_teardown(test_names_of_tensors, scratch_setup, scratch_teardown),
      cmocka_unit_test_setup_teardown(test_refuses_pickle_and_misfits, scratch_setup, scratch_teardown),
  };
  log_setup(0, 1, LOG_WARN);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
