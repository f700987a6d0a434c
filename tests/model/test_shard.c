/*
 * What each tensor-parallel rank holds: everything once, evenly, for published
 * models and for sizes that no number of ranks divides.
 */
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
#include "model/shard.h"

static const char *const models[] = {
    "bloom-176b",     "gpt-j-6b",      "gpt-neox-20b",         "gpt2",         "gpt2-medium",          "gpt2-xl",
    "llama-3.1-405b", "llama-3.1-70b", "llama-3.1-8b",         "llama-3.2-1b", "mistral-7b-v0.1",      "opt-175b",
    "opt-350m",       "opt-66b",       "qwen2.5-72b-instruct", "qwen3-8b",     "smollm2-135m-instruct"};

static struct model_facts read_facts(const char *name) {
  struct model_facts facts;
  char path[512], *text = NULL;
  size_t length = 0;
  snprintf(path, sizeof path, FIXTURES "/configs/%s.json", name);
  assert_int_equal(file_read_text(path, 1 << 20, &text, &length), STATUS_OK);
  assert_int_equal(model_facts_parse(text, length, path, &facts), STATUS_OK);
  free(text);
  return facts;
}

static int64_t end(struct span span) { return span.first + span.n; }

/* Every head, column and vocabulary row is on one rank, in order; KV heads are where their query heads are. */
static void check_parts(const char *name, const struct model_facts *f, int n_tp) {
  static struct shard s;
  int64_t heads = 0, ffn = 0, vocab = 0, most = 0, least = INT64_MAX;
  const int64_t group = f->n_heads / f->n_kv_heads;
  for (int t = 0; t < n_tp; t++) {
    assert_int_equal(shard_plan(f, n_tp, t, &s), STATUS_OK);
    if (s.heads.first != heads || s.ffn.first != ffn || (s.vocab.n && s.vocab.first != vocab) || s.heads.n < 1 ||
        s.ffn.n < 1)
      fail_msg("%s: rank %d of %d does not begin where the last one ended", name, t, n_tp);
    heads = end(s.heads);
    ffn = end(s.ffn);
    if (s.vocab.n) vocab = end(s.vocab);
    if (s.heads.n > most) most = s.heads.n;
    if (s.heads.n < least) least = s.heads.n;
    for (int64_t h = 0; h < s.heads.n; h++) {
      int64_t kv = s.kv_heads.first + s.kv_of_head[h];
      if (kv != (s.heads.first + h) / group || s.kv_of_head[h] < 0 || s.kv_of_head[h] >= s.kv_heads.n)
        fail_msg("%s: rank %d of %d: query head %d reads KV head %d", name, t, n_tp, (int)(s.heads.first + h), (int)kv);
    }
    assert_int_equal(s.kv_replicated, n_tp > f->n_kv_heads);
  }
  assert_int_equal(heads, f->n_heads);
  assert_int_equal(ffn, f->d_ffn);
  assert_int_equal(vocab, f->n_vocab);
  int64_t unit = n_tp > f->n_kv_heads ? 1 : group; /* whole KV groups, or single heads beyond their number */
  if (most - least > unit) fail_msg("%s: %d to %d heads a rank at tp %d", name, (int)least, (int)most, n_tp);
}

static void test_parts(void **state) {
  (void)state;
  int layouts = 0;
  for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
    struct model_facts facts = read_facts(models[i]);
    for (int n_tp = 1; n_tp <= 64 && n_tp <= facts.n_heads; n_tp++, layouts++) check_parts(models[i], &facts, n_tp);
  }
  assert_true(layouts > 400);
}

/* 100 (largest / mean - 1) of the ranks' work in a layer's linears. */
static double imbalance(const struct model_facts *f, int n_tp) {
  static struct shard s;
  double most = 0, sum = 0;
  for (int t = 0; t < n_tp; t++) {
    assert_int_equal(shard_plan(f, n_tp, t, &s), STATUS_OK);
    double work = (double)shard_layer_work(&s, f);
    sum += work;
    if (work > most) most = work;
  }
  return 100 * (most * n_tp / sum - 1);
}

/* The promise is 3 % where the sizes allow it: a rank's FFN must be able to make up for a KV group, in units of 32
 * columns. These are the layouts that people use, the ones that do not divide among them. */
static void test_balance(void **state) {
  (void)state;
  static const struct {
    const char *name;
    int n_tp;
  } layouts[] = {
      {"smollm2-135m-instruct", 2},
      {"gpt2", 5},
      {"gpt2", 8},
      {"gpt2-xl", 2},
      {"gpt2-xl", 4},
      {"gpt2-xl", 8},
      {"gpt2-medium", 3},
      {"gpt-j-6b", 3},
      {"gpt-neox-20b", 6},
      {"opt-175b", 7},
      {"bloom-176b", 9},
      {"llama-3.1-8b", 3},
      {"llama-3.1-8b", 6},
      {"llama-3.1-70b", 3},
      {"llama-3.1-70b", 8},
      {"mistral-7b-v0.1", 5},
      {"qwen3-8b", 3},
      {"qwen2.5-72b-instruct", 6},
  };
  double worst = 0;
  for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
    struct model_facts facts = read_facts(layouts[i].name);
    double percent = imbalance(&facts, layouts[i].n_tp);
    if (percent > 3)
      fail_msg("%s at tp %d: the busiest rank has %.1f %% more than the mean", layouts[i].name, layouts[i].n_tp,
               percent);
    if (percent > worst) worst = percent;
  }
  print_message("imbalance at most %.2f %%\n", worst);
}

static void test_linears_cover_the_model(void **state) {
  (void)state;
  static struct shard s;
  struct model_facts facts = read_facts("smollm2-135m-instruct");
  for (int module = 0; module < MODULE_COUNT; module++) {
    int64_t out = 0, in = 0;
    for (int t = 0; t < 3; t++) {
      assert_int_equal(shard_plan(&facts, 3, t, &s), STATUS_OK);
      struct linear_dims dims = shard_linear(&s, &facts, (enum module)module);
      bool row = module_is_row_parallel((enum module)module);
      assert_int_equal(row ? dims.in_t.first : dims.out_t.first, row ? in : out);
      assert_int_equal(row ? dims.out_t.n : dims.in_t.n, row ? dims.out : dims.in);
      out = end(dims.out_t);
      in = end(dims.in_t);
      if (t == 2) assert_true(out == dims.out && in == dims.in);
    }
  }
}

static void test_refusals(void **state) {
  (void)state;
  static struct shard s;
  struct model_facts facts = read_facts("smollm2-135m-instruct");
  assert_int_equal(shard_plan(&facts, 9, 8, &s), STATUS_OK);
  assert_int_equal(shard_plan(&facts, 10, 0, &s), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "9 attention heads"));
  facts.n_vocab = 4;
  assert_int_equal(shard_plan(&facts, 4, 3, &s), STATUS_OK);
  assert_int_equal(shard_plan(&facts, 5, 0, &s), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "4 vocabulary rows"));
  facts.n_vocab = 5; /* parts of ceil(5 / 4) = 2: the last rank has none */
  assert_int_equal(shard_plan(&facts, 4, 3, &s), STATUS_OK);
  assert_int_equal(s.vocab.n, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_parts),
      cmocka_unit_test(test_balance),
      cmocka_unit_test(test_linears_cover_the_model),
      cmocka_unit_test(test_refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
