/* ranks: 1 2 3 4 */
/*
 * Every family against transformers and PEFT (tests/golden) in every layout that
 * the ranks allow: tp = all ranks, and dp = 2 with half of them. Logits within
 * 1e-5 of their scale, gradients within 1e-4 of each tensor's largest element, a
 * 20-step AdamW curve within 1e-4 relative: f32 rounding over two layers gives
 * about 1e-6; the goldens are float64. A second pass cuts the batch into
 * micro-batches of one row.
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

static const char *const cases[] = {
    "gpt2",       "gpt2-seven-heads", "gpt2-peft", "opt",   "opt-post-norm", "bloom",
    "neox",       "neox-sequential",  "gptj",      "llama", "llama-uneven",  "llama-tied-bias",
    "llama-yarn", "mistral",          "qwen2",     "qwen3"};

static int n_run;                                       /* cases x micro-batch sizes */
static double worst_logit, worst_gradient, worst_curve; /* as shares of their tolerances */

/* Compare [rows, cols] parts; returns the worst share of the tolerance. */
static double compare(const char *what, const char *name, const float *got, const float *want, int64_t n,
                      double tolerance) {
  double worst = 0;
  int64_t at = 0;
  for (int64_t i = 0; i < n; i++) {
    double share = fabs((double)got[i] - (double)want[i]) / tolerance;
    if (!(share <= worst)) {
      worst = share;
      at = i;
    }
  }
  golden_check(worst <= 1, "%s %s[%lld]: %.9g, golden %.9g: %.1f times the tolerance %.3g", what, name, (long long)at,
               (double)got[at], (double)want[at], worst, tolerance);
  return worst;
}

static void check_logits(struct golden_case *golden, struct golden_model *m) {
  int64_t n, M = golden->rows * golden->seq_len;
  float *want = golden_tensor(golden, "logits", &n), *got = malloc((size_t)n * sizeof *got);
  int32_t rows[256];
  for (int64_t i = 0; i < M; i++) rows[i] = (int32_t)i;
  struct batch batch = golden_batch(golden, 0, golden->rows);
  golden_must(transformer_logits(m->model, &batch, rows, M, got));
  worst_logit = fmax(worst_logit, compare(golden->folder, "logits", got, want, n, 1e-5 * golden_largest(want, n)));
  free(want);
  free(got);
}

static void check_gradient(struct golden_case *golden, const struct golden_model *m, const struct param *p) {
  char name[100], module[16];
  int layer;
  int64_t n;
  golden_check(sscanf(p->group_name, "layers/%d/%15s", &layer, module) == 2, "bad name %s", p->group_name);
  snprintf(name, sizeof name, "grad.layers.%d.%s.%s", layer, module, p->name);
  float *want = golden_tensor(golden, name, &n);
  golden_check(n == p->rows * p->cols, "%s: size", name);
  double tolerance = 1e-4 * golden_largest(want, n);
  for (int64_t row = 0; row < p->part_rows; row++)
    worst_gradient = fmax(worst_gradient, compare(golden->folder, name, golden_host(m, p->g) + row * p->part_cols,
                                                  want + (p->row + row) * p->cols + p->col, p->part_cols, tolerance));
  free(want);
}

static void check_curve(struct golden_case *golden, struct golden_model *m, int64_t micro_batch) {
  struct adamw_settings settings = {1e-2, 0.9, 0.999, 1e-8, 0.01};
  for (int step = 0; step < test_steps(GOLDEN_STEPS); step++) {
    double loss = golden_gradient(golden, m, micro_batch), norm = golden_norm(m);
    double loss_error = fabs(loss - golden->losses[step]) / (1e-4 * golden->losses[step]);
    double norm_error = fabs(norm - golden->grad_norms[step]) / (1e-3 * golden->grad_norms[step]);
    golden_check(loss_error <= 1, "%s step %d: loss %.9g, golden %.9g", golden->folder, step, loss,
                 golden->losses[step]);
    /* Adam divides by |g|: parameters with tiny gradients amplify rounding, so norms get ten times more. */
    golden_check(norm_error <= 1, "%s step %d: norm %.9g, golden %.9g", golden->folder, step, norm,
                 golden->grad_norms[step]);
    worst_curve = fmax(worst_curve, loss_error);
    golden_must(adamw_update(m->device, &m->adapters.params, &settings, gradient_clip_factor(norm, 1.0), step + 1));
  }
}

/* More ranks than heads cannot be dealt: the model is refused before it is read. */
static bool refused(const struct golden_case *golden, const struct mesh *mesh) {
  struct tensor_source *source;
  struct shard shard;
  golden_must(base_model_open(golden->folder, &source));
  bool too_many = mesh->n_tp > source->facts.n_heads;
  enum status status = shard_plan(&source->facts, mesh->n_tp, mesh->tp_rank, &shard);
  golden_check(status == (too_many ? STATUS_USAGE : STATUS_OK), "%s: tp %d: %s", golden->folder, mesh->n_tp,
               status_message());
  base_model_close(&source);
  return too_many;
}

static void run_case(const char *name, struct mesh *mesh, int64_t micro_batch) {
  struct golden_case golden;
  struct golden_model m;
  golden_open(name, &golden);
  if (refused(&golden, mesh)) {
    golden_close(&golden);
    return;
  }
  n_run++;
  golden_model_open(&golden, mesh, DTYPE_F32, &m);
  check_logits(&golden, &m);
  double loss = golden_gradient(&golden, &m, micro_batch);
  golden_check(fabs(loss - golden.loss) <= 1e-5 * golden.loss, "%s: loss %.9g, golden %.9g", name, loss, golden.loss);
  if (strcmp(golden.modules[0].name, "fused") != 0) {
    golden_fetch(&m);
    for (int i = 0; i < m.adapters.params.n; i++) check_gradient(&golden, &m, &m.adapters.params.items[i]);
    check_curve(&golden, &m, micro_batch);
  }
  golden_model_close(&m);
  golden_close(&golden);
}

int main(void) {
  int world, rank;
  golden_start(&world, &rank);
  for (int n_dp = 1; n_dp <= 2; n_dp++) {
    if (world % n_dp) continue;
    struct mesh *mesh = golden_mesh(world / n_dp);
    n_run = 0;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
      run_case(cases[i], mesh, 3);
      run_case(cases[i], mesh, 1);
    }
    if (rank == 0)
      printf("tp %d dp %d: %d runs agree; worst share of tolerance: logits %.3f, gradients %.3f, curve %.3f\n",
             mesh->n_tp, mesh->n_dp, n_run, worst_logit, worst_gradient, worst_curve);
    golden_mesh_close(&mesh);
  }
  golden_stop();
  return 0;
}
