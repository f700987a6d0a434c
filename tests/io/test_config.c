/* Configuration: defaults, YAML, --set, messages, printing. */
#include "io/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/nearest.h"
#include "io/schema.h"
#include "model/arch.h"

static struct config config;

static int setup(void **state) {
  (void)state;
  return config_init(&config) == STATUS_OK ? 0 : -1;
}

static int teardown(void **state) {
  (void)state;
  config_free(&config);
  return 0;
}

static void parse_ok(const char *text) {
  if (config_parse(&config, text, strlen(text), "job.yaml") != STATUS_OK) fail_msg("%s\n%s", status_message(), text);
}

/* The text is refused as a usage error whose message has every part. */
static void refused_length(const char *text, size_t length, const char *part, const char *part2) {
  assert_int_equal(config_parse(&config, text, length, "job.yaml"), STATUS_USAGE);
  if (!strstr(status_message(), part) || (part2 && !strstr(status_message(), part2)))
    fail_msg("message '%s' lacks '%s' or '%s'", status_message(), part, part2 ? part2 : "");
}

static void refused(const char *text, const char *part, const char *part2) {
  refused_length(text, strlen(text), part, part2);
}

static void defaults_are_the_documented_ones(void **state) {
  (void)state;
  assert_string_equal(config.base, "");
  assert_int_equal(config.data.train.n, 0);
  assert_int_equal(config.data.seq_len, 512);
  assert_true(config.data.packing);
  assert_string_equal(config.data.format, "auto");
  assert_string_equal(config.data.chat_template, "auto");
  assert_int_equal(config.lora.r, 8);
  assert_true(config.lora.alpha == 16 && config.lora.dropout == 0);
  assert_int_equal(config.lora.targets.n, 2);
  assert_string_equal(config.lora.targets.items[0], "q");
  assert_string_equal(config.lora.targets.items[1], "v");
  assert_true(config.lora.layers.all);
  assert_int_equal(config.lora.init, LORA_INIT_KAIMING);
  assert_int_equal(config.train.steps, 0);
  assert_true(config.train.epochs == 1);
  assert_int_equal(config.train.global_batch, 8);
  assert_int_equal(config.train.micro_batch, 1);
  assert_true(config.train.lr == 2e-4 && config.train.eps == 1e-8 && config.train.clip_norm == 1);
  assert_true(config.train.betas[0] == 0.9 && config.train.betas[1] == 0.999);
  assert_int_equal(config.train.schedule, SCHEDULE_LINEAR);
  assert_int_equal(config.train.compute, COMPUTE_F32);
  assert_int_equal(config.train.base_dtype, BASE_KEEP);
  assert_int_equal(config.parallel.tp, 1);
  assert_int_equal(config.parallel.pp, 1);
  assert_int_equal(config.checkpoint.every, 0);
  assert_int_equal(config.checkpoint.keep_last, 2);
  assert_true(config.dist.timeout_s == 600);
  assert_string_equal(config.output, "");
  assert_string_equal(config.device, "auto");
}

static const char full_text[] =
    "# a job\n"
    "base: models/m 1\n"
    "data: {train: [a.jsonl, 'b.jsonl'], eval: c.jsonl, format: messages, seq_len: 128, packing: no,\n"
    "       chat_template: chatml}\n"
    "lora:\n"
    "  r: 4\n"
    "  alpha: 8.5\n"
    "  dropout: .05\n"
    "  targets: all\n"
    "  layers: [7, 0, \"4-6\", 5]\n"
    "  rslora: true\n"
    "  init: gaussian\n"
    "  overrides:\n"
    "    - {modules: [q, fc2], layers: 4-5, r: 2, alpha: 1}\n"
    "    - modules: v\n"
    "      off: true\n"
    "  adapter: old/adapter.h5\n"
    "train:\n"
    "  steps: 100\n"
    "  global_batch: 7\n"
    "  micro_batch: 2\n"
    "  lr: 1e-4\n"
    "  schedule: cosine\n"
    "  warmup_steps: 10\n"
    "  weight_decay: 0.01\n"
    "  betas: [0.8, 0.95]\n"
    "  eps: 1E-6\n"
    "  clip_norm: 0\n"
    "  seed: 18446744073709551615\n"
    "  compute: bf16\n"
    "  base_dtype: f32\n"
    "  skip_nan: true\n"
    "parallel: {tp: 4}\n"
    "checkpoint: {every: 50, keep_last: 0}\n"
    "eval: {every: 25}\n"
    "dist: {timeout_s: 30}\n"
    "output: \"out/\\u00e9 \\\"x\\\"\"\n"
    "device: cpu\n";

