/* ranks: 1 2 */
/*
 * Documents of one micro-batch do not see each other: the loss and gradients of
 * a pack are the sums of its documents', and changing one leaves the others'
 * logits equal to the bit. Learned positions (gpt2, opt), rotary ones (llama,
 * neox, gptj), ALiBi (bloom), a sliding window (mistral).
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "document_batch.h"
#include "golden_device.h"
#include "golden_step.h"

/* Products of another number of rows may be summed in another order: a few f32 roundings. */
#define LOSS_TOLERANCE     1e-6
#define GRADIENT_TOLERANCE 2e-5

enum { N = 4 }; /* documents: two rows of two */

static struct document_batch batch_memory;

static const struct batch *pack(const struct document *documents, int n, int64_t unit) {
  document_batch_fill(&batch_memory, documents, n, unit);
  return &batch_memory.batch;
}

static double loss_of(struct golden_model *m, const struct batch *batch) {
  double loss = 0;
  golden_must(transformer_loss(m->model, batch, &loss, NULL));
  return loss;
}

static void check_sums(const char *name, struct golden_model *m, struct golden_model *sum,
                       const struct document *documents) {
  double packed = loss_of(m, pack(documents, N, 1)), padded = loss_of(m, pack(documents, N, 64)), single = 0, loss = 0;
  for (int i = 0; i < N; i++) single += loss_of(m, pack(&documents[i], 1, 1));
  golden_check(single > 0 && fabs(packed - single) <= LOSS_TOLERANCE * single,
               "%s: loss of the pack %.9g, of the documents %.9g", name, packed, single);
  golden_check(fabs(padded - single) <= LOSS_TOLERANCE * single,
               "%s: loss of the padded pack %.9g, of the documents %.9g", name, padded, single);
  golden_must(param_list_zero_gradients(&m->adapters.params, m->device));
  golden_train_one(m, pack(documents, N, 64), 0.01f, &loss);
  golden_must(param_list_zero_gradients(&sum->adapters.params, m->device));
  for (int i = 0; i < N; i++) golden_train_one(sum, pack(&documents[i], 1, 1), 0.01f, &loss);
  golden_check(fabs(loss - 2 * single) <= 2 * LOSS_TOLERANCE * single, "%s: loss in training %.9g, otherwise %.9g",
               name, loss / 2, single);
}

/* Logits [M, V] of a pack; malloc'ed. */
static float *logits_of(struct golden_model *m, const struct document *documents, int n, int64_t *M) {
  static int32_t rows[DOCUMENT_MAX_TOKENS];
  const struct batch *batch = pack(documents, n, 1);
  float *logits = malloc((size_t)(batch->M * m->model->facts.n_vocab) * sizeof *logits);
  golden_check(logits != NULL, "out of memory");
  for (int64_t i = 0; i < batch->M; i++) rows[i] = (int32_t)i;
  golden_must(transformer_logits(m->model, batch, rows, batch->M, logits));
  *M = batch->M;
  return logits;
}

/* Change token `at` of document `changed`: only its own positions from there on may change. */
static void check_isolation(const char *name, struct golden_model *m, struct document *documents, int n, int changed,
                            int64_t at) {
  int64_t M, V = m->model->facts.n_vocab, begin = 0;
  for (int i = 0; i < changed; i++) begin += documents[i].length;
  int64_t end = begin + documents[changed].length;
  float *before = logits_of(m, documents, n, &M);
  int32_t *id = &documents[changed].ids[at], kept = *id;
  *id = (int32_t)((kept + 1) % V);
  float *after = logits_of(m, documents, n, &M);
  *id = kept;
  for (int64_t row = 0; row < M; row++) {
    bool equal = memcmp(before + row * V, after + row * V, (size_t)V * sizeof(float)) == 0;
    bool may_differ = row >= begin + at && row < end;
    golden_check(equal || may_differ, "%s: token %lld of document %d of %d changes the logits of position %lld", name,
                 (long long)at, changed, n, (long long)row);
    golden_check(!equal || row != begin + at, "%s: a token does not change its own logits", name);
  }
  free(before);
  free(after);
}

static void run_case(const char *name, struct mesh *mesh) {
  static const int64_t lengths[N] = {11, 13, 3, 21};
  struct golden_case golden;
  struct golden_model m, sum;
  struct document documents[N];
  golden_open(name, &golden);
  golden_model_open(&golden, mesh, DTYPE_F32, &m);
  golden_model_open(&golden, mesh, DTYPE_F32, &sum);
  for (int i = 0; i < N; i++) document_fill(&documents[i], lengths[i], golden.n_vocab, (uint32_t)i, false);
  check_sums(name, &m, &sum, documents);
  golden_fetch(&m);
  golden_fetch(&sum);
  for (int i = 0; i < m.adapters.params.n; i++) {
    const struct param *p = &m.adapters.params.items[i];
    const float *got = golden_host(&m, p->g), *want = golden_host(&sum, sum.adapters.params.items[i].g);
    double scale = golden_largest(want, p->part_rows * p->part_cols);
    for (int64_t k = 0; k < p->part_rows * p->part_cols; k++)
      golden_check(fabs((double)got[k] - (double)want[k]) <= GRADIENT_TOLERANCE * scale,
                   "%s: gradient of %s/%s: packed %.9g, one by one %.9g", name, p->group_name, p->name, (double)got[k],
                   (double)want[k]);
  }
  for (int n = 2; n <= N; n += 2)
    for (int changed = 0; changed < n; changed++) {
      check_isolation(name, &m, documents, n, changed, 0);
      check_isolation(name, &m, documents, n, changed, documents[changed].length - 1);
    }
  golden_model_close(&m);
  golden_model_close(&sum);
  golden_close(&golden);
}

int main(void) {
  static const char *const cases[] = {"gpt2", "llama", "bloom", "opt", "neox", "gptj", "mistral", "qwen3"};
  int world, rank;
  struct mesh *mesh;
  golden_start(&world, &rank);
  mesh = golden_mesh(world);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) run_case(cases[i], mesh);
  if (rank == 0) printf("tp %d: documents are apart in %d families\n", world, (int)(sizeof cases / sizeof cases[0]));
  golden_mesh_close(&mesh);
  golden_stop();
  return 0;
}
