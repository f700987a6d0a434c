/*
 * Memory of activations by layout and recomputation mode, from the tables of dry
 * models: nothing is allocated. GPT-2 small's sizes, 4096 tokens.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/base_model.h"
#include "io/synthetic.h"
#include "model/model.h"

#define TOKENS 4096

static struct tensor_source *source;

struct layout {
  int tp, pp, pp_rank;
  struct prepare_options prepare;
};

/* Bytes of the arena of a rank's activations; `kept`: of what layers keep alone. */
static size_t arena(struct layout layout, size_t *kept) {
  struct device device = {.host_memory = true};
  const int L = (int)source->facts.n_layers;
  struct shard shard;
  struct model *model;
  struct lowrank pair = {.r = 8};
  assert_int_equal(shard_plan(&source->facts, layout.tp, 0, &shard), STATUS_OK);
  assert_int_equal(shard_plan_stage(&source->facts, 0, layout.pp, layout.pp_rank, &shard), STATUS_OK);
  const struct model_options options = {.act = DTYPE_BF16, .n_positions = 1024, .shard = &shard, .dry = true};
  assert_int_equal(model_create(&device, source, NULL, NULL, &options, &model), STATUS_OK);
  for (int layer = 0; layer < L; layer++)
    for (int module = 0; module < MODULE_COUNT; module++)
      if (module != MODULE_GATE && shard_has_layer(&shard, layer))
        model_attach(model, layer, (enum module)module, &pair);
  layout.prepare.max_tokens = TOKENS;
  layout.prepare.training = true;
  assert_int_equal(model_prepare(model, &layout.prepare), STATUS_OK);
  size_t total = model->acts.memory.total;
  assert_null(model->acts.memory.arena);
  assert_null(model->weights.memory.arena);
  if (kept) {
    *kept = 0;
    for (int i = 0; i < model->acts.memory.n; i++)
      if (strcmp(model->acts.memory.entries[i].name, "residual") == 0) *kept += model->acts.memory.entries[i].bytes;
  }
  model_destroy(&model);
  return total;
}

/* Field reports: at most 1 / tp + 10 % of one rank's. Without sequence parallelism the residual stream stays whole. */
static void test_sequence_parallelism_cuts_memory(void **state) {
  (void)state;
  size_t stream, one = arena((struct layout){1, 1, 0, {0}}, &stream);
  for (int tp = 2; tp <= 4; tp *= 2) {
    size_t own, split = arena((struct layout){tp, 1, 0, {.sequence = true}}, &own);
    size_t whole = arena((struct layout){tp, 1, 0, {0}}, NULL);
    print_message("tp %d: %.3f of one rank's activations, without sequence parallelism %.3f\n", tp,
                  (double)split / (double)one, (double)whole / (double)one);
    assert_int_equal(own * (size_t)tp, stream);
    assert_true((double)split <= (double)one * (1.0 / tp + 0.10));
    assert_true(split < whole);
  }
}

static void test_recomputation_cuts_memory(void **state) {
  (void)state;
  size_t none = arena((struct layout){1, 1, 0, {.recompute = RECOMPUTE_NONE}}, NULL);
  size_t selective = arena((struct layout){1, 1, 0, {.recompute = RECOMPUTE_SELECTIVE}}, NULL);
  size_t full = arena((struct layout){1, 1, 0, {.recompute = RECOMPUTE_FULL}}, NULL);
  const struct model_facts *f = &source->facts;
  /* One layer's pre-activations stay, for all to share. */
  size_t ffn = (size_t)(f->d_ffn * TOKENS) * 2 * (size_t)f->n_layers;
  assert_int_equal(none - selective, ffn);
  assert_true(full < selective);
}

/* A stage keeps as many micro-batches as stages from it on, and no more than a step has. */
static void test_stages_keep_what_is_under_way(void **state) {
  (void)state;
  size_t first = arena((struct layout){1, 4, 0, {.n_micro = 8}}, NULL);
  size_t short_step = arena((struct layout){1, 4, 0, {.n_micro = 2}}, NULL);
  size_t third = arena((struct layout){1, 4, 2, {.n_micro = 8, .adapted_below = true}}, NULL);
  assert_true(first > short_step);
  assert_true(first > third);
}

static int open_source(void **state) {
  (void)state;
  return base_model_open("synthetic:gpt2", &source) == STATUS_OK ? 0 : -1;
}
static int close_source(void **state) {
  (void)state;
  base_model_close(&source);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sequence_parallelism_cuts_memory),
      cmocka_unit_test(test_recomputation_cuts_memory),
      cmocka_unit_test(test_stages_keep_what_is_under_way),
  };
  return cmocka_run_group_tests(tests, open_source, close_source);
}
