/*
 * device.c: a GPU as a device: opening it, memory, copies, waiting; and the
 * border where errors of CUDA and cuBLAS become a status.
 *
 * Waiting is polling with short sleeps and calls of the watch, never a blocking
 * call of CUDA: a kernel that waits for a rank that died would hold this one
 * for ever.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/cuda/cuda_internal.h"

enum { SPIN_US = 50, SHORTEST_SLEEP_US = 20, LONGEST_SLEEP_US = 200, WATCH_US = 100000 };
enum { OLDEST_MAJOR = 8, SCRATCH_UNIT = 2 << 20 };

/* --- errors ---------------------------------------------------------------- */

static const char *file_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

enum status cuda_check_(cudaError_t error, const char *call, const char *file, int line) {
  if (error == cudaSuccess) return STATUS_OK;
  cudaGetLastError();
  return status_set(STATUS_DEVICE, "%s failed at %s:%d: %s", call, file_name(file), line, cudaGetErrorString(error));
}

enum status cublas_check_(cublasStatus_t error, const char *call, const char *file, int line) {
  if (error == CUBLAS_STATUS_SUCCESS) return STATUS_OK;
  cudaGetLastError();
  return status_set(STATUS_DEVICE, "%s failed at %s:%d: %s", call, file_name(file), line,
                    cublasLtGetStatusString(error));
}

enum status cuda_launched(const char *kernel, const char *file, int line) {
  cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return STATUS_OK;
  return status_set(STATUS_DEVICE, "kernel %s failed at %s:%d: %s", kernel, file_name(file), line,
                    cudaGetErrorString(error));
}

/* --- waiting --------------------------------------------------------------- */

static int64_t now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* Until `event`, or with NULL all queued work, is done. The first microseconds
 * spin: what is nearly done should not pay for a sleep. */
static enum status wait_for(struct device *d, cudaEvent_t event) {
  struct cuda_state *state = cuda_state(d);
  TRY(cuda_graph_forbids(d, "waiting for the gpu"));
  int64_t begin = now_us(), watched = begin, sleep_us = SHORTEST_SLEEP_US;
  for (;;) {
    cudaError_t error = event ? cudaEventQuery(event) : cudaStreamQuery(state->stream);
    if (error != cudaErrorNotReady) return cuda_check_(error, "work on the gpu", __FILE__, __LINE__);
    cudaGetLastError(); /* "not ready" is recorded like an error */
    int64_t now = now_us();
    if (state->watch && now - watched >= WATCH_US) {
      TRY(state->watch(state->watch_context));
      watched = now;
    }
    if (now - begin < SPIN_US) continue;
    struct timespec pause = {.tv_nsec = sleep_us * 1000};
    nanosleep(&pause, NULL);
    sleep_us = sleep_us < LONGEST_SLEEP_US / 2 ? 2 * sleep_us : LONGEST_SLEEP_US;
  }
}

static enum status cuda_synchronize(struct device *d) { return wait_for(d, NULL); }

static void cuda_set_watch(struct device *d, device_watch_func_t *watch, void *context) {
  cuda_state(d)->watch = watch;
  cuda_state(d)->watch_context = context;
}

/* --- memory ---------------------------------------------------------------- */

static enum status no_memory(const struct device *d, size_t bytes, const char *what) {
  size_t free_bytes = 0, total = 0;
  if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) cudaGetLastError();
  return status_set(STATUS_DEVICE,
                    "%s: no memory for %zu MB on the gpu (%zu of %zu MB free, %" PRIu64 " MB held by this rank); %s",
                    what, bytes >> 20, free_bytes >> 20, total >> 20, d->allocated >> 20, device_memory_remedy(what));
}

static enum status cuda_alloc(struct device *d, size_t bytes, const char *what, void **memory_p) {
  void *memory = NULL;
  TRY(cuda_graph_forbids(d, what));
  if (bytes > SIZE_MAX / 2) return no_memory(d, bytes, what);
  cudaError_t error = cudaMalloc(&memory, bytes ? bytes : 1);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return no_memory(d, bytes, what);
  }
  TRY(cuda_check_(error, "cudaMalloc", __FILE__, __LINE__));
  enum status status = CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, cuda_stream(d)));
  if (status != STATUS_OK) {
    cudaFree(memory);
    return status;
  }
  d->allocations++;
  d->allocated += bytes;
  *memory_p = memory;
  return STATUS_OK;
}

