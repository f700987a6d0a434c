#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dist/rng.h"
#include "io/base_model.h"
#include "io/file_read.h"
#include "io/quant.h"
#include "io/synthetic.h"
#include "io/tokenizer.h"
#include "model/model.h"

static struct tensor_source *open_ok(const char *base) {
  struct tensor_source *source = NULL;
  if (base_model_open(base, &source) != STATUS_OK) fail_msg("%s", status_message());
  return source;
}

static struct model_facts fixture_facts(const char *name) {
  char path[512], *text = NULL;
  size_t length = 0;
  struct model_facts facts = {0};
  snprintf(path, sizeof path, FIXTURES "/configs/%s.json", name);
  assert_int_equal(file_read_text(path, 1 << 20, &text, &length), STATUS_OK);
  if (model_facts_parse(text, length, path, &facts) != STATUS_OK) fail_msg("%s", status_message());
  free(text);
  return facts;
}

static int64_t elements(const struct tensor_info *info) {
  return info->shape[0] * (info->n_dims == 2 ? info->shape[1] : 1);
}

static int64_t count_elements(const struct tensor_source *source) {
  int64_t n = 0;
  for (int64_t i = 0; i < source->n_tensors; i++) n += elements(source->at(source, i));
  return n;
}

static void fingerprint(struct tensor_source *source, char digits[FINGERPRINT_SIZE]) {
  if (base_model_fingerprint(source, digits) != STATUS_OK) fail_msg("%s", status_message());
}

/* The numbers usually published; of gpt3-175b the paper says 174,600 million (table D.1). opt-66b: by the family's
 * formula. The built-in text says what the whole config.json says, where there is one. */
static void test_parameter_counts(void **state) {
  (void)state;
  static const struct {
    const char *name, *fixture;
    int64_t parameters;
  } models[] = {
      {"gpt3-175b", NULL, 174604259328},
      {"bloom-176b", "bloom-176b", 176247271424},
      {"llama-3.1-405b", "llama-3.1-405b", 405853388800},
      {"llama-3.1-70b", "llama-3.1-70b", 70553706496},
      {"llama-3.1-8b", "llama-3.1-8b", 8030261248},
      {"opt-66b", "opt-66b", 65719701504},
      {"gpt-neox-20b", "gpt-neox-20b", 20554567680},
      {"gpt2", "gpt2", 124439808},
      {"smollm2-135m", "smollm2-135m-instruct", 134515008},
  };
  const int n_models = (int)(sizeof models / sizeof models[0]);
  for (int i = 0; i < n_models; i++) {
    char base[64], built_in[FINGERPRINT_SIZE], published[FINGERPRINT_SIZE];
    assert_string_equal(synthetic_names()[i], models[i].name);
    snprintf(base, sizeof base, "synthetic:%s", models[i].name);
    struct tensor_source *source = open_ok(base);
    assert_int_equal(count_elements(source), models[i].parameters);
    assert_int_equal(model_base_parameters(&source->facts), models[i].parameters);
    fingerprint(source, built_in);
    base_model_close(&source);
    if (!models[i].fixture) continue;
    struct model_facts facts = fixture_facts(models[i].fixture);
    assert_int_equal(synthetic_from_facts("published", &facts, DTYPE_BF16, 0, &source), STATUS_OK);
    fingerprint(source, published);
    base_model_close(&source);
    assert_string_equal(built_in, published);
  }
  assert_null(synthetic_names()[n_models]);
}

static void test_gpt3(void **state) {
  (void)state;
  struct model_facts f;
  assert_int_equal(synthetic_facts("gpt3-175b", &f), STATUS_OK);
  assert_true(f.n_layers == 96 && f.d_model == 12288 && f.n_heads == 96 && f.head_dim == 128 && f.d_ffn == 49152);
  assert_true(f.n_vocab == 50257 && f.max_positions == 2048 && f.activation == ACTIVATION_GELU_TANH && f.tied_head);
}

/* Bytes of a model's weights in memory, from the table of a dry load: matrices as in the file, all else in f32. */
static uint64_t planned_bytes(struct tensor_source *source, const struct shard *shard) {
  const struct weights_options options = {.storage = STORE_AS_FILE, .compute = DTYPE_F32, .dry = true};
  struct device device = {.host_memory = true};
  struct weights weights;
  uint64_t bytes = 0;
  if (weights_load(&device, source, shard, &options, &weights) != STATUS_OK) fail_msg("%s", status_message());
  for (int i = 0; i < weights.memory.n; i++) bytes += weights.memory.entries[i].bytes;
  weights_release(&weights, &device);
  return bytes;
}

