/* merge: every tensor of the output is the base's plus s B A, for every way a family stores its linears. */
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
#include "io/durable.h"
#include "io/quant.h"
#include "io/safetensors.h"
#include "launch/merge_output.h"

#define GOLDEN FIXTURES "/../golden/"

static char folder[] = "/tmp/test_merge.XXXXXX";
static char output[64];

static int setup(void **state) {
  (void)state;
  if (!mkdtemp(folder)) return -1;
  snprintf(output, sizeof output, "%s/out", folder);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  return durable_remove_directory(output) == STATUS_OK ? rmdir(folder) : -1;
}

static void ok(enum status status) {
  if (status != STATUS_OK) fail_msg("%s", status_message());
}

static void fresh_output(void) {
  ok(durable_remove_directory(output));
  assert_int_equal(mkdir(output, 0777), 0);
}

/* --- adapters --- */

static float *read_all(const struct safetensors *file, const char *name, int64_t *rows, int64_t *cols) {
  const struct safetensors_tensor *tensor = safetensors_find(file, name);
  if (!tensor) fail_msg("%s is missing", name);
  float *values = malloc(tensor->bytes);
  ok(safetensors_read(file, tensor, 0, tensor->bytes, values));
  *rows = tensor->shape[0];
  *cols = tensor->shape[1];
  return values;
}

/* The factors of a golden case. */
static struct adapter_set golden_adapter(const char *name) {
  char path[512];
  json_error_t error;
  struct safetensors *file = NULL;
  snprintf(path, sizeof path, GOLDEN "%s/golden.json", name);
  json_t *root = json_load_file(path, 0, &error);
  assert_non_null(root);
  snprintf(path, sizeof path, GOLDEN "%s/golden.safetensors", name);
  ok(safetensors_open(path, &file));
  const json_t *rows = json_object_get(root, "modules");
  struct adapter_set set = {.n_modules = (int)json_array_size(rows)};
  set.modules = calloc((size_t)set.n_modules, sizeof *set.modules);
  for (int m = 0; m < set.n_modules; m++) {
    const json_t *row = json_array_get(rows, (size_t)m);
    struct adapter_module *module = &set.modules[m];
    const char *module_name = json_string_value(json_object_get(row, "module"));
    module->layer = (int)json_integer_value(json_object_get(row, "layer"));
    module->module = (enum module)module_from_name(module_name);
    module->scale = json_number_value(json_object_get(row, "scale"));
    snprintf(path, sizeof path, "layers.%d.%s.A", module->layer, module_name);
    module->A = read_all(file, path, &module->r, &module->in);
    snprintf(path, sizeof path, "layers.%d.%s.B", module->layer, module_name);
    module->B = read_all(file, path, &module->out, &module->r);
  }
  assert_true(set.n_modules > 0);
  safetensors_close(&file);
  json_decref(root);
  return set;
}

/* One module with factors of a simple pattern. */
static struct adapter_set one_module(enum module which, int64_t r, int64_t in, int64_t out) {
  struct adapter_set set = {calloc(1, sizeof(struct adapter_module)), 1};
  *set.modules = (struct adapter_module){.layer = 1, .module = which, .r = r, .in = in, .out = out, .scale = 2};
  set.modules->A = malloc((size_t)(r * in) * sizeof(float));
  set.modules->B = malloc((size_t)(out * r) * sizeof(float));
  for (int64_t i = 0; i < r * in; i++) set.modules->A[i] = (float)(i % 7 - 3) / 16;
  for (int64_t i = 0; i < out * r; i++) set.modules->B[i] = (float)(i % 5 - 2) / 16;
  return set;
}

static void free_adapter(struct adapter_set *set) {
  for (int m = 0; m < set->n_modules; m++) {
    free(set->modules[m].A);
    free(set->modules[m].B);
  }
  free(set->modules);
}

/* --- what the output should hold, said as plainly as possible --- */

