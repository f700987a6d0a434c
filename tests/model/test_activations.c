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

/* A rank's dry model for training, with adapters on the linears of the layers from `lowest` on. */
static struct model *prepare(struct layout layout, int lowest) {
  struct device device = {.host_memory = true};
  const int L = (int)source->facts.n_layers;
  struct shard shard;
  struct model *model;
  static const struct lowrank pair = {.r = 8};
  assert_int_equal(shard_plan(&source->facts, layout.tp, 0, &shard), STATUS_OK);
  assert_int_equal(shard_plan_stage(&source->facts, lowest, layout.pp, layout.pp_rank, &shard), STATUS_OK);
  const struct model_options options = {.act = DTYPE_BF16, .n_positions = 1024, .shard = &shard, .dry = true};
  assert_int_equal(model_create(&device, source, NULL, NULL, &options, &model), STATUS_OK);
  for (int layer = lowest; layer < L; layer++)
    for (int module = 0; module < MODULE_COUNT; module++)
      if (module != MODULE_GATE && shard_has_layer(&shard, layer))
        model_attach(model, layer, (enum module)module, &pair);
  layout.prepare.max_tokens = TOKENS;
  layout.prepare.training = true;
  assert_int_equal(model_prepare(model, &layout.prepare), STATUS_OK);
  assert_null(model->acts.memory.arena);
  assert_null(model->weights.memory.arena);
  return model;
}

/* Bytes of the arena of a rank's activations, all layers adapted; `stream`: of the residual streams in it. */
static size_t arena(struct layout layout, size_t *stream) {
  struct model *model = prepare(layout, 0);
  const struct memory_table *table = &model->acts.memory;
  size_t total = table->total;
  if (stream) *stream = 0;
  for (int i = 0; stream && i < table->n; i++)
    if (strcmp(table->entries[i].name, "residual") == 0) *stream += table->entries[i].bytes;
  model_destroy(&model);
  return total;
}

static size_t kept(struct layout layout, int lowest) {
  struct model *model = prepare(layout, lowest);
  size_t bytes = model->acts.kept;
  model_destroy(&model);
  return bytes;
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
  size_t third = arena((struct layout){1, 4, 2, {.n_micro = 8}}, NULL);
  assert_true(first > short_step);
  assert_true(first > third);
}

/* What is kept is what adapted layers hand from forward to backward, and none of the scratch that all layers share:
 * with full recomputation one layer's input, with none also what it makes of it. */
static void test_kept_is_what_backward_reads(void **state) {
  (void)state;
  const struct model_facts *f = &source->facts;
  const int last = (int)f->n_layers - 1;
  const size_t input = (size_t)(TOKENS * f->d_model) * sizeof(float); /* a multiple of the alignment */
  const size_t one = kept((struct layout){1, 1, 0, {.recompute = RECOMPUTE_FULL}}, last);
  assert_int_equal(input % 64, 0);
  assert_int_equal(one, input);
  assert_int_equal(kept((struct layout){1, 1, 0, {.recompute = RECOMPUTE_FULL}}, last - 1), 2 * input);
  assert_int_equal(kept((struct layout){2, 1, 0, {.recompute = RECOMPUTE_FULL, .sequence = true}}, last), input / 2);
  /* Two streams, statistics of two norms, q k v, attention output and log-sum-exp, pre-activations, six adapters. */
  const int64_t D = f->d_model, H = f->n_heads, row = 4 * (2 * D + 4 + H + 6 * 8) + 2 * (3 * D + D + f->d_ffn);
  assert_int_equal(kept((struct layout){1, 1, 0, {0}}, last), (size_t)(TOKENS * row));
  assert_int_equal(kept((struct layout){1, 1, 0, {0}}, last + 1), 0);
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
      cmocka_unit_test(test_kept_is_what_backward_reads),
  };
  return cmocka_run_group_tests(tests, open_source, close_source);
}
