#include "lora/adapter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dist/rng.h"

double adapter_scale(const struct adapter_spec *spec) {
  return spec->alpha / (spec->rslora ? sqrt((double)spec->r) : (double)spec->r);
}

void adapter_name(const struct adapter_spec *spec, char name[64]) {
  snprintf(name, 64, "layers/%d/%s", spec->layer, module_names[spec->module]);
}

/* A [r, in]: columns of this rank (row-parallel) or whole. */
static struct param param_a(const struct adapter_spec *spec, int n_tp) {
  bool sharded = module_is_row_parallel(spec->module);
  struct param p = {.rows = spec->r,
                    .cols = spec->in,
                    .col = sharded ? spec->in_first : 0,
                    .part_rows = spec->r,
                    .part_cols = sharded ? spec->in_t : spec->in,
                    .group = sharded || n_tp == 1 ? PARAM_DP : PARAM_STAGE};
  adapter_name(spec, p.group_name);
  strcpy(p.name, "A");
  return p;
}

/* B [out, r]: rows of this rank (column-parallel) or whole. */
static struct param param_b(const struct adapter_spec *spec, int n_tp) {
  bool sharded = !module_is_row_parallel(spec->module) && !spec->out_shared;
  struct param p = {.rows = spec->out,
                    .cols = spec->r,
                    .row = sharded ? spec->out_first : 0,
                    .part_rows = sharded ? spec->out_t : spec->out,
                    .part_cols = spec->r,
                    .group = sharded || n_tp == 1 ? PARAM_DP : PARAM_STAGE};
  adapter_name(spec, p.group_name);
  strcpy(p.name, "B");
  return p;
}

/* The operand of one adapter: pointers to the part that this rank multiplies with. */
static void make_pair(const struct adapter_spec *spec, const struct param *a, const struct param *b, float dropout,
                      uint64_t seed, struct lowrank *pair) {
  int64_t skip = spec->out_shared ? spec->out_first * spec->r : 0; /* own rows of a whole B */
  bool row_parallel = module_is_row_parallel(spec->module);
  *pair = (struct lowrank){
      .A = a->w,
      .dA = a->g,
      .B = b->w + skip,
      .dB = b->g + skip,
      .r = spec->r,
      .n_in = a->part_cols,
      .n_out = row_parallel ? spec->out : spec->out_t,
      .scale = (float)adapter_scale(spec),
      .dropout = {.p = dropout,
                  .seed = seed,
                  .layer = spec->layer,
                  .module = spec->module,
                  .feature = row_parallel ? spec->in_first : 0},
  };
}

enum status adapters_list(int n_tp, const struct adapter_spec *specs, int n, struct adapters *adapters) {
  memset(adapters, 0, sizeof *adapters);
  adapters->n = n;
  adapters->specs = malloc((size_t)(n ? n : 1) * sizeof *specs);
  if (!adapters->specs) return status_set(STATUS_SYSTEM, "out of memory for %d adapters", n);
  if (n) memcpy(adapters->specs, specs, (size_t)n * sizeof *specs);
  for (int i = 0; i < n; i++) {
    struct param a = param_a(&specs[i], n_tp), b = param_b(&specs[i], n_tp);
    TRY(param_list_add(&adapters->params, &a));
    TRY(param_list_add(&adapters->params, &b));
  }
  return STATUS_OK;
}

enum status adapters_create(struct device *device, int n_tp, const struct adapter_spec *specs, int n, float dropout,
                            uint64_t seed, struct adapters *adapters) {
  TRY(adapters_list(n_tp, specs, n, adapters));
  adapters->pairs = calloc((size_t)(n ? n : 1), sizeof *adapters->pairs);
  if (!adapters->pairs) return status_set(STATUS_SYSTEM, "out of memory for %d adapters", n);
  TRY(param_list_allocate(&adapters->params, device));
  for (int i = 0; i < n; i++)
    make_pair(&specs[i], &adapters->params.items[2 * i], &adapters->params.items[2 * i + 1], dropout, seed,
              &adapters->pairs[i]);
  return STATUS_OK;
}

void adapters_destroy(struct adapters *adapters, struct device *device) {
  param_list_free(&adapters->params, device);
  free(adapters->specs);
  free(adapters->pairs);
  memset(adapters, 0, sizeof *adapters);
}

/* This rank's part of the initial A of an adapter. */
static void make_a(const struct adapter_spec *spec, const struct param *a, enum adapter_init init, uint64_t seed,
                   float *part) {
  double bound = 1.0 / sqrt((double)spec->in);
  uint32_t layer = (uint32_t)spec->layer, module = (uint32_t)spec->module;
  for (int64_t row = 0; row < a->part_rows; row++)
    for (int64_t col = 0; col < a->part_cols; col++) {
      uint64_t index = (uint64_t)((a->row + row) * a->cols + a->col + col); /* in the whole A */
      double value = init == ADAPTER_KAIMING ? bound * (2 * rng_uniform(seed, RNG_INIT, 0, layer, module, index) - 1)
                                             : rng_gaussian(seed, RNG_INIT, 0, layer, module, index) / (double)spec->r;
      part[row * a->part_cols + col] = (float)value;
    }
}

enum status adapters_init(struct adapters *adapters, struct device *device, enum adapter_init init, uint64_t seed) {
  enum status status = STATUS_OK;
  size_t largest = 0;
  for (int i = 0; i < adapters->n; i++)
    if (param_bytes(&adapters->params.items[2 * i]) > largest) largest = param_bytes(&adapters->params.items[2 * i]);
  float *part = malloc(largest + 1);
  if (!part) return status_set(STATUS_SYSTEM, "out of memory for the adapters' initial values");
  for (int i = 0; i < adapters->n; i++) {
    const struct param *a = &adapters->params.items[2 * i], *b = a + 1;
    make_a(&adapters->specs[i], a, init, seed, part);
    TRY_OUT(device_copy_in(device, a->w, part, param_bytes(a)));
    TRY_OUT(device_zero(device, b->w, param_bytes(b)));
  }
out:
  free(part);
  return status;
}
