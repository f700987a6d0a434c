#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/base_model.h"
#include "io/file_read.h"

static enum status parse(const char *text, struct model_facts *facts) {
  memset(facts, 0, sizeof *facts);
  return model_facts_parse(text, strlen(text), "config.json", facts);
}

static enum status parse_fixture(const char *name, struct model_facts *facts) {
  char path[512], *text = NULL;
  size_t length = 0;
  snprintf(path, sizeof path, FIXTURES "/configs/%s.json", name);
  assert_int_equal(file_read_text(path, 1 << 20, &text, &length), STATUS_OK);
  enum status status = model_facts_parse(text, length, path, facts);
  free(text);
  return status;
}

static int64_t norm_parameters(const struct model_facts *f) { return f->d_model * (f->bias_norm ? 2 : 1); }

/* Parameters that the facts imply, tied weights once, biases and norms in. */
static int64_t count(const struct model_facts *f) {
  int64_t d = f->d_model, q = f->n_heads * f->head_dim, kv = f->n_kv_heads * f->head_dim, ffn = f->d_ffn;
  int64_t layer = d * (q + 2 * kv) + q * d + (f->gated ? 3 : 2) * d * ffn;
  if (f->bias_qkv) layer += q + 2 * kv;
  if (f->bias_o) layer += d;
  if (f->bias_ffn) layer += (f->gated ? 2 : 1) * ffn + d;
  if (f->qk_norm) layer += 2 * f->head_dim;
  layer += norm_parameters(f) * (f->shared_norm ? 1 : 2);
  int64_t all = f->n_layers * layer + f->n_vocab * f->d_embed;
  if (f->d_embed != d) all += 2 * d * f->d_embed;
  if (f->position == POSITION_LEARNED) all += (f->max_positions + f->position_offset) * d;
  if (f->embed_norm) all += norm_parameters(f);
  if (f->final_norm) all += norm_parameters(f);
  if (!f->tied_head) all += f->n_vocab * d;
  if (f->bias_head) all += f->n_vocab;
  return all;
}

/* The numbers usually published for these models (opt-175b and opt-66b: by
 * the family's formula). */
static void test_parameter_counts(void **state) {
  (void)state;
  static const struct {
    const char *name;
    int64_t parameters;
  } models[] = {
      {"bloom-176b", 176247271424},
      {"gpt-j-6b", 6050882784},
      {"gpt-neox-20b", 20554567680},
      {"gpt2", 124439808},
      {"gpt2-medium", 354823168},
      {"gpt2-xl", 1557611200},
      {"llama-3.1-405b", 405853388800},
      {"llama-3.1-70b", 70553706496},
      {"llama-3.1-8b", 8030261248},
      {"llama-3.2-1b", 1235814400},
      {"mistral-7b-v0.1", 7241732096},
      {"opt-175b", 174604468224},
      {"opt-350m", 331196416},
      {"opt-66b", 65719701504},
      {"qwen2.5-72b-instruct", 72706203648},
      {"qwen3-8b", 8190735360},
      {"smollm2-135m-instruct", 134515008},
  };
  for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
    struct model_facts facts;
    if (parse_fixture(models[i].name, &facts) != STATUS_OK) fail_msg("%s", status_message());
    if (count(&facts) != models[i].parameters)
      fail_msg("%s: %lld parameters, expected %lld", models[i].name, (long long)count(&facts),
               (long long)models[i].parameters);
  }
}

static void test_other_families_refused(void **state) {
  (void)state;
  static const char *const models[][2] = {{"falcon-7b", "\"falcon\""}, {"gpt-neo-1.3b", "\"gpt_neo\""}};
  for (size_t i = 0; i < 2; i++) {
    struct model_facts facts;
    assert_int_equal(parse_fixture(models[i][0], &facts), STATUS_USAGE);
    assert_non_null(strstr(status_message(), models[i][1]));
    assert_non_null(strstr(status_message(), "gpt_neox, gptj, llama")); /* says what is supported */
  }
}