static void every_key_is_read(void **state) {
  (void)state;
  parse_ok(full_text);
  assert_string_equal(config.base, "models/m 1");
  assert_int_equal(config.data.train.n, 2);
  assert_string_equal(config.data.train.items[1], "b.jsonl");
  assert_int_equal(config.data.eval.n, 1);
  assert_string_equal(config.data.eval.items[0], "c.jsonl");
  assert_false(config.data.packing);
  assert_true(config.lora.alpha == 8.5 && config.lora.dropout == 0.05);
  assert_int_equal(config.lora.targets.n, 1);
  assert_string_equal(config.lora.targets.items[0], "all");
  const int layers[] = {0, 4, 5, 6, 7};
  assert_false(config.lora.layers.all);
  assert_int_equal(config.lora.layers.n, 5);
  assert_memory_equal(config.lora.layers.items, layers, sizeof layers);
  assert_int_equal(config.lora.init, LORA_INIT_GAUSSIAN);
  assert_int_equal(config.lora.n_overrides, 2);
  const struct lora_override *override = config.lora.overrides;
  assert_int_equal(override[0].modules, 1u << MODULE_Q | 1u << MODULE_DOWN);
  assert_int_equal(override[0].layers.n, 2);
  assert_int_equal(override[0].r, 2);
  assert_true(override[0].alpha == 1 && !override[0].off);
  assert_int_equal(override[1].modules, 1u << MODULE_V);
  assert_true(override[1].layers.all && override[1].off && override[1].r == 0 && override[1].alpha < 0);
  assert_int_equal(config.train.steps, 100);
  assert_true(config.train.epochs == 0); /* steps rule it out */
  assert_true(config.train.lr == 1e-4 && config.train.eps == 1e-6);
  assert_true(config.train.betas[0] == 0.8 && config.train.betas[1] == 0.95);
  assert_true(config.train.seed == UINT64_MAX);
  assert_int_equal(config.train.compute, COMPUTE_BF16);
  assert_int_equal(config.train.base_dtype, BASE_F32);
  assert_int_equal(config.train.schedule, SCHEDULE_COSINE);
  assert_true(config.train.skip_nan);
  assert_int_equal(config.parallel.tp, 4);
  assert_string_equal(config.output, "out/\xc3\xa9 \"x\"");
  assert_string_equal(config.device, "cpu");
}

/* Print, parse into a fresh configuration, print again: the same text; and it
 * holds every key of the schema. */
static void round_trip(void) {
  char *first, *second;
  struct config copy;
  assert_int_equal(config_print(&config, &first), STATUS_OK);
  assert_int_equal(config_init(&copy), STATUS_OK);
  if (config_parse(&copy, first, strlen(first), "printed") != STATUS_OK) fail_msg("%s\n%s", status_message(), first);
  assert_int_equal(config_print(&copy, &second), STATUS_OK);
  assert_string_equal(first, second);
  for (int i = 0; i < schema_n_rows; i++) {
    const char *dot = strrchr(schema_rows[i].name, '.');
    char key[64];
    snprintf(key, sizeof key, "%s: ", dot ? dot + 1 : schema_rows[i].name);
    assert_non_null(strstr(first, key));
  }
  assert_int_equal(copy.train.steps, config.train.steps);
  assert_true(copy.train.epochs == config.train.epochs && copy.train.lr == config.train.lr);
  assert_int_equal(copy.lora.n_overrides, config.lora.n_overrides);
  assert_string_equal(copy.output, config.output);
  config_free(&copy);
  free(first);
  free(second);
}

static void printed_text_parses_back(void **state) {
  (void)state;
  round_trip();
  parse_ok(full_text);
  round_trip();
  /* Characters that YAML folds, refuses or escapes. */
  parse_ok("output: \"a\\tb\\nc\\\\d\\u0085\\u2028\\ufeff\\x01 # e: [\"\ntrain: {lr: 0.1234567890123456}\n");
  round_trip();
}