/* The same from all tensors of the base. */
static uint64_t stored_bytes(const struct tensor_source *source, const struct arch *arch) {
  uint64_t bytes = 0;
  for (int64_t i = 0; i < source->n_tensors; i++) {
    const struct tensor_info *info = source->at(source, i);
    bool positions = source->facts.position == POSITION_LEARNED && strstr(info->name, arch->position);
    bytes += (uint64_t)elements(info) * (info->n_dims == 2 && !positions ? 2 : 4);
  }
  return bytes;
}

/* Every family: the model finds all that it looks for and leaves nothing out. */
static void test_families_complete(void **state) {
  (void)state;
  static const char *const names[] = {
      "gpt2",     "gpt2-xl",        "opt-350m",        "opt-66b",      "bloom-176b", "gpt-neox-20b",
      "gpt-j-6b", "llama-3.1-405b", "mistral-7b-v0.1", "llama-3.2-1b", "qwen3-8b",   "qwen2.5-72b-instruct",
  };
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    struct model_facts facts = fixture_facts(names[i]);
    struct tensor_source *source;
    struct shard shard;
    assert_int_equal(synthetic_from_facts(names[i], &facts, DTYPE_F16, 1, &source), STATUS_OK);
    assert_int_equal(shard_plan(&facts, 1, 0, &shard), STATUS_OK);
    uint64_t planned = planned_bytes(source, &shard), stored = stored_bytes(source, arch_find(facts.family));
    if (planned != stored)
      fail_msg("%s: a model holds %llu bytes of %llu", names[i], (unsigned long long)planned,
               (unsigned long long)stored);
    base_model_close(&source);
  }
}

/* --- values --- */

static void *read_whole(struct tensor_source *source, const struct tensor_info *info) {
  int64_t rows = info->n_dims == 2 ? info->shape[0] : 1, cols = info->shape[info->n_dims - 1];
  size_t row_bytes = dtype_bytes(info->dtype, cols);
  void *all = malloc((size_t)rows * row_bytes);
  assert_non_null(all);
  if (source->read(source, info, 0, rows, 0, cols, all, row_bytes) != STATUS_OK) fail_msg("%s", status_message());
  return all;
}

static const struct tensor_info *tensor(struct tensor_source *source, const char *name) {
  const struct tensor_info *info = source->find(source, name);
  if (!info) fail_msg("%s is missing", name);
  return info;
}

/* Slices that begin and end anywhere, with gaps between their rows, hold what the whole holds and write nothing else.
 */
static void test_slices_equal_whole(void **state) {
  (void)state;
  static const char *const dtypes[] = {"f32", "bf16", "f16"};
  static const int64_t slices[][4] = {/* row, rows, col, cols */
                                      {0, 3, 0, 1},     {5, 1, 7, 2},      {1, 4, 191, 193},
                                      {100, 3, 0, 576}, {570, 6, 513, 63}, {2, 9, 8, 520},
                                      {3, 2, 64, 512},  {0, 0, 3, 3},      {4, 2, 5, 0}};
  for (int d = 0; d < 3; d++) {
    char base[64];
    snprintf(base, sizeof base, "synthetic:smollm2-135m,layers=2,seed=7,dtype=%s", dtypes[d]);
    struct tensor_source *source = open_ok(base);
    const struct tensor_info *info = tensor(source, "model.layers.1.self_attn.q_proj.weight");
    assert_true(info->shape[0] == 576 && info->shape[1] == 576);
    size_t size = dtype_bytes(info->dtype, 1), stride = 580 * size;
    char *whole = read_whole(source, info), *part = malloc(16 * stride);
    for (size_t s = 0; s < sizeof slices / sizeof slices[0]; s++) {
      const int64_t *at = slices[s];
      memset(part, 0x5a, 16 * stride);
      uint64_t before = source->bytes_read;
      assert_int_equal(source->read(source, info, at[0], at[1], at[2], at[3], part, stride), STATUS_OK);
      assert_int_equal(source->bytes_read - before, (uint64_t)(at[1] * at[3]) * size);
      for (size_t row = 0; row < 16; row++) {
        size_t kept = row < (size_t)at[1] ? (size_t)at[3] * size : 0;
        const char *from = whole + ((size_t)(at[0] + (int64_t)row) * 576 + (size_t)at[2]) * size;
        if (kept) assert_memory_equal(part + row * stride, from, kept);
        for (size_t b = kept; b < stride; b++) assert_int_equal(part[row * stride + b], 0x5a);
      }
    }
    assert_int_equal(source->read(source, info, 575, 2, 0, 1, part, stride), STATUS_DATA);
    assert_int_equal(source->read(source, info, 0, 1, 576, 1, part, stride), STATUS_DATA);
    free(whole);
    free(part);
    base_model_close(&source);
  }
}

