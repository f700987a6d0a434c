#include <malloc.h>
#include <sched.h>

#include "io/base_model.h"
#include "lora/param.h"
#include "model/cpu/cpu_internal.h"
#include "model/device_backend.h"
#include "model/model.h"
#include "model/transformer.h"
#include "tests/model/opcheck_weights.h"

static struct device *open_cpu(int n_threads) {
  struct device_options options = {.name = "cpu", .n_threads = n_threads};
  struct device *d = NULL;
  opcheck_ok(device_open(&options, &d));
  return d;
}

static void opens_and_describes(void **state) {
  (void)state;
  struct device *d = open_cpu(3);
  char text[512], identity[DEVICE_IDENTITY];
  assert_int_equal(d->n_threads, 3);
  assert_true(d->host_memory);
  assert_string_equal(d->ops->name, "cpu");
  assert_null(device_stream(d));
  device_describe(d, text, sizeof text);
  assert_non_null(strstr(text, "oneDNN"));
  assert_non_null(strstr(text, "3 threads"));
  device_close(&d);
  assert_null(d);
  device_close(&d);

  d = opcheck_device(1);
  assert_string_equal(d->ops->name, test_device());
  device_describe(d, text, sizeof text);
  assert_non_null(strstr(text, test_device()));
  assert_null(strchr(text, '\n'));
  device_describe(d, text, 8); /* cut, never beyond */
  assert_int_equal(strlen(text), 7);
  device_identity(d, identity);
  assert_true(opcheck_on_cpu() == (identity[0] == 0));
  opcheck_close(&d);
}

/* 0 threads: the cores this process is bound to, not the machine's. */
static void threads_follow_the_binding(void **state) {
  (void)state;
  cpu_set_t before, one;
  assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
  CPU_ZERO(&one);
  for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++) {
    if (CPU_ISSET(i, &before)) CPU_SET(i, &one);
  }
  struct device *d = open_cpu(0);
  assert_int_equal(d->n_threads, CPU_COUNT(&before));
  device_close(&d);
  assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
  d = open_cpu(0);
  assert_int_equal(d->n_threads, 1);
  device_close(&d);
  assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

/* "auto" always finds a device; "cuda" only where there is one, and else says so. */
static void chooses(void **state) {
  (void)state;
  struct device *cuda = NULL, *d = NULL;
  enum status status = device_open(&(struct device_options){.name = "cuda"}, &cuda);
  if (status != STATUS_OK) {
    assert_true(status == STATUS_USAGE || status == STATUS_DEVICE); /* not in this build, or no GPU */
    assert_non_null(strstr(status_message(), "cuda"));
    assert_null(cuda);
  }
  opcheck_ok(device_open(&(struct device_options){.name = "auto", .n_threads = 1}, &d));
  assert_string_equal(d->ops->name, cuda ? "cuda" : "cpu");
  device_close(&d);
  device_close(&cuda);
}

static void refuses(void **state) {
  (void)state;
  struct device *d = NULL;
  assert_int_equal(device_open(&(struct device_options){.name = "abacus"}, &d), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "abacus"));
  assert_int_equal(device_open(&(struct device_options){.name = "cpu", .n_threads = -1}, &d), STATUS_USAGE);
  assert_null(d);
}

/* Fails unless all bytes of device memory have this value. */
static void check_bytes(struct device *d, const void *memory, size_t size, uint8_t value) {
  uint8_t *bytes = malloc(size + 1);
  assert_non_null(bytes);
  opcheck_ok(device_copy_out(d, bytes, memory, size));
  for (size_t b = 0; b < size; b++) {
    if (bytes[b] != value) fail_msg("byte %zu of %zu is %d, not %d", b, size, bytes[b], value);
  }
  free(bytes);
}

