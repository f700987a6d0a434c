/*
 * lowrank.c: the adapter's products: h = drop(x) A', y += scale h B', and their
 * backward. Everything is computed in f32 whatever the activations' type.
 *
 * Splits over threads: rows for products along the width, column panels for
 * sums over tokens; a sum over tokens is one chain in token order.
 */
#include <assert.h>
#include <omp.h>

#include "model/cpu/lowrank_kernels.h"

static float keep_scale(const struct lowrank_dropout *dropout) {
  return 65536.0f / (65536.0f - (float)lowrank_drop_threshold(dropout));
}

static void apply_mask(const uint8_t *restrict mask, float scale, int64_t n, float *restrict x) {
  for (int64_t i = 0; i < n; i++) x[i] = mask[i] ? x[i] * scale : 0;
}

static void add_masked(const float *restrict x, const uint8_t *restrict mask, float scale, int64_t n,
                       float *restrict sum) {
  for (int64_t i = 0; i < n; i++) sum[i] += mask[i] ? x[i] * scale : 0;
}

/* --- scratch --------------------------------------------------------------- */

struct lowrank_scratch {
  float *packed; /* project's factor */
  float *G;      /* [R, N] B transposed (forward) */
  float *u, *h;  /* [M, padded R] (backward); h only if R needs padding */
  float *sums;   /* [padded R, widest side] */
  uint8_t *mask; /* [M, K] (backward); NULL without dropout */
};

/* Hand out the next `bytes` of a block; with a NULL block only count. */
static void *take(char *block, size_t *used, size_t bytes) {
  void *at = block ? block + *used : NULL;
  *used += (bytes + 63) / 64 * 64;
  return at;
}

static size_t scratch_layout(int64_t M, const struct lowrank *pair, bool backward, char *block,
                             struct lowrank_scratch *s) {
  size_t used = 0;
  int64_t K = pair->n_in, N = pair->n_out, padded = lowrank_pad(pair->r, LOWRANK_PAD), wide = K > N ? K : N;
  *s = (struct lowrank_scratch){0};
  s->packed = take(block, &used, (size_t)lowrank_packed_size(backward ? N : K, pair->r) * sizeof(float));
  if (!backward) {
    s->G = take(block, &used, (size_t)(pair->r * N) * sizeof(float));
    return used;
  }
  s->u = take(block, &used, (size_t)(M * padded) * sizeof(float));
  if (padded != pair->r) s->h = take(block, &used, (size_t)(M * padded) * sizeof(float));
  s->sums = take(block, &used, (size_t)(padded * wide) * sizeof(float));
  if (pair->dropout.p > 0) s->mask = take(block, &used, (size_t)(M * K));
  return used;
}

static enum status scratch_take(struct device *d, int64_t M, const struct lowrank *pair, bool backward,
                                struct lowrank_scratch *s) {
  void *block;
  TRY(cpu_scratch(d, CPU_SCRATCH_LOWRANK, scratch_layout(M, pair, backward, NULL, s), &block));
  scratch_layout(M, pair, backward, block, s);
  return STATUS_OK;
}

static enum status check_rank(const struct lowrank *pair) {
  if (pair->r >= 1 && pair->r <= LOWRANK_MAX_R) return STATUS_OK;
  return status_set(STATUS_USAGE, "adapter rank %lld: the cpu takes 1 to %d", (long long)pair->r, LOWRANK_MAX_R);
}

/* --- products along the width ---------------------------------------------- */

static int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }

struct projection {
  struct tensor_view x; /* [M, K] */
  int64_t M, K, r;
  const float *packed;
  const struct lowrank_dropout *dropout; /* NULL: none */
  float scale;
  float *out; /* [M, columns], distance columns; columns >= r, the rest = 0 */
  int64_t columns;
};

