/*
 * test_emulation_nccl.c: collectives of the emulation between the ranks of an MPI
 * job: results, groups, records, and the check that ranks agree.
 * mpirun -n 2 test_emulation_nccl
 */
#include <cuda_runtime_api.h>
#include <mpi.h>
#include <nccl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                     \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      fprintf(stderr, "rank %d, %s:%d: not so: %s\n", rank, __FILE__, __LINE__, #condition); \
      MPI_Abort(MPI_COMM_WORLD, 1);                                                          \
    }                                                                                        \
  } while (0)

static int rank, size;
static cudaStream_t stream;

static void see_through(ncclComm_t comm) {
  ncclResult_t state = ncclInProgress;
  while (state == ncclInProgress) CHECK(ncclCommGetAsyncError(comm, &state) == ncclSuccess);
  CHECK(state == ncclSuccess);
}

static ncclComm_t join(int blocking) {
  ncclUniqueId id;
  ncclComm_t comm;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = blocking;
  if (rank == 0) CHECK(ncclGetUniqueId(&id) == ncclSuccess);
  MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, MPI_COMM_WORLD);
  CHECK(ncclCommInitRankConfig(&comm, size, id, rank, &config) == (blocking ? ncclSuccess : ncclInProgress));
  see_through(comm);
  return comm;
}

static void put(void *device, const void *host, size_t bytes) {
  CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream) == cudaSuccess);
}
static void get(void *host, const void *device, size_t bytes) {
  CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
}

enum { N = 100003 }; /* several pieces, the last one odd */

