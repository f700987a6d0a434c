/*
 * gemm_cublaslt.c: matrix products by cuBLASLt; the only file that knows the
 * library.
 *
 * The library stores by columns: a row-major c = a b is its c' = b' a', so the
 * operands change places and nothing is moved. The algorithm of a product is
 * asked for once per shape and kept, descriptors too. Algorithms that sum parts
 * of k in the output's type, or in the output itself, are not asked for: they
 * would round bf16 results several times. The others sum in an order that their
 * shape decides, on one queue with one workspace: repeated calls give the same bits.
 *
 * What the library refuses as it lies (bf16 rows at odd addresses, f32 operands
 * with a bf16 result, no terms at all) is copied to padded scratch and computed
 * there; only tiny models come that way: what is wide, logits too, has rows at multiples of 16 bytes.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/cuda/cuda_internal.h"

enum { CACHE_SETS = 128, CACHE_WAYS = 8, ALGORITHMS = 8, PAD = 8, LARGEST_ALIGNMENT = 16 };

/* All that decides about an algorithm. All fields are int64_t: no padding, so keys compare as bytes. */
struct shape {
  int64_t m, n, k, lda, ldb, ldc, ldaux, a_transposed, b_transposed, accumulate, ab_dtype, c_dtype, epilogue;
  int64_t align_a, align_b, align_c, align_bias, align_aux; /* of addresses, at most LARGEST_ALIGNMENT bytes */
};

struct plan {
  struct shape shape;
  bool made;                 /* false: this place is free */
  bool possible;             /* false: the library has no algorithm */
  cublasLtMatmulDesc_t what; /* transposes and epilogue */
  cublasLtMatrixLayout_t a, b, c;
  cublasLtMatmulAlgo_t algorithm;
  uint64_t used;
};

struct cuda_gemm_cache {
  cublasLtHandle_t handle;
  void *workspace;
  size_t workspace_bytes;
  cublasComputeType_t compute_f32; /* of f32 operands */
  uint64_t clock;
  struct plan plans[CACHE_SETS][CACHE_WAYS];
};

enum status cuda_gemm_open(struct device *d, struct cuda_gemm_cache **cache_p) {
  enum status status = STATUS_OK;
  struct cuda_gemm_cache *cache = calloc(1, sizeof *cache);
  if (!cache) return status_set(STATUS_SYSTEM, "product cache: out of memory");
  cache->compute_f32 = cuda_state(d)->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  cache->workspace_bytes = (size_t)(cuda_state(d)->properties.major >= 9 ? 64 : 32) << 20;
  TRY_OUT(CUBLAS_CHECK(cublasLtCreate(&cache->handle)));
  TRY_OUT(device_alloc(d, cache->workspace_bytes, "workspace of products", &cache->workspace));
out:
  if (status != STATUS_OK) cuda_gemm_close(d, &cache);
  *cache_p = cache;
  return status;
}

static void plan_clear(struct plan *plan) {
  if (plan->what) cublasLtMatmulDescDestroy(plan->what);
  if (plan->a) cublasLtMatrixLayoutDestroy(plan->a);
  if (plan->b) cublasLtMatrixLayoutDestroy(plan->b);
  if (plan->c) cublasLtMatrixLayoutDestroy(plan->c);
  *plan = (struct plan){0};
}

void cuda_gemm_close(struct device *d, struct cuda_gemm_cache **cache_p) {
  struct cuda_gemm_cache *cache = *cache_p;
  if (!cache) return;
  for (int s = 0; s < CACHE_SETS; s++) {
    for (int w = 0; w < CACHE_WAYS; w++) plan_clear(&cache->plans[s][w]);
  }
  device_free(d, cache->workspace, cache->workspace_bytes);
  if (cache->handle) cublasLtDestroy(cache->handle);
  free(cache);
  *cache_p = NULL;
}

