#include "golden_step.h"

#include <math.h>
#include <string.h>

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

struct rows {
  struct golden_case *golden;
  int64_t first, count, micro_batch;
};
static enum status next_rows(void *context, int64_t i, struct batch *batch) {
  const struct rows *rows = context;
  int64_t at = i * rows->micro_batch, left = rows->count - at;
  *batch = golden_batch(rows->golden, rows->first + at, left < rows->micro_batch ? left : rows->micro_batch);
  return STATUS_OK;
}

static double micro_batches(struct golden_case *golden, struct golden_model *m, int64_t first, int64_t count,
                            int64_t micro_batch) {
  double loss = 0;
  struct rows rows = {golden, first, count, micro_batch};
  const struct micro_batches source = {(count + micro_batch - 1) / micro_batch, next_rows, &rows};
  golden_must(param_list_zero_gradients(&m->adapters.params, m->device));
  golden_must(transformer_train(m->model, &source, 1.0f / (float)golden->n_targets, &loss));
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
  golden_check(m->mesh->n_tp == 1 && m->mesh->n_pp == 1, "the reference needs tp = pp = 1");
  return micro_batches(golden, m, 0, golden->rows, golden->rows) / (double)golden->n_targets;
}

double golden_norm(struct golden_model *m) {
  double square;
  golden_must(gradient_square_share(m->device, &m->adapters.params, m->mesh, &square));
  golden_must(comm_all_reduce_f64(m->mesh->control, &square, 1, REDUCE_SUM));
  return sqrt(square);
}

/* The reference's whole matrix of a part. */
static const struct param *find_param(const struct golden_model *reference, const struct param *part) {
  const struct param_list *list = &reference->adapters.params;
  for (int i = 0; i < list->n; i++)
    if (strcmp(list->items[i].group_name, part->group_name) == 0 && strcmp(list->items[i].name, part->name) == 0)
      return &list->items[i];
  golden_check(false, "the reference has no %s/%s", part->group_name, part->name);
  return NULL;
}

double golden_compare(const char *label, struct golden_model *m, struct golden_model *reference, enum golden_what what,
                      double tolerance) {
  double worst = 0;
  golden_fetch(m);
  golden_fetch(reference);
  for (int i = 0; i < m->adapters.params.n; i++) {
    const struct param *p = &m->adapters.params.items[i], *whole = find_param(reference, p);
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
