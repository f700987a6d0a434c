/*
 * A GPU's attention with its tensor-core instructions against the same kernels
 * with portable ones in their place (model/cuda/mma.cuh). Products of bf16 are
 * exact in both and sums are f32, in another order within a product, after which
 * probabilities, and at the end results, are rounded to bf16: one or two of its last
 * places, 2^-7 each, of a row's largest value. The
 * CPU has no such pair.
 */
#include "io/plugin.h"
#include "model/device_backend.h"
#include "opcheck.h"

enum { ROWS = 150, HEADS = 4, KV_HEADS = 2 };

typedef enum status forward_func(struct device *d, const struct attention_args *args);
typedef enum status backward_func(struct device *d, const struct attention_args *args, int64_t M,
                                  struct tensor_view d_o, struct tensor_view dq, struct tensor_view dk,
                                  struct tensor_view dv);

static void *plug_in(const char *symbol) {
  void *address = NULL;
  opcheck_ok(plugin_find(DEVICE_CUDA_FILE, symbol, &address));
  return address;
}

/* What one way of computing gives. */
struct result {
  struct opcheck_matrix o, dq, dk, dv;
  float *lse;
};

static struct result run(struct device *d, struct attention_args args, struct tensor_view d_o, forward_func *forward,
                         backward_func *backward) {
  const int64_t q = HEADS * args.head_dim, kv = KV_HEADS * args.head_dim;
  struct result r = {.o = opcheck_matrix(DTYPE_BF16, ROWS, q, 8),
                     .dq = opcheck_matrix(DTYPE_BF16, ROWS, q, 8),
                     .dk = opcheck_matrix(DTYPE_BF16, ROWS, kv, 8),
                     .dv = opcheck_matrix(DTYPE_BF16, ROWS, kv, 8),
                     .lse = opcheck_floats(HEADS * ROWS)};
  args.o = r.o.view;
  args.lse = r.lse;
  args.lse_ld = ROWS;
  opcheck_ok(forward(d, &args));
  opcheck_ok(backward(d, &args, ROWS, d_o, r.dq.view, r.dk.view, r.dv.view));
  opcheck_ok(device_synchronize(d));
  return r;
}

static void release(struct result *r) {
  opcheck_free(&r->o);
  opcheck_free(&r->dq);
  opcheck_free(&r->dk);
  opcheck_free(&r->dv);
  opcheck_release(r->lse);
}

static void compare(const char *name, const struct opcheck_matrix *a, const struct opcheck_matrix *b) {
  for (int64_t row = 0; row < a->rows; row++) {
    double largest = 0;
    for (int64_t c = 0; c < a->columns; c++) largest = fmax(largest, fabs((double)opcheck_get(b->view, row, c)));
    struct opcheck_worst worst = {.name = name};
    for (int64_t c = 0; c < a->columns; c++)
      opcheck_compare(&worst, row, c, opcheck_get(a->view, row, c), opcheck_get(b->view, row, c),
                      largest * 0x1p-6 + 1e-30, 0);
    opcheck_report(&worst);
  }
}

static void check(struct device *d, int head_dim) {
  static const struct segment segments[] = {{0, 70, 0, 70}, {70, 77, 70, 77}}; /* three rows of padding */
  static const int32_t kv_of_head[HEADS] = {0, 0, 1, 1};
  struct opcheck_matrix q = opcheck_random(DTYPE_BF16, ROWS, HEADS * head_dim, 8, 1, 1),
                        k = opcheck_random(DTYPE_BF16, ROWS, KV_HEADS * head_dim, 8, 1, 2),
                        v = opcheck_random(DTYPE_BF16, ROWS, KV_HEADS * head_dim, 8, 1, 3),
                        d_o = opcheck_random(DTYPE_BF16, ROWS, HEADS * head_dim, 8, 1, 4);
  struct attention_args args = {.q = q.view,
                                .k = k.view,
                                .v = v.view,
                                .n_rows = ROWS,
                                .segments = opcheck_place(segments, sizeof segments),
                                .n_segments = 2,
                                .n_heads = HEADS,
                                .n_kv_heads = KV_HEADS,
                                .head_dim = head_dim,
                                .kv_of_head = opcheck_place(kv_of_head, sizeof kv_of_head),
                                .scale = 0.125f};
  struct result fast = run(d, args, d_o.view, d->ops->attention_forward, d->ops->attention_backward);
  struct result plain = run(d, args, d_o.view, (forward_func *)plug_in("cuda_attention_forward_plain"),
                            (backward_func *)plug_in("cuda_attention_backward_plain"));
  /* Rows of padding: forward leaves o as it was, which is a NaN in both. */
  fast.o.rows = plain.o.rows = 147;
  compare("o", &fast.o, &plain.o);
  compare("dq", &fast.dq, &plain.dq);
  compare("dk", &fast.dk, &plain.dk);
  compare("dv", &fast.dv, &plain.dv);
  for (int h = 0; h < HEADS; h++)
    for (int row = 0; row < 147; row++)
      assert_true(fabsf(fast.lse[h * ROWS + row] - plain.lse[h * ROWS + row]) < 1e-4f);
  fast.o.rows = plain.o.rows = ROWS;
  release(&fast);
  release(&plain);
  opcheck_release((void *)args.segments);
  opcheck_release((void *)args.kv_of_head);
  opcheck_free(&q);
  opcheck_free(&k);
  opcheck_free(&v);
  opcheck_free(&d_o);
}

static void test_plain(void **state) {
  (void)state;
  if (opcheck_on_cpu()) skip();
  struct device *d = opcheck_device(1);
  static const int sizes[] = {64, 80, 96, 128};
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) check(d, sizes[i]);
  opcheck_close(&d);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_plain)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