void cuda_gemm_describe(char *text, size_t size) {
  size_t version = cublasLtGetVersion();
  snprintf(text, size, "cuBLASLt %zu.%zu", version / 10000, version % 10000 / 100);
}

/* --- making a plan --------------------------------------------------------- */

static cudaDataType_t data_type(enum dtype dtype) { return dtype == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F; }

static cublasLtEpilogue_t epilogue_of(const struct cuda_product *p) {
  if (p->epilogue == CUDA_EPILOGUE_BIAS) return CUBLASLT_EPILOGUE_BIAS;
  if (p->epilogue == CUDA_EPILOGUE_NONE) return CUBLASLT_EPILOGUE_DEFAULT;
  return p->bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX; /* the library's is by tanh */
}

static enum status set(cublasLtMatmulDesc_t what, cublasLtMatmulDescAttributes_t attribute, const void *value,
                       size_t bytes) {
  return CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(what, attribute, value, bytes));
}

/* Transposes and epilogue; `bias` and aux are addresses of this call, the next sets its own. */
static enum status describe_product(const struct cuda_gemm_cache *cache, const struct cuda_product *p, const void *bias,
                                    struct plan *plan) {
  const cublasOperation_t as_it_lies = CUBLAS_OP_N, turned = CUBLAS_OP_T;
  cublasLtEpilogue_t epilogue = epilogue_of(p);
  TRY(CUBLAS_CHECK(cublasLtMatmulDescCreate(
      &plan->what, p->ab_dtype == DTYPE_F32 ? cache->compute_f32 : CUBLAS_COMPUTE_32F, CUDA_R_32F)));
  TRY(set(plan->what, CUBLASLT_MATMUL_DESC_TRANSA, p->b_transposed ? &turned : &as_it_lies, sizeof turned));
  TRY(set(plan->what, CUBLASLT_MATMUL_DESC_TRANSB, p->a_transposed ? &turned : &as_it_lies, sizeof turned));
  TRY(set(plan->what, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
  if (bias) TRY(set(plan->what, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
  if (p->epilogue == CUDA_EPILOGUE_GELU_AUX) {
    TRY(set(plan->what, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &p->aux, sizeof p->aux));
    TRY(set(plan->what, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &p->ldaux, sizeof p->ldaux));
  }
  return STATUS_OK;
}

static enum status layout(enum dtype dtype, int64_t rows, int64_t columns, int64_t ld,
                          cublasLtMatrixLayout_t *layout_p) {
  return CUBLAS_CHECK(
      cublasLtMatrixLayoutCreate(layout_p, data_type(dtype), (uint64_t)columns, (uint64_t)rows, ld)); /* by columns */
}

static enum status describe_operands(const struct cuda_product *p, struct plan *plan) {
  const struct shape *s = &plan->shape;
  TRY(layout(p->ab_dtype, s->b_transposed ? s->n : s->k, s->b_transposed ? s->k : s->n, s->ldb, &plan->a));
  TRY(layout(p->ab_dtype, s->a_transposed ? s->k : s->m, s->a_transposed ? s->m : s->k, s->lda, &plan->b));
  return layout(p->c_dtype, s->m, s->n, s->ldc, &plan->c);
}

static enum status set_limits(const struct cuda_gemm_cache *cache, const struct shape *s,
                              cublasLtMatmulPreference_t limits) {
  const uint64_t workspace = cache->workspace_bytes;
  const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; /* or none */
  const struct {
    cublasLtMatmulPreferenceAttributes_t attribute;
    uint32_t bytes;
  } alignments[] = {{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)s->align_b},
                    {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)s->align_a},
                    {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)s->align_c},
                    {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)s->align_c}};
  CUBLAS_TRY(cublasLtMatmulPreferenceSetAttribute(limits, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                  sizeof workspace));
  CUBLAS_TRY(cublasLtMatmulPreferenceSetAttribute(limits, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction,
                                                  sizeof reduction));
  for (size_t i = 0; i < sizeof alignments / sizeof *alignments; i++) {
    CUBLAS_TRY(cublasLtMatmulPreferenceSetAttribute(limits, alignments[i].attribute, &alignments[i].bytes,
                                                    sizeof alignments[i].bytes));
  }
  return STATUS_OK;
}