static void cuda_free(struct device *d, void *memory, size_t bytes) {
  cuda_graph_abandon(d); /* only those who give up free memory while a graph is recorded */
  cuda_graphs_forget(d); /* records may hold its address */
  d->allocated -= bytes;
  if (cudaFree(memory) != cudaSuccess) cudaGetLastError(); /* an earlier failure's, already reported */
}

static enum status cuda_host_alloc(struct device *d, size_t bytes, const char *what, void **memory_p) {
  void *memory = NULL;
  TRY(cuda_graph_forbids(d, what));
  cudaError_t error = cudaHostAlloc(&memory, bytes ? bytes : 1, cudaHostAllocDefault);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return status_set(STATUS_SYSTEM, "%s: no pinned host memory for %zu MB: %s", what, bytes >> 20,
                      cudaGetErrorString(error));
  }
  *memory_p = memory;
  return STATUS_OK;
}

static void cuda_host_free(struct device *d, void *memory) {
  cuda_graph_abandon(d);
  if (cudaFreeHost(memory) != cudaSuccess) cudaGetLastError();
}

static enum status cuda_zero_bytes(struct device *d, void *p, size_t bytes) {
  return CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, cuda_stream(d)));
}

/* Give up a block that is too small. Records hold its address: with graphs it is kept until the device closes, for
 * records must stay the same on all ranks (NCCL launches a graph's messages together), and ranks with other shards
 * outgrow their blocks at other times. */
static enum status retire(struct device *d, struct cuda_block *block) {
  struct cuda_state *state = cuda_state(d);
  if (!block->data) return STATUS_OK;
  if (!state->graphs) {
    TRY(wait_for(d, NULL)); /* queued work may still use it */
    cuda_free(d, block->data, block->bytes);
  } else {
    if (state->n_retired == CUDA_RETIRED_MOST)
      return status_set(STATUS_DEVICE, "scratch: outgrown %d times; set train.graphs: false", CUDA_RETIRED_MOST);
    state->retired[state->n_retired++] = *block;
  }
  *block = (struct cuda_block){0};
  return STATUS_OK;
}

enum status cuda_scratch(struct device *d, enum cuda_scratch_use use, size_t bytes, void **block_p) {
  struct cuda_block *block = &cuda_state(d)->scratch[use];
  if (block->bytes < bytes || !block->data) {
    TRY(cuda_graph_forbids(d, "more scratch"));
    if (cuda_state(d)->graphs && bytes < block->bytes + block->bytes / 2) bytes = block->bytes + block->bytes / 2;
    TRY(retire(d, block));
    size_t grown = (bytes / SCRATCH_UNIT + 1) * SCRATCH_UNIT;
    TRY(cuda_alloc(d, grown, "scratch", &block->data));
    block->bytes = grown;
  }
  *block_p = block->data;
  return STATUS_OK;
}

/* --- copies ---------------------------------------------------------------- */

static enum status cuda_stage_take(struct device *d, void **buffer_p) {
  struct cuda_state *state = cuda_state(d);
  int turn = 1 - state->stage_turn;
  TRY(wait_for(d, state->stage_sent[turn]));
  state->stage_turn = turn;
  *buffer_p = state->stage[turn];
  return STATUS_OK;
}

static enum status cuda_stage_send(struct device *d, void *dst, size_t bytes) {
  struct cuda_state *state = cuda_state(d);
  int turn = state->stage_turn;
  CUDA_TRY(cudaMemcpyAsync(dst, state->stage[turn], bytes, cudaMemcpyHostToDevice, state->stream));
  return CUDA_CHECK(cudaEventRecord(state->stage_sent[turn], state->stream));
}

static bool is_pinned(const void *p) {
  struct cudaPointerAttributes attributes;
  if (cudaPointerGetAttributes(&attributes, p) == cudaSuccess) return attributes.type == cudaMemoryTypeHost;
  cudaGetLastError();
  return false;
}

