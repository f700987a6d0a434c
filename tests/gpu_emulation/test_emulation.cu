/*
 * test_emulation.cu: the emulation itself: each case runs in a child process.
 * Right programs must end well, wrong ones by abort with the expected words.
 * An argument chooses the cases whose name holds it.
 */
#include <cublasLt.h>
#include <cuda_runtime.h>
#include <nccl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define FULL 0xffffffffu
#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                \
    }                                                                         \
  } while (0)
#define LAUNCH(kernel, grid, block, shared, stream, ...) \
  emulation_launch(#kernel, kernel, grid, block, shared, stream, __VA_ARGS__)

static cudaStream_t stream, other;
static cudaEvent_t event;

static void open_streams() {
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
}
static float *device_floats(int n) {
  float *p = nullptr;
  CHECK(cudaMalloc(&p, (size_t)n * sizeof *p) == cudaSuccess);
  return p;
}
static void get(float *host, const float *device, int n) {
  CHECK(cudaMemcpyAsync(host, device, (size_t)n * 4, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
}

/* --- kernels ---------------------------------------------------------------------------- */

__global__ void fill(float *x, int n, float value) {
  int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] = value + (float)i;
}
__global__ void read_only(const float *x, float *y) { *y = *x; }
__global__ void turn_block(float *x, bool wait) { /* reverses the elements of a block */
  __shared__ float tile[256];
  tile[threadIdx.x] = x[blockIdx.x * 256 + threadIdx.x];
  if (wait) __syncthreads();
  x[blockIdx.x * 256 + threadIdx.x] = tile[255 - threadIdx.x];
}
__global__ void shuffles(float *out) {
  int lane = threadIdx.x % 32;
  double sum = lane;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(FULL, sum, step);
  int up = __shfl_up_sync(FULL, lane, 1), down = __shfl_down_sync(FULL, lane, 4, 16);
  unsigned int first = __shfl_sync(FULL, (unsigned)lane, 3, 8), vote = __ballot_sync(FULL, lane % 2);
  float half = __shfl_xor_sync(lane < 16 ? 0xffffu : 0xffff0000u, (float)lane, 8);
  __syncwarp();
  bool good = sum == 496 && up == (lane ? lane - 1 : 0) && down == (lane % 16 < 12 ? lane + 4 : lane) &&
              first == (unsigned)(lane / 8 * 8 + 3) && vote == 0xaaaaaaaau && half == (float)(lane ^ 8) &&
              __any_sync(FULL, lane == 7) && !__all_sync(FULL, lane == 7);
  out[blockIdx.x * blockDim.x + threadIdx.x] = good;
}
__global__ void use_shared(float *out, int n) {
  float *shared = (float *)emulation_dynamic_shared();
  for (int i = threadIdx.x; i < n; i += blockDim.x) shared[i] = (float)i;
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = shared[n - 1];
}
__global__ void leave_early(float *x) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  x[threadIdx.x] = 1;
}
__global__ void two_barriers(float *x) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    x[threadIdx.x] = 0;
    __syncthreads();
  }
}
__global__ void lonely_shuffle(float *x) {
  float value = threadIdx.x;
  if (threadIdx.x != 9) value = __shfl_xor_sync(FULL, value, 1);
  x[threadIdx.x] = value;
}
__global__ void two_shuffles(float *x) {
  float value = threadIdx.x;
  value = threadIdx.x % 2 ? __shfl_xor_sync(FULL, value, 1) : __shfl_down_sync(FULL, value, 1);
  x[threadIdx.x] = value;
}
__global__ void wrong_mask(float *x) { x[threadIdx.x] = __shfl_xor_sync(0xffff, (float)threadIdx.x, 1); }
__global__ void short_warp(float *x) { x[threadIdx.x] = __shfl_down_sync(FULL, (float)threadIdx.x, 1); }
__global__ void deep(float *x, int depth) {
  volatile char frame[4096];
  frame[0] = (char)depth;
  if (depth > 0) deep(x, depth - 1);
  x[0] = frame[0];
}
struct holder {
  int n;
  float *memory;
};
__global__ void take_holder(struct holder holder) { holder.memory[0] = 1; }