/* The library's first choice; plan->possible false if it has none. */
static enum status choose_algorithm(const struct cuda_gemm_cache *cache, cublasLtMatmulPreference_t limits,
                                    struct plan *plan) {
  cublasLtMatmulHeuristicResult_t results[ALGORITHMS];
  int n = 0;
  cublasStatus_t error = cublasLtMatmulAlgoGetHeuristic(cache->handle, plan->what, plan->a, plan->b, plan->c, plan->c,
                                                        limits, ALGORITHMS, results, &n);
  if (error == CUBLAS_STATUS_NOT_SUPPORTED || error == CUBLAS_STATUS_INVALID_VALUE) return STATUS_OK;
  TRY(cublas_check_(error, "cublasLtMatmulAlgoGetHeuristic", __FILE__, __LINE__));
  for (int i = 0; i < n && !plan->possible; i++) {
    if (results[i].state != CUBLAS_STATUS_SUCCESS || results[i].workspaceSize > cache->workspace_bytes) continue;
    plan->algorithm = results[i].algo;
    plan->possible = true;
  }
  return STATUS_OK;
}

static enum status plan_make(const struct cuda_gemm_cache *cache, const struct cuda_product *p,
                             const struct shape *shape, const void *bias, struct plan *plan) {
  enum status status = STATUS_OK;
  cublasLtMatmulPreference_t limits = NULL;
  *plan = (struct plan){.shape = *shape, .made = true};
  TRY_OUT(describe_product(cache, p, bias, plan));
  TRY_OUT(describe_operands(p, plan));
  TRY_OUT(CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&limits)));
  TRY_OUT(set_limits(cache, shape, limits));
  TRY_OUT(choose_algorithm(cache, limits, plan));
out:
  if (limits) cublasLtMatmulPreferenceDestroy(limits);
  if (status != STATUS_OK) plan_clear(plan);
  return status;
}

static uint64_t shape_hash(const struct shape *shape) {
  const int64_t *word = (const int64_t *)shape;
  uint64_t hash = 0;
  for (size_t i = 0; i < sizeof *shape / sizeof *word; i++) {
    hash = (hash ^ (uint64_t)word[i]) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
  }
  return hash;
}