/* To pageable memory, which CUDA itself would fill with a blocking call: through
 * the staging buffers, one arriving while the other is emptied. What they last
 * sent has left them by then, since the queue keeps its order. */
static enum status copy_out_staged(struct device *d, char *dst, const char *src, size_t bytes) {
  struct cuda_state *state = cuda_state(d);
  const size_t unit = DEVICE_STAGE_BYTES, n_pieces = (bytes + unit - 1) / unit;
  for (size_t i = 0; i <= n_pieces; i++) {
    if (i < n_pieces) {
      size_t now = bytes - i * unit < unit ? bytes - i * unit : unit;
      CUDA_TRY(cudaMemcpyAsync(state->stage[i % 2], src + i * unit, now, cudaMemcpyDeviceToHost, state->stream));
      CUDA_TRY(cudaEventRecord(state->stage_sent[i % 2], state->stream));
    }
    if (i == 0) continue;
    size_t done = (i - 1) * unit, arrived = bytes - done < unit ? bytes - done : unit;
    TRY(wait_for(d, state->stage_sent[(i - 1) % 2]));
    memcpy(dst + done, state->stage[(i - 1) % 2], arrived);
  }
  return STATUS_OK;
}

static enum status cuda_copy_out(struct device *d, void *dst, const void *src, size_t bytes) {
  TRY(cuda_graph_forbids(d, "a copy to the host"));
  if (!is_pinned(dst)) return copy_out_staged(d, dst, src, bytes);
  CUDA_TRY(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, cuda_stream(d)));
  return wait_for(d, NULL);
}

/* --- what it is ------------------------------------------------------------ */

static void *cuda_stream_of(const struct device *d) { return cuda_stream(d); }

static void cuda_identity(const struct device *d, char identity[DEVICE_IDENTITY]) {
  identity[0] = 0;
  if (cudaDeviceGetPCIBusId(identity, DEVICE_IDENTITY, cuda_state(d)->index) != cudaSuccess) cudaGetLastError();
  for (char *c = identity; *c; c++) *c = *c >= 'A' && *c <= 'F' ? (char)(*c - 'A' + 'a') : *c;
}

static uint64_t cuda_memory(const struct device *d) { return cuda_state(d)->properties.totalGlobalMem; }

static void cuda_describe(const struct device *d, char *text, size_t size) {
  const struct cuda_state *state = cuda_state(d);
  char identity[DEVICE_IDENTITY], library[64];
  int runtime = 0, driver = 0;
  cuda_identity(d, identity);
  cuda_gemm_describe(library, sizeof library);
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess || cudaDriverGetVersion(&driver) != cudaSuccess) {
    cudaGetLastError();
  }
  snprintf(text, size, "%s: %s at %s, %zu GB, %s%s, CUDA %d.%d (driver %d.%d), attention: %s", d->ops->name,
           state->properties.name, identity, (state->properties.totalGlobalMem + (1u << 29)) >> 30, library,
           state->tf32 ? " (TF32)" : "", runtime / 1000, runtime % 1000 / 10, driver / 1000, driver % 1000 / 10,
           cuda_attention_describe());
}

/* --- opening --------------------------------------------------------------- */

static void cuda_close(struct device *d) {
  struct cuda_state *state = cuda_state(d);
  cuda_graphs_close(&state->graphs);
  cuda_gemm_close(d, &state->gemm);
  for (int i = 0; i < CUDA_SCRATCH_COUNT; i++) {
    if (state->scratch[i].data) cuda_free(d, state->scratch[i].data, state->scratch[i].bytes);
  }
  for (int i = 0; i < state->n_retired; i++) cuda_free(d, state->retired[i].data, state->retired[i].bytes);
  for (int i = 0; i < 2; i++) {
    if (state->stage_sent[i]) cudaEventDestroy(state->stage_sent[i]);
    if (state->stage[i]) cuda_host_free(d, state->stage[i]);
  }
  if (state->stream) cudaStreamDestroy(state->stream);
  cudaGetLastError(); /* what fails here has failed, and was reported, before */
  free(state);
  d->state = NULL;
}

