/*
 * gemm_onednn.c: matrix products by oneDNN (2.6 or newer, or 3.x); the only
 * file that knows the library.
 *
 * A product is cut into tiles of its output whose size depends on its shape
 * only; a tile is one call of a matmul primitive that was made for one thread,
 * and OpenMP deals the tiles out. So bits do not depend on the number of
 * threads, whatever the library does inside a call, and a skinny product (the
 * head's backward) keeps all threads busy, which the library's own split does
 * not. Primitives are cached per shape: making one takes about 0.4 ms.
 */
#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/cpu/cpu_internal.h"

enum { CACHE_SETS = 64, CACHE_WAYS = 8, STAGED_ROWS = 256, PAGE = 4096 };
enum { ARG_SRC, ARG_WEIGHTS, ARG_BIAS, ARG_DST, ARG_SCRATCHPAD, ARG_COUNT };

/* All fields are int64_t: no padding, so keys compare as bytes. */
struct shape {
  int64_t m, n, k, lda, ldb, ldc, ab_dtype, c_dtype, b_transposed, accumulate, bias;
};

/* One primitive; memory objects per thread, since they carry the addresses. */
struct entry {
  struct shape shape;
  dnnl_primitive_t primitive; /* NULL: free */
  dnnl_memory_t (*memory)[ARG_COUNT];
  size_t scratch_bytes; /* of one thread, a multiple of PAGE */
  uint64_t used;
};

struct cpu_gemm_cache {
  dnnl_engine_t engine;
  dnnl_stream_t *streams; /* [n_threads] */
  int n_threads;
  bool bf16; /* the processor (as far as the library may use it) multiplies bf16 */
  uint64_t clock;
  struct entry entries[CACHE_SETS][CACHE_WAYS];
};

static enum status library_error(dnnl_status_t code, const char *call, const struct shape *s) {
  const char *reason = code == dnnl_out_of_memory   ? "out of memory"
                       : code == dnnl_unimplemented ? "not implemented for this processor"
                                                    : "failed";
  if (!s) return status_set(STATUS_DEVICE, "oneDNN: %s: %s (status %d)", call, reason, (int)code);
  return status_set(STATUS_DEVICE, "oneDNN: %s: %s (status %d) for a %s product of %lld x %lld x %lld", call, reason,
                    (int)code, dtype_name((enum dtype)s->ab_dtype), (long long)s->m, (long long)s->n, (long long)s->k);
}

#define DNNL_TRY_OUT(call)                        \
  do {                                            \
    dnnl_status_t code_ = (call);                 \
    if (code_ != dnnl_success) {                  \
      status = library_error(code_, #call, NULL); \
      goto out;                                   \
    }                                             \
  } while (0)

enum status cpu_gemm_open(struct device *d, struct cpu_gemm_cache **cache_p) {
  enum status status = STATUS_OK;
  struct cpu_gemm_cache *cache = calloc(1, sizeof *cache);
  dnnl_stream_t *streams = calloc((size_t)d->n_threads, sizeof *streams);
  if (!cache || !streams) {
    free(cache);
    free(streams);
    return status_set(STATUS_SYSTEM, "product cache: out of memory");
  }
  cache->streams = streams;
  cache->n_threads = d->n_threads;
  DNNL_TRY_OUT(dnnl_engine_create(&cache->engine, dnnl_cpu, 0));
  for (int i = 0; i < d->n_threads; i++) {
    DNNL_TRY_OUT(dnnl_stream_create(&cache->streams[i], cache->engine, dnnl_stream_default_flags));
  }
  unsigned isa = (unsigned)dnnl_get_effective_cpu_isa(), wanted = (unsigned)dnnl_cpu_isa_avx512_core_bf16;
  cache->bf16 = (isa & wanted) == wanted;
out:
  if (status != STATUS_OK) cpu_gemm_close(&cache);
  *cache_p = cache;
  return status;
}

static void entry_clear(struct entry *entry, int n_threads) {
  for (int i = 0; entry->memory && i < n_threads; i++) {
    for (int a = 0; a < ARG_COUNT; a++) {
      if (entry->memory[i][a]) dnnl_memory_destroy(entry->memory[i][a]);
    }
  }
  if (entry->primitive) dnnl_primitive_destroy(entry->primitive);
  free(entry->memory);
  *entry = (struct entry){0};
}

void cpu_gemm_close(struct cpu_gemm_cache **cache_p) {
  struct cpu_gemm_cache *cache = *cache_p;
  if (!cache) return;
  for (int s = 0; s < CACHE_SETS; s++) {
    for (int w = 0; w < CACHE_WAYS; w++) entry_clear(&cache->entries[s][w], cache->n_threads);
  }
  for (int i = 0; i < cache->n_threads; i++) {
    if (cache->streams[i]) dnnl_stream_destroy(cache->streams[i]);
  }
  free(cache->streams);
  if (cache->engine) dnnl_engine_destroy(cache->engine);
  free(cache);
  *cache_p = NULL;
}

void cpu_gemm_describe(char *text, size_t size) {
  static const struct {
    unsigned isa;
    const char *name;
  } names[] = {{dnnl_cpu_isa_avx512_core_bf16, "avx512_bf16"},
               {dnnl_cpu_isa_avx512_core, "avx512"},
               {dnnl_cpu_isa_avx2, "avx2"},
               {dnnl_cpu_isa_avx, "avx"}};
  unsigned isa = (unsigned)dnnl_get_effective_cpu_isa();
  const char *name = "sse4.1";
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    if ((isa & names[i].isa) != names[i].isa) continue;
    name = names[i].name;
    break;
  }
  const dnnl_version_t *version = dnnl_version();
  snprintf(text, size, "oneDNN %d.%d.%d (%s)", version->major, version->minor, version->patch, name);
}

