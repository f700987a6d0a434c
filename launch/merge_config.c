#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/durable.h"
#include "io/file_read.h"
#include "io/gguf.h"
#include "io/log.h"
#include "launch/merge_output.h"

#define FILE_LIMIT ((size_t)256 << 20) /* a tokenizer.json has some 20 MB */

static enum status no_memory(void) { return status_set(STATUS_SYSTEM, "no memory for config.json"); }

static const char *torch_dtype(enum dtype dtype) {
  if (dtype == DTYPE_F32) return "float32";
  return dtype == DTYPE_F16 ? "float16" : "bfloat16";
}

static enum status write_json(const struct merge_request *request, const json_t *root) {
  char path[DURABLE_PATH];
  TRY(durable_path(path, sizeof path, "%s/config.json", request->folder));
  char *text = json_dumps(root, JSON_INDENT(2));
  if (!text) return no_memory();
  enum status status = durable_write(path, text, strlen(text));
  free(text);
  return status;
}

/* --- from a folder --- */

/* Copy one file if the base has it. */
static enum status copy_file(const struct merge_request *request, const char *name) {
  char from[DURABLE_PATH], to[DURABLE_PATH], *text = NULL;
  size_t length = 0;
  TRY(durable_path(from, sizeof from, "%s/%s", request->source->path, name));
  TRY(durable_path(to, sizeof to, "%s/%s", request->folder, name));
  if (access(from, F_OK) != 0) return STATUS_OK;
  TRY(file_read_text(from, FILE_LIMIT, &text, &length));
  enum status status = durable_write(to, text, length);
  free(text);
  return status;
}

/* The base's config.json, whose dtype follows --dtype: transformers loads a
 * model in the dtype that is written there. */
static enum status adapt_config(const struct merge_request *request) {
  char path[DURABLE_PATH], *text = NULL;
  size_t length = 0;
  TRY(durable_path(path, sizeof path, "%s/config.json", request->source->path));
  TRY(file_read_text(path, FILE_LIMIT, &text, &length));
  json_error_t error;
  json_t *root = json_loadb(text, length, 0, &error);
  free(text);
  if (!root) return status_set(STATUS_DATA, "%s:%d: not valid JSON: %s", path, error.line, error.text);
  const char *key = json_object_get(root, "dtype") ? "dtype" : "torch_dtype";
  enum status status = json_object_set_new(root, key, json_string(torch_dtype(request->dtype))) == 0
                           ? write_json(request, root)
                           : no_memory();
  json_decref(root);
  return status;
}

static enum status write_from_folder(const struct merge_request *request) {
  static const char *const names[] = {
      "tokenizer.json",          "tokenizer_config.json", "tokenizer.model",        "vocab.json", "merges.txt",
      "special_tokens_map.json", "added_tokens.json",     "generation_config.json", "vocab.txt",  "chat_template.jinja",
  };
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) TRY(copy_file(request, names[i]));
  return request->keep ? copy_file(request, "config.json") : adapt_config(request);
}

/* --- from GGUF keys --- */

/* A number that was stored as f32, as it is usually written: 1e-05. */
static json_t *short_number(double value) {
  char text[32];
  snprintf(text, sizeof text, "%.7g", value);
  return json_real(strtod(text, NULL));
}

/* GGUF keeps Llama 3's rotary scaling as one divisor a frequency. All known
 * models have the same three settings beside the factor, which is the largest
 * divisor; they are taken when they give back every divisor. */
static enum status llama3_scaling(const struct merge_request *request, json_t **scaling_p) {
  const struct model_facts *facts = &request->source->facts;
  const double low = 1, high = 4, original = 8192;
  int64_t n = facts->rotary_dim / 2;
  double factor = 1;
  for (int64_t i = 0; i < n; i++) factor = fmax(factor, (double)facts->rope_divisors[i]);
  for (int64_t i = 0; i < n; i++) {
    double wave = 2 * M_PI * pow(facts->rope_theta, 2.0 * (double)i / (double)facts->rotary_dim);
    double smooth = fmin(fmax((original / wave - low) / (high - low), 0), 1);
    double expected = 1 / ((1 - smooth) / factor + smooth);
    if (fabs(expected - (double)facts->rope_divisors[i]) > 1e-4 * expected) /* the file has f32 */
      return status_set(STATUS_USAGE,
                        "%s: its rotary scaling (rope_freqs.weight) is not Llama 3's, and a config.json cannot say it; "
                        "merge with the model's Hugging Face folder",
                        request->source->path);
  }
  *scaling_p =
      json_pack("{s:s, s:o, s:f, s:f, s:i}", "rope_type", "llama3", "factor", short_number(factor), "low_freq_factor",
                low, "high_freq_factor", high, "original_max_position_embeddings", (int)original);
  return *scaling_p ? STATUS_OK : no_memory();
}

