/* ranks: 4 6 8 12 */
/*
 * The layout contract over tp x pp x dp, with and without sequence parallelism and
 * in each recomputation mode: the same AdamW curve as one rank by itself, to 1e-5
 * of the loss (f32 rounding over five layers gives about 1e-7), dropout included, and
 * gradients of the three recomputation modes equal to the bit. Micro-batches of one row: each
 * step accumulates over several in every pipeline.
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
#include "synthetic_case.h"

#define STEPS 5

struct layout {
  int tp, pp, dp;
  bool sequence;
};

/* Those of this world's size are run, each with every recomputation mode. */
static const struct layout layouts[] = {
    {1, 4, 1, false}, {4, 1, 1, true},  {2, 2, 1, true}, {2, 2, 1, false}, /* 4 ranks */
    {2, 3, 1, true},  {3, 2, 1, false}, {3, 1, 2, true}, {1, 2, 3, false}, /* 6 */
    {2, 4, 1, false}, {4, 2, 1, true},  {2, 2, 2, true},                   /* 8 */
    {3, 4, 1, true},  {4, 3, 1, false}, {2, 2, 3, true}, {1, 4, 3, false}, /* 12 */
};

/* KV heads are replicated at tp 3 and 4, heads, FFN columns and vocabulary uneven at tp 3, layers at pp 2 to 4. */
static const struct synthetic_dims dims = {"llama", 5, 48, 6, 2, 8, 104, 97};

static const enum recompute modes[] = {RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL};
static const char *const mode_names[] = {"none", "selective", "full"};

static double curve[STEPS], norms[STEPS];
static int n_run;
static double worst;

static void update(struct golden_model *m, double norm, int step) {
  const struct adamw_settings settings = {1e-2, 0.9, 0.999, 1e-8, 0.01};
  golden_must(adamw_update(m->device, &m->adapters.params, &settings, gradient_clip_factor(norm, 1.0), step + 1));
}

/* Norm of whole gradients on one rank. */
static double norm_alone(struct golden_model *m) {
  double sum = 0;
  for (int g = 0; g < PARAM_GROUPS; g++) {
    double square;
    golden_must(m->device->ops->sum_squares(m->device, m->adapters.params.buckets[g].g, m->adapters.params.buckets[g].n,
                                            &square));
    sum += square;
  }
  return sqrt(sum);
}

/* Masks are functions of the global row and feature: the same in every layout. */
static void use_dropout(struct golden_model *m) {
  for (int i = 0; i < m->adapters.n; i++) {
    m->adapters.pairs[i].dropout.p = 0.1f;
    m->adapters.pairs[i].dropout.seed = 7;
  }
}

static void reference_curve(struct golden_case *golden, struct golden_model *alone) {
  for (int step = 0; step < test_steps(STEPS); step++) {
    curve[step] = golden_gradient_alone(golden, alone);
    norms[step] = norm_alone(alone);
    update(alone, norms[step], step);
  }
}

/* All gradients of this rank, one after the other; malloc'ed. */
static float *copy_gradients(struct golden_model *m, size_t *bytes) {
  golden_fetch(m);
  *bytes = m->adapters.params.memory_bytes;
  float *copy = malloc(*bytes + 1), *to = copy;
  golden_check(copy != NULL, "out of memory");
  for (int i = 0; i < m->adapters.params.n; i++) {
    const struct param *p = &m->adapters.params.items[i];
    memcpy(to, golden_host(m, p->g), param_bytes(p));
    to += p->part_rows * p->part_cols;
  }
  *bytes = (size_t)((char *)to - (char *)copy);
  return copy;
}

/* One layout in one mode; *first holds the gradients of the first mode. */
static void run_mode(struct golden_case *golden, const struct layout *layout, int mode, struct mesh *mesh,
                     const struct golden_model *alone, float **first) {
  char label[80];
  snprintf(label, sizeof label, "tp %d pp %d dp %d%s, recompute %s", layout->tp, layout->pp, layout->dp,
           layout->sequence ? " sequence parallel" : "", mode_names[mode]);
  const struct prepare_options how = {
      .sequence = layout->sequence, .recompute = modes[mode], .n_micro = golden->rows, .max_tokens = golden->seq_len};
  struct golden_model m;
  golden_model_open_as(golden, mesh, DTYPE_F32, &how, &m);
  use_dropout(&m);
  for (int step = 0; step < test_steps(STEPS); step++) {
    double loss = golden_gradient(golden, &m, 1), norm = golden_norm(&m);
    if (step == 0) {
      size_t bytes;
      float *gradients = copy_gradients(&m, &bytes);
      golden_check(!*first || memcmp(*first, gradients, bytes) == 0, "%s: gradients differ from recompute none", label);
      if (*first) free(gradients);
      if (!*first) *first = gradients;
    }
    double error = fabs(loss - curve[step]) / curve[step];
    golden_check(error <= 1e-5, "%s step %d: loss %.9g, one rank %.9g", label, step, loss, curve[step]);
    golden_check(fabs(norm - norms[step]) <= 1e-4 * norms[step], "%s step %d: gradient norm %.9g, one rank %.9g", label,
                 step, norm, norms[step]);
    if (error > worst) worst = error;
    update(&m, norm, step);
  }
  /* Adam divides by |g|: where g is near zero rounding moves a weight by up to lr. */
  golden_compare(label, &m, (struct golden_model *)alone, GOLDEN_WEIGHTS, 0.02);
  golden_model_close(&m);
  n_run++;
}

static void run_layout(struct golden_case *golden, const struct layout *layout, const struct golden_model *alone) {
  struct mesh *mesh = golden_mesh_stages(layout->tp, layout->pp);
  float *first = NULL;
  golden_check(mesh->n_dp == layout->dp, "dp %d", mesh->n_dp);
  for (int mode = 0; mode < 3; mode++) run_mode(golden, layout, mode, mesh, alone, &first);
  free(first);
  golden_mesh_close(&mesh);
}

int main(void) {
  int world, rank;
  struct golden_case golden;
  struct golden_model alone;
  golden_start(&world, &rank);
  struct mesh *single = golden_mesh(1);
  synthetic_open(&dims, single, &golden);
  golden_select(&golden, GOLDEN_ALL_MODULES, 1); /* layer 0 has none: its stage may run forward only */
  golden_model_open(&golden, single, DTYPE_F32, &alone);
  use_dropout(&alone);
  reference_curve(&golden, &alone);
  for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++)
    if (layouts[i].tp * layouts[i].pp * layouts[i].dp == world) run_layout(&golden, &layouts[i], &alone);
  golden_check(n_run > 0, "no layout for %d ranks", world);
  if (rank == 0) printf("%d ranks: %d layouts and modes follow one rank's curve, to %.2g\n", world, n_run, worst);
  golden_model_close(&alone);
  synthetic_close(single, &golden);
  golden_mesh_close(&single);
  golden_stop();
  return 0;
}
