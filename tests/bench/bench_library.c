/*
 * bench_library: the floor of a training step: the seconds that the matrix
 * library alone needs for the products with frozen weights of one step.
 *
 * The products are those of `lorashard train` on one rank: its passes, its
 * chunks of the head, its number types, without the gradients that it does not
 * compute below the lowest adapter. The library is called in the plainest way,
 * one call for a whole product, with its own threads and weights as they lie;
 * in f32 by its matmul and by its sgemm, of which the faster one counts for
 * each shape. Inputs and outputs stay in two buffers and nothing is added up,
 * which can only make it faster. Weights of one layer after the other are
 * distinct memory, more than the caches hold.
 *
 *   bench_library --model PATH [--dtype f32|bf16] [--targets q,v|all] [--micro-batch N] [--seq-len N]
 *                 [--pass-tokens N] [--threads N] [--steps N] [--warmup N] [--json]
 *
 * PATH is an HF folder, a GGUF file or a config.json; --pass-tokens goes before what lorashard takes at once.
 * Times are medians over --steps steps. --json prints one line with the keys of the other programs' lines.
 */
#include <dnnl.h>
#include <jansson.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "io/base_model.h"
#include "io/file_read.h"
#include "launch/batcher.h"
#include "model/activations.h"
#include "model/shard.h"

enum { HUGE_PAGE = 2 << 20, CONFIG_BYTES = 1 << 24, MAX_SHAPES = 256 };
enum method { METHOD_MATMUL, METHOD_SGEMM, METHOD_COUNT };
enum { ARG_SRC, ARG_WEIGHTS, ARG_DST, ARG_SCRATCHPAD, ARG_COUNT };

struct options {
  const char *model, *dtype, *targets;
  int64_t micro_batch, seq_len, pass_tokens, threads, steps, warmup;
  bool json;
};

/* A frozen weight [n_out, n_in], row-major. */
struct frozen {
  int64_t n_out, n_in;
  size_t offset;   /* bytes from the start of the weights */
  bool f32_output; /* what is added up over ranks or goes to the loss is f32 in bf16 runs too */
};

/* All products of one shape: c [m, n] = a [m, k] b, b as [k, n], or as [n, k] when transposed. */
struct shape {
  int64_t m, n, k;
  bool b_transposed;
  dnnl_data_type_t c_type;
  int64_t count; /* in one step */
  dnnl_primitive_t primitive;
  dnnl_memory_t memory[ARG_COUNT];
  double *seconds[METHOD_COUNT]; /* [steps], of all `count` calls */
};

struct call {
  int shape;
  size_t offset; /* of its weight */
};

struct bench {
  struct options options;
  struct model_facts facts;
  dnnl_data_type_t type;
  struct shape shapes[MAX_SHAPES];
  int n_shapes;
  struct call *calls; /* one step, in order */
  int64_t n_calls;
  struct frozen linear[MODULE_COUNT], project_in, project_out, head; /* linears: those of copy 0 */
  size_t layer_bytes, weight_bytes;
  int64_t n_copies; /* layer i has the weights of copy i mod n_copies */
  char *weights, *a, *c, *scratchpad;
  dnnl_engine_t engine;
  dnnl_stream_t stream;
};

static void fail(const char *what) {
  fprintf(stderr, "bench_library: %s\n", what);
  exit(1);
}

static void check(enum status status) {
  if (status == STATUS_OK) return;
  fprintf(stderr, "bench_library: %s\n", status_message());
  exit(status_exit_code(status));
}

#define LIBRARY(call)                                                              \
  do {                                                                             \
    dnnl_status_t code_ = (call);                                                  \
    if (code_ != dnnl_success) {                                                   \
      fprintf(stderr, "bench_library: %s: oneDNN status %d\n", #call, (int)code_); \
      exit(1);                                                                     \
    }                                                                              \
  } while (0)

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(const double *values, int64_t n) {
  double sorted[n];
  memcpy(sorted, values, sizeof sorted);
  qsort(sorted, (size_t)n, sizeof *sorted, ascending);
  return (sorted[(n - 1) / 2] + sorted[n / 2]) / 2;
}

static int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }
static size_t type_bytes(dnnl_data_type_t type) { return type == dnnl_f32 ? 4 : 2; }

/* --- what is to be computed ------------------------------------------------ */