/* --- right programs ------------------------------------------------------------------------ */

static void right_kernels() {
  static float host[64 * 256];
  float *x = device_floats(64 * 256);
  LAUNCH(fill, 64, 256, 0, stream, x, 64 * 256, 1);
  LAUNCH(turn_block, 64, 256, 0, stream, x, true);
  get(host, x, 64 * 256);
  for (int i = 0; i < 64 * 256; i++) CHECK(host[i] == (float)(i / 256 * 256 + 255 - i % 256 + 1));
  LAUNCH(shuffles, 3, 128, 0, stream, x);
  get(host, x, 3 * 128);
  for (int i = 0; i < 3 * 128; i++) CHECK(host[i] == 1);
  CHECK(cudaFuncSetAttribute(use_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024) == cudaSuccess);
  LAUNCH(use_shared, dim3(2, 2), dim3(16, 4), 200 * 1024, stream, x, 200 * 256);
  get(host, x, 2);
  CHECK(host[0] == 200 * 256 - 1 && host[1] == 200 * 256 - 1);
  struct holder holder = {1, x};
  LAUNCH(take_holder, 1, 1, 0, stream, holder);
  get(host, x, 1);
  CHECK(host[0] == 1);
  CHECK(cudaFree(x) == cudaSuccess && cudaGetLastError() == cudaSuccess);
}

static void right_lateness() {
  float *x = device_floats(4), *pinned, pageable[4] = {1, 2, 3, 4};
  CHECK(cudaMallocHost(&pinned, 16) == cudaSuccess);
  memset(pinned, 0, 16);
  CHECK(cudaMemcpyAsync(x, pageable, 16, cudaMemcpyHostToDevice, stream) == cudaSuccess);
  memset(pageable, 0, sizeof pageable); /* has been read */
  CHECK(cudaMemcpyAsync(pinned, x, 16, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  CHECK(pinned[3] == 0); /* nobody has waited */
  CHECK(cudaEventRecord(event, stream) == cudaSuccess);
  CHECK(cudaEventQuery(event) == cudaErrorNotReady && cudaGetLastError() == cudaErrorNotReady);
  CHECK(cudaEventSynchronize(event) == cudaSuccess && cudaEventQuery(event) == cudaSuccess && pinned[3] == 4);
  CHECK(cudaMemcpyAsync(x, pinned, 16, cudaMemcpyHostToDevice, stream) == cudaSuccess);
  pinned[3] = 5; /* too early: it is read when the copy runs */
  get(pageable, x, 4);
  CHECK(pageable[3] == 5);
  cudaFreeHost(pinned);
  cudaFree(x);
}

static void right_streams() {
  float *x = device_floats(64), host[64];
  LAUNCH(fill, 1, 64, 0, stream, x, 64, 1);
  CHECK(cudaEventRecord(event, stream) == cudaSuccess && cudaStreamWaitEvent(other, event) == cudaSuccess);
  LAUNCH(fill, 1, 64, 0, other, x, 64, 2);
  CHECK(cudaEventRecord(event, other) == cudaSuccess && cudaStreamWaitEvent(stream, event) == cudaSuccess);
  get(host, x, 64);
  CHECK(host[5] == 7);
  LAUNCH(fill, 1, 64, 0, other, x, 64, 3); /* after the host waited */
  CHECK(cudaStreamSynchronize(other) == cudaSuccess);
  get(host, x, 64);
  CHECK(host[5] == 8);
  float *y = device_floats(1), *z = device_floats(1);
  LAUNCH(read_only, 1, 1, 0, stream, x, y); /* two readers need no order */
  LAUNCH(read_only, 1, 1, 0, other, x, z);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
}

static void right_graph() {
  float *x = device_floats(64), host[64];
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  enum cudaStreamCaptureStatus status;
  LAUNCH(fill, 1, 64, 0, stream, x, 64, 0);
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cudaStreamIsCapturing(stream, &status) == cudaSuccess && status == cudaStreamCaptureStatusActive);
  LAUNCH(fill, 1, 64, 0, stream, x, 64, 9);
  CHECK(cudaEventRecord(event, stream) == cudaSuccess && cudaStreamWaitEvent(other, event) == cudaSuccess);
  CHECK(cudaMemsetAsync(x, 0, 4, other) == cudaSuccess);
  CHECK(cudaEventRecord(event, other) == cudaSuccess && cudaStreamWaitEvent(stream, event) == cudaSuccess);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess && cudaGraphDestroy(graph) == cudaSuccess);
  get(host, x, 64);
  CHECK(host[0] == 0 && host[5] == 5);
  for (int i = 0; i < 2; i++) CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess);
  get(host, x, 64);
  CHECK(host[0] == 0 && host[5] == 14);
  CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);
}

