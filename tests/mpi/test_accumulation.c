/* ranks: 1 2 3 4 */
/*
 * Sixteen documents of 3 to 60 tokens, one of them without a target, in
 * micro-batches of 1, 2, 3 and 16, over every tp x dp of the ranks, with
 * dropout: the loss and gradients of one rank that takes them all at once (more
 * targets than the head takes in one chunk). A batch without any target changes
 * nothing.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "document_batch.h"
#include "golden_device.h"
#include "golden_step.h"
#include "launch/batcher.h"
#include "lora/gradient.h"

#define LOSS_TOLERANCE     2e-6 /* f32 rounding in another order */
#define GRADIENT_TOLERANCE 2e-5 /* the same, of the largest element */

enum { DOCUMENTS = 16 };

static struct document documents[DOCUMENTS];
static struct document_batch batch_memory;

static double worst;

static void open_model(const struct golden_case *golden, struct mesh *mesh, struct golden_model *m) {
  golden_model_open(golden, mesh, DTYPE_F32, m);
  for (int i = 0; i < m->adapters.n; i++) m->adapters.pairs[i].dropout.p = 0.25f;
}

/* Documents [first, first + count) in micro-batches; returns the summed loss. */
static double train(struct golden_model *m, int64_t first, int64_t count, int64_t micro_batch, int64_t unit, float g) {
  double loss = 0;
  golden_must(param_list_zero_gradients(&m->adapters.params, m->device));
  for (int64_t i = 0; i < count; i += micro_batch) {
    int64_t n = count - i < micro_batch ? count - i : micro_batch;
    document_batch_fill(&batch_memory, &documents[first + i], (int)n, unit);
    batch_memory.batch.step = 7;
    golden_train_one(m, &batch_memory.batch, g, &loss);
  }
  return loss;
}

static void check_layout(const char *name, struct golden_model *m, struct golden_model *reference, int64_t micro_batch,
                         float g, double want) {
  char label[120];
  int64_t first, count;
  snprintf(label, sizeof label, "%s, tp %d, dp %d, micro-batch %d", name, m->mesh->n_tp, m->mesh->n_dp,
           (int)micro_batch);
  batcher_deal(DOCUMENTS, m->mesh->n_dp, m->mesh->dp_rank, &first, &count);
  double loss = train(m, first, count, micro_batch, micro_batch == 2 ? 1 : 64, g);
  if (m->mesh->tp_rank != 0) loss = 0;
  golden_must(comm_all_reduce_f64(m->mesh->control, &loss, 1, REDUCE_SUM));
  golden_must(gradient_reduce(&m->adapters.params, m->mesh));
  golden_check(fabs(loss - want) <= LOSS_TOLERANCE * want, "%s: loss %.9g, alone %.9g", label, loss, want);
  worst = fmax(worst, golden_compare(label, m, reference, GOLDEN_GRADIENTS, GRADIENT_TOLERANCE));
}

/* No target in the whole batch: neither loss nor gradient, nothing that is not finite. */
static void check_no_target(const char *name, struct golden_model *m) {
  struct document mute;
  double loss = 0;
  document_fill(&mute, 9, m->model->facts.n_vocab, 20, true);
  document_batch_fill(&batch_memory, &mute, 1, 1);
  golden_must(param_list_zero_gradients(&m->adapters.params, m->device));
  golden_train_one(m, &batch_memory.batch, 1, &loss);
  golden_must(gradient_reduce(&m->adapters.params, m->mesh));
  golden_check(loss == 0, "%s: a batch without targets has loss %g", name, loss);
  golden_check(golden_norm(m) == 0, "%s: a batch without targets has gradient norm %g", name, golden_norm(m));
}

static void run_case(const char *name, struct mesh *mesh, struct mesh *alone) {
  static const int64_t lengths[DOCUMENTS] = {3, 60, 57, 60, 5, 60, 58, 60, 60, 59, 60, 41, 60, 60, 60, 60};
  struct golden_case golden;
  struct golden_model m, reference;
  golden_open(name, &golden);
  golden.rows = DOCUMENTS;
  golden.seq_len = DOCUMENT_MAX_LENGTH;
  for (int i = 0; i < DOCUMENTS; i++) document_fill(&documents[i], lengths[i], golden.n_vocab, (uint32_t)i, i == 4);
  document_batch_fill(&batch_memory, documents, DOCUMENTS, 1);
  const float g = 1.0f / (float)batch_memory.n_targets;
  open_model(&golden, alone, &reference);
  open_model(&golden, mesh, &m);
  if (m.model->acts.chunk > 512) m.model->acts.chunk = reference.model->acts.chunk = 512; /* devices take larger ones */
  golden_check(batch_memory.n_targets > reference.model->acts.chunk, "%s: one chunk of the head holds all targets",
               name);
  double want = train(&reference, 0, DOCUMENTS, DOCUMENTS, 1, g);
  for (int i = 0; i < 4; i++) check_layout(name, &m, &reference, (const int64_t[]){1, 2, 3, 16}[i], g, want);
  check_no_target(name, &m);
  golden_model_close(&m);
  golden_model_close(&reference);
  golden_close(&golden);
}

int main(void) {
  static const char *const cases[] = {"gpt2", "llama", "bloom", "gptj"};
  int world, rank;
  struct mesh *alone;
  golden_start(&world, &rank);
  alone = golden_mesh(1);
  for (int tp = world; tp >= 1; tp /= 2) {
    struct mesh *mesh = golden_mesh(tp);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) run_case(cases[i], mesh, alone);
    if (rank == 0) printf("tp %d dp %d: micro-batches of any size agree; worst gradient %.2g\n", tp, mesh->n_dp, worst);
    golden_mesh_close(&mesh);
  }
  golden_mesh_close(&alone);
  golden_stop();
  return 0;
}
