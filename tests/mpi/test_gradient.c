/* ranks: 1 2 */
/*
 * The whole model's gradient against central differences of its own loss, along
 * random directions in all A and B at once, in f32 and bf16; and bf16's logits,
 * loss and gradients against the float64 goldens.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "golden_device.h"
#include "golden_step.h"
#include "slope.h"

/* relu models are left out: a kink within the step is not the gradient's fault. */
static const char *const cases[] = {"gpt2", "llama", "bloom", "qwen3", "neox", "gptj"};

/* f32: the loss is good to about 1e-7, the step is 0.02 to 0.04: 1e-5 of the gradient's norm. */
#define F32_SLOPE_TOLERANCE 2e-5
/* bf16 rounds to 2^-9. Some 20 roundings lie between a weight and a logit, with random signs: sqrt(20) 2^-9 = 0.9 %
 * of a value of full size is an element's likely error, and few are of full size: 2 % is out of reach. A product's
 * gradient sees the roundings of both passes: 4 % of a factor's norm. The loss averages over dozens of targets, and
 * its difference of about 0.6 then carries an error of the same order as the logits': 3 %. */
#define BF16_LOGIT_TOLERANCE    0.02
#define BF16_GRADIENT_TOLERANCE 0.04
#define BF16_LOSS_TOLERANCE     2e-3
#define BF16_SLOPE_TOLERANCE    0.03

enum { DIRECTIONS = 4 };

static double worst[2]; /* slopes, as shares of their tolerances: f32, bf16 */
static double worst_logit, worst_gradient;

static void check_bf16_logits(struct golden_case *golden, struct golden_model *m) {
  int64_t n, M = golden->rows * golden->seq_len;
  float *want = golden_tensor(golden, "logits", &n), *got = malloc((size_t)n * sizeof *got);
  int32_t rows[256];
  golden_check(got != NULL, "out of memory");
  for (int64_t i = 0; i < M; i++) rows[i] = (int32_t)i;
  struct batch batch = golden_batch(golden, 0, golden->rows);
  golden_must(transformer_logits(m->model, &batch, rows, M, got));
  double scale = golden_largest(want, n), most = 0;
  for (int64_t i = 0; i < n; i++) most = fmax(most, fabs((double)got[i] - (double)want[i]));
  golden_check(most <= BF16_LOGIT_TOLERANCE * scale, "%s: a bf16 logit is off by %.3g of the largest", golden->folder,
               most / scale);
  golden_check(most > 0, "%s: bf16 logits equal the f32 ones: not computed in bf16", golden->folder);
  worst_logit = fmax(worst_logit, most / scale);
  free(want);
  free(got);
}

/* Frobenius norm of the error over that of the golden gradient, for each factor's part on this rank. */
static void check_bf16_gradients(struct golden_case *golden, struct golden_model *m) {
  golden_fetch(m);
  for (int i = 0; i < m->adapters.params.n; i++) {
    const struct param *p = &m->adapters.params.items[i];
    char module[16], name[100];
    int layer;
    int64_t n;
    golden_check(sscanf(p->group_name, "layers/%d/%15s", &layer, module) == 2, "bad name %s", p->group_name);
    snprintf(name, sizeof name, "grad.layers.%d.%s.%s", layer, module, p->name);
    float *want = golden_tensor(golden, name, &n);
    const float *got = golden_host(m, p->g);
    double error = 0, size = 0;
    for (int64_t row = 0; row < p->part_rows; row++)
      for (int64_t col = 0; col < p->part_cols; col++) {
        double a = (double)got[row * p->part_cols + col], b = (double)want[(p->row + row) * p->cols + p->col + col];
        error += (a - b) * (a - b);
        size += b * b;
      }
    golden_check(error <= BF16_GRADIENT_TOLERANCE * BF16_GRADIENT_TOLERANCE * size,
                 "%s: %s in bf16 is off by %.3g of its norm", golden->folder, name, sqrt(error / size));
    worst_gradient = fmax(worst_gradient, sqrt(error / size));
    free(want);
  }
}

static void run_case(const char *name, struct mesh *mesh, enum dtype act) {
  struct golden_case golden;
  struct golden_model m;
  golden_open(name, &golden);
  golden_model_open(&golden, mesh, act, &m);
  golden_gradient(&golden, &m, golden.rows);
  const bool bf16 = act == DTYPE_BF16;
  for (int d = 0; d < DIRECTIONS; d++) {
    double share = slope_error(&golden, &m, d, bf16 || d % 2) / (bf16 ? BF16_SLOPE_TOLERANCE : F32_SLOPE_TOLERANCE);
    golden_check(share <= 1, "%s, %s, direction %d: the gradient is %.3g times the tolerance from the loss's slope",
                 name, bf16 ? "bf16" : "f32", d, share);
    worst[bf16] = fmax(worst[bf16], share);
  }
  if (bf16) {
    double loss = slope_loss(&golden, &m);
    golden_check(fabs(loss - golden.loss) <= BF16_LOSS_TOLERANCE * golden.loss, "%s: loss %.9g in bf16, golden %.9g",
                 name, loss, golden.loss);
    check_bf16_logits(&golden, &m);
    check_bf16_gradients(&golden, &m);
  }
  golden_model_close(&m);
  golden_close(&golden);
}

int main(void) {
  int world, rank;
  struct mesh *mesh;
  golden_start(&world, &rank);
  mesh = golden_mesh(world);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    run_case(cases[i], mesh, DTYPE_F32);
    run_case(cases[i], mesh, DTYPE_BF16);
  }
  if (rank == 0)
    printf(
        "tp %d: slopes at most %.2f (f32), %.2f (bf16) of the tolerance; bf16 logits off by %.2g, gradients by %.2g\n",
        world, worst[0], worst[1], worst_logit, worst_gradient);
  golden_mesh_close(&mesh);
  golden_stop();
  return 0;
}
