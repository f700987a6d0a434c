/*
 * Attention forward and backward against a plain double reference, whose own
 * gradient is checked by central differences.
 */
#include "opcheck.h"

enum { MAX_SEGMENTS = 64, MAX_HEADS = 16 };

struct problem {
  const char *name;
  int n_segments;
  struct segment segments[MAX_SEGMENTS];
  int64_t q_rows, k_rows; /* rows of the buffers */
  int heads, kv_heads, head_dim;
  int32_t kv_of_head[MAX_HEADS];
  float scale, value; /* value: inputs are uniform in [-value, value) */
  int64_t window;
  const float *alibi; /* [heads] or NULL */
  bool once;          /* not repeated on a GPU: an emulated one takes long */
  enum dtype dtype;
};

/* Double copies of a problem's inputs and the reference's results, all dense. */
struct reference {
  double *q, *k, *v, *d_o;
  double *o, *lse; /* [q_rows, H E], [H, q_rows] */
  double *dq, *dk, *dv;
  double *o_size, *dq_size, *dk_size, *dv_size; /* the same sums over absolute terms */
};

static double *doubles(int64_t n) {
  double *x = calloc((size_t)n, sizeof *x);
  assert_non_null(x);
  return x;
}

static double *view_doubles(struct tensor_view x, int64_t rows, int64_t columns) {
  double *y = doubles(rows * columns);
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < columns; c++) y[r * columns + c] = opcheck_get(x, r, c);
  }
  return y;
}