/* --- making a primitive ---------------------------------------------------- */

/* The two generations of the C interface differ in who owns a descriptor. */
#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t layout_t;
static dnnl_status_t layout_create(layout_t *layout, int n_dims, const dnnl_dims_t dims, dnnl_data_type_t type,
                                   const dnnl_dims_t strides) {
  return dnnl_memory_desc_create_with_strides(layout, n_dims, dims, type, strides);
}
static void layout_destroy(layout_t *layout) {
  if (*layout) dnnl_memory_desc_destroy(*layout);
}
static dnnl_status_t matmul_create(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, layout_t layouts[ARG_COUNT],
                                   bool bias, dnnl_primitive_attr_t attr) {
  return dnnl_matmul_primitive_desc_create(pd, engine, layouts[ARG_SRC], layouts[ARG_WEIGHTS],
                                           bias ? layouts[ARG_BIAS] : NULL, layouts[ARG_DST], attr);
}
static dnnl_status_t sum_append(dnnl_post_ops_t post_ops) {
  return dnnl_post_ops_append_sum(post_ops, 1.0f, 0, dnnl_data_type_undef);
}
#define LAYOUT_OF(layout) (layout)
#else
typedef dnnl_memory_desc_t layout_t;
static dnnl_status_t layout_create(layout_t *layout, int n_dims, const dnnl_dims_t dims, dnnl_data_type_t type,
                                   const dnnl_dims_t strides) {
  return dnnl_memory_desc_init_by_strides(layout, n_dims, dims, type, strides);
}
static void layout_destroy(layout_t *layout) { (void)layout; }
static dnnl_status_t matmul_create(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, layout_t layouts[ARG_COUNT],
                                   bool bias, dnnl_primitive_attr_t attr) {
  dnnl_matmul_desc_t desc;
  dnnl_status_t code = dnnl_matmul_desc_init(&desc, &layouts[ARG_SRC], &layouts[ARG_WEIGHTS],
                                             bias ? &layouts[ARG_BIAS] : NULL, &layouts[ARG_DST]);
  return code == dnnl_success ? dnnl_primitive_desc_create(pd, &desc, attr, engine, NULL) : code;
}
static dnnl_status_t sum_append(dnnl_post_ops_t post_ops) { return dnnl_post_ops_append_sum(post_ops, 1.0f); }
#define LAYOUT_OF(layout) (&(layout))
#endif

static dnnl_data_type_t library_type(int64_t dtype) { return dtype == DTYPE_BF16 ? dnnl_bf16 : dnnl_f32; }

