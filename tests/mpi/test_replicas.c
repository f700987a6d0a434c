/* ranks: 1 2 3 4 */
/*
 * Copies that should be equal are equal to the bit on every rank after each of
 * five steps, also with replicated KV heads (2 KV heads at tp 4) and with sequence
 * parallelism, whose ranks have other tokens; the norm that clipping sees and the
 * adapters it leaves are those of one rank alone.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../test_device.h"
#include "golden_device.h"
#include "golden_step.h"
#include "lora/adamw.h"
#include "lora/gradient.h"
#include "lora/replicas.h"

#define STEPS 5
/* Sums of f32 products over two layers in another order: about 1e-6 of the largest element. */
#define NORM_TOLERANCE 1e-5
/* AdamW divides by |g|, so elements with tiny gradients amplify that rounding: of a weight's largest element. */
#define WEIGHT_TOLERANCE 2e-4

static const char *const cases[] = {"llama", "gpt2",  "gpt2-seven-heads", "llama-uneven", "bloom", "neox",
                                    "gptj",  "qwen3", "opt-post-norm"};
static int n_run;
static double worst_norm, worst_weight;

/* Whether `bytes` of data are those of the group's first rank. */
static bool equal_over(struct comm *comm, const void *data, size_t bytes) {
  char *first = malloc(bytes + 1);
  golden_check(first != NULL, "out of memory");
  memcpy(first, data, bytes);
  golden_must(comm_broadcast(comm, first, bytes, 0));
  bool equal = memcmp(first, data, bytes) == 0;
  free(first);
  return equal;
}

static void check_copies(const char *name, int step, struct golden_model *m) {
  golden_fetch(m);
  for (int i = 0; i < m->adapters.params.n; i++) {
    const struct param *p = &m->adapters.params.items[i];
    struct comm *comm = p->group == PARAM_STAGE ? m->mesh->stage : m->mesh->dp;
    size_t bytes = (size_t)(p->part_rows * p->part_cols) * sizeof(float);
    const float *kinds[] = {golden_host(m, p->w), golden_host(m, p->m), golden_host(m, p->v), golden_host(m, p->g)};
    for (int kind = 0; kind < 4; kind++)
      golden_check(equal_over(comm, kinds[kind], bytes), "%s: after step %d %s/%s%s differs between the ranks of %s",
                   name, step, p->group_name, p->name,
                   kind == 0   ? ""
                   : kind == 1 ? ".m"
                   : kind == 2 ? ".v"
                               : "'s gradient",
                   comm_name(comm));
  }
}

/* A bit that one rank has otherwise is found, and the rank if others have what most have. */
static void check_fault(const char *name, struct golden_model *m) {
  struct param_list *params = &m->adapters.params;
  const struct mesh *mesh = m->mesh;
  golden_must(replicas_compare(params, mesh, m->device));
  for (int group = 0; group < PARAM_GROUPS; group++) {
    const struct param *p = NULL;
    for (int i = 0; i < params->n && !p; i++)
      if ((int)params->items[i].group == group && param_bytes(&params->items[i]) > 0) p = &params->items[i];
    const int holders = group == PARAM_STAGE ? mesh->n_tp * mesh->n_dp : mesh->n_dp, bad = mesh->world - 1;
    if (!p || holders < 2) continue;
    uint32_t *word = (uint32_t *)param_host(params, p->v) + param_bytes(p) / 4 - 1;
    if (mesh->rank == bad) *word ^= 1;
    golden_must(param_list_send(params, m->device));
    enum status status = replicas_compare(params, mesh, m->device);
    bool knows = group == PARAM_STAGE || mesh->tp_rank == mesh->n_tp - 1;
    golden_check(status == (knows ? STATUS_SYSTEM : STATUS_OK), "%s: a changed bit of %s/%s gives status %d", name,
                 p->group_name, p->name, status);
    char want[160], rank[96];
    mesh_name_rank(bad, mesh_host(bad), rank, sizeof rank);
    snprintf(want, sizeof want, "%s/%s on %s", p->group_name, p->name, holders > 2 ? rank : "rank ");
    golden_check(!knows || strncmp(status_message(), want, strlen(want)) == 0, "%s: '%s' does not begin with '%s'",
                 name, status_message(), want);
    if (mesh->rank == bad) *word ^= 1;
    golden_must(param_list_send(params, m->device));
  }
}