/* An empty configuration is its class's defaults. */
static void test_defaults(void **state) {
  (void)state;
  static const struct {
    const char *family;
    int64_t layers, width, heads, kv, head_dim, ffn, vocab, positions;
    bool tied;
  } rows[] = {
      {"gpt2", 12, 768, 12, 12, 64, 3072, 50257, 1024, true},
      {"opt", 12, 768, 12, 12, 64, 3072, 50272, 2048, true},
      {"bloom", 2, 64, 8, 8, 8, 256, 250880, 2048, true},
      {"gpt_neox", 44, 6144, 64, 64, 96, 24576, 50432, 2048, false},
      {"gptj", 28, 4096, 16, 16, 256, 16384, 50400, 2048, false},
      {"llama", 32, 4096, 32, 32, 128, 11008, 32000, 2048, false},
      {"mistral", 32, 4096, 32, 8, 128, 14336, 32000, 131072, false},
      {"qwen2", 32, 4096, 32, 32, 128, 22016, 151936, 32768, false},
      {"qwen3", 32, 4096, 32, 32, 128, 22016, 151936, 32768, false},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    char text[64];
    struct model_facts f;
    snprintf(text, sizeof text, "{\"model_type\": \"%s\"}", rows[i].family);
    if (parse(text, &f) != STATUS_OK) fail_msg("%s", status_message());
    assert_string_equal(f.family, rows[i].family);
    assert_int_equal(f.n_layers, rows[i].layers);
    assert_int_equal(f.d_model, rows[i].width);
    assert_int_equal(f.d_embed, rows[i].width);
    assert_int_equal(f.n_heads, rows[i].heads);
    assert_int_equal(f.n_kv_heads, rows[i].kv);
    assert_int_equal(f.head_dim, rows[i].head_dim);
    assert_int_equal(f.d_ffn, rows[i].ffn);
    assert_int_equal(f.n_vocab, rows[i].vocab);
    assert_int_equal(f.max_positions, rows[i].positions);
    assert_int_equal(f.tied_head, rows[i].tied);
    assert_int_equal(f.sliding_window, strcmp(f.family, "mistral") == 0 ? 4096 : 0);
    assert_true(f.attention_scale == 1 / sqrt((double)f.head_dim));
  }
}

/* A type that weights cannot be made up in is as none, and does not hide the other name's. */
static void test_dtype_names(void **state) {
  (void)state;
  static const struct {
    const char *pairs;
    bool known;
    enum dtype dtype;
  } rows[] = {
      {"", false, 0},
      {", \"dtype\": \"float16\"", true, DTYPE_F16},
      {", \"torch_dtype\": \"float32\"", true, DTYPE_F32},
      {", \"dtype\": \"bfloat16\", \"torch_dtype\": \"float32\"", true, DTYPE_BF16},
      {", \"dtype\": \"auto\", \"torch_dtype\": \"bfloat16\"", true, DTYPE_BF16},
      {", \"dtype\": null, \"torch_dtype\": \"float16\"", true, DTYPE_F16},
      {", \"dtype\": \"float32\", \"torch_dtype\": \"int8\"", true, DTYPE_F32},
      {", \"dtype\": \"int8\", \"torch_dtype\": \"auto\"", false, 0},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    char text[128];
    struct model_facts f;
    snprintf(text, sizeof text, "{\"model_type\": \"llama\"%s}", rows[i].pairs);
    if (parse(text, &f) != STATUS_OK) fail_msg("%s: %s", rows[i].pairs, status_message());
    if (f.has_dtype != rows[i].known || (f.has_dtype && f.dtype != rows[i].dtype)) fail_msg("%s", rows[i].pairs);
  }
}

