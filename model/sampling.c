#include "model/sampling.h"

#include <math.h>
#include <stdlib.h>

#include "dist/rng.h"

struct candidate {
  double p;
  int32_t token;
};

static int by_probability(const void *a, const void *b) {
  const struct candidate *x = a, *y = b;
  if (x->p != y->p) return x->p < y->p ? 1 : -1;
  return x->token < y->token ? -1 : 1; /* ties in a fixed order */
}

static int32_t likeliest(const float *logits, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; i++)
    if (logits[i] > logits[best]) best = i;
  return (int32_t)best;
}

enum status sampling_choose(const struct sampling *sampling, const float *logits, int64_t n, int64_t position,
                            int32_t *token) {
  for (int64_t i = 0; i < n; i++)
    if (!isfinite(logits[i]))
      return status_set(STATUS_DATA, "the logits are not finite: weights of the base or of the adapter are damaged");
  int32_t best = likeliest(logits, n);
  *token = best;
  if (sampling->temperature <= 0) return STATUS_OK;
  struct candidate *all = malloc((size_t)n * sizeof *all);
  if (!all) return status_set(STATUS_SYSTEM, "out of memory for %lld candidates", (long long)n);
  double sum = 0;
  for (int64_t i = 0; i < n; i++) {
    all[i] = (struct candidate){exp(((double)logits[i] - (double)logits[best]) / sampling->temperature), (int32_t)i};
    sum += all[i].p;
  }
  qsort(all, (size_t)n, sizeof *all, by_probability);
  int64_t kept = 0;
  double mass = 0;
  while (kept < n && (kept == 0 || mass < sampling->top_p * sum)) mass += all[kept++].p;
  double draw = rng_uniform(sampling->seed, RNG_SAMPLE, 0, 0, 0, (uint64_t)position) * mass;
  int64_t chosen = 0;
  for (double reached = all[0].p; chosen + 1 < kept && reached < draw;) reached += all[++chosen].p;
  *token = all[chosen].token;
  free(all);
  return STATUS_OK;
}