static void memory_is_zeroed_aligned_and_counted(void **state) {
  (void)state;
  static const size_t sizes[] = {0, 1, 100, (2 << 20) - 1, 2 << 20, (5 << 20) + 12345};
  mallopt(M_PERTURB, 0x55); /* what malloc hands out is then never zero by luck */
  struct device *d = opcheck_device(1);
  uint8_t *ones = malloc(6 << 20);
  assert_non_null(ones);
  memset(ones, 0xff, 6 << 20);
  for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; i++) { /* twice: the second time in used memory */
    size_t size = sizes[i / 2];
    uint64_t calls = d->allocations, held = d->allocated;
    void *memory = NULL;
    opcheck_ok(device_alloc(d, size, "test", &memory));
    assert_int_equal((uintptr_t)memory % (opcheck_on_cpu() ? 64 : 256), 0);
    assert_int_equal(d->allocations, calls + 1);
    assert_int_equal(d->allocated, held + size);
    check_bytes(d, memory, size, 0);
    opcheck_ok(device_copy_in(d, memory, ones, size));
    device_free(d, memory, size);
    assert_int_equal(d->allocated, held);
  }
  free(ones);
  device_free(d, NULL, 7);
  opcheck_close(&d);
}

static void too_much_memory_is_an_error(void **state) {
  (void)state;
  struct device *d = opcheck_device(1);
  static const size_t sizes[] = {SIZE_MAX - 5, (size_t)1 << 60};
  uint64_t held = d->allocated;
  for (int i = 0; i < 2; i++) {
    void *memory = NULL;
    enum status status = device_alloc(d, sizes[i], "too large", &memory);
    assert_true(status == STATUS_SYSTEM || (!opcheck_on_cpu() && status == STATUS_DEVICE));
    assert_non_null(strstr(status_message(), "too large"));
    assert_null(memory);
  }
  assert_int_equal(d->allocated, held);
  void *memory; /* the failure is over */
  opcheck_ok(device_alloc(d, 100, "test", &memory));
  opcheck_ok(device_synchronize(d));
  device_free(d, memory, 100);
  opcheck_close(&d);
}

/* What helps against a lack of memory depends on what it was for. */
static void lack_of_memory_has_its_own_remedy(void **state) {
  (void)state;
  struct device *d = opcheck_device(1);
  static const struct {
    const char *what, *says, *does_not_say;
  } cases[] = {
      {"weights", "parallel.pp, or train.base_dtype: int8 or nf4", "micro_batch"},
      {"activations", "parallel.tp, or in training train.recompute or parallel.sequence", "base_dtype"},
      {"adapters, gradients and moments", "lora.r", "micro_batch"},
      {"keys and values", "shorter prompt", "micro_batch"},
      {"scratch", "train.micro_batch", "base_dtype"},
      {"a test", "fewer ranks", "parallel.tp"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    void *memory = NULL;
    assert_int_not_equal(device_alloc(d, (size_t)1 << 60, cases[i].what, &memory), STATUS_OK);
    assert_non_null(strstr(status_message(), cases[i].says));
    assert_null(strstr(status_message(), cases[i].does_not_say));
  }
  opcheck_close(&d);
}

static void has_remedy(const char *kind) {
  const char *any = device_memory_remedy("a test");
  assert_non_null(kind);
  if (strcmp(device_memory_remedy(kind), any) == 0) fail_msg("'%s' has no remedy of its own", kind);
}

/* A failure's message has the remedy of one kind. */
static void failed_with_remedy(enum status status, const char *kind) {
  has_remedy(kind);
  assert_int_not_equal(status, STATUS_OK);
  if (!strstr(status_message(), device_memory_remedy(kind))) fail_msg("not %s: %s", kind, status_message());
}

/* The names that the program gives to what it allocates are those that remedies are known for. */
static void every_kind_of_memory_has_a_remedy(void **state) {
  (void)state;
  struct device *d = open_cpu(1);
  struct tensor_source *source = NULL;
  struct model *model = NULL;
  struct kv_cache *cache = NULL;
  struct shard shard;
  struct param_list params = {0};
  void *block;
  opcheck_ok(base_model_open("synthetic:gpt2,layers=1", &source));
  opcheck_ok(shard_plan(&source->facts, 1, 0, &shard));
  const struct model_options options = {.act = DTYPE_F32, .n_positions = 8, .shard = &shard, .dry = true};
  opcheck_ok(model_create(d, source, NULL, NULL, &options, &model));
  opcheck_ok(model_prepare(model, &(struct prepare_options){.max_tokens = 8}));
  has_remedy(model->weights.memory.kind);
  has_remedy(model->acts.memory.kind);
  failed_with_remedy(kv_cache_create(model, (int64_t)1 << 45, &cache), "keys and values");
  params.buckets[0].n = (int64_t)1 << 56;
  failed_with_remedy(param_list_allocate(&params, d), "adapters, gradients and moments");
  failed_with_remedy(cpu_scratch(d, CPU_SCRATCH_WORK, (size_t)1 << 60, &block), "scratch");
  model_destroy(&model);
  base_model_close(&source);
  device_close(&d);
}

/* --- copies --------------------------------------------------------------------- */

/* Around a staging buffer, and more than two of them. */
static const size_t copy_sizes[] = {0, 1, 4096, DEVICE_STAGE_BYTES, DEVICE_STAGE_BYTES + 5, (size_t)20 << 20};
enum { COPY_SIZES = sizeof copy_sizes / sizeof *copy_sizes, MARGIN = 64 };

static uint8_t *noise(size_t bytes, uint64_t seed) {
  uint8_t *x = malloc(bytes + 8);
  assert_non_null(x);
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t word = opcheck_next(&seed);
    memcpy(x + i, &word, sizeof word);
  }
  return x;
}