static dnnl_status_t create_layouts(const struct shape *s, layout_t layouts[ARG_COUNT]) {
  const dnnl_dims_t dims[] = {{s->m, s->k}, {s->k, s->n}, {1, s->n}, {s->m, s->n}};
  const dnnl_dims_t strides[] = {
      {s->lda, 1}, {s->b_transposed ? 1 : s->ldb, s->b_transposed ? s->ldb : 1}, {s->n, 1}, {s->ldc, 1}};
  const dnnl_data_type_t types[] = {library_type(s->ab_dtype), library_type(s->ab_dtype), dnnl_f32,
                                    library_type(s->c_dtype)};
  for (int a = ARG_SRC; a <= ARG_DST; a++) {
    dnnl_status_t code = layout_create(&layouts[a], 2, dims[a], types[a], strides[a]);
    if (code != dnnl_success) return code;
  }
  return dnnl_success;
}

static dnnl_status_t create_attributes(bool accumulate, dnnl_primitive_attr_t *attr) {
  dnnl_status_t code = dnnl_primitive_attr_create(attr);
  if (code != dnnl_success) return code;
  code = dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user);
  if (code != dnnl_success || !accumulate) return code;
  dnnl_post_ops_t post_ops = NULL;
  code = dnnl_post_ops_create(&post_ops);
  if (code == dnnl_success) code = sum_append(post_ops);
  if (code == dnnl_success) code = dnnl_primitive_attr_set_post_ops(*attr, post_ops);
  if (post_ops) dnnl_post_ops_destroy(post_ops);
  return code;
}

static enum status create_memory(struct cpu_gemm_cache *cache, struct entry *entry, layout_t layouts[ARG_COUNT],
                                 dnnl_primitive_desc_t pd) {
  enum status status = STATUS_OK;
  entry->memory = calloc((size_t)cache->n_threads, sizeof *entry->memory);
  if (!entry->memory) return status_set(STATUS_SYSTEM, "product cache: out of memory");
  for (int i = 0; i < cache->n_threads; i++) {
    for (int a = ARG_SRC; a <= ARG_DST; a++) {
      if (a == ARG_BIAS && !entry->shape.bias) continue;
      DNNL_TRY_OUT(dnnl_memory_create(&entry->memory[i][a], LAYOUT_OF(layouts[a]), cache->engine, DNNL_MEMORY_NONE));
    }
    DNNL_TRY_OUT(dnnl_memory_create(&entry->memory[i][ARG_SCRATCHPAD],
                                    dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0), cache->engine,
                                    DNNL_MEMORY_NONE));
  }
out:
  return status;
}

static enum status entry_create(struct cpu_gemm_cache *cache, const struct shape *shape, struct entry *entry) {
  enum status status = STATUS_OK;
  layout_t layouts[ARG_COUNT] = {0};
  dnnl_primitive_attr_t attr = NULL;
  dnnl_primitive_desc_t pd = NULL;
  int n_threads = omp_get_max_threads();
  omp_set_num_threads(1); /* the library plans for the threads it sees here */
  entry->shape = *shape;
  DNNL_TRY_OUT(create_layouts(shape, layouts));
  DNNL_TRY_OUT(create_attributes(shape->accumulate, &attr));
  dnnl_status_t code = matmul_create(&pd, cache->engine, layouts, shape->bias, attr);
  if (code == dnnl_success) code = dnnl_primitive_create(&entry->primitive, pd);
  if (code != dnnl_success) {
    status = library_error(code, "matmul", shape);
    goto out;
  }
  size_t bytes = dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0));
  entry->scratch_bytes = (bytes + PAGE - 1) / PAGE * PAGE;
  status = create_memory(cache, entry, layouts, pd);
out:
  omp_set_num_threads(n_threads);
  if (pd) dnnl_primitive_desc_destroy(pd);
  if (attr) dnnl_primitive_attr_destroy(attr);
  for (int a = 0; a < ARG_COUNT; a++) layout_destroy(&layouts[a]);
  if (status != STATUS_OK) entry_clear(entry, cache->n_threads);
  return status;
}

/* The cached primitive of this shape; makes it, in place of the set's least
 * recently used one if need be. The ways are more than the shapes of one
 * product, so that none of these pushes out another. */