static void test_family_options(void **state) {
  (void)state;
  struct model_facts f;
  assert_int_equal(parse("{\"model_type\":\"gpt2\",\"scale_attn_weights\":false,"
                         "\"scale_attn_by_inverse_layer_idx\":true,\"n_inner\":100}",
                         &f),
                   STATUS_OK);
  assert_true(f.attention_scale == 1 && f.attention_scale_by_layer && f.d_ffn == 100);
  assert_true(f.activation == ACTIVATION_GELU_TANH && f.position == POSITION_LEARNED && f.bias_norm);

  assert_int_equal(parse_fixture("opt-350m", &f), STATUS_OK);
  assert_true(f.post_norm && !f.final_norm && f.d_embed == 512 && f.position_offset == 2);
  assert_true(f.activation == ACTIVATION_RELU);
  assert_int_equal(parse("{\"model_type\":\"opt\",\"_remove_final_layer_norm\":true,\"enable_bias\":false}", &f),
                   STATUS_OK);
  assert_true(!f.final_norm && !f.post_norm && !f.bias_qkv && !f.bias_ffn);

  assert_int_equal(parse("{\"model_type\":\"bloom\",\"n_embed\":32,\"hidden_size\":64}", &f), STATUS_OK);
  assert_true(f.d_model == 32 && f.embed_norm && f.position == POSITION_ALIBI);

  assert_int_equal(parse("{\"model_type\":\"gpt_neox\",\"use_parallel_residual\":false}", &f), STATUS_OK);
  assert_true(!f.parallel_residual && f.rotary_dim == 24 && f.activation == ACTIVATION_GELU);
  assert_int_equal(parse("{\"model_type\":\"gptj\"}", &f), STATUS_OK);
  assert_true(f.parallel_residual && f.shared_norm && f.rotary_interleaved && f.rotary_dim == 64 && f.bias_head);

  assert_int_equal(parse("{\"model_type\":\"llama\",\"attention_bias\":true,\"mlp_bias\":true}", &f), STATUS_OK);
  assert_true(f.bias_qkv && f.bias_o && f.bias_ffn && f.gated && f.norm == NORM_RMS && !f.bias_norm);
  assert_int_equal(parse("{\"model_type\":\"qwen2\"}", &f), STATUS_OK);
  assert_true(f.bias_qkv && !f.bias_o);
  assert_int_equal(parse("{\"model_type\":\"qwen3\"}", &f), STATUS_OK);
  assert_true(!f.bias_qkv && f.qk_norm);
}

static void test_windows(void **state) {
  (void)state;
  struct model_facts f;
  assert_int_equal(parse("{\"model_type\":\"mistral\",\"sliding_window\":null}", &f), STATUS_OK);
  assert_int_equal(f.sliding_window, 0);
  assert_int_equal(parse("{\"model_type\":\"qwen2\",\"sliding_window\":100}", &f), STATUS_OK);
  assert_int_equal(f.sliding_window, 0);
  assert_int_equal(parse("{\"model_type\":\"qwen2\",\"sliding_window\":100,\"use_sliding_window\":true}", &f),
                   STATUS_OK);
  assert_true(f.sliding_window == 100 && f.window_first_layer == 28);
  const char *listed =
      "{\"model_type\":\"qwen3\",\"num_hidden_layers\":3,\"use_sliding_window\":true,\"layer_types\":"
      "[\"full_attention\",\"%s_attention\",\"%s_attention\"]}";
  char text[256];
  snprintf(text, sizeof text, listed, "full", "sliding");
  assert_int_equal(parse(text, &f), STATUS_OK);
  assert_int_equal(f.window_first_layer, 2);
  snprintf(text, sizeof text, listed, "sliding", "full");
  assert_int_equal(parse(text, &f), STATUS_USAGE);
  snprintf(text, sizeof text, listed, "sliding", "chunked");
  assert_int_equal(parse(text, &f), STATUS_DATA);
}

/* The old places, the new place, and both names of the type. */
static void test_rotary_places(void **state) {
  (void)state;
  struct model_facts f;
  assert_int_equal(parse_fixture("llama-3.1-8b", &f), STATUS_OK);
  assert_true(f.rope_scaling == ROPE_LLAMA3 && f.rope_factor == 8 && f.rope_low_freq == 1 && f.rope_high_freq == 4);
  assert_true(f.rope_original_positions == 8192 && f.rope_theta == 500000 && f.rotary_dim == 128);
  assert_int_equal(parse("{\"model_type\":\"llama\",\"rope_parameters\":{\"rope_theta\":7000,\"rope_type\":\"yarn\","
                         "\"factor\":4.0,\"original_max_position_embeddings\":512}}",
                         &f),
                   STATUS_OK);
  assert_true(f.rope_scaling == ROPE_YARN && f.rope_factor == 4 && f.rope_theta == 7000);
  assert_true(f.rope_beta_fast == 32 && f.rope_beta_slow == 1 && f.rope_attention_factor == 0);
  assert_int_equal(f.rope_original_positions, 512);
  assert_int_equal(parse("{\"model_type\":\"llama\",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}", &f),
                   STATUS_OK);
  assert_true(f.rope_scaling == ROPE_LINEAR && f.rope_factor == 2);
  assert_int_equal(parse("{\"model_type\":\"llama\",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}", &f),
                   STATUS_OK);
  assert_true(f.rope_scaling == ROPE_DYNAMIC && f.rope_original_positions == 2048);
  assert_int_equal(parse("{\"model_type\":\"gpt_neox\",\"rope_parameters\":{\"rope_theta\":5000,"
                         "\"rope_type\":\"default\",\"partial_rotary_factor\":0.5}}",
                         &f),
                   STATUS_OK);
  assert_true(f.rope_scaling == ROPE_PLAIN && f.rope_theta == 5000 && f.rotary_dim == 48);
}