static void read_facts(const char *path, struct model_facts *facts) {
  size_t length = strlen(path);
  if (length > 5 && strcmp(path + length - 5, ".json") == 0) {
    char *text;
    check(file_read_text(path, CONFIG_BYTES, &text, &length));
    check(model_facts_parse(text, length, path, facts));
    free(text);
    return;
  }
  struct tensor_source *source;
  check(base_model_open(path, &source));
  *facts = source->facts;
  base_model_close(&source);
}

static void place(struct bench *b, struct frozen *weight, int64_t n_out, int64_t n_in, bool f32_output) {
  *weight = (struct frozen){n_out, n_in, b->weight_bytes, f32_output};
  b->weight_bytes += ((size_t)(n_out * n_in) * type_bytes(b->type) + 63) / 64 * 64;
}

/* Deal out the memory of the weights: the copies of a layer, then the rest. */
static void place_weights(struct bench *b) {
  const struct model_facts *f = &b->facts;
  struct shard shard;
  check(shard_plan(f, 1, 0, &shard));
  for (enum module module = 0; module < MODULE_COUNT; module++) {
    if (module == MODULE_GATE && !f->gated) continue;
    struct linear_dims dims = shard_linear(&shard, f, module);
    place(b, &b->linear[module], dims.out, dims.in, module_is_row_parallel(module));
  }
  b->layer_bytes = b->weight_bytes;
  /* Four times the last cache, so that a copy's turn comes when nothing of it is left there. */
  long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  size_t wanted = 4 * (size_t)(cache > 64 << 20 ? cache : 64 << 20);
  b->n_copies = at_most((int64_t)((wanted + b->layer_bytes - 1) / b->layer_bytes), f->n_layers);
  b->weight_bytes = b->layer_bytes * (size_t)b->n_copies;
  place(b, &b->head, f->n_vocab, f->d_embed, true);
  if (f->d_embed == f->d_model) return;
  place(b, &b->project_in, f->d_model, f->d_embed, true);
  place(b, &b->project_out, f->d_embed, f->d_model, false);
}

static int find_shape(struct bench *b, const struct shape *wanted) {
  for (int i = 0; i < b->n_shapes; i++) {
    const struct shape *s = &b->shapes[i];
    if (s->m == wanted->m && s->n == wanted->n && s->k == wanted->k && s->b_transposed == wanted->b_transposed &&
        s->c_type == wanted->c_type)
      return i;
  }
  if (b->n_shapes == MAX_SHAPES) fail("too many shapes");
  b->shapes[b->n_shapes] = *wanted;
  return b->n_shapes++;
}

static void add_call(struct bench *b, const struct shape *shape, size_t offset) {
  if ((b->n_calls & (b->n_calls - 1)) == 0) { /* full at powers of two */
    b->calls = realloc(b->calls, (size_t)(b->n_calls ? 2 * b->n_calls : 1) * sizeof *b->calls);
    if (!b->calls) fail("out of memory");
  }
  int index = find_shape(b, shape);
  b->shapes[index].count++;
  b->calls[b->n_calls++] = (struct call){index, offset};
}

/* y [m, n_out] = x W' */
static void add_forward(struct bench *b, int64_t m, const struct frozen *W, int64_t copy) {
  struct shape shape = {m, W->n_out, W->n_in, true, W->f32_output ? dnnl_f32 : b->type};
  add_call(b, &shape, W->offset + (size_t)copy * b->layer_bytes);
}

/* dx [m, n_in] = dy W */
static void add_backward(struct bench *b, int64_t m, const struct frozen *W, int64_t copy) {
  struct shape shape = {m, W->n_in, W->n_out, false, dnnl_f32};
  add_call(b, &shape, W->offset + (size_t)copy * b->layer_bytes);
}

/* Gradients behind a block's linears. In the lowest adapted layer, which is the first, none flows on to the
 * block's input, so a parallel ffn passes none on either, and through `down` only to adapters on gate and up. */
