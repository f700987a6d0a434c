/* ranks: 2 4 */
/*
 * A step sends what docs/architecture.md says and not a byte more: calls and
 * bytes of every group for sequential, parallel and shared-norm blocks, several
 * sets of adapters, tp = all ranks, tp = 2 with replicas, and replicas alone. Counts are whole
 * numbers: they are equal or wrong.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "golden_device.h"
#include "golden_step.h"
#include "lora/gradient.h"

#define BIT(module) (1u << MODULE_##module)
#define ATTENTION   (BIT(Q) | BIT(K) | BIT(V) | BIT(O))

static const char *const cases[] = {"llama", "gpt2", "bloom",           "opt-post-norm",
                                    "qwen2", "neox", "neox-sequential", "gptj"};

static const struct targets {
  const char *name;
  unsigned modules;
  int first_layer;
} target_sets[] = {
    {"q v", BIT(Q) | BIT(V), 0},
    {"all", GOLDEN_ALL_MODULES, 0},
    {"all from layer 1", GOLDEN_ALL_MODULES, 1},
    {"ffn", GOLDEN_ALL_MODULES & ~ATTENTION, 0},
    {"o", BIT(O), 0},
    {"down from layer 1", BIT(DOWN), 1},
    {"none", 0, 0},
};

static int n_steps;

static void add(struct comm_counts *counts, int64_t calls, int64_t values) {
  counts->calls += (uint64_t)calls;
  counts->bytes += (uint64_t)(calls * values) * sizeof(float);
}

static void expect(const char *name, const struct targets *targets, const char *when, struct comm *comm,
                   struct comm_counts want) {
  struct comm_counts got = comm_counts(comm);
  if (comm_size(comm) == 1) want = (struct comm_counts){0, 0};
  golden_check(
      got.calls == want.calls && got.bytes == want.bytes,
      "%s, adapters on %s, %s over %s of %d: %" PRIu64 " calls, %" PRIu64 " bytes; should be %" PRIu64 ", %" PRIu64,
      name, targets->name, when, comm_name(comm), comm_size(comm), got.calls, got.bytes, want.calls, want.bytes);
}

/* --- one micro-batch --- */

static int64_t count_targets(const struct batch *batch) {
  int64_t n = 0;
  for (int64_t t = 0; t < batch->M; t++) n += batch->labels[t] >= 0;
  return n;
}

static struct comm_counts forward_counts(const struct model *model, const struct batch *batch) {
  const struct model_facts *f = &model->facts;
  struct comm_counts counts = {0, 0};
  add(&counts, 1, batch->M * f->d_embed);
  add(&counts, f->n_layers * (f->parallel_residual ? 1 : 2), batch->M * f->d_model);
  for (int64_t left = count_targets(batch); left > 0; left -= model->acts.chunk) {
    int64_t n = left < model->acts.chunk ? left : model->acts.chunk;
    add(&counts, 1, n);     /* maxima */
    add(&counts, 1, 2 * n); /* sums of exponentials, target logits */
  }
  return counts;
}

static struct comm_counts backward_counts(const struct model *model, const struct batch *batch,
                                          const struct targets *targets) {
  const struct model_facts *f = &model->facts;
  const int64_t MD = batch->M * f->d_model, above = f->n_layers - 1 - targets->first_layer;
  struct comm_counts counts = {0, 0};
  if (targets->modules == 0) return counts;
  add(&counts, 1, count_targets(batch) * f->d_model);
  add(&counts, f->parallel_residual ? above : 2 * above, MD);
  if (!f->parallel_residual && (targets->modules & ATTENTION)) add(&counts, 1, MD); /* the lowest layer's ffn input */
  golden_check(counts.calls <= 2 * (uint64_t)f->n_layers, "the expectation itself is above 2 L");
  return counts;
}

static void check_micro_batch(const char *name, const struct targets *targets, struct golden_model *m,
                              const struct batch *batch) {
  double loss = 0;
  comm_reset_counts(m->mesh->tp);
  golden_must(transformer_loss(m->model, batch, &loss, NULL));
  struct comm_counts want = forward_counts(m->model, batch);
  expect(name, targets, "forward", m->mesh->tp, want);
  comm_reset_counts(m->mesh->tp);
  golden_train_one(m, batch, 1e-3f, &loss);
  struct comm_counts backward = backward_counts(m->model, batch, targets);
  want.calls += backward.calls;
  want.bytes += backward.bytes;
  expect(name, targets, "forward and backward", m->mesh->tp, want);
}