static void copies_in_out_and_zeroes(void **state) {
  (void)state;
  struct device *d = opcheck_device(1);
  for (int i = 0; i < COPY_SIZES; i++) {
    size_t size = copy_sizes[i], whole = size + 2 * MARGIN;
    uint8_t *sent = noise(size, 1), *got = malloc(size + 1);
    assert_non_null(got);
    void *memory;
    opcheck_ok(device_alloc(d, whole, "test", &memory));
    char *at = (char *)memory + MARGIN;
    opcheck_ok(device_copy_in(d, at, sent, size));
    uint8_t first = sent[0];
    sent[0] ^= 0xff; /* what was sent may be changed at once */
    opcheck_ok(device_copy_out(d, got, at, size));
    sent[0] = first;
    assert_memory_equal(got, sent, size);
    check_bytes(d, memory, MARGIN, 0);
    check_bytes(d, at + size, MARGIN, 0);
    opcheck_ok(device_copy_in(d, memory, (uint8_t[MARGIN]){7}, MARGIN));
    opcheck_ok(device_zero(d, at, size));
    check_bytes(d, at, size, 0);
    check_bytes(d, memory, 1, 7);
    device_free(d, memory, whole);
    free(sent);
    free(got);
  }
  opcheck_close(&d);
}

/* Buffers are filled as soon as they are given out: none may still be on its way. */
static void stages_in_turns(void **state) {
  (void)state;
  enum { TURNS = 5 };
  struct device *d = opcheck_device(1);
  void *memory;
  opcheck_ok(device_alloc(d, TURNS * DEVICE_STAGE_BYTES, "test", &memory));
  char *next = memory;
  for (int turn = 0; turn < TURNS; turn++) {
    size_t size = turn == 1 ? 1 : turn == 3 ? 0 : DEVICE_STAGE_BYTES - (size_t)turn;
    void *buffer;
    opcheck_ok(device_stage_take(d, &buffer));
    memset(buffer, 10 + turn, DEVICE_STAGE_BYTES);
    opcheck_ok(device_stage_send(d, next, size));
    next += size;
  }
  next = memory;
  for (int turn = 0; turn < TURNS; turn++) {
    size_t size = turn == 1 ? 1 : turn == 3 ? 0 : DEVICE_STAGE_BYTES - (size_t)turn;
    check_bytes(d, next, size, (uint8_t)(10 + turn));
    next += size;
  }
  check_bytes(d, next, DEVICE_STAGE_BYTES, 0);
  device_free(d, memory, TURNS * DEVICE_STAGE_BYTES);
  opcheck_close(&d);
}