static void values_replace_earlier_ones(void **state) {
  (void)state;
  parse_ok(full_text);
  assert_int_equal(config_set(&config, "lora.targets=[q, up]"), STATUS_OK);
  assert_int_equal(config.lora.targets.n, 2);
  assert_string_equal(config.lora.targets.items[1], "up");
  assert_int_equal(config_set(&config, "train.lr=1e-5"), STATUS_OK);
  assert_true(config.train.lr == 1e-5);
  assert_int_equal(config_set(&config, "lora.layers=all"), STATUS_OK);
  assert_true(config.lora.layers.all);
  assert_int_equal(config_set(&config, "lora.overrides=[{layers: 1, off: true}]"), STATUS_OK);
  assert_int_equal(config.lora.n_overrides, 1);
  assert_int_equal(config_set(&config, "data.train=x=y.jsonl"), STATUS_OK);
  assert_string_equal(config.data.train.items[0], "x=y.jsonl");
  assert_int_equal(config_set(&config, "output=''"), STATUS_OK);
  assert_string_equal(config.output, "");
  assert_int_equal(config_set(&config, "checkpoint={every: 3}"), STATUS_OK);
  assert_int_equal(config.checkpoint.every, 3);
  /* An epoch count on top of a file's steps takes their place. */
  assert_int_equal(config_set(&config, "train.epochs=2.5"), STATUS_OK);
  assert_true(config.train.epochs == 2.5);
  assert_int_equal(config.train.steps, 0);
}

