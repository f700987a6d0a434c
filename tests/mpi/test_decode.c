/* ranks: 1 2 */
/*
 * Decoding step by step with the cache of keys and values gives the logits that
 * the whole sequence gives at once, in every family that treats positions in
 * its own way and in f32 and bf16; and the same greedy continuation.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "golden_device.h"
#include "golden_step.h"

static const char *const cases[] = {"llama", "gpt2", "bloom", "mistral", "qwen3", "neox", "gptj", "opt"};

/* f32: the two ways sum the same terms in different order: about 1e-6 over two layers, as against the goldens. bf16:
 * each activation is rounded to 2^-9 either way, but one on an edge goes up or down with the last bit of its sum; such
 * rare ones reach a logit as in test_gradient, from which the tolerance is. */
#define F32_TOLERANCE  1e-5
#define BF16_TOLERANCE 0.02

static double worst[2];

/* Logits of all positions of the first row at once. */
static void whole_logits(struct golden_case *golden, struct golden_model *m, const int32_t *ids, int64_t n,
                         float *logits) {
  int32_t positions[256], rows[256];
  struct segment segment = {0, (int32_t)n, 0, (int32_t)n};
  struct batch batch = {.M = n, .ids = ids, .positions = positions, .segments = &segment, .n_segments = 1};
  golden_check(n <= 256, "%s: too many tokens", golden->folder);
  for (int64_t i = 0; i < n; i++) positions[i] = rows[i] = (int32_t)i;
  golden_must(transformer_logits(m->model, &batch, rows, n, logits));
}

static void compare(const char *name, enum dtype act, int64_t position, const float *got, const float *want, int64_t n,
                    double scale) {
  const bool bf16 = act == DTYPE_BF16;
  for (int64_t v = 0; v < n; v++) {
    double share = fabs((double)got[v] - (double)want[v]) / (scale * (bf16 ? BF16_TOLERANCE : F32_TOLERANCE));
    golden_check(share <= 1, "%s, %s: logit %lld at position %lld: %.9g decoded, %.9g at once", name, dtype_name(act),
                 (long long)v, (long long)position, (double)got[v], (double)want[v]);
    worst[bf16] = fmax(worst[bf16], share);
  }
}

/* The row's tokens one by one after a prompt of n_prompt. */
static void check_steps(struct golden_case *golden, struct golden_model *m, enum dtype act, int64_t n_prompt) {
  const int64_t V = golden->n_vocab, n = golden->seq_len;
  struct kv_cache *cache;
  float *whole = malloc((size_t)(n * V) * sizeof *whole), *logits = malloc((size_t)V * sizeof *logits);
  golden_check(whole && logits, "out of memory");
  whole_logits(golden, m, golden->ids, n, whole);
  double scale = golden_largest(whole, n * V);
  golden_must(kv_cache_create(m->model, n, &cache));
  for (int64_t at = 0; at < n;) {
    int64_t now = at == 0 ? n_prompt : 1;
    golden_must(transformer_decode(m->model, cache, golden->ids + at, now, logits));
    at += now;
    compare(golden->folder, act, at - 1, logits, whole + (at - 1) * V, V, scale);
  }
  kv_cache_destroy(m->model, &cache);
  free(whole);
  free(logits);
}

static int32_t likeliest(const float *logits, int64_t n) {
  int32_t best = 0;
  for (int64_t v = 1; v < n; v++)
    if (logits[v] > logits[best]) best = (int32_t)v;
  return best;
}

/* A greedy continuation of the first three tokens; each token has the largest logit at once, too (within rounding). */
static void check_greedy(struct golden_case *golden, struct golden_model *m, enum dtype act) {
  enum { PROMPT = 3 };
  const int64_t V = golden->n_vocab, n = golden->seq_len;
  int32_t ids[256];
  struct kv_cache *cache;
  float *whole = malloc((size_t)(n * V) * sizeof *whole), *logits = malloc((size_t)V * sizeof *logits);
  golden_check(whole && logits, "out of memory");
  for (int i = 0; i < PROMPT; i++) ids[i] = golden->ids[i];
  golden_must(kv_cache_create(m->model, n, &cache));
  for (int64_t length = PROMPT, fed = 0; length < n; length++) {
    golden_must(transformer_decode(m->model, cache, ids + fed, length - fed, logits));
    fed = length;
    ids[length] = likeliest(logits, V);
  }
  whole_logits(golden, m, ids, n, whole);
  double margin = golden_largest(whole, n * V) * 2 * (act == DTYPE_BF16 ? BF16_TOLERANCE : F32_TOLERANCE);
  for (int64_t at = PROMPT; at < n; at++) {
    const float *row = whole + (at - 1) * V;
    int32_t best = likeliest(row, V);
    golden_check((double)row[best] - (double)row[ids[at]] <= margin, "%s, %s: token %lld is %d decoded and %d at once",
                 golden->folder, dtype_name(act), (long long)at, ids[at], best);
  }
  kv_cache_destroy(m->model, &cache);
  free(whole);
  free(logits);
}

static void run_case(const char *name, struct mesh *mesh, enum dtype act) {
  struct golden_case golden;
  struct golden_model m;
  golden_open(name, &golden);
  golden_model_open(&golden, mesh, act, &m);
  /* a prompt of one token, of few (both by gemv.c), of more */
  for (int64_t n_prompt = 1; n_prompt <= 7; n_prompt += 3) check_steps(&golden, &m, act, n_prompt);
  check_greedy(&golden, &m, act);
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
    printf("tp %d: decoding differs by at most %.2f (f32), %.2f (bf16) of the tolerance\n", world, worst[0], worst[1]);
  golden_mesh_close(&mesh);
  golden_stop();
  return 0;
}