static void reference_free(struct reference *ref) {
  double *all[] = {ref->q,  ref->k,  ref->v,      ref->d_o,     ref->o,       ref->lse,    ref->dq,
                   ref->dk, ref->dv, ref->o_size, ref->dq_size, ref->dk_size, ref->dv_size};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* Score of query i and key j of a segment; -INFINITY where i does not see j. */
static double score(const struct problem *p, const struct reference *ref, const struct segment *s, int h, int i,
                    int j) {
  int position = i + s->n_k - s->n_q;
  if (j > position || (p->window > 0 && j <= position - p->window)) return -INFINITY;
  const double *q = ref->q + (int64_t)(s->q + i) * p->heads * p->head_dim + h * p->head_dim;
  const double *k = ref->k + (int64_t)(s->k + j) * p->kv_heads * p->head_dim + p->kv_of_head[h] * p->head_dim;
  double sum = 0;
  for (int e = 0; e < p->head_dim; e++) sum += q[e] * k[e];
  return (double)p->scale * sum + (p->alibi ? (double)p->alibi[h] * (j - position) : 0);
}

/* o and lse of one query; p[j] its probabilities. */
static void reference_row(const struct problem *p, struct reference *ref, const struct segment *s, int h, int i,
                          double *probability) {
  double max = -INFINITY, sum = 0;
  int E = p->head_dim;
  for (int j = 0; j < s->n_k; j++) max = fmax(max, probability[j] = score(p, ref, s, h, i, j));
  int64_t at = (int64_t)(s->q + i) * p->heads * E + h * E;
  double *o = ref->o + at, *size = ref->o_size + at;
  memset(o, 0, (size_t)E * sizeof *o);
  memset(size, 0, (size_t)E * sizeof *size);
  for (int j = 0; j < s->n_k; j++) sum += probability[j] = max == -INFINITY ? 0 : exp(probability[j] - max);
  for (int j = 0; j < s->n_k; j++) {
    if (probability[j] == 0) continue;
    probability[j] /= sum;
    const double *v = ref->v + (int64_t)(s->k + j) * p->kv_heads * E + p->kv_of_head[h] * E;
    for (int e = 0; e < E; e++) {
      o[e] += probability[j] * v[e];
      size[e] += fabs(probability[j] * v[e]);
    }
  }
  ref->lse[h * p->q_rows + s->q + i] = max == -INFINITY ? -INFINITY : max + log(sum);
}

static void reference_forward(const struct problem *p, struct reference *ref) {
  for (int n = 0; n < p->n_segments; n++) {
    double *probability = doubles(p->segments[n].n_k + 1);
    for (int h = 0; h < p->heads; h++) {
      for (int i = 0; i < p->segments[n].n_q; i++) reference_row(p, ref, &p->segments[n], h, i, probability);
    }
    free(probability);
  }
}

/* D comes from o as given: the product's (rounded) output, or the reference's own. */
static void reference_backward_row(const struct problem *p, struct reference *ref, const struct segment *s, int h,
                                   int i, const double *probability, const double *o) {
  int E = p->head_dim;
  int64_t q_at = (int64_t)(s->q + i) * p->heads * E + h * E;
  double inner = 0;
  for (int e = 0; e < E; e++) inner += o[q_at + e] * ref->d_o[q_at + e];
  for (int j = 0; j < s->n_k; j++) {
    if (probability[j] == 0) continue;
    int64_t k_at = (int64_t)(s->k + j) * p->kv_heads * E + p->kv_of_head[h] * E;
    double dp = 0;
    for (int e = 0; e < E; e++) dp += ref->d_o[q_at + e] * ref->v[k_at + e];
    double ds = probability[j] * (dp - inner) * (double)p->scale;
    for (int e = 0; e < E; e++) {
      ref->dq[q_at + e] += ds * ref->k[k_at + e];
      ref->dk[k_at + e] += ds * ref->q[q_at + e];
      ref->dv[k_at + e] += probability[j] * ref->d_o[q_at + e];
      ref->dq_size[q_at + e] += fabs(ds * ref->k[k_at + e]);
      ref->dk_size[k_at + e] += fabs(ds * ref->q[q_at + e]);
      ref->dv_size[k_at + e] += fabs(probability[j] * ref->d_o[q_at + e]);
    }
  }
}

static void reference_backward(const struct problem *p, struct reference *ref, const double *o) {
  for (int n = 0; n < p->n_segments; n++) {
    double *probability = doubles(p->segments[n].n_k + 1);
    for (int h = 0; h < p->heads; h++) {
      for (int i = 0; i < p->segments[n].n_q; i++) {
        reference_row(p, ref, &p->segments[n], h, i, probability);
        reference_backward_row(p, ref, &p->segments[n], h, i, probability, o);
      }
    }
    free(probability);
  }
}

struct buffers {
  struct opcheck_matrix q, k, v, o, d_o, dq, dk, dv;
  float *lse;
  int64_t lse_ld;
  struct segment *segments; /* the problem's, where the device reads them */
  int32_t *kv_of_head;
  float *alibi; /* or NULL */
};

static struct buffers buffers_make(const struct problem *p, uint64_t seed) {
  int64_t wide = (int64_t)p->heads * p->head_dim, narrow = (int64_t)p->kv_heads * p->head_dim;
  struct buffers b = {
      .q = opcheck_random(p->dtype, p->q_rows, wide, 6, p->value, seed),
      .k = opcheck_random(p->dtype, p->k_rows, narrow, 2, p->value, seed + 1),
      .v = opcheck_random(p->dtype, p->k_rows, narrow, 10, 1, seed + 2),
      .o = opcheck_matrix(p->dtype, p->q_rows, wide, 4),
      .d_o = opcheck_random(p->dtype, p->q_rows, wide, 0, 1, seed + 3),
      .dq = opcheck_matrix(p->dtype, p->q_rows, wide, 1),
      .dk = opcheck_matrix(p->dtype, p->k_rows, narrow, 3),
      .dv = opcheck_matrix(p->dtype, p->k_rows, narrow, 5),
      .lse_ld = p->q_rows + 3,
      .lse = opcheck_floats(p->heads * (p->q_rows + 3)),
      .segments = opcheck_place(p->segments, (size_t)p->n_segments * sizeof *p->segments),
      .kv_of_head = opcheck_place(p->kv_of_head, (size_t)p->heads * sizeof *p->kv_of_head),
      .alibi = p->alibi ? opcheck_place(p->alibi, (size_t)p->heads * sizeof *p->alibi) : NULL,
  };
  for (int64_t i = 0; i < p->heads * b.lse_ld; i++) b.lse[i] = 12345;
  for (int64_t r = 0; r < p->q_rows; r++) {
    for (int64_t c = 0; c < wide; c++) opcheck_set(b.o.view, r, c, 0); /* rows outside of segments stay */
  }
  return b;
}

static void buffers_free(struct buffers *b) {
  struct opcheck_matrix *all[] = {&b->q, &b->k, &b->v, &b->o, &b->d_o, &b->dq, &b->dk, &b->dv};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) opcheck_free(all[i]);
  opcheck_release(b->lse), opcheck_release(b->segments), opcheck_release(b->kv_of_head), opcheck_release(b->alibi);
}