static void set_refuses_with_the_key(void **state) {
  (void)state;
  const struct {
    const char *assignment, *part;
  } cases[] = {
      {"train.lr", "KEY=VALUE"},
      {"=3", "KEY=VALUE"},
      {"train.lrr=1", "nearest is 'train.lr'"},
      {"train.lr=", "found nothing"},
      {"train.lr=fast", "train.lr: needs a number; found fast"},
      {"train=3", "train: is a section"},
      {"lora.targets=q,v", "write several as [q, v]"},
      {"lora.targets=[q", "not valid YAML"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    assert_int_equal(config_set(&config, cases[i].assignment), STATUS_USAGE);
    if (!strstr(status_message(), cases[i].part) || !strstr(status_message(), "--set"))
      fail_msg("%s: '%s' lacks '%s'", cases[i].assignment, status_message(), cases[i].part);
  }
}

static void unknown_keys_name_line_and_nearest(void **state) {
  (void)state;
  refused("base: m\n\nlora:\n  r: 8\n  dropuot: 0.1\n", "job.yaml:5: ", "nearest is 'lora.dropout'");
  refused("bse: m\n", "job.yaml:1: ", "nearest is 'base'");
  refused("train: {learning_rate: 1}\n", "unknown key 'train.learning_rate'", "nearest is 'train.lr'");
  refused("seq_len: 3\n", "unknown key 'seq_len'", "nearest is 'data.seq_len'");
  refused("lora: {lr: 3}\n", "unknown key 'lora.lr'", "nearest is 'lora.r'");
  refused("lora: {target_modules: q}\n", "nearest is 'lora.targets'", NULL);
  refused("lora: {overrides: [{module: q, off: true}]}\n", "unknown key 'module'", "nearest is 'modules'");
}

static void wrong_types_are_refused(void **state) {
  (void)state;
  refused("lora:\n  r: 2.5\n", "job.yaml:2: lora.r: needs a whole number; found 2.5", NULL);
  refused("lora: {r: \"8\"}\n", "needs a whole number; found the text '8'", NULL);
  refused("lora: {r: [8]}\n", "needs a whole number; found a list", NULL);
  refused("lora: {alpha: high}\n", "needs a number", NULL);
  refused("train: {lr: nan}\n", "needs a number", NULL);
  refused("train: {lr: .inf}\n", "needs a number", NULL);
  refused("train: {lr: 0x10}\n", "needs a number", NULL);
  refused("lora: {rslora: maybe}\n", "needs true or false", NULL);
  refused("lora: {rslora: 1}\n", "needs true or false", NULL);
  refused("base: 5\n", "base: needs text", "quotes");
  refused("base: [m]\n", "base: needs text", NULL);
  refused("base:\n", "found nothing", NULL);
  refused("data: {train: {a: b}}\n", "needs a list of files; found a map", NULL);
  refused("data: {train: [3]}\n", "needs text", NULL);
  refused("data: {train: ['']}\n", "empty name", NULL);
  refused("train: {schedule: quadratic}\n", "needs one of linear, cosine, constant; found quadratic", NULL);
  refused("train: {betas: [0.9]}\n", "two numbers", NULL);
  refused("train: 5\n", "train: is a section", NULL);
  refused("- a\n", "map of keys", NULL);
  refused("lora: {targets: [q, w]}\n", "unknown module 'w'", "nearest is");
  refused("lora: {targets: q_prj}\n", "unknown module 'q_prj'", NULL);
  refused("lora: {targets: []}\n", "at least one module", NULL);
  refused("lora: {layers: []}\n", "at least one layer", NULL);
  refused("lora: {layers: some}\n", "needs all, layer numbers", NULL);
  refused("lora: {layers: -1}\n", "needs all, layer numbers", NULL);
  refused("lora: {layers: 1-}\n", "needs all, layer numbers", NULL);
  refused("lora: {layers: 1-2-3}\n", "needs all, layer numbers", NULL);
  refused("lora: {layers: 123456789012}\n", "needs all, layer numbers", NULL);
  refused("lora: {overrides: {r: 3}}\n", "list of maps", NULL);
  refused("lora: {overrides: [{layers: 3}]}\n", "changes nothing", NULL);
  refused("lora: {overrides: [{r: 3, off: true}]}\n", "off: true", NULL);
}

static void ranges_are_enforced(void **state) {
  (void)state;
  refused("lora: {r: 0}\n", "lora.r: 0 is out of range; allowed: 1 to 65536", NULL);
  refused("lora: {r: 99999999999999999999}\n", "out of range", NULL);
  refused("lora: {dropout: 1}\n", "allowed: 0 to below 1", NULL);
  refused("lora: {alpha: 0}\n", "allowed: above 0", NULL);
  refused("train: {lr: -1e-4}\n", "out of range", NULL);
  refused("train: {lr: 1e999}\n", "out of range", NULL);
  refused("train: {betas: [0.9, 1.0]}\n", "train.betas: 1.0 is out of range", NULL);
  refused("train: {seed: -1}\n", "out of range", NULL);
  refused("train: {seed: 18446744073709551616}\n", "out of range", NULL);
  refused("parallel: {pp: 0}\n", "allowed: 1 to 65536", NULL);
  refused("lora: {layers: 7-4}\n", "backwards", NULL);
  refused("lora: {layers: 99999}\n", "out of range", NULL);
  refused("lora: {overrides: [{r: 0}]}\n", "lora.overrides[0].r: 0 is out of range", NULL);
  parse_ok("lora: {dropout: 0.999, r: 65536}\ntrain: {lr: 0, betas: [0, 0]}\n");
}

static void yaml_extras_are_refused(void **state) {
  (void)state;
  refused("lora: {r: 8}\nlora: {alpha: 3}\n", "job.yaml:2: key 'lora' is here twice", "line 1");
  refused("lora:\n  r: 8\n  r: 9\n", "job.yaml:3: key 'r' is here twice", NULL);
  refused("lora: {r: 8}\nlora.r: 9\n", "key 'lora.r' is given twice", NULL);
  refused("lora: {overrides: [{r: 8, r: 9}]}\n", "twice", NULL);
  refused("base: &a m\noutput: *a\n", "job.yaml:1: anchors", NULL);
  refused("output: *a\n", "aliases", NULL);
  refused("lora: {r: !!int 8}\n", "tags", NULL);
  refused("base: m\n---\nbase: n\n", "job.yaml:2: a second document", NULL);
  refused("<<: {r: 3}\n", "merge keys", NULL);
  refused("[a, b]: 3\n", "a key must be a plain name", NULL);
  refused("base: [\n", "not valid YAML", "job.yaml:2");
  refused("base: \"a\\0b\"\n", "zero byte", NULL);
  refused("base: \xff\n", "UTF-8", NULL);
  refused("? \n", "an empty key", NULL);
  refused_length("base: a\0b\n", 10, "job.yaml", NULL);
}

static void size_and_nesting_are_bounded(void **state) {
  (void)state;
  char deep[4096];
  memset(deep, '[', sizeof deep);
  memcpy(deep, "base: ", 6);
  refused_length(deep, sizeof deep, "nested more than", NULL);
  size_t size = 300 * 1024;
  char *large = malloc(size);
  assert_non_null(large);
  memset(large, '#', size);
  refused_length(large, size, "larger than", NULL);
  memset(large, ',', size);
  memcpy(large, "base: [a", 8);
  for (size_t i = 8; i + 1 < 200000; i += 2) memcpy(large + i, ",a", 2);
  refused_length(large, 200000, "more than", NULL);
  size_t used = 0;
  used += (size_t)sprintf(large, "data: {train: [");
  for (int i = 0; i <= CONFIG_MAX_FILES; i++) used += (size_t)sprintf(large + used, "f%d, ", i);
  used += (size_t)sprintf(large + used, "]}\n");
  refused_length(large, used, "at most 64", NULL);
  used = (size_t)sprintf(large, "lora: {overrides: [");
  for (int i = 0; i <= CONFIG_MAX_OVERRIDES; i++) used += (size_t)sprintf(large + used, "{r: 1, layers: %d}, ", i);
  used += (size_t)sprintf(large + used, "]}\n");
  refused_length(large, used, "at most 32", NULL);
  free(large);
}

static void empty_text_and_sections_change_nothing(void **state) {
  (void)state;
  parse_ok("");
  parse_ok("# nothing\n");
  parse_ok("---\n...\n");
  parse_ok("lora:\n  # r: 3\ntrain: {}\n");
  assert_int_equal(config.lora.r, 8);
}

static void steps_and_epochs_exclude_each_other(void **state) {
  (void)state;
  refused("train: {steps: 5, epochs: 2}\n", "train.steps and train.epochs are both given", "job.yaml");
  parse_ok("train: {steps: 0, epochs: 2}\n");
  assert_true(config.train.epochs == 2 && config.train.steps == 0);
  parse_ok("train: {steps: 5}\n");
  assert_true(config.train.epochs == 0 && config.train.steps == 5);
}

static void check_names_what_is_missing(void **state) {
  (void)state;
  assert_int_equal(config_check(&config, false), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "base is not set"));
  parse_ok("base: m\n");
  assert_int_equal(config_check(&config, false), STATUS_OK);
  assert_int_equal(config_check(&config, true), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "data.train"));
  parse_ok("data: {train: a.txt}\n");
  assert_int_equal(config_check(&config, true), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "output"));
  parse_ok("output: out\n");
  assert_int_equal(config_check(&config, true), STATUS_OK);
  parse_ok("train: {epochs: 0}\n");
  assert_int_equal(config_check(&config, true), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "both 0"));
}