static enum status rope_scaling(const struct merge_request *request, json_t **scaling_p) {
  const struct model_facts *facts = &request->source->facts;
  if (facts->has_rope_divisors && facts->rope_scaling == ROPE_PLAIN) return llama3_scaling(request, scaling_p);
  if (facts->has_rope_divisors)
    return status_set(STATUS_USAGE, "%s: two kinds of rotary scaling at once, which a config.json cannot say",
                      request->source->path);
  if (facts->rope_scaling == ROPE_PLAIN)
    *scaling_p = json_null();
  else if (facts->rope_scaling == ROPE_LINEAR)
    *scaling_p = json_pack("{s:s, s:o}", "rope_type", "linear", "factor", short_number(facts->rope_factor));
  else
    *scaling_p = json_pack("{s:s, s:o, s:I, s:o, s:o}", "rope_type", "yarn", "factor", short_number(facts->rope_factor),
                           "original_max_position_embeddings", (json_int_t)facts->rope_original_positions, "beta_fast",
                           short_number(facts->rope_beta_fast), "beta_slow", short_number(facts->rope_beta_slow));
  return *scaling_p ? STATUS_OK : no_memory();
}

/* The ids that generation needs, where the file has them. */
static enum status add_token_ids(const struct merge_request *request, json_t *root) {
  static const char *const names[][2] = {{"bos_token_id", "tokenizer.ggml.bos_token_id"},
                                         {"eos_token_id", "tokenizer.ggml.eos_token_id"},
                                         {"pad_token_id", "tokenizer.ggml.padding_token_id"}};
  struct gguf *gguf = NULL;
  enum status status = STATUS_OK;
  TRY(gguf_open(request->source->path, &gguf));
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    int64_t id = 0;
    if (!gguf_has(gguf, names[i][1])) continue;
    TRY_OUT(gguf_get_i64(gguf, names[i][1], &id));
    if (json_object_set_new(root, names[i][0], json_integer(id)) != 0) {
      status = no_memory();
      goto out;
    }
  }
out:
  gguf_close(&gguf);
  return status;
}

static enum status write_from_keys(const struct merge_request *request) {
  const struct model_facts *f = &request->source->facts;
  static const char *const classes[][2] = {
      {"llama", "LlamaForCausalLM"}, {"qwen2", "Qwen2ForCausalLM"}, {"qwen3", "Qwen3ForCausalLM"}};
  const char *class_name = NULL;
  for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++)
    if (strcmp(f->family, classes[i][0]) == 0) class_name = classes[i][1];
  if (!class_name)
    return status_set(STATUS_USAGE, "%s: no config.json can be made for family %s", request->source->path, f->family);
  if (f->rotary_dim != f->head_dim)
    return status_set(STATUS_USAGE, "%s: a partly rotating head, which a config.json of %s cannot say",
                      request->source->path, f->family);
  if (f->bias_qkv != f->bias_o && strcmp(f->family, "qwen2") != 0)
    return status_set(STATUS_USAGE, "%s: biases that a config.json of %s cannot say", request->source->path, f->family);
  json_t *scaling = NULL;
  TRY(rope_scaling(request, &scaling));
  const struct tensor_info *embed = request->source->find(request->source, "model.embed_tokens.weight");
  json_t *root = json_pack(
      "{s:[s], s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:I, s:o, s:o, s:o, s:b, s:b, s:b, s:s}", "architectures",
      class_name, "model_type", f->family, "vocab_size", (json_int_t)f->n_vocab, "hidden_size", (json_int_t)f->d_model,
      "intermediate_size", (json_int_t)f->d_ffn, "num_hidden_layers", (json_int_t)f->n_layers, "num_attention_heads",
      (json_int_t)f->n_heads, "num_key_value_heads", (json_int_t)f->n_kv_heads, "head_dim", (json_int_t)f->head_dim,
      "hidden_act", "silu", "max_position_embeddings", (json_int_t)f->max_positions, "rms_norm_eps",
      short_number(f->norm_eps), "rope_theta", short_number(f->rope_theta), "rope_scaling", scaling, "attention_bias",
      (int)f->bias_qkv, "mlp_bias", (int)f->bias_ffn, "tie_word_embeddings", (int)f->tied_head, "torch_dtype",
      torch_dtype(embed ? merge_dtype(request, embed) : DTYPE_BF16));
  if (!root) return no_memory();
  enum status status = add_token_ids(request, root);
  if (status == STATUS_OK) status = write_json(request, root);
  json_decref(root);
  if (status == STATUS_OK)
    log_warn(
        "%s: the tokenizer of a GGUF file is not converted; put the original model's tokenizer files into the "
        "merged folder",
        request->source->path);
  return status;
}

enum status merge_write_config(const struct merge_request *request) {
  struct stat info;
  if (stat(request->source->path, &info) != 0)
    return status_set(STATUS_SYSTEM, "%s: the base is not there any more", request->source->path);
  return S_ISDIR(info.st_mode) ? write_from_folder(request) : write_from_keys(request);
}