static void add_layer_backward(struct bench *b, int64_t m, int64_t layer) {
  const bool lowest = layer == 0, apart = lowest && b->facts.parallel_residual;
  const bool ffn_adapted = strcmp(b->options.targets, "all") == 0;
  const int64_t copy = layer % b->n_copies;
  if (!apart || ffn_adapted) add_backward(b, m, &b->linear[MODULE_DOWN], copy);
  if (!apart && b->facts.gated) add_backward(b, m, &b->linear[MODULE_GATE], copy);
  if (!apart) add_backward(b, m, &b->linear[MODULE_UP], copy);
  add_backward(b, m, &b->linear[MODULE_O], copy);
  for (enum module module = MODULE_Q; !lowest && module <= MODULE_V; module++)
    add_backward(b, m, &b->linear[module], copy);
}

/* One pass forward and backward, in the order of the training step; each token has a target. */
static void add_pass(struct bench *b, int64_t tokens) {
  const int64_t L = b->facts.n_layers, chunk = activations_chunk(b->facts.n_vocab, 1, true);
  const int64_t m = (tokens + BATCH_TOKEN_UNIT - 1) / BATCH_TOKEN_UNIT * BATCH_TOKEN_UNIT;
  const bool projected = b->project_in.n_out > 0;
  if (projected) add_forward(b, m, &b->project_in, 0);
  for (int64_t layer = 0; layer < L; layer++) {
    for (enum module module = 0; module < MODULE_COUNT; module++)
      if (b->linear[module].n_out) add_forward(b, m, &b->linear[module], layer % b->n_copies);
  }
  if (projected) add_forward(b, tokens, &b->project_out, 0);
  for (int64_t first = 0; first < tokens; first += chunk) {
    add_forward(b, at_most(chunk, tokens - first), &b->head, 0);
    add_backward(b, at_most(chunk, tokens - first), &b->head, 0);
  }
  if (projected) add_backward(b, tokens, &b->project_out, 0);
  for (int64_t layer = L - 1; layer >= 0; layer--) add_layer_backward(b, m, layer);
}

/* --- the library ----------------------------------------------------------- */

/* The two generations of the C interface differ in who owns a descriptor. */
#if DNNL_VERSION_MAJOR >= 3
static void layout_create(dnnl_memory_desc_t *layout, const dnnl_dims_t dims, dnnl_data_type_t type,
                          const dnnl_dims_t strides) {
  LIBRARY(dnnl_memory_desc_create_with_strides(layout, 2, dims, type, strides));
}
static void layout_destroy(dnnl_memory_desc_t *layout) { dnnl_memory_desc_destroy(*layout); }
static void matmul_create(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, dnnl_memory_desc_t layouts[],
                          dnnl_primitive_attr_t attr) {
  LIBRARY(dnnl_matmul_primitive_desc_create(pd, engine, layouts[ARG_SRC], layouts[ARG_WEIGHTS], NULL, layouts[ARG_DST],
                                            attr));
}
#define LAYOUT_OF(layout) (layout)
#else
static void layout_create(dnnl_memory_desc_t *layout, const dnnl_dims_t dims, dnnl_data_type_t type,
                          const dnnl_dims_t strides) {
  LIBRARY(dnnl_memory_desc_init_by_strides(layout, 2, dims, type, strides));
}
static void layout_destroy(dnnl_memory_desc_t *layout) { (void)layout; }
static void matmul_create(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, dnnl_memory_desc_t layouts[],
                          dnnl_primitive_attr_t attr) {
  dnnl_matmul_desc_t desc;
  LIBRARY(dnnl_matmul_desc_init(&desc, &layouts[ARG_SRC], &layouts[ARG_WEIGHTS], NULL, &layouts[ARG_DST]));
  LIBRARY(dnnl_primitive_desc_create(pd, &desc, attr, engine, NULL));
}
#define LAYOUT_OF(layout) (&(layout))
#endif

