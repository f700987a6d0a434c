/*
 * attention.cu: the slots of attention: check what a call asks for, choose the kernels (attention_forward.cu,
 * attention_dq.cu, attention_dkv.cu for bf16; attention_f32.cu, attention_f32_backward.cu), and what backward needs of
 * each query row first.
 *
 * Nothing is added atomically: each sum belongs to one warp, or thread, that makes it in the order of the rows.
 * Launches depend on the rows, the heads and the type; where the segments are is read on the device.
 */
#include "model/cuda/attention.cuh"

const char *cuda_attention_describe(void) { return "own kernels (bf16: mma.sync, f32: fma)"; }

/* May heads of this view be read, or written, in pieces of 16 bytes? */
static bool whole_pieces(struct tensor_view x, int head_dim) {
  int64_t piece = x.dtype == DTYPE_BF16 ? 8 : 4;
  return x.ld % piece == 0 && head_dim % piece == 0 && (uintptr_t)x.data % 16 == 0;
}

/* Field by field: the gaps between them stay 0, so that a job has no bits that nobody chose. */
static void view_set(struct tensor_view *to, struct tensor_view from) {
  to->data = from.data;
  to->ld = from.ld;
  to->dtype = from.dtype;
}
static void args_set(struct attention_args *to, const struct attention_args *from) {
  view_set(&to->q, from->q);
  view_set(&to->k, from->k);
  view_set(&to->v, from->v);
  view_set(&to->o, from->o);
  to->n_rows = from->n_rows;
  to->segments = from->segments;
  to->n_segments = from->n_segments;
  to->n_heads = from->n_heads;
  to->n_kv_heads = from->n_kv_heads;
  to->head_dim = from->head_dim;
  to->kv_of_head = from->kv_of_head;
  to->scale = from->scale;
  to->window = from->window;
  to->alibi = from->alibi;
  to->lse = from->lse;
  to->lse_ld = from->lse_ld;
}

/* What forward and backward have in common. */
static enum status job_set(const struct attention_args *args, int64_t M, struct attention_job *job) {
  if (args->head_dim < 1 || args->head_dim > ATTENTION_MAX_HEAD) {
    return status_set(STATUS_USAGE, "attention on a GPU takes heads of up to %d values, not %d", ATTENTION_MAX_HEAD,
                      args->head_dim);
  }
  int E = args->head_dim;
  memset(job, 0, sizeof *job);
  args_set(&job->args, args);
  job->M = M;
  job->factor = args->scale * LOG2_E;
  job->window = args->window > 0 && args->window < ATTENTION_NO_WINDOW ? (int32_t)args->window : ATTENTION_NO_WINDOW;
  job->copies = whole_pieces(args->q, E) && whole_pieces(args->k, E) && whole_pieces(args->v, E);
  return STATUS_OK;
}

static enum status forward(struct device *d, const struct attention_args *args, bool plain) {
  if (args->n_rows == 0 || args->n_segments == 0) return STATUS_OK;
  struct attention_job job;
  TRY(job_set(args, args->n_rows, &job));
  job.stores = whole_pieces(args->o, args->head_dim);
  if (args->q.dtype == DTYPE_BF16) return attention_forward_bf16(d, &job, plain);
  return attention_forward_f32(d, &job);
}

enum status cuda_attention_forward(struct device *d, const struct attention_args *args) {
  return forward(d, args, false);
}
enum status cuda_attention_forward_plain(struct device *d, const struct attention_args *args) {
  return forward(d, args, true);
}

/* A warp makes job.rows of one query row and head. */
#define ROWS_THREADS 256
template <typename T>
__global__ void __launch_bounds__(ROWS_THREADS) attention_rows_kernel(const struct attention_job job) {
  int64_t at = blockIdx.x * (int64_t)(ROWS_THREADS / CUDA_WARP) + threadIdx.x / CUDA_WARP;
  if (at >= job.M * job.args.n_heads) return; /* a whole warp */
  int head = (int)(at % job.args.n_heads), head_dim = job.args.head_dim, lane = threadIdx.x % CUDA_WARP;
  int64_t row = at / job.args.n_heads;
  const T *o = (const T *)job.args.o.data + row * job.args.o.ld + head * head_dim;
  const T *d_o = (const T *)job.d_o.data + row * job.d_o.ld + head * head_dim;
  float sum = 0;
  if (job.copies) {
    for (int i = 4 * lane; i < head_dim; i += 4 * CUDA_WARP) {
      struct four x = get4(o + i), y = get4(d_o + i);
#pragma unroll
      for (int e = 0; e < 4; e++) sum = fmaf(x.v[e], y.v[e], sum);
    }
  } else {
    for (int i = lane; i < head_dim; i += CUDA_WARP) sum = fmaf(get(o + i), get(d_o + i), sum);
  }
  sum = warp_sum(sum);
  if (lane != 0) return;
  struct attention_row result = {INFINITY, 0};
  if (attention_covered(job.args, (int32_t)row)) {
    float lse = job.args.lse[head * job.args.lse_ld + row];
    if (lse != -INFINITY) result = {lse * LOG2_E, sum};
  }
  job.rows[head * job.M + row] = result;
}

static enum status backward(struct device *d, const struct attention_args *args, int64_t M, struct tensor_view d_o,
                            struct tensor_view dq, struct tensor_view dk, struct tensor_view dv, bool plain) {
  if (M == 0) return STATUS_OK;
  struct attention_job job;
  int E = args->head_dim;
  void *rows;
  TRY(job_set(args, M, &job));
  TRY(cuda_scratch(d, CUDA_SCRATCH_WORK, (size_t)(M * args->n_heads) * sizeof *job.rows, &rows));
  job.rows = (struct attention_row *)rows;
  view_set(&job.d_o, d_o);
  view_set(&job.dq, dq);
  view_set(&job.dk, dk);
  view_set(&job.dv, dv);
  job.copies = job.copies && whole_pieces(args->o, E) && whole_pieces(d_o, E);
  job.stores = whole_pieces(dq, E) && whole_pieces(dk, E) && whole_pieces(dv, E);
  unsigned n_blocks = (unsigned)cuda_div_up(M * args->n_heads, ROWS_THREADS / CUDA_WARP);
  CUDA_WITH_TYPE(args->q.dtype, T, CUDA_LAUNCH(d, (attention_rows_kernel<T>), n_blocks, ROWS_THREADS, 0, job));
  if (args->q.dtype == DTYPE_BF16) {
    TRY(attention_dq_bf16(d, &job, plain));
    return attention_dkv_bf16(d, &job, plain);
  }
  TRY(attention_dq_f32(d, &job));
  return attention_dkv_f32(d, &job);
}

enum status cuda_attention_backward(struct device *d, const struct attention_args *args, int64_t M,
                                    struct tensor_view d_o, struct tensor_view dq, struct tensor_view dk,
                                    struct tensor_view dv) {
  return backward(d, args, M, d_o, dq, dk, dv, false);
}
enum status cuda_attention_backward_plain(struct device *d, const struct attention_args *args, int64_t M,
                                          struct tensor_view d_o, struct tensor_view dq, struct tensor_view dk,
                                          struct tensor_view dv) {
  return backward(d, args, M, d_o, dq, dk, dv, true);
}
