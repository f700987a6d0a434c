/* ranks: 2 3 4 */
/*
 * Heads, KV groups, FFN columns and vocabularies that the number of ranks does
 * not divide give the loss, logits and gradients of one rank alone; all shards
 * together are the model.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "golden_device.h"
#include "golden_step.h"
#include "synthetic_case.h"

/* Sums of f32 products in another order: about 1e-6 of the largest element over two layers. */
#define TOLERANCE      2e-5
#define LOSS_TOLERANCE 2e-6

static const struct synthetic_dims shapes[] = {
    {"10 heads over 5 KV heads", 2, 40, 10, 5, 4, 172, 97},
    {"9 heads over 3 KV heads", 2, 36, 9, 3, 4, 96, 61},
    {"8 heads over 1 KV head", 2, 32, 8, 1, 4, 88, 97},
    {"6 heads over 2 KV heads", 2, 24, 6, 2, 4, 50, 33},
    {"7 heads", 2, 28, 7, 7, 4, 75, 97},
    {"7 heads, odd width", 1, 30, 7, 7, 6, 33, 13},
    {"a rank without vocabulary", 2, 32, 4, 2, 8, 64, 5}, /* ceil(5 / 4) = 2 rows: 2, 2, 1, 0 */
};

static void check_logits(const char *name, struct golden_case *golden, struct golden_model *m,
                         struct golden_model *alone) {
  int64_t M = golden->rows * golden->seq_len, n = M * golden->n_vocab;
  float *got = malloc((size_t)n * sizeof *got), *want = malloc((size_t)n * sizeof *want);
  int32_t rows[256];
  for (int64_t i = 0; i < M; i++) rows[i] = (int32_t)i;
  struct batch batch = golden_batch(golden, 0, golden->rows);
  golden_must(transformer_logits(m->model, &batch, rows, M, got));
  golden_must(transformer_logits(alone->model, &batch, rows, M, want));
  double scale = golden_largest(want, n);
  for (int64_t i = 0; i < n; i++)
    golden_check(fabs((double)got[i] - (double)want[i]) <= TOLERANCE * scale, "%s: logit %lld: %.9g, alone %.9g", name,
                 (long long)i, (double)got[i], (double)want[i]);
  free(got);
  free(want);
}

/* Over all ranks: query heads differ by at most one KV group (one head when KV heads are replicated), every head,
 * column and vocabulary row is somewhere. */
static void check_parts(const char *name, const struct golden_model *m) {
  const struct model_facts *f = &m->source->facts;
  const struct shard *s = &m->model->shard;
  int64_t group = s->kv_replicated ? 1 : f->n_heads / f->n_kv_heads;
  double sum[3] = {(double)s->heads.n, (double)s->ffn.n, (double)s->vocab.n}, most = (double)s->heads.n, least = most;
  golden_must(comm_all_reduce_f64(m->mesh->tp, sum, 3, REDUCE_SUM));
  golden_must(comm_all_reduce_f64(m->mesh->tp, &most, 1, REDUCE_MAX));
  golden_must(comm_all_reduce_f64(m->mesh->tp, &least, 1, REDUCE_MIN));
  golden_check(sum[0] == (double)f->n_heads && sum[1] == (double)f->d_ffn && sum[2] == (double)f->n_vocab,
               "%s: the ranks hold %g heads, %g columns, %g vocabulary rows", name, sum[0], sum[1], sum[2]);
  golden_check(most - least <= (double)group, "%s: %g to %g heads a rank", name, least, most);
}

int main(void) {
  int world, rank;
  struct mesh *mesh, *alone;
  double worst = 0;
  golden_start(&world, &rank);
  mesh = golden_mesh(world);
  alone = golden_mesh(1);
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
    struct golden_case golden;
    struct golden_model m, reference;
    synthetic_open(&shapes[i], mesh, &golden);
    golden_model_open(&golden, mesh, DTYPE_F32, &m);
    golden_model_open(&golden, alone, DTYPE_F32, &reference);
    check_parts(shapes[i].name, &m);
    check_logits(shapes[i].name, &golden, &m, &reference);
    double loss = golden_gradient(&golden, &m, 2), want = golden_gradient_alone(&golden, &reference);
    golden_check(fabs(loss - want) <= LOSS_TOLERANCE * want, "%s: loss %.9g, alone %.9g", shapes[i].name, loss, want);
    worst = fmax(worst, golden_compare(shapes[i].name, &m, &reference, GOLDEN_GRADIENTS, TOLERANCE));
    golden_model_close(&m);
    golden_model_close(&reference);
    synthetic_close(mesh, &golden);
  }
  if (rank == 0)
    printf("tp %d: %d uneven shapes agree with tp 1; worst gradient %.2g\n", world,
           (int)(sizeof shapes / sizeof shapes[0]), worst);
  golden_mesh_close(&mesh);
  golden_mesh_close(&alone);
  golden_stop();
  return 0;
}