static void files_are_read_and_named(void **state) {
  (void)state;
  char path[] = "/tmp/lorashard-config-XXXXXX";
  int fd = mkstemp(path);
  assert_true(fd >= 0);
  assert_int_equal(write(fd, "base: m\nlora: {r: 0}\n", 21), 21);
  close(fd);
  assert_int_equal(config_read(&config, path), STATUS_USAGE);
  assert_non_null(strstr(status_message(), path));
  assert_non_null(strstr(status_message(), ":2: lora.r"));
  assert_string_equal(config.base, "m");
  unlink(path);
  assert_int_equal(config_read(&config, path), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "No such file"));
  assert_int_equal(config_read(&config, "/tmp"), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "directory"));
}

static void distances_count_edits(void **state) {
  (void)state;
  assert_int_equal(nearest_distance("train", "train"), 0);
  assert_int_equal(nearest_distance("Seq-Len", "seq_len"), 0);
  assert_int_equal(nearest_distance("trian", "train"), 1);
  assert_int_equal(nearest_distance("", "abc"), 3);
  assert_int_equal(nearest_distance("kitten", "sitting"), 3);
  const char *names[] = {"eval", "export", "merge"};
  assert_int_equal(nearest_name("exprot", names, 3), 1);
  assert_int_equal(nearest_name("x", names, 0), -1);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
  const struct CMUnitTest tests[] = {
      TEST(defaults_are_the_documented_ones),
      TEST(every_key_is_read),
      TEST(printed_text_parses_back),
      TEST(values_replace_earlier_ones),
      TEST(set_refuses_with_the_key),
      TEST(unknown_keys_name_line_and_nearest),
      TEST(wrong_types_are_refused),
      TEST(ranges_are_enforced),
      TEST(yaml_extras_are_refused),
      TEST(size_and_nesting_are_bounded),
      TEST(empty_text_and_sections_change_nothing),
      TEST(steps_and_epochs_exclude_each_other),
      TEST(check_names_what_is_missing),
      TEST(files_are_read_and_named),
      TEST(distances_count_edits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
