#include "model/cpu/lowrank_products.h"

#include <omp.h>

static int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }

float lowrank_products_keep_scale(const struct lowrank_dropout *dropout) {
  return 65536.0f / (65536.0f - (float)lowrank_drop_threshold(dropout));
}

static void apply_mask(const uint8_t *restrict mask, float scale, int64_t n, float *restrict x) {
  for (int64_t i = 0; i < n; i++) x[i] = mask[i] ? x[i] * scale : 0;
}

static void add_masked(const float *restrict x, const uint8_t *restrict mask, float scale, int64_t n,
                       float *restrict sum) {
  for (int64_t i = 0; i < n; i++) sum[i] += mask[i] ? x[i] * scale : 0;
}

/* --- products along the width ---------------------------------------------- */

/* out = scale drop(x) F for one block of rows. */
static void project_rows(const struct lowrank_projection *p, int64_t row) {
  float x[LOWRANK_ROWS * LOWRANK_STRIDE], sums[LOWRANK_ROWS * LOWRANK_MAX_R];
  uint8_t mask[LOWRANK_CHUNK];
  int64_t n_rows = at_most(LOWRANK_ROWS, p->M - row);
  if (n_rows < LOWRANK_ROWS) memset(x, 0, sizeof x);
  memset(sums, 0, (size_t)(LOWRANK_ROWS * lowrank_pad(p->r, 16)) * sizeof(float));
  bool direct = p->x.dtype == DTYPE_F32 && !p->dropout && n_rows == LOWRANK_ROWS;
  for (int64_t first = 0; first < p->K; first += LOWRANK_CHUNK) {
    int64_t n = at_most(LOWRANK_CHUNK, p->K - first);
    for (int64_t i = 0; i < n_rows && !direct; i++) {
      float *to = x + i * LOWRANK_STRIDE;
      cpu_load(p->x.dtype, cpu_at(p->x, row + i, first), n, to);
      if (!p->dropout) continue;
      lowrank_mask(p->dropout, p->dropout->row_ids[row + i], p->dropout->feature + first, n, mask);
      apply_mask(mask, lowrank_products_keep_scale(p->dropout), n, to);
    }
    lowrank_project(direct ? cpu_at(p->x, row, first) : x, direct ? p->x.ld : LOWRANK_STRIDE, first, n, p->packed, p->K,
                    p->r, sums);
  }
  for (int64_t j = 0; j < p->columns; j++) {
    int64_t panel = 0;
    while (j >= panel + lowrank_panel_width(p->r, panel)) panel += lowrank_panel_width(p->r, panel);
    int width = lowrank_panel_width(p->r, panel);
    const float *sum = sums + LOWRANK_ROWS * panel + (j - panel);
    for (int64_t i = 0; i < n_rows; i++) p->out[(row + i) * p->columns + j] = p->scale * sum[i * width];
  }
}

void lowrank_products_project(const struct device *d, const struct lowrank_projection *p) {
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (p->M > LOWRANK_ROWS)
  for (int64_t row = 0; row < p->M; row += LOWRANK_ROWS) project_rows(p, row);
}

void lowrank_products_pack(const struct device *d, const float *factor, int64_t row, int64_t column, int64_t K,
                           int64_t r, float *packed) {
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (K * r > 4096)
  for (int64_t k = 0; k < K; k += LOWRANK_CHUNK) {
    lowrank_pack(factor, row, column, K, r, k, at_most(LOWRANK_CHUNK, K - k), packed);
  }
}

void lowrank_products_transpose(const struct device *d, const float *B, int64_t N, int64_t r, float *G) {
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (N * r > 4096)
  for (int64_t n = 0; n < N; n += LOWRANK_CHUNK) {
    for (int64_t j = 0; j < r; j++) {
      for (int64_t i = n; i < at_most(n + LOWRANK_CHUNK, N); i++) G[j * N + i] = B[i * r + j];
    }
  }
}