/* Narrow dtypes are f32 rounded, and element e is the half word that the header names. */
static void test_values_are_the_stream(void **state) {
  (void)state;
  struct tensor_source *wide = open_ok("synthetic:gpt2,dtype=f32,seed=11"), *bf16 = open_ok("synthetic:gpt2,seed=11"),
                       *f16 = open_ok("synthetic:gpt2,dtype=f16,seed=11");
  const char *name = "transformer.h.3.attn.c_attn.weight";
  const struct tensor_info *info = tensor(wide, name);
  assert_true(info->shape[0] == 768 && info->shape[1] == 2304); /* Conv1D: [in, out] */
  float *values = read_whole(wide, info);
  uint16_t *brain = read_whole(bf16, tensor(bf16, name)), *half = read_whole(f16, tensor(f16, name));
  /* The layer's fifth tensor, after two norms of two. */
  const double step = 1 / sqrt(768.0) / sqrt((65536.0 * 65536.0 - 1) / 12);
  for (int64_t e = 0; e < 768 * 2304; e++) {
    assert_int_equal(brain[e], f32_to_bf16(values[e]));
    assert_int_equal(half[e], f32_to_f16(values[e]));
    if (e % 997) continue;
    uint32_t word = rng_u32(11, RNG_SYNTHETIC, 4, 3, 0, (uint64_t)e / 2);
    double want = ((double)(e % 2 ? word >> 16 : word & 0xffff) - 32767.5) * step;
    assert_true(fabs(values[e] - want) <= 1e-6 * fabs(want)); /* two roundings to f32 */
  }
  free(values);
  free(brain);
  free(half);
  base_model_close(&wide);
  base_model_close(&bf16);
  base_model_close(&f16);
}

/* Mean and deviation of n uniform values, and of products of neighbours, within five standard errors. */
static void check_random(const char *name, const float *values, int64_t n, double deviation) {
  double sum = 0, squares = 0, neighbours = 0;
  for (int64_t i = 0; i < n; i++) {
    sum += values[i];
    squares += (double)values[i] * values[i];
    if (i) neighbours += (double)values[i] * values[i - 1];
  }
  double error = 1 / sqrt((double)n), mean = sum / (double)n / deviation;
  double variance = squares / (double)n / (deviation * deviation);
  if (!(fabs(mean) < 5 * error && fabs(variance - 1) < 5 * sqrt(0.8) * error && /* kurtosis of a uniform is 1.8 */
        fabs(neighbours / (double)n / (deviation * deviation)) < 5 * error))
    fail_msg("%s: mean %g, variance %g, neighbours %g", name, mean, variance, neighbours);
}

static void test_statistics(void **state) {
  (void)state;
  static const struct {
    const char *name;
    double deviation; /* 0: constant 1; below 0: constant 0 */
  } tensors[] = {
      {"transformer.wte.weight", 0.036084391824351615}, /* 1 / sqrt(768) */
      {"transformer.wpe.weight", 0.036084391824351615},
      {"transformer.h.0.attn.c_attn.weight", 0.036084391824351615},
      {"transformer.h.1.attn.c_attn.weight", 0.036084391824351615},
      {"transformer.h.0.attn.c_proj.weight", 0.036084391824351615},
      {"transformer.h.0.mlp.c_proj.weight", 0.018042195912175808}, /* 1 / sqrt(3072) */
      {"transformer.h.0.ln_1.weight", 0},
      {"transformer.ln_f.bias", -1},
      {"transformer.h.0.mlp.c_fc.bias", -1},
  };
  enum { N = sizeof tensors / sizeof tensors[0] };
  float *values[N];
  struct tensor_source *source = open_ok("synthetic:gpt2,layers=2,dtype=f32");
  for (int i = 0; i < N; i++) {
    const struct tensor_info *info = tensor(source, tensors[i].name);
    values[i] = read_whole(source, info);
    if (tensors[i].deviation > 0)
      check_random(tensors[i].name, values[i], elements(info), tensors[i].deviation);
    else
      for (int64_t e = 0; e < elements(info); e++) assert_true(values[i][e] == (tensors[i].deviation == 0 ? 1 : 0));
  }
  /* Different tensors are different streams: of 1000 16-bit values some 0.015 agree by chance. */
  for (int i = 0; i < N && tensors[i].deviation > 0; i++)
    for (int k = 0; k < i; k++) {
      int equal = 0;
      for (int e = 0; e < 1000; e++) equal += values[i][e] == values[k][e];
      assert_in_range(equal, 0, 5);
    }
  for (int i = 0; i < N; i++) free(values[i]);
  base_model_close(&source);
}