static struct attention_args arguments(const struct problem *p, const struct buffers *b) {
  return (struct attention_args){.q = b->q.view,
                                 .k = b->k.view,
                                 .v = b->v.view,
                                 .o = b->o.view,
                                 .n_rows = p->q_rows,
                                 .segments = b->segments,
                                 .n_segments = p->n_segments,
                                 .n_heads = p->heads,
                                 .n_kv_heads = p->kv_heads,
                                 .head_dim = p->head_dim,
                                 .kv_of_head = b->kv_of_head,
                                 .scale = p->scale,
                                 .window = p->window,
                                 .alibi = b->alibi,
                                 .lse = b->lse,
                                 .lse_ld = b->lse_ld};
}

static void run(const struct problem *p, const struct buffers *b, int n_threads) {
  struct device *d = opcheck_device(n_threads);
  struct attention_args args = arguments(p, b);
  opcheck_run(d, attention_forward, &args);
  opcheck_run(d, attention_backward, &args, p->q_rows, b->d_o.view, b->dq.view, b->dk.view, b->dv.view);
  opcheck_close(&d);
}

static double largest(const double *x, int64_t n) {
  double most = 0;
  for (int64_t i = 0; i < n; i++) most = fmax(most, fabs(x[i]));
  return most;
}

/* Inputs from the buffers, room for the results. */
static struct reference reference_make(const struct problem *p, const struct buffers *b) {
  int64_t wide = p->q_rows * p->heads * p->head_dim, narrow = p->k_rows * p->kv_heads * p->head_dim;
  return (struct reference){
      .q = view_doubles(b->q.view, p->q_rows, b->q.columns),
      .k = view_doubles(b->k.view, p->k_rows, b->k.columns),
      .v = view_doubles(b->v.view, p->k_rows, b->v.columns),
      .d_o = view_doubles(b->d_o.view, p->q_rows, b->d_o.columns),
      .o = doubles(wide),
      .lse = doubles(p->heads * p->q_rows),
      .dq = doubles(wide),
      .dk = doubles(narrow),
      .dv = doubles(narrow),
      .o_size = doubles(wide),
      .dq_size = doubles(wide),
      .dk_size = doubles(narrow),
      .dv_size = doubles(narrow),
  };
}

/* f32: a score of size s carries a few roundings of 6e-8 s, so p has a relative error of about 4e-7 (1 + s); a sum
 * of such terms stays within it times the largest result (1e-6 leaves room for the order of up to 500 terms).
 * bf16: the same plus the rounding of the result, half a last place or at most 2^-8 of it, and, where the processor
 * multiplies pairs of bf16, that of p and ds before they are: again 2^-8 of each term, so of the sum of absolute terms.
 */
static double near(const struct problem *p, const char *name, const struct opcheck_matrix *got, const double *want,
                   const double *size, double fine) {
  struct opcheck_worst worst = {.name = name};
  double rounding = p->dtype == DTYPE_BF16 ? 0x1p-8 : 0;
  for (int64_t r = 0; r < got->rows; r++) {
    for (int64_t c = 0; c < got->columns; c++) {
      int64_t at = r * got->columns + c;
      opcheck_compare(&worst, r, c, opcheck_get(got->view, r, c), want[at], fine + rounding * size[at], rounding);
    }
  }
  return opcheck_report(&worst);
}