/* Make the primitive of a shape; returns the bytes of its scratchpad. */
static size_t create_primitive(struct bench *b, struct shape *s) {
  const dnnl_dims_t dims[] = {{s->m, s->k}, {s->k, s->n}, {s->m, s->n}};
  const dnnl_dims_t strides[] = {{s->k, 1}, {s->b_transposed ? 1 : s->n, s->b_transposed ? s->k : 1}, {s->n, 1}};
  const dnnl_data_type_t types[] = {b->type, b->type, s->c_type};
  dnnl_memory_desc_t layouts[ARG_SCRATCHPAD];
  for (int i = ARG_SRC; i <= ARG_DST; i++) layout_create(&layouts[i], dims[i], types[i], strides[i]);
  dnnl_primitive_attr_t attr;
  LIBRARY(dnnl_primitive_attr_create(&attr));
  LIBRARY(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user));
  dnnl_primitive_desc_t pd;
  matmul_create(&pd, b->engine, layouts, attr);
  LIBRARY(dnnl_primitive_create(&s->primitive, pd));
  for (int i = ARG_SRC; i <= ARG_DST; i++)
    LIBRARY(dnnl_memory_create(&s->memory[i], LAYOUT_OF(layouts[i]), b->engine, DNNL_MEMORY_NONE));
  LIBRARY(dnnl_memory_create(&s->memory[ARG_SCRATCHPAD], dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0),
                             b->engine, DNNL_MEMORY_NONE));
  size_t bytes = dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0));
  LIBRARY(dnnl_primitive_desc_destroy(pd));
  LIBRARY(dnnl_primitive_attr_destroy(attr));
  for (int i = ARG_SRC; i <= ARG_DST; i++) layout_destroy(&layouts[i]);
  return bytes;
}

/* Memory on huge pages where the system has them, full of small numbers of that type. */
static char *filled(size_t bytes, dnnl_data_type_t type) {
  size_t whole = (bytes + HUGE_PAGE) / HUGE_PAGE * HUGE_PAGE;
  char *memory = aligned_alloc(HUGE_PAGE, whole);
  if (!memory) fail("out of memory");
  madvise(memory, whole, MADV_HUGEPAGE);
  for (size_t i = 0; i < whole / type_bytes(type); i++) {
    float value = (float)((i * 2654435761u >> 7) % 1000) * 1e-3f - 0.5f;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (type == dnnl_f32)
      ((float *)memory)[i] = value;
    else
      ((uint16_t *)memory)[i] = (uint16_t)(bits >> 16);
  }
  return memory;
}

static void prepare(struct bench *b) {
  LIBRARY(dnnl_engine_create(&b->engine, dnnl_cpu, 0));
  LIBRARY(dnnl_stream_create(&b->stream, b->engine, dnnl_stream_default_flags));
  size_t a_size = 0, c_size = 0, scratchpad_bytes = 0;
  for (int i = 0; i < b->n_shapes; i++) {
    struct shape *s = &b->shapes[i];
    size_t bytes = create_primitive(b, s);
    if (bytes > scratchpad_bytes) scratchpad_bytes = bytes;
    if ((size_t)(s->m * s->k) > a_size) a_size = (size_t)(s->m * s->k);
    if ((size_t)(s->m * s->n) > c_size) c_size = (size_t)(s->m * s->n);
    for (int method = 0; method < METHOD_COUNT; method++) {
      s->seconds[method] = calloc((size_t)b->options.steps, sizeof(double));
      if (!s->seconds[method]) fail("out of memory");
    }
  }
  b->weights = filled(b->weight_bytes, b->type);
  b->a = filled(a_size * type_bytes(b->type), b->type);
  b->c = filled(c_size * sizeof(float), dnnl_f32);
  b->scratchpad = filled(scratchpad_bytes, dnnl_f32);
  for (int i = 0; i < b->n_shapes; i++) {
    LIBRARY(dnnl_memory_set_data_handle(b->shapes[i].memory[ARG_SRC], b->a));
    LIBRARY(dnnl_memory_set_data_handle(b->shapes[i].memory[ARG_DST], b->c));
    LIBRARY(dnnl_memory_set_data_handle(b->shapes[i].memory[ARG_SCRATCHPAD], b->scratchpad));
  }
}