/* Copies and operations act in the order of the calls. */
static void one_queue(void **state) {
  (void)state;
  enum { M = 64, N = 1000, TURNS = 20 };
  struct device *d = opcheck_device(2);
  void *x, *y;
  float *one = malloc(M * N * sizeof *one), *sum = malloc(M * N * sizeof *sum);
  assert_true(one && sum);
  opcheck_ok(device_alloc(d, M * N * sizeof(float), "test", &x));
  opcheck_ok(device_alloc(d, M * N * sizeof(float), "test", &y));
  for (int turn = 0; turn < TURNS; turn++) {
    for (int i = 0; i < M * N; i++) one[i] = (float)turn;
    opcheck_ok(device_copy_in(d, y, one, M * N * sizeof *one));
    opcheck_ok(
        d->ops->add(d, M, N, (struct tensor_view){y, N, DTYPE_F32}, NULL, (struct tensor_view){x, N, DTYPE_F32}));
    opcheck_ok(device_zero(d, y, M * N * sizeof *one));
  }
  opcheck_ok(device_copy_out(d, sum, x, M * N * sizeof *sum));
  for (int i = 0; i < M * N; i++) assert_true(sum[i] == TURNS * (TURNS - 1) / 2);
  device_free(d, x, M * N * sizeof(float));
  device_free(d, y, M * N * sizeof(float));
  free(one), free(sum);
  opcheck_close(&d);
}

static void host_memory_holds_what_is_written(void **state) {
  (void)state;
  struct device *d = opcheck_device(1);
  uint64_t calls = d->allocations, held = d->allocated;
  for (size_t size = 0; size < 5000; size += 1234) {
    void *memory = NULL;
    opcheck_ok(device_host_alloc(d, size, "test", &memory));
    assert_non_null(memory);
    memset(memory, 3, size);
    device_host_free(d, memory);
  }
  device_host_free(d, NULL);
  assert_int_equal(d->allocations, calls);
  assert_int_equal(d->allocated, held);
  opcheck_close(&d);
}

static enum status watch_quietly(void *context) {
  ++*(int *)context;
  return STATUS_OK;
}

static void watched(void **state) {
  (void)state;
  struct device *d = opcheck_device(1);
  int calls = 0;
  device_set_watch(d, watch_quietly, &calls);
  opcheck_ok(device_synchronize(d));
  device_set_watch(d, NULL, NULL);
  int before = calls;
  opcheck_ok(device_synchronize(d));
  assert_int_equal(calls, before);
  opcheck_close(&d);
}

/* --- repeated work ---------------------------------------------------------------- */

/* A small step of training: x += norm(x) W' with a pair beside it, and the pair's gradients. */
enum { ROWS = 16, WIDTH = 32, RANK = 4 };

struct work {
  struct opcheck_weights w;
  struct opcheck_matrix x, y, dx;
  float *gain, *stats, *h, *A, *B, *dA, *dB;
};

static struct work work_make(void) {
  return (struct work){.w = opcheck_weights(DTYPE_BF16, WIDTH, WIDTH, 1),
                       .x = opcheck_random(DTYPE_F32, ROWS, WIDTH, 0, 1, 2),
                       .y = opcheck_random(DTYPE_BF16, ROWS, WIDTH, 0, 1, 3),
                       .dx = opcheck_random(DTYPE_F32, ROWS, WIDTH, 0, 0, 4),
                       .gain = opcheck_random_floats(WIDTH, 1, 5),
                       .stats = opcheck_floats(2 * ROWS),
                       .h = opcheck_floats(ROWS * RANK),
                       .A = opcheck_random_floats(RANK * WIDTH, 1, 6),
                       .B = opcheck_random_floats(RANK * WIDTH, 1, 7),
                       .dA = opcheck_random_floats(RANK * WIDTH, 0, 8),
                       .dB = opcheck_random_floats(RANK * WIDTH, 0, 9)};
}