static void test_refusals(void **state) {
  (void)state;
  static const struct {
    const char *rest; /* after "model_type": "llama", */
    enum status status;
    const char *says;
  } cases[] = {
      {"\"hidden_act\":\"quick_gelu\"", STATUS_USAGE, "quick_gelu"},
      {"\"quantization_config\":{\"quant_method\":\"awq\"}", STATUS_USAGE, "awq"},
      {"\"rope_scaling\":{\"type\":\"longrope\",\"factor\":2}", STATUS_USAGE, "longrope"},
      {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"mscale\":1}", STATUS_USAGE, "mscale"},
      {"\"rope_scaling\":{\"type\":\"linear\"}", STATUS_DATA, "factor"},
      {"\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2,\"low_freq_factor\":4,\"high_freq_factor\":4}", STATUS_DATA,
       "high_freq_factor"},
      {"\"rope_theta\":-1", STATUS_DATA, "rope_theta"},
      {"\"vocab_size\":0", STATUS_DATA, "vocabulary"},
      {"\"vocab_size\":-5", STATUS_DATA, "vocab_size"},
      {"\"vocab_size\":\"32000\"", STATUS_DATA, "vocab_size"},
      {"\"vocab_size\":1.5", STATUS_DATA, "vocab_size"},
      {"\"hidden_size\":null", STATUS_DATA, "hidden_size"},
      {"\"hidden_size\":9223372036854775807,\"head_dim\":2", STATUS_DATA, "width"},
      {"\"hidden_size\":16777216,\"intermediate_size\":16777216,\"num_hidden_layers\":65536,\"head_dim\":128",
       STATUS_DATA, "10^17"},
      {"\"num_hidden_layers\":0", STATUS_DATA, "layers"},
      {"\"num_attention_heads\":0", STATUS_DATA, "heads"},
      {"\"num_attention_heads\":33", STATUS_DATA, "33 heads"},
      {"\"num_key_value_heads\":5", STATUS_DATA, "5 key/value"},
      {"\"head_dim\":63", STATUS_DATA, "even"},
      {"\"head_dim\":1024", STATUS_DATA, "at most 512"},
      {"\"rms_norm_eps\":0", STATUS_DATA, "epsilon"},
      {"\"tie_word_embeddings\":1", STATUS_DATA, "tie_word_embeddings"},
      {"\"vocab_size\":1,\"vocab_size\":2", STATUS_DATA, "duplicate"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char text[512];
    struct model_facts facts;
    snprintf(text, sizeof text, "{\"model_type\":\"llama\",%s}", cases[i].rest);
    enum status status = parse(text, &facts);
    if (status != cases[i].status || !strstr(status_message(), cases[i].says))
      fail_msg("%s: status %d, \"%s\"", cases[i].rest, (int)status, status_message());
  }
  struct model_facts facts;
  assert_int_equal(parse("[]", &facts), STATUS_DATA);
  assert_int_equal(parse("{}", &facts), STATUS_DATA);
  assert_int_equal(parse("{\"model_type\":\"bloom\",\"apply_residual_connection_post_layernorm\":true}", &facts),
                   STATUS_USAGE);
  assert_int_equal(parse("{\"model_type\":\"gptj\",\"rotary_dim\":null}", &facts), STATUS_DATA);
  assert_int_equal(parse("{\"model_type\":\"gpt_neox\",\"rotary_pct\":1.5}", &facts), STATUS_DATA);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_parameter_counts), cmocka_unit_test(test_other_families_refused),
      cmocka_unit_test(test_dtype_names),      cmocka_unit_test(test_defaults),
      cmocka_unit_test(test_family_options),   cmocka_unit_test(test_windows),
      cmocka_unit_test(test_rotary_places),    cmocka_unit_test(test_refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