/* A short model is the first layers of the long one. */
static void test_layers_keep_their_weights(void **state) {
  (void)state;
  struct tensor_source *two = open_ok("synthetic:llama-3.1-405b,layers=2"), *all = open_ok("synthetic:llama-3.1-405b");
  static const char *const names[] = {"model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight",
                                      "lm_head.weight"};
  assert_int_equal(two->facts.n_layers, 2);
  assert_null(two->find(two, "model.layers.2.mlp.down_proj.weight"));
  for (int i = 0; i < 3; i++) {
    uint16_t a[512], b[512];
    assert_int_equal(two->read(two, tensor(two, names[i]), 1000, 1, 30, 512, a, sizeof a), STATUS_OK);
    assert_int_equal(all->read(all, tensor(all, names[i]), 1000, 1, 30, 512, b, sizeof b), STATUS_OK);
    assert_memory_equal(a, b, sizeof a);
  }
  base_model_close(&two);
  base_model_close(&all);
}

static void test_fingerprints(void **state) {
  (void)state;
  static const char *const bases[] = {"synthetic:gpt3-175b",           "synthetic:gpt3-175b,layers=2",
                                      "synthetic:gpt3-175b,dtype=f16", "synthetic:gpt3-175b,seed=12",
                                      "synthetic:gpt3-175b,seed=13",   "synthetic:opt-66b"};
  enum { N = sizeof bases / sizeof bases[0] };
  char digits[N][FINGERPRINT_SIZE], again[FINGERPRINT_SIZE];
  for (int i = 0; i < N; i++) {
    struct tensor_source *source = open_ok(bases[i]);
    fingerprint(source, digits[i]);
    assert_int_equal(source->bytes_read, 0);
    base_model_close(&source);
    for (int k = 0; k < i; k++) assert_string_not_equal(digits[i], digits[k]);
  }
  struct tensor_source *source = open_ok("synthetic:gpt3-175b,seed=0,dtype=bf16,layers=96");
  fingerprint(source, again);
  assert_string_equal(again, digits[0]);
  base_model_close(&source);
}

static void test_names(void **state) {
  (void)state;
  static const char *const refused[][2] = {
      {"synthetic:gpt3-157b", "gpt3-175b"},
      {"synthetic:", "llama-3.1-8b"},
      {"synthetic:gpt2,layers=0", "layers"},
      {"synthetic:gpt2,layers=", "layers"},
      {"synthetic:gpt2,layers=-1", "layers"},
      {"synthetic:gpt2,layers=2x", "layers"},
      {"synthetic:gpt2,dtype=q4_0", "bf16"},
      {"synthetic:gpt2,sed=1", "seed"},
      {"synthetic:gpt2,seed", "seed"},
      {"synthetic:gpt2,", "layers"},
      {"synthetic:no/such/config.json", "no/such/config.json"},
  };
  for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
    struct tensor_source *source = NULL;
    enum status status = base_model_open(refused[i][0], &source);
    if (status == STATUS_OK || source || !strstr(status_message(), refused[i][1]))
      fail_msg("%s: status %d, \"%s\"", refused[i][0], (int)status, status_message());
  }
  struct tensor_source *source = open_ok("synthetic:" FIXTURES "/configs/qwen3-8b.json,layers=3");
  assert_true(source->facts.n_layers == 3 && source->facts.qk_norm);
  tensor(source, "model.layers.2.self_attn.k_norm.weight");
  assert_null(source->find(source, "transformer.wte.weight"));
  for (int64_t i = 1; i < source->n_tensors; i++)
    assert_true(strcmp(source->at(source, i - 1)->name, source->at(source, i)->name) < 0);
  base_model_close(&source);

  struct tokenizer *tokenizer = NULL;
  assert_int_equal(tokenizer_open("synthetic:gpt2", &tokenizer), STATUS_OK);
  assert_null(tokenizer);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_parameter_counts),
      cmocka_unit_test(test_gpt3),
      cmocka_unit_test(test_families_complete),
      cmocka_unit_test(test_slices_equal_whole),
      cmocka_unit_test(test_values_are_the_stream),
      cmocka_unit_test(test_statistics),
      cmocka_unit_test(test_layers_keep_their_weights),
      cmocka_unit_test(test_fingerprints),
      cmocka_unit_test(test_names),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