static void release(struct bench *b) {
  for (int i = 0; i < b->n_shapes; i++) {
    struct shape *s = &b->shapes[i];
    for (int method = 0; method < METHOD_COUNT; method++) free(s->seconds[method]);
    for (int a = 0; a < ARG_COUNT; a++) dnnl_memory_destroy(s->memory[a]);
    dnnl_primitive_destroy(s->primitive);
  }
  dnnl_stream_destroy(b->stream);
  dnnl_engine_destroy(b->engine);
  void *all[] = {b->weights, b->a, b->c, b->scratchpad, b->calls};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* --- timing ---------------------------------------------------------------- */

static void multiply(struct bench *b, struct shape *s, char *weight, enum method method) {
  if (method == METHOD_SGEMM) {
    LIBRARY(dnnl_sgemm('N', s->b_transposed ? 'T' : 'N', s->m, s->n, s->k, 1, (float *)b->a, s->k, (float *)weight,
                       s->b_transposed ? s->k : s->n, 0, (float *)b->c, s->n));
    return;
  }
  LIBRARY(dnnl_memory_set_data_handle(s->memory[ARG_WEIGHTS], weight));
  const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, s->memory[ARG_SRC]},
                                  {DNNL_ARG_WEIGHTS, s->memory[ARG_WEIGHTS]},
                                  {DNNL_ARG_DST, s->memory[ARG_DST]},
                                  {DNNL_ARG_SCRATCHPAD, s->memory[ARG_SCRATCHPAD]}};
  LIBRARY(dnnl_primitive_execute(s->primitive, b->stream, ARG_COUNT, args));
  LIBRARY(dnnl_stream_wait(b->stream));
}

/* A whole step by one method; a negative number is of a step before those that count. */
static void run_step(struct bench *b, enum method method, int64_t step) {
  for (int64_t i = 0; i < b->n_calls; i++) {
    struct shape *s = &b->shapes[b->calls[i].shape];
    double start = now();
    multiply(b, s, b->weights + b->calls[i].offset, method);
    if (step >= 0) s->seconds[method][step] += now() - start;
  }
}

static int n_methods(const struct bench *b) { return b->type == dnnl_f32 ? METHOD_COUNT : METHOD_SGEMM; }

static double shape_gflop(const struct shape *s) { return 2e-9 * (double)(s->m * s->n * s->k) * (double)s->count; }

/* Median seconds of a shape's products in one step, by the faster method. */
static double shape_seconds(const struct bench *b, const struct shape *s) {
  double fastest = median(s->seconds[METHOD_MATMUL], b->options.steps);
  for (int method = 1; method < n_methods(b); method++) {
    double seconds = median(s->seconds[method], b->options.steps);
    if (seconds < fastest) fastest = seconds;
  }
  return fastest;
}

/* --- the report ------------------------------------------------------------ */

static void print_shapes(const struct bench *b) {
  printf("   rows    outputs   inputs           calls   GF/s: matmul%s\n", n_methods(b) > 1 ? "   sgemm" : "");
  for (int i = 0; i < b->n_shapes; i++) {
    const struct shape *s = &b->shapes[i];
    printf("%7lld %10lld %8lld %-9s %6lld  ", (long long)s->m, (long long)s->n, (long long)s->k,
           s->b_transposed ? "forward" : "dx", (long long)s->count);
    for (int method = 0; method < n_methods(b); method++)
      printf("%10.1f", shape_gflop(s) / median(s->seconds[method], b->options.steps));
    printf("\n");
  }
}

static void print_result(const struct bench *b) {
  const struct options *o = &b->options;
  const dnnl_version_t *version = dnnl_version();
  double seconds = 0, gflop = 0;
  for (int i = 0; i < b->n_shapes; i++) {
    seconds += shape_seconds(b, &b->shapes[i]);
    gflop += shape_gflop(&b->shapes[i]);
  }
  if (!o->json) {
    print_shapes(b);
    printf("products of one step: %.4f s, %.1f GFLOP, %.1f GF/s (%s, %lld threads, oneDNN %d.%d.%d, medians of %lld)\n",
           seconds, gflop, gflop / seconds, b->type == dnnl_f32 ? "f32" : "bf16", (long long)o->threads, version->major,
           version->minor, version->patch, (long long)o->steps);
    return;
  }
  char text[64];
  snprintf(text, sizeof text, "%d.%d.%d", version->major, version->minor, version->patch);
  json_t *line = json_pack(
      "{ss sf sf sf s{ss ss ss ss sI sI sI sI sI sI} s{ss}}", "program", "library", "products_seconds", seconds,
      "gflop", gflop, "gflop_per_second", gflop / seconds, "settings", "model", o->model, "dtype", o->dtype, "products",
      b->type == dnnl_f32 ? "f32" : "bf16", "targets", o->targets, "micro_batch", (json_int_t)o->micro_batch, "seq_len",
      (json_int_t)o->seq_len, "pass_tokens", (json_int_t)o->pass_tokens, "threads", (json_int_t)o->threads, "steps",
      (json_int_t)o->steps, "warmup", (json_int_t)o->warmup, "versions", "onednn", text);
  char *dumped = line ? json_dumps(line, JSON_REAL_PRECISION(6)) : NULL;
  if (!dumped) fail("cannot print the result");
  puts(dumped);
  free(dumped);
  json_decref(line);
}

