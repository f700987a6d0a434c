#include "golden_step.h"

#include <math.h>

#include "launch/batcher.h"
#include "lora/gradient.h"

double golden_largest(const float *x, int64_t n) {
  double most = 0;
  for (int64_t i = 0; i < n; i++) most = fmax(most, fabs((double)x[i]));
  return most;
}

void golden_select(struct golden_case *golden, unsigned modules, int first_layer) {
  int n = 0;
  for (int i = 0; i < golden->n_modules; i++) {
    const struct golden_module module = golden->modules[i];
    if (modules >> module_from_name(module.name) & 1 && module.layer >= first_layer) golden->modules[n++] = module;
  }
  golden->n_modules = n;
}

static double micro_batches(struct golden_case *golden, struct golden_model *m, int64_t first, int64_t count,
                            int64_t micro_batch) {
  double loss = 0;
  golden_must(param_list_zero_gradients(&m->adapters.params, m->device));
  for (int64_t i = 0; i < count; i += micro_batch) {
    int64_t n = count - i < micro_batch ? count - i : micro_batch;
    struct batch batch = golden_batch(golden, first + i, n);
    golden_must(transformer_train(m->model, &batch, 1.0f / (float)golden->n_targets, &loss));
  }
  return loss;
}

double golden_gradient(struct golden_case *golden, struct golden_model *m, int64_t micro_batch) {
  int64_t first, count;
  batcher_deal(golden->rows, m->mesh->n_dp, m->mesh->dp_rank, &first, &count);
  double loss = micro_batches(golden, m, first, count, micro_batch);
  golden_must(gradient_reduce(&m->adapters.params, m->mesh));
  if (m->mesh->tp_rank != 0) loss = 0;
  golden_must(comm_all_reduce_f64(m->mesh->control, &loss, 1, REDUCE_SUM));
  return loss / (double)golden->n_targets;
}

double golden_gradient_alone(struct golden_case *golden, struct golden_model *m) {
  golden_check(m->mesh->n_tp == 1, "the reference needs tp = 1");
  return micro_batches(golden, m, 0, golden->rows, golden->rows) / (double)golden->n_targets;
}

double golden_norm(struct golden_model *m) {
  double square;
  golden_must(gradient_square_share(m->device, &m->adapters.params, m->mesh, &square));
  golden_must(comm_all_reduce_f64(m->mesh->control, &square, 1, REDUCE_SUM));
  return sqrt(square);
}

double golden_compare(const char *label, struct golden_model *m, struct golden_model *reference, enum golden_what what,
                      double tolerance) {
  double worst = 0;
  golden_fetch(m);
  golden_fetch(reference);
  for (int i = 0; i < m->adapters.params.n; i++) {
    const struct param *p = &m->adapters.params.items[i], *whole = &reference->adapters.params.items[i];
    const float *got = golden_host(m, what == GOLDEN_WEIGHTS ? p->w : p->g);
    const float *want = golden_host(reference, what == GOLDEN_WEIGHTS ? whole->w : whole->g);
    double scale = golden_largest(want, whole->rows * whole->cols);
    for (int64_t row = 0; row < p->part_rows; row++)
      for (int64_t col = 0; col < p->part_cols; col++) {
        double a = (double)got[row * p->part_cols + col], b = (double)want[(p->row + row) * p->cols + p->col + col];
        double error = fabs(a - b) / scale;
        golden_check(error <= tolerance || a == b,
                     "%s: %s of %s/%s[%lld, %lld]: %.9g, alone %.9g, error %.3g of the largest, above %.3g", label,
                     what == GOLDEN_WEIGHTS ? "value" : "gradient", p->group_name, p->name, (long long)(p->row + row),
                     (long long)(p->col + col), a, b, error, tolerance);
        if (error > worst) worst = error;
      }
  }
  return worst;
}