static double check(const struct problem *p, const struct buffers *b) {
  struct reference ref = reference_make(p, b);
  double *o = view_doubles(b->o.view, p->q_rows, b->o.columns);
  reference_backward(p, &ref, o);
  double reach = 1 + p->value * p->value * (double)p->scale * p->head_dim / 3;
  double fine = 1e-6 * reach;
  double worst = near(p, "o", &b->o, ref.o, ref.o_size, fine);
  double share = near(p, "dv", &b->dv, ref.dv, ref.dv_size, fine * (1 + largest(ref.dv, p->k_rows * b->dv.columns)));
  worst = fmax(worst, share);
  share = near(p, "dq", &b->dq, ref.dq, ref.dq_size, fine * (1 + largest(ref.dq, p->q_rows * b->dq.columns)));
  worst = fmax(worst, share);
  share = near(p, "dk", &b->dk, ref.dk, ref.dk_size, fine * (1 + largest(ref.dk, p->k_rows * b->dk.columns)));
  worst = fmax(worst, share);
  for (int n = 0; n < p->n_segments; n++) {
    struct opcheck_worst lse = {.name = "lse"};
    for (int h = 0; h < p->heads; h++) {
      for (int i = p->segments[n].q; i < p->segments[n].q + p->segments[n].n_q; i++) {
        opcheck_compare(&lse, h, i, b->lse[h * b->lse_ld + i], ref.lse[h * p->q_rows + i], fine, 5e-7);
      }
    }
    worst = fmax(worst, opcheck_report(&lse));
  }
  free(o);
  reference_free(&ref);
  return worst;
}

/* The product against the reference, guard zones, and the same bits for 1, 2 and 3 threads (or once more). */
static void solve(struct problem *p) {
  for (int bf16 = 0; bf16 < 2; bf16++) {
    p->dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
    struct buffers b = buffers_make(p, 7);
    run(p, &b, 1);
    print_message("%s %s: %.2f of the tolerance\n", p->name, dtype_name(p->dtype), check(p, &b));
    const struct opcheck_matrix *all[] = {&b.q, &b.k, &b.v, &b.o, &b.d_o, &b.dq, &b.dk, &b.dv};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) opcheck_guard(p->name, all[i]);
    for (int h = 0; h < p->heads; h++) {
      for (int64_t i = p->q_rows; i < b.lse_ld; i++) assert_true(b.lse[h * b.lse_ld + i] == 12345);
    }
    for (int threads = 2; threads <= (p->once && !opcheck_on_cpu() ? 1 : opcheck_thread_counts()); threads++) {
      struct buffers again = buffers_make(p, 7);
      run(p, &again, threads);
      opcheck_same_bits("o", &again.o, &b.o);
      opcheck_same_bits("dq", &again.dq, &b.dq);
      opcheck_same_bits("dk", &again.dk, &b.dk);
      opcheck_same_bits("dv", &again.dv, &b.dv);
      assert_memory_equal(again.lse, b.lse, (size_t)(p->heads * b.lse_ld) * sizeof *b.lse);
      buffers_free(&again);
    }
    buffers_free(&b);
  }
}

/* One document per segment, one after the other, `gap` rows that belong to none after the first. */
static struct problem packed(const char *name, int n, const int *lengths, int gap, int head_dim) {
  struct problem p = {.name = name, .n_segments = n, .head_dim = head_dim, .heads = 1, .kv_heads = 1, .value = 1};
  p.scale = 1 / sqrtf((float)head_dim);
  int32_t row = 0;
  for (int i = 0; i < n; i++) {
    p.segments[i] = (struct segment){.q = row, .n_q = lengths[i], .k = row, .n_k = lengths[i]};
    row += lengths[i] + (i == 0 ? gap : 0);
  }
  p.q_rows = p.k_rows = row + gap;
  return p;
}

static struct problem with_heads(struct problem p, int heads, int kv_heads, const int32_t *kv_of_head) {
  p.heads = heads;
  p.kv_heads = kv_heads;
  for (int h = 0; h < heads; h++) p.kv_of_head[h] = kv_of_head ? kv_of_head[h] : h * kv_heads / heads;
  return p;
}