/* Module and output row of stored element (row, col), by the family's layout. */
static bool element_of(const struct model_facts *facts, const struct arch *arch, const char *name, int64_t row,
                       int64_t col, char path[128], enum module *module, int64_t *out, int64_t *in) {
  *out = arch->conv1d ? col : row;
  *in = arch->conv1d ? row : col;
  int64_t width = facts->n_heads * facts->head_dim, head_dim = facts->head_dim;
  for (int m = 0; m < MODULE_COUNT; m++) {
    bool fused = !arch->linear[m] && m <= MODULE_V;
    const char *linear = fused ? arch->qkv : arch->linear[m];
    if (!linear || !strstr(name, linear)) continue;
    *module = (enum module)m;
    if (fused && arch->qkv_layout == QKV_CONCAT) {
      *module = (enum module)(*out / width);
      *out %= width;
    } else if (fused) {
      *module = (enum module)(*out / head_dim % 3);
      *out = *out / (3 * head_dim) * head_dim + *out % head_dim;
    }
    snprintf(path, 128, "%s.weight", linear);
    return true;
  }
  return false;
}

static double change_of(const struct adapter_set *set, int layer, enum module module, int64_t out, int64_t in) {
  double sum = 0;
  for (int m = 0; m < set->n_modules; m++) {
    const struct adapter_module *a = &set->modules[m];
    if (a->layer != layer || a->module != module) continue;
    for (int64_t k = 0; k < a->r; k++) sum += (double)a->B[out * a->r + k] * (double)a->A[k * a->in + in];
    sum *= a->scale;
  }
  return sum;
}

static int layer_of(const char *name) {
  while (*name && (*name < '0' || *name > '9')) name++;
  return atoi(name);
}

/* Compare one tensor with base + s B A. f32's relative rounding is 2^-24; the
 * change is a sum of r products, each rounded, then added: 2^-20 of the sizes
 * covers r up to 16. A 16-bit result is off by its own half step besides. */
static void check_tensor(struct tensor_source *base, struct tensor_source *merged, const struct tensor_info *info,
                         const struct adapter_set *set) {
  const struct tensor_info *found = merged->find(merged, info->name);
  if (!found) fail_msg("%s is missing", info->name);
  assert_int_equal(found->n_dims, info->n_dims);
  assert_memory_equal(found->shape, info->shape, sizeof info->shape);
  const struct arch *arch = arch_find(base->facts.family);
  double step = found->dtype == DTYPE_F32 ? 0 : found->dtype == DTYPE_F16 ? 0x1p-11 : 0x1p-8;
  int64_t rows = info->n_dims == 2 ? info->shape[0] : 1, cols = info->shape[info->n_dims - 1];
  float *w = malloc((size_t)(rows * cols) * sizeof *w), *x = malloc((size_t)(rows * cols) * sizeof *x);
  ok(base_model_read_f32(base, info, 0, rows, 0, cols, w, cols));
  ok(base_model_read_f32(merged, found, 0, rows, 0, cols, x, cols));
  for (int64_t i = 0; i < rows * cols; i++) {
    char path[128];
    enum module module;
    int64_t out, in;
    double change = 0;
    size_t length = strlen(info->name);
    if (element_of(&base->facts, arch, info->name, i / cols, i % cols, path, &module, &out, &in) &&
        length > strlen(path) && strcmp(info->name + length - strlen(path), path) == 0)
      change = change_of(set, layer_of(info->name), module, out, in);
    double expected = (double)w[i] + change;
    double limit = (fabs((double)w[i]) + fabs(change)) * (0x1p-20 + step) + 0x1p-25;
    if (change == 0 && found->dtype == info->dtype) limit = 0; /* untouched tensors are copied to the bit */
    if (fabs((double)x[i] - expected) > limit)
      fail_msg("%s element %d: %.9g, expected %.9g", info->name, (int)i, (double)x[i], expected);
  }
  free(w);
  free(x);
}

static struct merge_report merge_and_check(const char *base_path, const struct adapter_set *set,
                                           struct merge_request request) {
  struct merge_report report = {0};
  struct tensor_source *base = NULL, *merged = NULL;
  fresh_output();
  ok(base_model_open(base_path, &base));
  request.source = base;
  request.adapter = set;
  request.folder = output;
  if (!request.shard_bytes) request.shard_bytes = 5000000000;
  ok(merge_write_config(&request));
  ok(merge_write_weights(&request, &report));
  ok(base_model_open(output, &merged));
  assert_int_equal(merged->n_tensors, base->n_tensors);
  for (int64_t i = 0; i < base->n_tensors; i++) check_tensor(base, merged, base->at(base, i), set);
  base_model_close(&base);
  base_model_close(&merged);
  return report;
}