/* --- the command line ------------------------------------------------------ */

static void usage(void) {
  fprintf(stderr,
          "usage: bench_library --model PATH [--dtype f32|bf16] [--targets q,v|all] [--micro-batch N] [--seq-len N]\n"
          "                     [--pass-tokens N] [--threads N] [--steps N] [--warmup N] [--json]\n");
  exit(2);
}

static int64_t number(const char *text, int64_t least, int64_t most) {
  char *end;
  long long value = strtoll(text, &end, 10);
  if (end == text || *end || value < least || value > most) usage();
  return value;
}

/* An option's value is one of two words or a number within limits. */
struct option_row {
  const char *name, **word, *words[2];
  int64_t *number, least, most;
};

static void set_option(const struct option_row *row, const char *value) {
  if (row->number) {
    *row->number = number(value, row->least, row->most);
    return;
  }
  if (row->words[0] && strcmp(value, row->words[0]) != 0 && strcmp(value, row->words[1]) != 0) usage();
  *row->word = value;
}

static struct options parse(int argc, char **argv) {
  struct options o = {.dtype = "f32", .targets = "q,v", .micro_batch = 4, .seq_len = 512, .steps = 8, .warmup = 2};
  o.threads = omp_get_max_threads();
  const struct option_row rows[] = {{"--model", .word = &o.model},
                                    {"--dtype", .word = &o.dtype, .words = {"f32", "bf16"}},
                                    {"--targets", .word = &o.targets, .words = {"q,v", "all"}},
                                    {"--micro-batch", .number = &o.micro_batch, .least = 1, .most = 1 << 16},
                                    {"--seq-len", .number = &o.seq_len, .least = 1, .most = 1 << 20},
                                    {"--pass-tokens", .number = &o.pass_tokens, .least = 1, .most = 1 << 20},
                                    {"--threads", .number = &o.threads, .least = 1, .most = 4096},
                                    {"--steps", .number = &o.steps, .least = 1, .most = 1000},
                                    {"--warmup", .number = &o.warmup, .least = 0, .most = 1000}};
  const size_t n_rows = sizeof rows / sizeof *rows;
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--json") == 0) {
      o.json = true;
      continue;
    }
    size_t row = 0;
    while (row < n_rows && strcmp(argv[i], rows[row].name) != 0) row++;
    if (row == n_rows || i + 1 == argc) usage();
    set_option(&rows[row], argv[++i]);
  }
  if (!o.model) usage();
  if (!o.pass_tokens) o.pass_tokens = batcher_rows_at_once(o.micro_batch, o.seq_len, 1, true) * o.seq_len;
  return o;
}

/* lorashard computes in f32 where the processor has no bf16 products, and so does this. */
static dnnl_data_type_t product_type(const char *dtype) {
  if (strcmp(dtype, "f32") == 0) return dnnl_f32;
  unsigned isa = (unsigned)dnnl_get_effective_cpu_isa(), wanted = (unsigned)dnnl_cpu_isa_avx512_core_bf16;
  if ((isa & wanted) == wanted) return dnnl_bf16;
  fprintf(stderr, "bench_library: this processor has no bf16 products; f32 ones are timed\n");
  return dnnl_f32;
}

int main(int argc, char **argv) {
  static struct bench b;
  b.options = parse(argc, argv);
  omp_set_num_threads((int)b.options.threads); /* the library plans for the threads it sees */
  b.type = product_type(b.options.dtype);
  read_facts(b.options.model, &b.facts);
  place_weights(&b);
  int64_t left = b.options.micro_batch * b.options.seq_len;
  for (; left > 0; left -= b.options.pass_tokens) add_pass(&b, at_most(left, b.options.pass_tokens));
  prepare(&b);
  for (int64_t step = -b.options.warmup; step < b.options.steps; step++) {
    for (int method = 0; method < n_methods(&b); method++) run_step(&b, method, step);
  }
  print_result(&b);
  release(&b);
  return 0;
}