static void test_reference_gradient(void **state) {
  (void)state;
  float slopes[] = {0.5f, 0.25f};
  struct problem p = with_heads(packed("tiny", 2, (int[]){5, 4}, 0, 4), 2, 1, NULL);
  p.alibi = slopes;
  p.window = 3;
  struct buffers b = buffers_make(&p, 3);
  int64_t wide = 8, narrow = 4, rows = 9;
  struct reference ref = reference_make(&p, &b);
  reference_forward(&p, &ref);
  double *o = doubles(rows * wide);
  memcpy(o, ref.o, (size_t)(rows * wide) * sizeof *o);
  reference_backward(&p, &ref, o);
  struct {
    double *x, *dx;
    int64_t n;
  } inputs[] = {{ref.q, ref.dq, rows * wide}, {ref.k, ref.dk, rows * narrow}, {ref.v, ref.dv, rows * narrow}};
  for (int t = 0; t < 3; t++) {
    for (int64_t i = 0; i < inputs[t].n; i++) {
      double step = 1e-5, value = inputs[t].x[i], loss[2];
      for (int side = 0; side < 2; side++) {
        inputs[t].x[i] = value + (side ? step : -step);
        reference_forward(&p, &ref);
        loss[side] = 0;
        for (int64_t j = 0; j < rows * wide; j++) loss[side] += ref.o[j] * ref.d_o[j];
      }
      inputs[t].x[i] = value;
      /* error of the difference: step^2 times a third derivative of order 1, and 1e-16 / step */
      assert_true(fabs((loss[1] - loss[0]) / (2 * step) - inputs[t].dx[i]) < 1e-8);
    }
  }
  free(o);
  reference_free(&ref);
  buffers_free(&b);
}

static void test_shapes(void **state) {
  (void)state;
  int dims[] = {2, 7, 8, 16, 30, 64, 80, 96, 128, 130, 256};
  for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
    char name[32];
    snprintf(name, sizeof name, "head_dim %d", dims[i]);
    struct problem p = with_heads(packed(name, 2, (int[]){37, 101}, 2, dims[i]), 2, 1, NULL);
    if (opcheck_align_rows()) solve(&p);
    opcheck_row_unit = 1;
    solve(&p);
  }
  opcheck_align_rows();
  int lengths[] = {1, 3, 17, 95, 96, 97, 192, 193};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    char name[32];
    snprintf(name, sizeof name, "%d tokens", lengths[i]);
    struct problem p = with_heads(packed(name, 1, (int[]){lengths[i]}, 0, 64), 1, 1, NULL);
    solve(&p);
  }
}

/* One long segment of one KV head: 1 thread takes owner tasks, 2 and 3 take split ones; bits must agree. */
static void test_long(void **state) {
  (void)state;
  int length = opcheck_on_cpu() ? 517 : 261; /* several tiles of either */
  struct problem p = with_heads(packed("one long segment", 1, &length, 3, 64), 3, 1, NULL);
  solve(&p);
  p.window = 50;
  p.name = "one long segment, window 50";
  solve(&p);
  p = with_heads(packed("nine heads on one", 1, (int[]){150}, 0, 16), 9, 1, NULL);
  solve(&p);
}

static void test_sharing(void **state) {
  (void)state;
  struct problem p = with_heads(packed("unequal sharing", 2, (int[]){70, 33}, 0, 64), 4, 2, (int32_t[]){0, 0, 0, 1});
  solve(&p);
  p = with_heads(packed("mixed order", 2, (int[]){70, 33}, 0, 64), 5, 3, (int32_t[]){2, 0, 2, 0, 2});
  p.name = "mixed order, a KV head without queries";
  solve(&p);
}

static void test_tiny_segments(void **state) {
  (void)state;
  int lengths[MAX_SEGMENTS];
  for (int i = 0; i < MAX_SEGMENTS; i++) lengths[i] = i * 7 % 13;
  struct problem p = with_heads(packed("64 segments of 0 to 12", MAX_SEGMENTS, lengths, 5, 64), 6, 2, NULL);
  p.once = true;
  solve(&p);
}

static void test_windows(void **state) {
  (void)state;
  int64_t windows[] = {1, 2, 16, 95, 96, 97, 1000};
  for (size_t i = 0; i < sizeof windows / sizeof *windows; i++) {
    char name[32];
    snprintf(name, sizeof name, "window %d", (int)windows[i]);
    struct problem p = with_heads(packed(name, 2, (int[]){230, 40}, 0, 32), 3, 1, NULL);
    p.window = windows[i];
    p.once = true;
    solve(&p);
  }
}

static void test_alibi(void **state) {
  (void)state;
  float slopes[] = {0.5f, 0.0625f, 0.00390625f};
  struct problem p = with_heads(packed("alibi", 2, (int[]){230, 40}, 0, 64), 3, 3, NULL);
  p.alibi = slopes;
  p.once = true;
  solve(&p);
}

