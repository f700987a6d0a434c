/* ranks: 2 4 */
/*
 * Every subset of the linears that can carry an adapter, cut over all ranks,
 * gives the loss and gradients of one rank alone, on two ranks with sequence
 * parallelism too, and these are the slope of the loss.
 */
#include <math.h>
#include <stdio.h>

#include "golden_device.h"
#include "golden_step.h"
#include "slope.h"

/* Sums of f32 products in another order: about 1e-6 of a gradient's largest element over two layers. */
#define GRADIENT_TOLERANCE 2e-5
#define LOSS_TOLERANCE     2e-6
/* The loss is good to about 1e-7, the steps are 0.02 and 0.04: 1e-5 of the gradient's norm; few parameters have a
 * small norm. */
#define SLOPE_TOLERANCE 1e-4

/* The case cut over the mesh against its gradients on one rank alone, which has computed them: the worst error. */
static double compare(const char *label, struct golden_case *golden, struct mesh *mesh, bool sequence, double want,
                      struct golden_model *reference) {
  struct golden_model m;
  const struct prepare_options how = {.n_micro = golden->rows, .sequence = sequence};
  golden_model_open_as(golden, mesh, DTYPE_F32, &how, &m);
  double loss = golden_gradient(golden, &m, golden->rows);
  golden_check(fabs(loss - want) <= LOSS_TOLERANCE * want, "%s, sequence %d: loss %.9g, alone %.9g", label, sequence,
               loss, want);
  double worst = golden_compare(label, &m, reference, GOLDEN_GRADIENTS, GRADIENT_TOLERANCE);
  golden_model_close(&m);
  return worst;
}

int main(void) {
  static const char *const cases[] = {"gpt2", "llama"}; /* fused q k v and a plain ffn; KV groups and a gate */
  int world, rank;
  struct mesh *mesh, *alone;
  golden_start(&world, &rank);
  mesh = golden_mesh(world);
  alone = golden_mesh(1);
  for (int c = 0; c < 2; c++) {
    int n = 0;
    double worst = 0, worst_slope = 0;
    struct golden_case whole;
    golden_open(cases[c], &whole);
    unsigned present = 0;
    for (int i = 0; i < whole.n_modules; i++) present |= 1u << module_from_name(whole.modules[i].name);
    for (unsigned modules = 1; modules <= GOLDEN_ALL_MODULES; modules++) {
      if (modules & ~present) continue;
      struct golden_case golden = whole;
      struct golden_model reference;
      char label[80];
      snprintf(label, sizeof label, "%s, modules 0x%x, tp %d", cases[c], modules, world);
      golden_select(&golden, modules, 0);
      golden_model_open(&golden, alone, DTYPE_F32, &reference);
      double want = golden_gradient_alone(&golden, &reference);
      for (int sequence = 0; sequence <= (world == 2); sequence++) /* four ranks take long */
        worst = fmax(worst, compare(label, &golden, mesh, sequence, want, &reference));
      double error = slope_error(&golden, &reference, 0, false);
      golden_check(error <= SLOPE_TOLERANCE, "%s: alone, the gradient is %.3g of its norm from the loss's slope", label,
                   error);
      worst_slope = fmax(worst_slope, error);
      golden_model_close(&reference);
      n++;
    }
    golden_check(n == (c == 0 ? 63 : 127), "%s: %d subsets ran", cases[c], n);
    if (rank == 0)
      printf("%s: %d subsets at tp %d agree with tp 1; worst gradient %.2g, slope %.2g\n", cases[c], n, world, worst,
             worst_slope);
    golden_close(&whole);
  }
  golden_mesh_close(&mesh);
  golden_mesh_close(&alone);
  golden_stop();
  return 0;
}