static void right_fresh_memory() {
  float *x = device_floats(5), host[5];
  get(host, x, 5);
  for (float value : host) CHECK(value != value);
  size_t free_bytes, total;
  CHECK(cudaMemGetInfo(&free_bytes, &total) == cudaSuccess && free_bytes < total);
  CHECK(cudaMalloc(&x, total) == cudaErrorMemoryAllocation && cudaGetLastError() == cudaErrorMemoryAllocation);
}

/* D[m, n] = gelu(A' B + bias), by columns, f32. */
static void right_product() {
  enum { M = 24, N = 7, K = 33 };
  static float a[K * M], b[K * N], bias[M], d[M * N], aux[M * N];
  for (int i = 0; i < K * M; i++) a[i] = (float)(i % 13 - 6) / 8;
  for (int i = 0; i < K * N; i++) b[i] = (float)(i % 7 - 3) / 4;
  for (int i = 0; i < M; i++) bias[i] = (float)i / 16;
  float *da = device_floats(K * M), *db = device_floats(K * N), *dbias = device_floats(M), *dd = device_floats(M * N),
        *daux = device_floats(M * N), *workspace = device_floats(1 << 20), one = 1, zero = 0;
  cudaMemcpyAsync(da, a, sizeof a, cudaMemcpyHostToDevice, stream);
  cudaMemcpyAsync(db, b, sizeof b, cudaMemcpyHostToDevice, stream);
  cudaMemcpyAsync(dbias, bias, sizeof bias, cudaMemcpyHostToDevice, stream);
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t what;
  cublasLtMatrixLayout_t la, lb, ld;
  cublasLtMatmulPreference_t limits;
  cublasLtMatmulHeuristicResult_t found;
  int32_t turned = CUBLAS_OP_T, n_found;
  uint32_t epilogue = CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
  int64_t aux_ld = M;
  uint64_t bytes = 4 << 20;
  CHECK(!cublasLtCreate(&handle) && !cublasLtMatmulDescCreate(&what, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  CHECK(!cublasLtMatrixLayoutCreate(&la, CUDA_R_32F, K, M, K) && !cublasLtMatrixLayoutCreate(&lb, CUDA_R_32F, K, N, K));
  CHECK(!cublasLtMatrixLayoutCreate(&ld, CUDA_R_32F, M, N, M) && !cublasLtMatmulPreferenceCreate(&limits));
  CHECK(!cublasLtMatmulDescSetAttribute(what, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof turned));
  CHECK(!cublasLtMatmulDescSetAttribute(what, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
  CHECK(!cublasLtMatmulDescSetAttribute(what, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &dbias, sizeof dbias));
  CHECK(!cublasLtMatmulDescSetAttribute(what, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &daux, sizeof daux));
  CHECK(!cublasLtMatmulDescSetAttribute(what, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &aux_ld, sizeof aux_ld));
  CHECK(!cublasLtMatmulPreferenceSetAttribute(limits, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes));
  CHECK(!cublasLtMatmulAlgoGetHeuristic(handle, what, la, lb, ld, ld, limits, 1, &found, &n_found) && n_found == 1);
  CHECK(!cublasLtMatmul(handle, what, &one, da, la, db, lb, &zero, dd, ld, dd, ld, &found.algo, workspace, bytes,
                        stream));
  get(d, dd, M * N);
  get(aux, daux, M * N);
  for (int j = 0; j < N; j++) {
    for (int i = 0; i < M; i++) {
      double x = bias[i];
      for (int k = 0; k < K; k++) x += (double)a[i * K + k] * b[j * K + k];
      CHECK(fabs(aux[j * M + i] - x) < 1e-5);
      CHECK(fabs(d[j * M + i] - 0.5 * x * (1 + tanh(0.7978845608 * (x + 0.044715 * x * x * x)))) < 1e-5);
    }
  }
}

/* --- wrong programs --------------------------------------------------------------------------- */

static float *filled() {
  float *x = device_floats(1024);
  LAUNCH(fill, 4, 256, 0, stream, x, 1024, 1);
  return x;
}
template <typename Kernel>
static void run(Kernel kernel, int threads) {
  float *x = filled();
  emulation_launch("kernel", kernel, 1, threads, 0, stream, x);
  cudaStreamSynchronize(stream);
}
static void wrong_exit() { run(leave_early, 64); }
static void wrong_barrier() { run(two_barriers, 32); }
static void wrong_shuffle() { run(lonely_shuffle, 32); }
static void wrong_shuffle_kind() { run(two_shuffles, 32); }
static void wrong_shuffle_mask() { run(wrong_mask, 32); }
static void wrong_short_warp() { run(short_warp, 40); }
static void wrong_missing_barrier() { /* no message, but a wrong result */
  static float host[1024];
  float *x = filled();
  LAUNCH(turn_block, 4, 256, 0, stream, x, false);
  get(host, x, 1024);
  for (int i = 0; i < 1024; i++) CHECK(host[i] == (float)(i / 256 * 256 + 255 - i % 256 + 1));
}
static void wrong_stack() {
  LAUNCH(deep, 1, 1, 0, stream, device_floats(1), 1000);
  cudaStreamSynchronize(stream);
}
static void wrong_host_read() { printf("%g", *filled()); }
static void wrong_host_pointer() {
  float *host = (float *)malloc(4096);
  LAUNCH(fill, 1, 32, 0, stream, host, 32, 1);
}
static void wrong_host_pointer_in_struct() {
  float host;
  struct holder holder = {1, &host};
  LAUNCH(take_holder, 1, 1, 0, stream, holder);
}
static void wrong_direction() {
  float *x = filled(), host;
  cudaMemcpyAsync(&host, x, 4, cudaMemcpyHostToDevice, stream);
}
static void wrong_copy_extent() {
  static float host[2000];
  cudaMemcpyAsync(host, filled(), sizeof host, cudaMemcpyDeviceToHost, stream);
}
static void wrong_beyond() {
  float *x = device_floats(1000);
  LAUNCH(fill, 32, 256, 0, stream, x, 32 * 256, 1);
  cudaStreamSynchronize(stream);
}
static void wrong_slightly_beyond() {
  float *x = device_floats(1000);
  LAUNCH(fill, 4, 256, 0, stream, x, 1001, 1);
  cudaStreamSynchronize(stream);
  cudaFree(x);
}
static void wrong_freed() {
  float *x = filled();
  cudaFree(x);
  cudaMemsetAsync(x, 0, 4, stream);
}
static void wrong_order() { LAUNCH(fill, 1, 32, 0, other, filled(), 32, 1); }
static void wrong_order_copy() { /* into the middle of what another stream fills */
  float *x = device_floats(64);
  cudaMemsetAsync(x, 0, 256, stream);
  LAUNCH(fill, 1, 32, 0, other, x + 32, 32, 1);
}
static void wrong_order_reader() {
  float *x = filled(), *y = device_floats(1);
  cudaStreamSynchronize(stream);
  LAUNCH(read_only, 1, 1, 0, stream, x, y);
  LAUNCH(fill, 1, 32, 0, other, x, 32, 1);
}
static void wrong_event_too_early() {
  float *x = device_floats(64);
  cudaEventRecord(event, stream);
  LAUNCH(fill, 1, 64, 0, stream, x, 64, 1);
  cudaStreamWaitEvent(other, event, 0);
  LAUNCH(fill, 1, 64, 0, other, x, 64, 1);
}
static void wrong_block() { LAUNCH(fill, 1, 1025, 0, stream, filled(), 1, 1); }
static void wrong_grid() { LAUNCH(fill, dim3(1, 65536), 1, 0, stream, filled(), 1, 1); }
static void wrong_zero_grid() { LAUNCH(fill, 0, 32, 0, stream, filled(), 1, 1); }
static void wrong_shared() { LAUNCH(use_shared, 1, 32, 50 * 1024, stream, filled(), 1); }
static void begin() { CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess); }
static void wrong_malloc_in_record() {
  begin();
  device_floats(1);
}
static void wrong_wait_in_record() {
  begin();
  cudaStreamSynchronize(stream);
}
static void wrong_pageable_in_record() {
  float *x = filled(), host = 1;
  begin();
  cudaMemcpyAsync(x, &host, 4, cudaMemcpyHostToDevice, stream);
}
static void wrong_shared_bounds() { /* found by AddressSanitizer only */
  LAUNCH(use_shared, 1, 32, 400, stream, filled(), 101);
  cudaStreamSynchronize(stream);
}

/* A communicator of this process alone. */
static ncclComm_t join(int blocking) {
  ncclUniqueId id;
  ncclComm_t comm;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  ncclResult_t state = ncclInProgress;
  config.blocking = blocking;
  CHECK(ncclGetUniqueId(&id) == ncclSuccess);
  CHECK(ncclCommInitRankConfig(&comm, 1, id, 0, &config) == (blocking ? ncclSuccess : ncclInProgress));
  while (state == ncclInProgress) CHECK(ncclCommGetAsyncError(comm, &state) == ncclSuccess);
  return comm;
}
static void wrong_group() {
  ncclComm_t comm = join(1);
  ncclGroupStart();
  ncclCommFinalize(comm);
}
static void wrong_group_end() { ncclGroupEnd(); }
static void wrong_progress() { /* the first call is not seen through */
  float *x = filled();
  ncclComm_t comm = join(0);
  ncclAllReduce(x, x, 1024, ncclFloat32, ncclSum, comm, stream);
  ncclAllReduce(x, x, 1024, ncclFloat32, ncclSum, comm, stream);
}
static void wrong_order_collective() {
  float *x = filled();
  ncclAllReduce(x, x, 1024, ncclFloat32, ncclSum, join(1), other);
}
static void wrong_collective_memory() {
  static float host[4];
  ncclAllReduce(host, host, 4, ncclFloat32, ncclSum, join(1), stream);
}

/* --- running them --------------------------------------------------------------------------------- */

struct test {
  const char *name;
  void (*function)();
  const char *words; /* NULL: it is right */
};
#if defined(__SANITIZE_ADDRESS__)
static const bool with_sanitizer = true;
#else
static const bool with_sanitizer = false;
#endif

static const struct test TESTS[] = {
    {"right kernels", right_kernels, nullptr},
    {"right lateness", right_lateness, nullptr},
    {"right streams", right_streams, nullptr},
    {"right graph", right_graph, nullptr},
    {"right fresh memory", right_fresh_memory, nullptr},
    {"right product", right_product, nullptr},
    {"exit before a barrier", wrong_exit, "divergent __syncthreads"},
    {"two barriers", wrong_barrier, "divergent __syncthreads"},
    {"shuffle without a lane", wrong_shuffle, "divergent warp"},
    {"two kinds of shuffle", wrong_shuffle_kind, "divergent warp"},
    {"mask without the lane", wrong_shuffle_mask, "lacks the thread itself"},
    {"shuffle beyond the block", wrong_short_warp, "takes no part"},
    {"missing barrier", wrong_missing_barrier, "not so"},
    {"stack overflow", wrong_stack, "stack overflow"},
    {"host read", wrong_host_read, "host access to device memory"},
    {"host pointer", wrong_host_pointer, "points to host memory"},
    {"host pointer in a struct", wrong_host_pointer_in_struct, "holds the address of host memory"},
    {"direction", wrong_direction, "against the kind of copy"},
    {"extent of a copy", wrong_copy_extent, "has only"},
    {"beyond an allocation", wrong_beyond, "beyond an allocation"},
    {"slightly beyond an allocation", wrong_slightly_beyond, "outside of an allocation"},
    {"freed memory", wrong_freed, "lies in no allocation"},
    {"order of kernels", wrong_order, "nothing orders them"},
    {"order of copy and kernel", wrong_order_copy, "nothing orders them"},
    {"order of reader and writer", wrong_order_reader, "nothing orders them"},
    {"event before the kernel", wrong_event_too_early, "nothing orders them"},
    {"block too large", wrong_block, "cannot be launched"},
    {"grid too large", wrong_grid, "cannot be launched"},
    {"empty grid", wrong_zero_grid, "cannot be launched"},
    {"shared memory too large", wrong_shared, "cannot be launched"},
    {"malloc in a record", wrong_malloc_in_record, "cudaMalloc while a stream is recorded"},
    {"wait in a record", wrong_wait_in_record, "cudaStreamSynchronize on a stream that is recorded"},
    {"pageable memory in a record", wrong_pageable_in_record, "pageable host memory"},
    {"group that is not ended", wrong_group, "group that was not ended"},
    {"group that was not begun", wrong_group_end, "without ncclGroupStart"},
    {"call in progress", wrong_progress, "still ncclInProgress"},
    {"order of kernel and collective", wrong_order_collective, "nothing orders them"},
    {"collective on host memory", wrong_collective_memory, "host memory"},
    {"bounds of shared memory", wrong_shared_bounds, nullptr},
};

/* Whether the test went as it should. */
static bool run_test(const struct test &test) {
  int pipe_ends[2];
  CHECK(pipe(pipe_ends) == 0);
  pid_t child = fork();
  if (child == 0) {
    dup2(pipe_ends[1], 2);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    open_streams();
    test.function();
    cudaDeviceSynchronize();
    fflush(stdout);
    _exit(0);
  }
  close(pipe_ends[1]);
  static char text[1 << 16];
  size_t length = 0;
  ssize_t n;
  while ((n = read(pipe_ends[0], text + length, sizeof text - 1 - length)) > 0) length += (size_t)n;
  text[length] = 0;
  close(pipe_ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  bool ended_well = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  const char *words = test.words;
  if (with_sanitizer && (strstr(text, "AddressSanitizer") || test.function == wrong_shared_bounds))
    words = "AddressSanitizer";
  bool good = test.words || words ? !ended_well && strstr(text, words) : ended_well;
  printf("%s: %s\n", test.name, good ? "ok" : "FAILED");
  if (!good) printf("%s(status %x)\n", text, status);
  return good;
}

int main(int argc, char **argv) {
  int n_failed = 0;
  setvbuf(stdout, nullptr, _IONBF, 0);
  for (const struct test &test : TESTS) {
    if (argc > 1 && !strstr(test.name, argv[1])) continue;
    n_failed += !run_test(test);
  }
  return n_failed ? 1 : 0;
}
