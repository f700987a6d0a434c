/* ranks: 2 4 */
/*
 * Sequence parallelism of every family: gradients equal one rank's (1e-4 of each
 * tensor's largest element, as in test_golden; f32 rounding gives about 1e-6), and a
 * micro-batch sends a reduce-scatter and an all-gather for each all-reduce, with the
 * adapters' columns inside them: not a call more, but one of the adapter columns alone
 * at the lowest adapted input, whose gradient nobody below wants. Counts are whole
 * numbers: equal or wrong.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "golden_device.h"
#include "golden_step.h"

#define BIT(module) (1u << MODULE_##module)
#define ATTENTION   (BIT(Q) | BIT(K) | BIT(V))
#define FFN         (BIT(GATE) | BIT(UP))

static const char *const cases[] = {
    "gpt2",         "opt-post-norm", "bloom",           "neox", "neox-sequential", "gptj",
    "llama-uneven", "qwen2",         "llama-tied-bias", "qwen3"};

static const struct targets {
  const char *name;
  unsigned modules;
  int first_layer;
} target_sets[] = {
    {"all", GOLDEN_ALL_MODULES, 0},
    {"q v from layer 1", BIT(Q) | BIT(V), 1},
    {"ffn", FFN | BIT(DOWN), 0},
    {"o", BIT(O), 0},
};

static int n_steps;
static double worst;

/* --- counts --- */

static void add(struct comm_counts *counts, int64_t calls, int64_t values) {
  counts->calls += (uint64_t)(values ? calls : 0);
  counts->bytes += (uint64_t)(calls * values) * sizeof(float);
}

/* Adapter columns of a layer's entry: in fours. */
static int64_t columns(const struct model *model, int layer, unsigned modules) {
  int64_t n = 0;
  for (int m = 0; m < MODULE_COUNT; m++)
    if (modules >> m & 1 && model->pairs[layer][m]) n += model->pairs[layer][m]->r;
  return (n + 3) / 4 * 4;
}

/* Inputs of column-parallel linears in a layer, as masks. */
static int entries(const struct model_facts *f, unsigned masks[2]) {
  masks[0] = f->shared_norm ? ATTENTION | FFN : ATTENTION;
  masks[1] = FFN;
  return f->shared_norm ? 1 : 2;
}

/* All-gathers count a rank's own part, reduce-scatters the whole buffer. */
static struct comm_counts forward_counts(const struct model *model, const struct batch *batch) {
  const struct model_facts *f = &model->facts;
  const int64_t M = batch->M, own = M / model->shard.n_tp, D = f->d_model;
  struct comm_counts counts = {0, 0};
  unsigned masks[2];
  int n_entries = entries(f, masks);
  add(&counts, 1, M * f->d_embed); /* embedding */
  for (int layer = 0; layer < f->n_layers; layer++) {
    for (int e = 0; e < n_entries; e++) add(&counts, 1, own * (D + columns(model, layer, masks[e])));
    add(&counts, f->parallel_residual ? 1 : 2, M * D);
  }
  add(&counts, 1, own * D); /* head */
  int64_t n = 0;
  for (int64_t t = 0; t < M; t++) n += batch->labels[t] >= 0;
  for (int64_t left = n; left > 0; left -= model->acts.chunk) {
    int64_t chunk = left < model->acts.chunk ? left : model->acts.chunk;
    add(&counts, 1, chunk);
    add(&counts, 1, 2 * chunk);
  }
  return counts;
}

static struct comm_counts backward_counts(const struct model *model, const struct batch *batch) {
  const struct model_facts *f = &model->facts;
  const int64_t M = batch->M, own = M / model->shard.n_tp, D = f->d_model;
  struct comm_counts counts = {0, 0};
  unsigned masks[2];
  entries(f, masks);
  add(&counts, 1, M * D); /* head */
  for (int layer = (int)f->n_layers - 1; layer >= model->backward_from; layer--) {
    const struct layer_needs *needs = &model->needs[layer];
    int64_t attention = columns(model, layer, masks[0]), ffn = f->shared_norm ? 0 : columns(model, layer, masks[1]);
    add(&counts, f->parallel_residual || !needs->x2 ? 1 : 2, own * D); /* dy, for each sublayer */
    add(&counts, 1, M * (attention + (needs->x1 ? D : 0)));
    if (!f->shared_norm) add(&counts, 1, M * (ffn + (needs->x2 ? D : 0)));
  }
  return counts;
}

static void expect(const char *label, struct comm *comm, struct comm_counts want) {
  struct comm_counts got = comm_counts(comm);
  golden_check(got.calls == want.calls && got.bytes == want.bytes,
               "%s, over %s of %d: %" PRIu64 " calls, %" PRIu64 " bytes; should be %" PRIu64 ", %" PRIu64, label,
               comm_name(comm), comm_size(comm), got.calls, got.bytes, want.calls, want.bytes);
}

static void check_counts(const char *label, struct golden_case *golden, struct golden_model *m) {
  struct batch batch = golden_batch(golden, 0, golden->rows);
  double loss = 0;
  comm_reset_counts(m->mesh->tp);
  golden_must(transformer_loss(m->model, &batch, &loss, NULL));
  struct comm_counts want = forward_counts(m->model, &batch);
  expect(label, m->mesh->tp, want);
  comm_reset_counts(m->mesh->tp);
  golden_train_one(m, &batch, 1e-3f, &loss);
  struct comm_counts backward = backward_counts(m->model, &batch);
  want.calls += backward.calls;
  want.bytes += backward.bytes;
  expect(label, m->mesh->tp, want);
}

/* --- runs --- */

static void run_case(const char *name, const struct targets *targets, struct mesh *mesh, struct mesh *single) {
  struct golden_case golden;
  struct golden_model m, alone;
  char label[120];
  golden_open(name, &golden);
  golden_select(&golden, targets->modules, targets->first_layer);
  golden_model_open(&golden, single, DTYPE_F32, &alone);
  if (mesh->n_tp > alone.model->facts.n_heads) goto out;
  snprintf(label, sizeof label, "%s, adapters on %s", name, targets->name);
  const struct prepare_options how = {.sequence = true};
  golden_model_open_as(&golden, mesh, DTYPE_F32, &how, &m);
  double loss = golden_gradient(&golden, &m, golden.rows), want = golden_gradient_alone(&golden, &alone);
  golden_check(fabs(loss - want) <= 1e-5 * want, "%s: loss %.9g, alone %.9g", label, loss, want);
  worst = fmax(worst, golden_compare(label, &m, &alone, GOLDEN_GRADIENTS, 1e-4));
  check_counts(label, &golden, &m);
  golden_model_close(&m);
  n_steps++;
out:
  golden_model_close(&alone);
  golden_close(&golden);
}

int main(void) {
  int world, rank;
  golden_start(&world, &rank);
  struct mesh *mesh = golden_mesh(world), *single = golden_mesh(1);
  for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
    for (size_t t = 0; t < sizeof target_sets / sizeof target_sets[0]; t++)
      run_case(cases[c], &target_sets[t], mesh, single);
  golden_check(n_steps > 0, "nothing ran");
  if (rank == 0) printf("tp %d: %d steps, worst gradient %.2g\n", world, n_steps, worst);
  golden_mesh_close(&mesh);
  golden_mesh_close(&single);
  golden_stop();
  return 0;
}