static void update(struct golden_model *m, double norm, double clip_norm, int step) {
  struct adamw_settings settings = {1e-2, 0.9, 0.999, 1e-8, 0.01};
  golden_must(adamw_update(m->device, &m->adapters.params, &settings, gradient_clip_factor(norm, clip_norm), step));
}

static double norm_alone(const struct golden_model *m) {
  double square;
  golden_must(m->device->ops->sum_squares(m->device, m->adapters.params.buckets[PARAM_DP].g,
                                          m->adapters.params.buckets[PARAM_DP].n, &square));
  return sqrt(square);
}

/* Of the whole matrices: each counted once, whatever the layout. */
static int64_t parameters(const struct param_list *list) {
  int64_t n = 0;
  for (int i = 0; i < list->n; i++) n += list->items[i].rows * list->items[i].cols;
  return n;
}

static void run_case(const char *name, struct mesh *mesh, struct mesh *alone, bool sequence) {
  struct golden_case golden;
  struct golden_model m, reference;
  double clip_norm = 0;
  golden_open(name, &golden);
  golden_model_open(&golden, alone, DTYPE_F32, &reference);
  if (mesh->n_tp > reference.source->facts.n_heads) {
    golden_model_close(&reference);
    golden_close(&golden);
    return;
  }
  const struct prepare_options how = {.n_micro = golden.rows, .sequence = sequence};
  golden_model_open_as(&golden, mesh, DTYPE_F32, &how, &m);
  golden_check(parameters(&m.adapters.params) == parameters(&reference.adapters.params),
               "%s: the number of trainable parameters depends on the layout", name);
  for (int step = 1; step <= test_steps(STEPS); step++) {
    golden_gradient(&golden, &m, 2);
    golden_gradient_alone(&golden, &reference);
    double norm = golden_norm(&m), want = norm_alone(&reference), error = fabs(norm - want) / want;
    golden_check(error <= NORM_TOLERANCE, "%s, step %d: norm %.9g, alone %.9g", name, step, norm, want);
    worst_norm = fmax(worst_norm, error);
    if (step == 1) clip_norm = want / 2;
    update(&m, norm, clip_norm, step);
    update(&reference, want, clip_norm, step);
    check_copies(name, step, &m);
  }
  check_fault(name, &m);
  worst_weight = fmax(worst_weight, golden_compare(name, &m, &reference, GOLDEN_WEIGHTS, WEIGHT_TOLERANCE));
  n_run++;
  golden_model_close(&m);
  golden_model_close(&reference);
  golden_close(&golden);
}

int main(void) {
  int world, rank;
  golden_start(&world, &rank);
  struct mesh *alone = golden_mesh(1);
  for (int tp = world; tp >= 1; tp--) {
    struct mesh *mesh;
    if (world % tp) continue;
    mesh = golden_mesh(tp);
    for (int sequence = 0; sequence <= (tp > 1); sequence++) {
      n_run = 0;
      for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) run_case(cases[i], mesh, alone, sequence);
      golden_check(n_run > 0, "nothing ran");
      if (rank == 0)
        printf("tp %d%s dp %d: %d cases, copies equal; worst norm %.2g, weight %.2g\n", mesh->n_tp,
               sequence ? " with sequence" : "", mesh->n_dp, n_run, worst_norm, worst_weight);
    }
    golden_mesh_close(&mesh);
  }
  golden_mesh_close(&alone);
  golden_stop();
  return 0;
}