static enum status entry_find(struct cpu_gemm_cache *cache, const struct shape *shape, struct entry **entry_p) {
  uint64_t hash = 0;
  const int64_t *words = (const int64_t *)shape;
  for (size_t i = 0; i < sizeof *shape / sizeof *words; i++) {
    hash = (hash ^ (uint64_t)words[i]) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  struct entry *set = cache->entries[hash % CACHE_SETS], *oldest = set;
  for (int w = 0; w < CACHE_WAYS; w++) {
    struct entry *entry = &set[w];
    if (entry->primitive && memcmp(&entry->shape, shape, sizeof *shape) == 0) {
      entry->used = ++cache->clock;
      *entry_p = entry;
      return STATUS_OK;
    }
    if (entry->used < oldest->used) oldest = entry;
  }
  entry_clear(oldest, cache->n_threads);
  TRY(entry_create(cache, shape, oldest));
  oldest->used = ++cache->clock;
  *entry_p = oldest;
  return STATUS_OK;
}

/* --- running --------------------------------------------------------------- */

/* Tiles of the output. Rows fill the micro-kernels; columns are cut where rows
 * alone would leave threads idle (and only there: a tile narrower than c takes
 * the library's older kernel, which allocates its packing buffers). */
struct tiling {
  int64_t rows, columns, n_rows, n_columns;
};

static struct tiling tiling_of(int64_t m, int64_t n) {
  struct tiling t = {.rows = m >= 8192 ? 256 : m >= 256 ? 128 : 64, .columns = n};
  t.n_rows = (m + t.rows - 1) / t.rows;
  if (t.n_rows < 8) {
    int64_t pieces = (n + 511) / 512;
    t.columns = ((n + pieces - 1) / pieces + 63) / 64 * 64;
    if (t.columns > n) t.columns = n;
  }
  t.n_columns = (n + t.columns - 1) / t.columns;
  return t;
}

static int64_t tile_extent(int64_t total, int64_t tile, int64_t index) {
  return total - index * tile < tile ? total - index * tile : tile;
}

static dnnl_status_t run_tile(struct cpu_gemm_cache *cache, const struct entry *entry, int thread,
                              const struct cpu_product *p, int64_t row, int64_t column, char *scratch) {
  size_t ab = cpu_element_bytes(p->ab_dtype), c = cpu_element_bytes(p->c_dtype);
  void *address[ARG_COUNT] = {
      [ARG_SRC] = (char *)p->a + (size_t)(row * p->lda) * ab,
      [ARG_WEIGHTS] = (char *)p->b + (size_t)(p->b_transposed ? column * p->ldb : column) * ab,
      [ARG_BIAS] = p->bias ? (void *)(p->bias + column) : NULL,
      [ARG_DST] = (char *)p->c + (size_t)(row * p->ldc + column) * c,
      [ARG_SCRATCHPAD] = scratch,
  };
  static const int names[ARG_COUNT] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS, DNNL_ARG_DST,
                                       DNNL_ARG_SCRATCHPAD};
  dnnl_exec_arg_t args[ARG_COUNT];
  int n_args = 0;
  for (int a = 0; a < ARG_COUNT; a++) {
    dnnl_memory_t memory = entry->memory[thread][a];
    if (!memory) continue;
    dnnl_status_t code = dnnl_memory_set_data_handle(memory, address[a]);
    if (code != dnnl_success) return code;
    args[n_args++] = (dnnl_exec_arg_t){names[a], memory};
  }
  dnnl_status_t code = dnnl_primitive_execute(entry->primitive, cache->streams[thread], n_args, args);
  return code == dnnl_success ? dnnl_stream_wait(cache->streams[thread]) : code;
}

static enum status gemm_tiled(struct device *d, const struct cpu_product *p) {
  struct cpu_gemm_cache *cache = cpu_state(d)->gemm;
  struct tiling t = tiling_of(p->m, p->n);
  struct entry *entries[2][2] = {{NULL}}; /* [last row of tiles][last column of tiles] */
  struct shape shape = {
      0, 0, p->k, p->lda, p->ldb, p->ldc, p->ab_dtype, p->c_dtype, p->b_transposed, p->accumulate, p->bias != NULL};
  size_t scratch_bytes = 0;
  for (int r = t.n_rows == 1; r < 2; r++) {
    for (int c = t.n_columns == 1; c < 2; c++) {
      shape.m = r ? tile_extent(p->m, t.rows, t.n_rows - 1) : t.rows;
      shape.n = c ? tile_extent(p->n, t.columns, t.n_columns - 1) : t.columns;
      TRY(entry_find(cache, &shape, &entries[r][c]));
      if (entries[r][c]->scratch_bytes > scratch_bytes) scratch_bytes = entries[r][c]->scratch_bytes;
    }
  }
  void *block;
  TRY(cpu_scratch(d, CPU_SCRATCH_GEMM, scratch_bytes * (size_t)d->n_threads, &block));
  char *scratch = block; /* one part per thread, as large as any of the primitives needs */
  int64_t n_tiles = t.n_rows * t.n_columns;
  dnnl_status_t failed = dnnl_success;
#pragma omp parallel num_threads(d->n_threads) if (n_tiles > 1)
  {
    omp_set_num_threads(1); /* inside this thread only: the library must not start threads of its own */
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < n_tiles; i++) {
      int64_t r = i % t.n_rows, c = i / t.n_rows;
      int thread = omp_get_thread_num();
      dnnl_status_t code = run_tile(cache, entries[r == t.n_rows - 1][c == t.n_columns - 1], thread, p, r * t.rows,
                                    c * t.columns, scratch + (size_t)thread * scratch_bytes);
      if (code != dnnl_success) {
#pragma omp atomic write
        failed = code;
      }
    }
  }
  return failed == dnnl_success ? STATUS_OK : library_error(failed, "matmul", &shape);
}