static enum status cuda_graph_drop(struct device *d) {
  cuda_graph_abandon(d);
  enum status status = wait_for(d, NULL); /* a record may be under way */
  cuda_graphs_forget(d);
  return status;
}

static const struct device_functions cuda_functions = {
    .close = cuda_close,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .host_alloc = cuda_host_alloc,
    .host_free = cuda_host_free,
    .copy_out = cuda_copy_out,
    .zero = cuda_zero_bytes,
    .stage_take = cuda_stage_take,
    .stage_send = cuda_stage_send,
    .synchronize = cuda_synchronize,
    .set_watch = cuda_set_watch,
    .stream = cuda_stream_of,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .graph_drop = cuda_graph_drop,
    .identity = cuda_identity,
    .memory = cuda_memory,
    .describe = cuda_describe,
};

static int cuda_count(const char **reason) {
  static char text[256];
  int count = 0, driver = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  cudaGetLastError();
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  if (cudaDriverGetVersion(&driver) != cudaSuccess) cudaGetLastError();
  if (error == cudaErrorInsufficientDriver && driver == 0) {
    snprintf(text, sizeof text, "no NVIDIA driver");
  } else if (error == cudaErrorInsufficientDriver) {
    snprintf(text, sizeof text, "the driver is made for CUDA %d.%d, this build needs %d.%d: install a newer driver",
             driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  } else if (error != cudaSuccess && error != cudaErrorNoDevice) {
    snprintf(text, sizeof text, "%s", cudaGetErrorString(error));
  } else if (visible) {
    snprintf(text, sizeof text, "CUDA_VISIBLE_DEVICES='%.100s' shows none", visible);
  } else {
    snprintf(text, sizeof text, "the driver finds none");
  }
  *reason = text;
  return 0;
}

static enum status select_gpu(struct cuda_state *state, int index) {
  struct cudaDeviceProp *properties = &state->properties;
  state->index = index;
  CUDA_TRY(cudaSetDevice(index));
  CUDA_TRY(cudaGetDeviceProperties(properties, index));
  if (properties->major >= OLDEST_MAJOR) return STATUS_OK;
  return status_set(STATUS_DEVICE,
                    "gpu %d (%s) has compute capability %d.%d, %d.0 (Ampere) is the oldest supported: choose another "
                    "with CUDA_VISIBLE_DEVICES, or use the cpu",
                    index, properties->name, properties->major, properties->minor, OLDEST_MAJOR);
}

static enum status open_queue(struct device *d) {
  struct cuda_state *state = cuda_state(d);
  CUDA_TRY(cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking));
  for (int i = 0; i < 2; i++) {
    TRY(cuda_host_alloc(d, DEVICE_STAGE_BYTES, "staging buffer", &state->stage[i]));
    CUDA_TRY(cudaEventCreateWithFlags(&state->stage_sent[i], cudaEventDisableTiming));
  }
  return STATUS_OK;
}

static enum status cuda_open(const struct device_options *options, struct device *d) {
  const char *reason = "";
  enum status status = STATUS_OK;
  int count = cuda_count(&reason);
  if (count == 0) return status_set(STATUS_DEVICE, "no GPU: %s", reason);
  struct cuda_state *state = calloc(1, sizeof *state);
  if (!state) return status_set(STATUS_SYSTEM, "device cuda: out of memory");
  d->ops = &cuda_ops;
  d->functions = &cuda_functions;
  d->state = state;
  d->n_threads = 1;
  state->tf32 = options->tf32;
  TRY_OUT(select_gpu(state, options->node_rank % count));
  TRY_OUT(open_queue(d));
  TRY_OUT(cuda_gemm_open(d, &state->gemm));
  if (options->graphs) TRY_OUT(cuda_graphs_open(&state->graphs));
out:
  if (status != STATUS_OK) cuda_close(d);
  return status;
}

__attribute__((visibility("default"))) const struct device_backend lorashard_cuda_backend = {
    .version = LORASHARD_VERSION,
    .count = cuda_count,
    .open = cuda_open,
};