/* Copies of the case's rows: more targets than one chunk of the head takes. */
static void check_chunks(struct golden_case *golden, struct golden_model *m, const struct targets *targets) {
  enum { COPIES = 12 };
  const int64_t M = golden->rows * golden->seq_len;
  int32_t *tokens = malloc((size_t)(3 * COPIES * M) * sizeof *tokens);
  struct segment segments[COPIES * 8];
  struct batch one = golden_batch(golden, 0, golden->rows), all = one;
  int n = 0;
  golden_check(tokens != NULL, "out of memory");
  for (int copy = 0; copy < COPIES; copy++) {
    memcpy(tokens + copy * M, one.ids, (size_t)M * sizeof *tokens);
    memcpy(tokens + (COPIES + copy) * M, one.labels, (size_t)M * sizeof *tokens);
    memcpy(tokens + (2 * COPIES + copy) * M, one.positions, (size_t)M * sizeof *tokens);
    for (int i = 0; i < one.n_segments; i++) {
      segments[n] = one.segments[i];
      segments[n].q += (int32_t)(copy * M);
      segments[n++].k += (int32_t)(copy * M);
    }
  }
  all.M = COPIES * M;
  all.ids = tokens;
  all.labels = tokens + COPIES * M;
  all.positions = tokens + 2 * COPIES * M;
  all.segments = segments;
  all.n_segments = n;
  golden_must(model_prepare(m->model, &(struct prepare_options){.max_tokens = all.M, .training = true}));
  if (m->model->acts.chunk > M) m->model->acts.chunk = M; /* a device with its own memory takes larger ones */
  golden_check(count_targets(&all) > m->model->acts.chunk, "%s: one chunk holds all targets", golden->folder);
  check_micro_batch("several chunks", targets, m, &all);
  golden_must(model_prepare(m->model, &(struct prepare_options){.max_tokens = M, .training = true}));
  free(tokens);
}

/* --- the gradient buckets --- */

static void check_buckets(const char *name, const struct targets *targets, struct golden_model *m) {
  int64_t replicated = 0, sharded = 0;
  for (int i = 0; i < m->adapters.n; i++) {
    const struct adapter_spec *spec = &m->adapters.specs[i];
    bool row = module_is_row_parallel(spec->module);
    int64_t a = spec->r * (row ? spec->in_t : spec->in),
            b = spec->r * (row || spec->out_shared ? spec->out : spec->out_t);
    *(row || m->mesh->n_tp == 1 ? &sharded : &replicated) += a;
    *((row || spec->out_shared) && m->mesh->n_tp > 1 ? &replicated : &sharded) += b;
  }
  struct comm_counts stage = {0, 0}, dp = {0, 0};
  if (replicated) add(&stage, 1, replicated);
  if (sharded) add(&dp, 1, sharded);
  comm_reset_counts(m->mesh->stage);
  comm_reset_counts(m->mesh->dp);
  comm_reset_counts(m->mesh->tp);
  golden_must(gradient_reduce(&m->adapters.params, m->mesh));
  expect(name, targets, "gradients", m->mesh->stage, stage);
  expect(name, targets, "gradients", m->mesh->dp, dp);
  expect(name, targets, "gradients", m->mesh->tp, (struct comm_counts){0, 0});
}

static void run_case(const char *name, const struct targets *targets, struct mesh *mesh) {
  struct golden_case golden;
  struct golden_model m;
  golden_open(name, &golden);
  golden_select(&golden, targets->modules, targets->first_layer);
  struct tensor_source *source;
  golden_must(base_model_open(golden.folder, &source));
  bool too_many_ranks = mesh->n_tp > source->facts.n_heads;
  base_model_close(&source);
  if (!too_many_ranks) {
    golden_model_open(&golden, mesh, DTYPE_F32, &m);
    comm_reset_counts(mesh->control);
    struct batch batch = golden_batch(&golden, 0, 2);
    check_micro_batch(name, targets, &m, &batch);
    check_buckets(name, targets, &m);
    if (strcmp(name, "llama") == 0) check_chunks(&golden, &m, targets);
    golden_check(comm_counts(mesh->control).calls == 0, "%s: a step's arithmetic used the control group", name);
    golden_model_close(&m);
    n_steps++;
  }
  golden_close(&golden);
}

int main(void) {
  int world, rank;
  golden_start(&world, &rank);
  for (int tp = world; tp >= 1; tp /= 2) {
    struct mesh *mesh = golden_mesh(tp);
    n_steps = 0;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
      for (size_t t = 0; t < sizeof target_sets / sizeof target_sets[0]; t++) run_case(cases[c], &target_sets[t], mesh);
    golden_check(n_steps > 0, "nothing ran");
    if (rank == 0) printf("tp %d dp %d: %d steps sent the minimum\n", mesh->n_tp, mesh->n_dp, n_steps);
    golden_mesh_close(&mesh);
  }
  golden_stop();
  return 0;
}