static void test_results(ncclComm_t comm) {
  float *x, *y, *host = malloc((size_t)size * N * sizeof *host);
  cudaMalloc((void **)&x, (size_t)size * N * sizeof *x);
  cudaMalloc((void **)&y, (size_t)size * N * sizeof *y);
  for (int i = 0; i < size * N; i++) host[i] = (float)(i % 1000 + rank);
  put(x, host, (size_t)size * N * sizeof *x);
  CHECK(ncclAllReduce(x, y, N, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  get(host, y, N * sizeof *x);
  for (int i = 0; i < N; i++) CHECK(host[i] == (float)(size * (i % 1000)) + (float)(size * (size - 1) / 2));
  CHECK(ncclAllReduce(x, y, N, ncclFloat32, ncclMax, comm, stream) == ncclSuccess);
  get(host, y, N * sizeof *x);
  for (int i = 0; i < N; i++) CHECK(host[i] == (float)(i % 1000 + size - 1));
  CHECK(ncclAllGather(x, y, N * sizeof *x, ncclInt8, comm, stream) == ncclSuccess);
  get(host, y, (size_t)size * N * sizeof *x);
  for (int i = 0; i < size * N; i++) CHECK(host[i] == (float)(i % N % 1000 + i / N));
  CHECK(ncclReduceScatter(x, y, N, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  get(host, y, N * sizeof *x);
  for (int i = 0; i < N; i++) {
    CHECK(host[i] == (float)(size * ((rank * N + i) % 1000)) + (float)(size * (size - 1) / 2));
  }
  CHECK(ncclBroadcast(x, y, N, ncclFloat32, size - 1, comm, stream) == ncclSuccess);
  get(host, y, N * sizeof *x);
  for (int i = 0; i < N; i++) CHECK(host[i] == (float)(i % 1000 + size - 1));
  CHECK(ncclGroupStart() == ncclSuccess);
  CHECK(ncclRecv(y, N, ncclFloat32, (rank + size - 1) % size, comm, stream) == ncclSuccess);
  CHECK(ncclSend(x, N, ncclFloat32, (rank + 1) % size, comm, stream) == ncclSuccess);
  CHECK(ncclGroupEnd() == ncclSuccess);
  get(host, y, N * sizeof *x);
  for (int i = 0; i < N; i++) CHECK(host[i] == (float)(i % 1000 + (rank + size - 1) % size));
  cudaFree(x);
  cudaFree(y);
  free(host);
}

/* Part of the data is where the result goes, as NCCL allows it. */
static void test_in_place(ncclComm_t comm) {
  const size_t all = (size_t)size * N, own = (size_t)rank * N;
  float *x, *host = malloc(all * sizeof *host);
  cudaMalloc((void **)&x, all * sizeof *x);
  for (size_t i = 0; i < all; i++) host[i] = (float)(i % 1000 + (size_t)rank);
  put(x, host, all * sizeof *x);
  CHECK(ncclReduceScatter(x, x + own, N, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  get(host, x + own, N * sizeof *x);
  for (size_t i = 0; i < N; i++) {
    CHECK(host[i] == (float)((size_t)size * ((own + i) % 1000)) + (float)(size * (size - 1) / 2));
  }
  for (size_t i = 0; i < N; i++) host[i] = (float)(i % 1000 + (size_t)rank);
  put(x + own, host, N * sizeof *x);
  CHECK(ncclAllGather(x + own, x, N * sizeof *x, ncclInt8, comm, stream) == ncclSuccess);
  get(host, x, all * sizeof *x);
  for (size_t i = 0; i < all; i++) CHECK(host[i] == (float)(i % N % 1000 + i / N));
  cudaFree(x);
  free(host);
}

/* Neighbours in a row: the ends have one half only, sizes differ by direction; several messages wait in order. */
static void test_row(ncclComm_t comm) {
  enum { UP = 70001, DOWN = 33 };
  float *x, *up, *down, *host = malloc(UP * sizeof *host);
  cudaMalloc((void **)&x, UP * sizeof *x);
  cudaMalloc((void **)&up, UP * sizeof *x);
  cudaMalloc((void **)&down, DOWN * sizeof *x);
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < UP; i++) host[i] = (float)(i % 1000 + rank + round);
    put(x, host, UP * sizeof *x);
    CHECK(ncclGroupStart() == ncclSuccess);
    if (rank + 1 < size) {
      CHECK(ncclSend(x, UP, ncclFloat32, rank + 1, comm, stream) == ncclSuccess);
      CHECK(ncclRecv(down, DOWN, ncclFloat32, rank + 1, comm, stream) == ncclSuccess);
    }
    if (rank > 0) {
      CHECK(ncclRecv(up, UP, ncclFloat32, rank - 1, comm, stream) == ncclSuccess);
      CHECK(ncclSend(x, DOWN, ncclFloat32, rank - 1, comm, stream) == ncclSuccess);
    }
    CHECK(ncclGroupEnd() == ncclSuccess);
    if (rank > 0) get(host, up, UP * sizeof *x);
    for (int i = 0; rank > 0 && i < UP; i++) CHECK(host[i] == (float)(i % 1000 + rank - 1 + round));
    if (rank + 1 < size) get(host, down, DOWN * sizeof *x);
    for (int i = 0; rank + 1 < size && i < DOWN; i++) CHECK(host[i] == (float)(i % 1000 + rank + 1 + round));
  }
  cudaFree(x);
  cudaFree(up);
  cudaFree(down);
  free(host);
}

/* A rank that is busy elsewhere does not hold the others up, nor does the order of waiting. */
static void test_independence(ncclComm_t comm) {
  float *x, host = 1;
  cudaMalloc((void **)&x, sizeof *x);
  put(x, &host, sizeof host);
  CHECK(ncclAllReduce(x, x, 1, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
  if (rank == 0) get(&host, x, sizeof host);
  MPI_Barrier(MPI_COMM_WORLD);
  get(&host, x, sizeof host);
  CHECK(host == (float)size);
  cudaFree(x);
}

/* Without blocking, on a stream of its own, recorded and repeated. */
static void test_record(ncclComm_t comm) {
  cudaStream_t side;
  cudaEvent_t before, after;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  float *x, host[4] = {1, 2, 3, 4};
  cudaMalloc((void **)&x, sizeof host);
  cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&before, cudaEventDisableTiming);
  cudaEventCreateWithFlags(&after, cudaEventDisableTiming);
  put(x, host, sizeof host);
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cudaEventRecord(before, stream) == cudaSuccess && cudaStreamWaitEvent(side, before, 0) == cudaSuccess);
  CHECK(ncclAllReduce(x, x, 4, ncclFloat32, ncclSum, comm, side) == ncclInProgress);
  see_through(comm);
  CHECK(cudaEventRecord(after, side) == cudaSuccess && cudaStreamWaitEvent(stream, after, 0) == cudaSuccess);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
  for (int i = 0; i < 3; i++) CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess);
  get(host, x, sizeof host);
  for (int i = 0; i < 4; i++) CHECK(host[i] == (float)((i + 1) * size * size * size));
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaEventDestroy(before);
  cudaEventDestroy(after);
  cudaStreamDestroy(side);
  cudaFree(x);
}

/* Runs last: every rank must end by abort with words about the disagreement. */
static void disagree(ncclComm_t comm) {
  float *x;
  cudaMalloc((void **)&x, 64);
  cudaMemsetAsync(x, 0, 64, stream);
  ncclAllReduce(x, x, rank == 0 ? 4 : 5, ncclFloat32, ncclSum, comm, stream);
  cudaStreamSynchronize(stream);
  fprintf(stderr, "rank %d: a disagreement went unnoticed\n", rank);
}

int main(int argc, char **argv) {
  int provided;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  cudaSetDevice(rank % 8);
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  ncclComm_t first = join(1), second = join(0);
  if (argc > 1 && strcmp(argv[1], "disagree") == 0) disagree(first);
  test_results(first);
  test_in_place(first);
  test_row(first);
  test_independence(first);
  test_record(second);
  CHECK(ncclCommFinalize(second) == ncclInProgress);
  see_through(second);
  CHECK(ncclCommDestroy(second) == ncclSuccess && ncclCommDestroy(first) == ncclSuccess);
  cudaStreamDestroy(stream);
  MPI_Finalize();
  return 0;
}