/* --- products the library does not take ------------------------------------ */

/* rows x columns elements to dense f32. */
static void stage_f32(const struct device *d, enum dtype dtype, const void *src, int64_t rows, int64_t columns,
                      int64_t ld, float *dst) {
#pragma omp parallel for num_threads(d->n_threads) if (rows > 1)
  for (int64_t r = 0; r < rows; r++) {
    cpu_load(dtype, (const char *)src + (size_t)(r * ld) * cpu_element_bytes(dtype), columns, dst + r * columns);
  }
}

static void unstage(const struct device *d, const struct cpu_product *p, int64_t row, int64_t rows, float *staged) {
#pragma omp parallel for num_threads(d->n_threads) if (rows > 1)
  for (int64_t r = 0; r < rows; r++) {
    float *from = staged + r * p->n;
    char *to = (char *)p->c + (size_t)((row + r) * p->ldc) * cpu_element_bytes(p->c_dtype);
    if (p->accumulate && p->c_dtype == DTYPE_F32) {
      for (int64_t i = 0; i < p->n; i++) from[i] += ((float *)to)[i];
    } else if (p->accumulate) {
      for (int64_t i = 0; i < p->n; i++) from[i] += cpu_bf16_value(((uint16_t *)to)[i]);
    }
    cpu_store(p->c_dtype, from, p->n, to);
  }
}

/* In f32, a block of rows at a time: bf16 operands on a processor without bf16
 * instructions, or f32 operands with a bf16 result. */
static enum status gemm_staged(struct device *d, const struct cpu_product *p) {
  int64_t block = p->m < STAGED_ROWS ? p->m : STAGED_ROWS;
  int64_t b_rows = p->b_transposed ? p->n : p->k, b_columns = p->b_transposed ? p->k : p->n;
  bool convert = p->ab_dtype != DTYPE_F32;
  int64_t a_size = convert ? block * p->k : 0, b_size = convert ? p->n * p->k : 0;
  void *scratch;
  TRY(cpu_scratch(d, CPU_SCRATCH_OPERAND, (size_t)(a_size + b_size + block * p->n) * sizeof(float), &scratch));
  float *c = scratch, *b = c + block * p->n, *a = b + b_size;
  if (convert) stage_f32(d, p->ab_dtype, p->b, b_rows, b_columns, p->ldb, b);
  for (int64_t row = 0; row < p->m; row += block) {
    int64_t rows = tile_extent(p->m, block, row / block);
    struct cpu_product part = *p;
    part.m = rows;
    part.ab_dtype = part.c_dtype = DTYPE_F32;
    part.a = (const char *)p->a + (size_t)(row * p->lda) * cpu_element_bytes(p->ab_dtype);
    part.c = c;
    part.ldc = p->n;
    part.accumulate = false;
    if (convert) {
      stage_f32(d, p->ab_dtype, part.a, rows, p->k, p->lda, a);
      part.a = a;
      part.lda = p->k;
      part.b = b;
      part.ldb = b_columns;
    }
    TRY(gemm_tiled(d, &part));
    unstage(d, p, row, rows, c);
  }
  return STATUS_OK;
}

enum status cpu_gemm(struct device *d, const struct cpu_product *product) {
  if (product->m == 0 || product->n == 0) return STATUS_OK;
  bool staged = product->ab_dtype == DTYPE_BF16 ? !cpu_state(d)->gemm->bf16 : product->c_dtype == DTYPE_BF16;
  return staged ? gemm_staged(d, product) : gemm_tiled(d, product);
}