/* out = scale drop(x) F for one block of rows. */
static void project_rows(const struct projection *p, int64_t row) {
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
      apply_mask(mask, keep_scale(p->dropout), n, to);
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

static void project(const struct device *d, const struct projection *p) {
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (p->M > LOWRANK_ROWS)
  for (int64_t row = 0; row < p->M; row += LOWRANK_ROWS) project_rows(p, row);
}

/* Strides of F[k][j] in a factor of K inputs, packed in parallel. */
static void pack(const struct device *d, const float *factor, int64_t row, int64_t column, int64_t K, int64_t r,
                 float *packed) {
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (K * r > 4096)
  for (int64_t k = 0; k < K; k += LOWRANK_CHUNK) {
    lowrank_pack(factor, row, column, K, r, k, at_most(LOWRANK_CHUNK, K - k), packed);
  }
}

static void transpose(const struct device *d, const float *B, int64_t N, int64_t r, float *G) {
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (N * r > 4096)
  for (int64_t n = 0; n < N; n += LOWRANK_CHUNK) {
    for (int64_t j = 0; j < r; j++) {
      for (int64_t i = n; i < at_most(n + LOWRANK_CHUNK, N); i++) G[j * N + i] = B[i * r + j];
    }
  }
}

struct spreading {
  struct tensor_view y; /* [M, N] */
  int64_t M, N, r;
  const float *c; /* [M, r], distance ldc */
  int64_t ldc;
  float scale;
  const float *G;      /* [r, N] */
  const uint8_t *mask; /* [M, N] or NULL; only dx, which is f32, is masked */
  float mask_scale;
};

/* y += mask (scale c G) for the block of rows that starts at `row`. */
static void spread_rows(const struct spreading *s, int64_t row) {
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

static void spread(const struct device *d, const struct spreading *s) {
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (s->M > LOWRANK_SPREAD_ROWS)
  for (int64_t row = 0; row < s->M; row += LOWRANK_SPREAD_ROWS) spread_rows(s, row);
}

enum status cpu_lowrank_forward(struct device *d, int64_t M, struct tensor_view x, const struct lowrank *pair, float *h,
                                struct tensor_view y) {
  TRY(check_rank(pair));
  if (M == 0) return STATUS_OK;
  int64_t r = pair->r, N = pair->n_out;
  struct lowrank_scratch s;
  TRY(scratch_take(d, M, pair, false, &s));
  pack(d, pair->A, 1, pair->n_in, pair->n_in, r, s.packed);
  transpose(d, pair->B, N, r, s.G);
  struct projection p = {.x = x,
                         .M = M,
                         .K = pair->n_in,
                         .r = r,
                         .packed = s.packed,
                         .dropout = pair->dropout.p > 0 ? &pair->dropout : NULL,
                         .scale = 1,
                         .out = h,
                         .columns = r};
  project(d, &p);
  struct spreading to_y = {.y = y, .M = M, .N = N, .r = r, .c = h, .ldc = r, .scale = pair->scale, .G = s.G};
  spread(d, &to_y);
  return STATUS_OK;
}

/* --- sums over tokens ------------------------------------------------------ */

struct token_sums {
  struct tensor_view x; /* [M, n] */
  int64_t M, n;
  const float *c; /* [M, padded] */
  int64_t r, padded;
  float *sums;         /* [padded, n] */
  const uint8_t *mask; /* [M, n] or NULL */
  float mask_scale;
};

/* sums of panels [first, last) of LOWRANK_PANEL columns. */
static void token_sums_panels(const struct token_sums *t, int64_t first, int64_t last) {
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

/* gradient[j row + i column] += scale sums[j, i], after the sums themselves. */
static void token_sums(const struct device *d, const struct token_sums *t, float scale, float *gradient, int64_t row,
                       int64_t column) {
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

static void pad_rows(const struct device *d, int64_t M, int64_t r, int64_t padded, const float *from, float *to) {
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (M > 64)
  for (int64_t m = 0; m < M; m++) {
    for (int64_t j = 0; j < padded; j++) to[m * padded + j] = j < r ? from[m * r + j] : 0;
  }
}

static void fill_mask(const struct device *d, int64_t M, int64_t K, const struct lowrank_dropout *dropout,
                      uint8_t *mask) {
#pragma omp parallel for schedule(static) num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) lowrank_mask(dropout, dropout->row_ids[m], dropout->feature, K, mask + m * K);
}

enum status cpu_lowrank_backward(struct device *d, int64_t M, struct tensor_view x, const float *h,
                                 struct tensor_view dy, const struct lowrank *pair, struct tensor_view dx) {
  assert(!dx.data || dx.dtype == DTYPE_F32);
  TRY(check_rank(pair));
  if (M == 0) return STATUS_OK;
  int64_t r = pair->r, K = pair->n_in, N = pair->n_out, padded = lowrank_pad(r, LOWRANK_PAD);
  struct lowrank_scratch s;
  TRY(scratch_take(d, M, pair, true, &s));
  float mask_scale = s.mask ? keep_scale(&pair->dropout) : 1;
  if (s.mask) fill_mask(d, M, K, &pair->dropout, s.mask);

  /* u = scale dy B */
  pack(d, pair->B, r, 1, N, r, s.packed);
  struct projection p = {
      .x = dy, .M = M, .K = N, .r = r, .packed = s.packed, .scale = pair->scale, .out = s.u, .columns = padded};
  project(d, &p);

  /* dB += scale dy' h, summed as its transpose [r, N] */
  if (s.h) pad_rows(d, M, r, padded, h, s.h);
  struct token_sums t = {.x = dy, .M = M, .n = N, .c = s.h ? s.h : h, .r = r, .padded = padded, .sums = s.sums};
  token_sums(d, &t, pair->scale, pair->dB, 1, r);

  /* dA += u' drop(x) */
  t = (struct token_sums){.x = x,
                          .M = M,
                          .n = K,
                          .c = s.u,
                          .r = r,
                          .padded = padded,
                          .sums = s.sums,
                          .mask = s.mask,
                          .mask_scale = mask_scale};
  token_sums(d, &t, 1, pair->dA, K, 1);

  /* dx += drop'(u A) */
  if (!dx.data) return STATUS_OK;
  struct spreading to_dx = {.y = dx,
                            .M = M,
                            .N = K,
                            .r = r,
                            .c = s.u,
                            .ldc = padded,
                            .scale = 1,
                            .G = pair->A,
                            .mask = s.mask,
                            .mask_scale = mask_scale};
  spread(d, &to_dx);
  return STATUS_OK;
}