/* y += mask (scale c G) for the block of rows that starts at `row`. */
static void spread_rows(const struct lowrank_spreading *s, int64_t row) {
  float c[LOWRANK_SPREAD_ROWS * LOWRANK_MAX_R];
  int64_t n_rows = at_most(LOWRANK_SPREAD_ROWS, s->M - row), N = s->N;
  for (int64_t j = 0; j < s->r; j++) {
    for (int64_t i = 0; i < n_rows; i++) c[LOWRANK_SPREAD_ROWS * j + i] = s->scale * s->c[(row + i) * s->ldc + j];
  }
  for (int64_t first = 0; first < N; first += LOWRANK_SPREAD) {
    int64_t n = at_most(LOWRANK_SPREAD, N - first);
    struct tensor_view to = {cpu_at(s->y, row, first), s->y.ld, s->y.dtype};
    if (!s->mask) {
      lowrank_spread(n_rows, to, n, c, s->r, s->G + first, N);
      continue;
    }
    float product[LOWRANK_SPREAD_ROWS * LOWRANK_SPREAD] = {0};
    lowrank_spread(n_rows, (struct tensor_view){product, LOWRANK_SPREAD, DTYPE_F32}, n, c, s->r, s->G + first, N);
    for (int64_t i = 0; i < n_rows; i++) {
      add_masked(product + i * LOWRANK_SPREAD, s->mask + (row + i) * N + first, s->mask_scale, n, cpu_at(to, i, 0));
    }
  }
}

void lowrank_products_spread(const struct device *d, const struct lowrank_spreading *s) {
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (s->M > LOWRANK_SPREAD_ROWS)
  for (int64_t row = 0; row < s->M; row += LOWRANK_SPREAD_ROWS) spread_rows(s, row);
}

/* --- sums over tokens ------------------------------------------------------ */

/* sums of panels [first, last) of LOWRANK_PANEL columns. */
static void token_sums_panels(const struct lowrank_token_sums *t, int64_t first, int64_t last) {
  int64_t begin = first * LOWRANK_PANEL, end = at_most(last * LOWRANK_PANEL, t->n);
  for (int64_t j = 0; j < t->padded && begin < end; j++) {
    memset(t->sums + j * t->n + begin, 0, (size_t)(end - begin) * sizeof(float));
  }
  for (int64_t row = 0; row < t->M; row += LOWRANK_TOKENS) {
    int64_t n_rows = at_most(LOWRANK_TOKENS, t->M - row);
    for (int64_t column = begin; column < end; column += LOWRANK_SPREAD) {
      int64_t n = at_most(LOWRANK_SPREAD, end - column);
      struct tensor_view x = {cpu_at(t->x, row, column), t->x.ld, t->x.dtype};
      float dropped[LOWRANK_TOKENS * LOWRANK_SPREAD];
      if (t->mask) {
        for (int64_t i = 0; i < n_rows; i++) {
          cpu_load(x.dtype, cpu_at(x, i, 0), n, dropped + i * LOWRANK_SPREAD);
          apply_mask(t->mask + (row + i) * t->n + column, t->mask_scale, n, dropped + i * LOWRANK_SPREAD);
        }
        x = (struct tensor_view){dropped, LOWRANK_SPREAD, DTYPE_F32};
      }
      lowrank_token_sum(n_rows, x, n, t->c + row * t->padded, t->padded, t->padded, t->sums + column, t->n);
    }
  }
}

void lowrank_products_token_sums(const struct device *d, const struct lowrank_token_sums *t, float scale,
                                 float *gradient, int64_t row, int64_t column) {
  int64_t panels = (t->n + LOWRANK_PANEL - 1) / LOWRANK_PANEL;
#pragma omp parallel num_threads(d->n_threads) if (t->M > 1)
  {
    int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    int64_t first = panels * thread / threads, last = panels * (thread + 1) / threads;
    token_sums_panels(t, first, last);
    int64_t end = at_most(last * LOWRANK_PANEL, t->n);
    for (int64_t j = 0; j < t->r; j++) {
      for (int64_t i = first * LOWRANK_PANEL; i < end; i++) {
        gradient[j * row + i * column] += scale * t->sums[j * t->n + i];
      }
    }
  }
}

void lowrank_products_pad(const struct device *d, int64_t M, int64_t r, int64_t padded, const float *from, float *to) {
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (M > 64)
  for (int64_t m = 0; m < M; m++) {
    for (int64_t j = 0; j < padded; j++) to[m * padded + j] = j < r ? from[m * r + j] : 0;
  }
}

void lowrank_products_mask(const struct device *d, int64_t M, int64_t K, const struct lowrank_dropout *dropout,
                           uint8_t *mask) {
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) lowrank_mask(dropout, dropout->row_ids[m], dropout->feature, K, mask + m * K);
}