/* The plan of a shape, made if it is not there, in place of its set's least recently used. */
static enum status plan_find(struct cuda_gemm_cache *cache, const struct cuda_product *p, const struct shape *shape,
                             const void *bias, struct plan **plan_p) {
  struct plan *set_of = cache->plans[shape_hash(shape) % CACHE_SETS], *oldest = set_of, *plan = NULL;
  for (int w = 0; w < CACHE_WAYS && !plan; w++) {
    if (set_of[w].made && memcmp(&set_of[w].shape, shape, sizeof *shape) == 0) plan = &set_of[w];
    if (set_of[w].used < oldest->used) oldest = &set_of[w];
  }
  if (!plan) {
    plan = oldest;
    plan_clear(plan);
    TRY(plan_make(cache, p, shape, bias, plan));
  } else {
    if (bias) TRY(set(plan->what, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    if (p->aux) TRY(set(plan->what, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &p->aux, sizeof p->aux));
  }
  plan->used = ++cache->clock;
  *plan_p = plan;
  return STATUS_OK;
}

/* --- products as they lie -------------------------------------------------- */

static int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

static int64_t alignment(const void *address) {
  uintptr_t lowest_bit = (uintptr_t)address & -(uintptr_t)address;
  return lowest_bit == 0 || lowest_bit > LARGEST_ALIGNMENT ? LARGEST_ALIGNMENT : (int64_t)lowest_bit;
}

/* The distance of rows; that of a single row says nothing and may be anything. */
static int64_t distance(int64_t rows, int64_t columns, int64_t ld) { return rows == 1 ? round_up(columns, PAD) : ld; }

static struct shape shape_of(const struct cuda_product *p, const void *bias) {
  return (struct shape){
      .m = p->m,
      .n = p->n,
      .k = p->k,
      .lda = p->a_transposed ? distance(p->k, p->m, p->lda) : distance(p->m, p->k, p->lda),
      .ldb = p->b_transposed ? distance(p->n, p->k, p->ldb) : distance(p->k, p->n, p->ldb),
      .ldc = distance(p->m, p->n, p->ldc),
      .ldaux = p->epilogue == CUDA_EPILOGUE_GELU_AUX ? p->ldaux : 0,
      .a_transposed = p->a_transposed,
      .b_transposed = p->b_transposed,
      .accumulate = p->accumulate,
      .ab_dtype = p->ab_dtype,
      .c_dtype = p->c_dtype,
      .epilogue = epilogue_of(p),
      .align_a = alignment(p->a),
      .align_b = alignment(p->b),
      .align_c = alignment(p->c),
      .align_bias = alignment(bias),
      .align_aux = alignment(p->aux),
  };
}

/* bias is in c's type. *fits false, and nothing queued, if the library has no algorithm. */
static enum status multiply(struct device *d, const struct cuda_product *p, const void *bias, bool *fits) {
  struct cuda_gemm_cache *cache = cuda_state(d)->gemm;
  struct shape shape = shape_of(p, bias);
  struct plan *plan;
  const float beta = p->accumulate ? 1 : 0;
  TRY(plan_find(cache, p, &shape, bias, &plan));
  *fits = plan->possible;
  if (!plan->possible) return STATUS_OK;
  cublasStatus_t error =
      cublasLtMatmul(cache->handle, plan->what, &p->alpha, p->b, plan->a, p->a, plan->b, &beta, p->c, plan->c, p->c,
                     plan->c, &plan->algorithm, cache->workspace, cache->workspace_bytes, cuda_stream(d));
  if (error == CUBLAS_STATUS_SUCCESS) return STATUS_OK;
  return status_prefix(cublas_check_(error, "cublasLtMatmul", __FILE__, __LINE__), "a %s product of %lld x %lld x %lld",
                       dtype_name(p->ab_dtype), (long long)p->m, (long long)p->n, (long long)p->k);
}

/* --- products that must be copied first ------------------------------------ */

/* One operand and its copy: dense, sides padded with zeros, in another type perhaps. */
struct copy {
  struct tensor_view from, to;
  int64_t rows, columns;
  size_t offset, bytes; /* in the scratch block */
};

static struct copy copy_of(const void *data, int64_t rows, int64_t columns, int64_t ld, enum dtype dtype,
                           enum dtype to_dtype, size_t *used) {
  int64_t padded = round_up(columns ? columns : 1, PAD);
  struct copy copy = {
      .from = {(void *)data, ld, dtype},
      .to = {NULL, padded, to_dtype},
      .rows = rows,
      .columns = columns,
      .offset = *used,
      .bytes = dtype_bytes(to_dtype, round_up(rows ? rows : 1, PAD) * padded),
  };
  *used += (copy.bytes + 255) / 256 * 256;
  return copy;
}

/* The same product on padded copies of everything, then c back. Zeros add nothing to a sum, so k is padded as well. */
static enum status multiply_copied(struct device *d, const struct cuda_product *p) {
  size_t used = 0;
  void *block;
  bool fits = false;
  int64_t m = round_up(p->m, PAD), n = round_up(p->n, PAD), k = round_up(p->k ? p->k : 1, PAD);
  enum dtype c_dtype = p->ab_dtype == DTYPE_F32 ? DTYPE_F32 : p->c_dtype;
  struct copy a = copy_of(p->a, p->a_transposed ? p->k : p->m, p->a_transposed ? p->m : p->k, p->lda, p->ab_dtype,
                          p->ab_dtype, &used);
  struct copy b = copy_of(p->b, p->b_transposed ? p->n : p->k, p->b_transposed ? p->k : p->n, p->ldb, p->ab_dtype,
                          p->ab_dtype, &used);
  struct copy c = copy_of(p->c, p->m, p->n, p->ldc, p->c_dtype, c_dtype, &used);
  struct copy bias = copy_of(p->bias, 1, p->n, p->n, DTYPE_F32, c_dtype, &used);
  struct copy *copies[] = {&a, &b, p->accumulate ? &c : NULL, p->bias ? &bias : NULL};
  TRY(cuda_scratch(d, CUDA_SCRATCH_OPERAND, used, &block));
  CUDA_TRY(cudaMemsetAsync(block, 0, used, cuda_stream(d)));
  c.to.data = (char *)block + c.offset;
  for (size_t i = 0; i < sizeof copies / sizeof *copies; i++) {
    if (!copies[i]) continue;
    copies[i]->to.data = (char *)block + copies[i]->offset;
    if (copies[i]->rows == 0 || copies[i]->columns == 0) continue;
    TRY(cuda_cast(d, copies[i]->rows, copies[i]->columns, copies[i]->from, copies[i]->to));
  }
  struct cuda_product padded = *p;
  padded.m = m, padded.n = n, padded.k = k;
  padded.a = a.to.data, padded.lda = a.to.ld;
  padded.b = b.to.data, padded.ldb = b.to.ld;
  padded.c = c.to.data, padded.ldc = c.to.ld;
  padded.c_dtype = c_dtype;
  TRY(multiply(d, &padded, bias.to.data, &fits));
  if (fits) return cuda_cast(d, p->m, p->n, c.to, c.from);
  return status_set(STATUS_DEVICE, "cuBLASLt has no algorithm for a %s product of %lld x %lld x %lld",
                    dtype_name(p->ab_dtype), (long long)p->m, (long long)p->n, (long long)p->k);
}

/* The library takes a bias in c's type only, and its kernels read it 16 bytes at
 * a time without being asked about its address. For bf16 the bias is rounded: that
 * is one small launch, while adding it in f32 would be a pass over c; the sum is
 * rounded to bf16 anyway, and checkpoints made in bf16 lose nothing. */
static enum status bias_as(struct device *d, const struct cuda_product *p, const void **bias_p) {
  *bias_p = p->bias;
  if (!p->bias || (p->c_dtype == DTYPE_F32 && alignment(p->bias) == LARGEST_ALIGNMENT)) return STATUS_OK;
  void *copy;
  TRY(cuda_scratch(d, CUDA_SCRATCH_OPERAND, dtype_bytes(p->c_dtype, p->n), &copy));
  *bias_p = copy;
  return cuda_cast(d, 1, p->n, (struct tensor_view){(void *)p->bias, p->n, DTYPE_F32},
                   (struct tensor_view){copy, p->n, p->c_dtype});
}

enum status cuda_gemm(struct device *d, const struct cuda_product *p, bool *fits) {
  bool fused = p->epilogue == CUDA_EPILOGUE_GELU_AUX, done = true;
  const void *bias;
  if (fits) *fits = true;
  if (p->m == 0 || p->n == 0) return STATUS_OK;
  bool as_it_lies = p->k > 0 && !(p->ab_dtype == DTYPE_F32 && p->c_dtype == DTYPE_BF16);
  const bool aux_fits = p->ldaux % PAD == 0 && alignment(p->aux) == LARGEST_ALIGNMENT; /* as the library demands */
  if (fused && (!as_it_lies || !aux_fits)) {
    *fits = false;
    return STATUS_OK;
  }
  if (as_it_lies) {
    TRY(bias_as(d, p, &bias));
    TRY(multiply(d, p, bias, &done));
    if (done) return STATUS_OK;
  }
  if (!fused) return multiply_copied(d, p);
  *fits = false;
  return STATUS_OK;
}
