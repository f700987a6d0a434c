#include "slope.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dist/rng.h"

/* A direction: standard normal numbers, plus `lean` times the gradient. */
struct direction {
  int number;
  double lean;
  double slope, square, gradient_square; /* <gradient, u>, |u|^2, |gradient|^2 */
};

static double element(const struct golden_model *m, const struct direction *direction, const struct param *p,
                      int number, int64_t at) {
  uint64_t index = (uint64_t)((p->row + at / p->part_cols) * p->cols + p->col + at % p->part_cols); /* in the whole */
  double random = rng_gaussian(9, RNG_SYNTHETIC, (uint32_t)direction->number, (uint32_t)number, 0, index);
  return random + direction->lean * (double)golden_host(m, p->g)[at] * (1 + 0.5 * random);
}

/* Each parameter counted once over tp. */
static void measure(struct golden_model *m, struct direction *direction) {
  double sums[3] = {0, 0, 0};
  golden_fetch(m);
  for (int i = 0; i < m->adapters.params.n; i++) {
    const struct param *p = &m->adapters.params.items[i];
    if (p->group != PARAM_DP && m->mesh->tp_rank != 0) continue;
    for (int64_t at = 0; at < p->part_rows * p->part_cols; at++) {
      double u = element(m, direction, p, i, at), g = (double)golden_host(m, p->g)[at];
      sums[0] += g * u;
      sums[1] += u * u;
      sums[2] += g * g;
    }
  }
  golden_must(comm_all_reduce_f64(m->mesh->tp, sums, 3, REDUCE_SUM));
  direction->slope = sums[0];
  direction->square = sums[1];
  direction->gradient_square = sums[2];
}

double slope_loss(struct golden_case *golden, struct golden_model *m) {
  double loss = 0;
  struct batch batch = golden_batch(golden, 0, golden->rows);
  golden_must(transformer_loss(m->model, &batch, &loss, NULL));
  return loss / (double)golden->n_targets;
}

/* (loss after a step of this length - loss after the opposite one) / (2 length). */
static double difference(struct golden_case *golden, struct golden_model *m, const struct direction *direction,
                         double length) {
  double loss[2];
  for (int side = 0; side < 2; side++) {
    double step = (side ? -length : length) / sqrt(direction->square);
    float *kept[PARAM_GROUPS];
    for (int group = 0; group < PARAM_GROUPS; group++) {
      const struct param_bucket *bucket = &m->adapters.params.buckets[group];
      kept[group] = malloc((size_t)bucket->n * sizeof(float) + 1);
      golden_check(kept[group] != NULL, "out of memory");
      if (bucket->n) memcpy(kept[group], golden_host(m, bucket->w), (size_t)bucket->n * sizeof(float));
    }
    for (int i = 0; i < m->adapters.params.n; i++) {
      struct param *p = &m->adapters.params.items[i];
      for (int64_t at = 0; at < p->part_rows * p->part_cols; at++)
        golden_host(m, p->w)[at] += (float)(step * element(m, direction, p, i, at));
    }
    golden_must(param_list_send(&m->adapters.params, m->device));
    loss[side] = slope_loss(golden, m);
    for (int group = 0; group < PARAM_GROUPS; group++) {
      const struct param_bucket *bucket = &m->adapters.params.buckets[group];
      if (bucket->n) memcpy(golden_host(m, bucket->w), kept[group], (size_t)bucket->n * sizeof(float));
      free(kept[group]);
    }
    golden_must(param_list_send(&m->adapters.params, m->device));
  }
  return (loss[0] - loss[1]) / (2 * length);
}

double slope_error(struct golden_case *golden, struct golden_model *m, int d, bool leaning) {
  struct direction direction = {.number = d};
  measure(m, &direction);
  double norm = sqrt(direction.gradient_square), got;
  if (leaning) {
    direction.lean = 4 * sqrt(direction.square) / norm;
    measure(m, &direction);
  }
  if (m->model->act == DTYPE_BF16)
    got = difference(golden, m, &direction, 0.3 / norm);
  else /* Richardson: the O(step^2) terms of two steps cancel */
    got = (4 * difference(golden, m, &direction, 0.02) - difference(golden, m, &direction, 0.04)) / 3;
  return fabs(got - direction.slope / sqrt(direction.square)) / norm;
}