/* Scores of up to about +-80: most rows put all their weight on one key. */
static void test_large_scores(void **state) {
  (void)state;
  struct problem p = with_heads(packed("scores of 80", 2, (int[]){130, 40}, 0, 64), 2, 1, NULL);
  p.value = 7;
  p.scale = 0.125f;
  p.once = true;
  solve(&p);
}

/* Decoding: few queries at the end of many keys; and queries before the first key, which see nothing. */
static void test_decode(void **state) {
  (void)state;
  struct problem p = with_heads(packed("decode", 3, (int[]){1, 1, 1}, 0, 64), 6, 2, NULL);
  p.segments[0] = (struct segment){.q = 0, .n_q = 1, .k = 10, .n_k = 333};
  p.segments[1] = (struct segment){.q = 1, .n_q = 4, .k = 400, .n_k = 97};
  p.segments[2] = (struct segment){.q = 5, .n_q = 20, .k = 500, .n_k = 13};
  p.q_rows = p.k_rows = 513;
  solve(&p);
  p.window = 64;
  p.once = true;
  p.name = "decode, window 64";
  solve(&p);
}

/* What one document holds does not touch another's bits, and NaN is not hidden. */
static void check_apart(enum dtype dtype) {
  struct problem p = with_heads(packed("apart", 2, (int[]){40, 40}, 0, 64), 2, 1, NULL);
  p.dtype = dtype;
  struct buffers a = buffers_make(&p, 5), b = buffers_make(&p, 5);
  for (int64_t c = 0; c < b.k.columns; c++) opcheck_set(b.k.view, 3, c, NAN);
  run(&p, &a, 2);
  run(&p, &b, 2);
  for (int64_t r = 0; r < 80; r++) {
    for (int64_t c = 0; c < a.o.columns; c++) {
      float x = opcheck_get(a.o.view, r, c), y = opcheck_get(b.o.view, r, c);
      if (r >= 3 && r < 40) {
        assert_true(isnan(y));
      } else if (r >= 40) { /* rows 0 to 2 share a block with later rows, which may round another way only */
        assert_memory_equal(&x, &y, sizeof x);
      } else {
        assert_false(isnan(y));
      }
    }
  }
  buffers_free(&a);
  buffers_free(&b);
}

static void test_apart(void **state) {
  (void)state;
  check_apart(DTYPE_F32);
  check_apart(DTYPE_BF16);
}

/* Generation asks for no lse. Scratch is kept: a second call allocates nothing. */
static void check_without_lse(enum dtype dtype) {
  struct problem p = with_heads(packed("no lse", 1, (int[]){50}, 0, 64), 2, 1, NULL);
  p.dtype = dtype;
  struct buffers a = buffers_make(&p, 5), b = buffers_make(&p, 5);
  run(&p, &a, 1);
  struct device *d = opcheck_device(2);
  struct attention_args args = arguments(&p, &b);
  args.lse = NULL;
  opcheck_run(d, attention_forward, &args);
  uint64_t allocations = d->allocations;
  opcheck_run(d, attention_forward, &args);
  assert_int_equal(d->allocations, allocations);
  opcheck_same_bits("o", &a.o, &b.o);
  opcheck_close(&d);
  buffers_free(&a);
  buffers_free(&b);
}

static void test_without_lse(void **state) {
  (void)state;
  check_without_lse(DTYPE_F32);
  check_without_lse(DTYPE_BF16);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_reference_gradient),
      cmocka_unit_test(test_shapes),
      cmocka_unit_test(test_long),
      cmocka_unit_test(test_sharing),
      cmocka_unit_test(test_windows),
      cmocka_unit_test(test_tiny_segments),
      cmocka_unit_test(test_alibi),
      cmocka_unit_test(test_decode),
      cmocka_unit_test(test_large_scores),
      cmocka_unit_test(test_apart),
      cmocka_unit_test(test_without_lse),
  };
  if (getenv("LORASHARD_TEST_ONLY")) cmocka_set_test_filter(getenv("LORASHARD_TEST_ONLY"));
  opcheck_align_rows(); /* but for what test_shapes does besides */
  return cmocka_run_group_tests(tests, NULL, NULL);
}