static void test_every_family(void **state) {
  (void)state;
  static const char *const cases[] = {"gpt2", "gpt2-seven-heads", "opt",     "opt-post-norm", "bloom", "neox",
                                      "gptj", "llama-uneven",     "mistral", "qwen2",         "qwen3"};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s", cases[i]);
    struct adapter_set set = golden_adapter(cases[i]);
    struct merge_report report = merge_and_check(path, &set, (struct merge_request){.dtype = DTYPE_F32});
    assert_true(report.n_changed > 0 && report.relative_change > 0);
    assert_true(report.largest_loss == 0 && !*report.lossiest); /* f32 rounds nothing */
    report = merge_and_check(path, &set, (struct merge_request){.keep = true});
    assert_true(report.largest_loss > 0 && report.largest_loss < 1 && *report.lossiest);
    free_adapter(&set);
  }
}

/* A quantised base is expanded to bf16, in Hugging Face's names and row order,
 * with a config.json that says the same. */
static void test_gguf(void **state) {
  (void)state;
  struct adapter_set set = one_module(MODULE_Q, 3, 64, 64);
  struct merge_report report =
      merge_and_check(FIXTURES "/stories260K-q.gguf", &set, (struct merge_request){.keep = true});
  assert_int_equal(report.n_changed, 1);
  struct tensor_source *a = NULL, *b = NULL;
  ok(base_model_open(FIXTURES "/stories260K", &a));
  ok(base_model_open(output, &b));
  assert_int_equal(b->find(b, "model.norm.weight")->dtype, DTYPE_BF16);
  a->facts.norm_eps = b->facts.norm_eps; /* compared below: the file has it as f32 */
  assert_true(fabs(b->facts.norm_eps - 1e-5) < 1e-12);
  /* The merged config.json says what the tensors are now. */
  assert_true(b->facts.has_dtype && b->facts.dtype == DTYPE_BF16);
  a->facts.has_dtype = b->facts.has_dtype;
  a->facts.dtype = b->facts.dtype;
  assert_memory_equal(&a->facts, &b->facts, sizeof a->facts);
  base_model_close(&a);
  base_model_close(&b);
  free_adapter(&set);
}

/* Small files: all tensors once, an index that names them, nothing else. */
static void test_sharded_output(void **state) {
  (void)state;
  struct adapter_set set = one_module(MODULE_DOWN, 2, 172, 64);
  struct merge_report report =
      merge_and_check(FIXTURES "/stories260K", &set, (struct merge_request){.keep = true, .shard_bytes = 300000});
  assert_true(report.n_files > 2);
  assert_int_equal(report.bytes, 260032 * 4);
  char path[128];
  snprintf(path, sizeof path, "%s/model.safetensors.index.json", output);
  assert_int_equal(access(path, F_OK), 0);
  snprintf(path, sizeof path, "%s/tokenizer.json", output);
  assert_int_equal(access(path, F_OK), 0);
  free_adapter(&set);
}

static void expect_refused(const struct adapter_set *set, enum dtype dtype, enum status expected, const char *says) {
  struct merge_report report = {0};
  struct tensor_source *base = NULL;
  fresh_output();
  ok(base_model_open(FIXTURES "/stories260K", &base));
  struct merge_request request = {base, set, output, false, dtype, 5000000000};
  enum status status = merge_write_weights(&request, &report);
  if (status != expected || !strstr(status_message(), says))
    fail_msg("status %d, \"%s\" does not say \"%s\"", (int)status, status_message(), says);
  assert_int_equal(rmdir(output), 0); /* no half file stays */
  base_model_close(&base);
}

static void test_unfit_adapters_refused(void **state) {
  (void)state;
  struct adapter_set set = one_module(MODULE_K, 2, 64, 64); /* k makes 32 */
  expect_refused(&set, DTYPE_F32, STATUS_USAGE, "belongs to another base");
  free_adapter(&set);
  set = one_module(MODULE_Q, 2, 64, 64);
  set.modules->layer = 5;
  expect_refused(&set, DTYPE_F32, STATUS_USAGE, "layer 5");
  set.modules->layer = 0;
  set.modules->scale = 1e7;
  expect_refused(&set, DTYPE_F16, STATUS_DATA, "does not fit f16");
  free_adapter(&set);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_family),
      cmocka_unit_test(test_gguf),
      cmocka_unit_test(test_sharded_output),
      cmocka_unit_test(test_unfit_adapters_refused),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