static void work_free(struct work *k) {
  opcheck_weights_free(&k->w);
  opcheck_free(&k->x), opcheck_free(&k->y), opcheck_free(&k->dx);
  float *all[] = {k->gain, k->stats, k->h, k->A, k->B, k->dA, k->dB};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) opcheck_release(all[i]);
}

static void work_queue(struct device *d, struct work *k, int64_t rows) {
  struct lowrank pair = {k->A, k->B, k->dA, k->dB, RANK, WIDTH, WIDTH, 0.5f, {0}};
  const struct ops *ops = d->ops;
  opcheck_ok(ops->norm_forward(d, NORM_RMS, rows, WIDTH, k->x.view, k->gain, NULL, 1e-5f, k->y.view, k->stats));
  opcheck_ok(ops->linear_forward(d, rows, k->y.view, &k->w.weight, NULL, k->x.view, true));
  opcheck_ok(ops->lowrank_forward(d, rows, k->y.view, &pair, k->h, k->x.view));
  opcheck_ok(ops->lowrank_backward(d, rows, k->y.view, k->h, k->x.view, &pair, k->dx.view));
}

/* `turns` rounds over `steps` steps of 4, 5 .. rows, each with a key of its own. How many were repeated. */
static int repeat_work(bool graphs, int turns, int steps, struct work *k) {
  struct device *d = opcheck_open((struct device_options){.n_threads = 1, .graphs = graphs});
  int repeats = 0;
  for (int i = 0; i < turns * steps; i++) {
    int64_t rows = 4 + i % steps;
    int slot = -2;
    bool repeated = true;
    opcheck_ok(device_graph_begin(d, &rows, sizeof rows, &slot, &repeated));
    assert_true(slot >= -1 && slot < DEVICE_GRAPHS);
    if (!graphs || opcheck_on_cpu()) assert_int_equal(slot, -1);
    if (repeated) {
      assert_true(slot >= 0);
      repeats++;
    } else {
      work_queue(d, k, rows);
    }
    opcheck_ok(device_graph_end(d));
  }
  opcheck_ok(device_synchronize(d));
  device_close(&d);
  return repeats;
}

static void check_repeats(int turns, int steps) {
  struct work plain = work_make(), graphs = work_make();
  assert_int_equal(repeat_work(false, turns, steps, &plain), 0);
  int repeats = repeat_work(true, turns, steps, &graphs);
  print_message("%d of %d steps were repeated\n", repeats, turns * steps);
  opcheck_same_bits("x", &graphs.x, &plain.x);
  opcheck_same_bits("y", &graphs.y, &plain.y);
  opcheck_same_bits("dx", &graphs.dx, &plain.dx);
  assert_memory_equal(graphs.dA, plain.dA, RANK * WIDTH * sizeof(float));
  assert_memory_equal(graphs.dB, plain.dB, RANK * WIDTH * sizeof(float));
  if (opcheck_on_cpu()) {
    assert_int_equal(repeats, 0);
  } else if (turns >= 5 && steps <= DEVICE_GRAPHS) {
    assert_true(repeats > 0);
  }
  work_free(&plain);
  work_free(&graphs);
}

/* Recorded steps do what the same steps do without: one, some in turns, more than there are records. */
static void repeats_work(void **state) {
  (void)state;
  check_repeats(1, 1);
  check_repeats(5, 1);
  check_repeats(5, 3);
  check_repeats(5, DEVICE_GRAPHS + 2);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(opens_and_describes),
      cmocka_unit_test(threads_follow_the_binding),
      cmocka_unit_test(chooses),
      cmocka_unit_test(refuses),
      cmocka_unit_test(memory_is_zeroed_aligned_and_counted),
      cmocka_unit_test(too_much_memory_is_an_error),
      cmocka_unit_test(lack_of_memory_has_its_own_remedy),
      cmocka_unit_test(every_kind_of_memory_has_a_remedy),
      cmocka_unit_test(copies_in_out_and_zeroes),
      cmocka_unit_test(stages_in_turns),
      cmocka_unit_test(one_queue),
      cmocka_unit_test(host_memory_holds_what_is_written),
      cmocka_unit_test(watched),
      cmocka_unit_test(repeats_work),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
