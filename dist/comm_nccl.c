/*
 * Device memory over NCCL: the plug-in liblorashard_nccl.so. The only file that
 * includes nccl.h.
 *
 * Collectives run on a stream of their own. It waits for the compute stream by
 * one event and the compute stream waits for it by another; while the compute
 * stream is captured the same two events take the communication stream into the
 * capture and back.
 *
 * Communicators are non-blocking: a call of NCCL may return ncclInProgress, and
 * is seen through with a time-out, so that a missing rank is an error and no
 * hang. After any error all communicators are aborted when they are left.
 */
#include <cuda_runtime_api.h>
#include <nccl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "dist/comm_backend.h"

#if NCCL_VERSION_CODE < NCCL_VERSION(2, 14, 0)
#error "NCCL 2.14 or later is needed: it brought non-blocking communicators"
#endif

/* Leaving in good order waits for the other ranks this long at most. */
#define LEAVE_SECONDS 30.0

struct comm_backend_state {
  cudaStream_t compute;          /* the device's */
  cudaStream_t stream;           /* of the collectives; own */
  cudaEvent_t computed, reduced; /* reused: a wait is for what was recorded when it was queued */
  double timeout_s;
  bool grouping; /* between group_begin and group_end */
  bool failed;
  struct comm_link *links;
};

struct comm_link {
  struct comm_backend_state *state;
  const char *name;
  ncclComm_t comm;
  bool in_group; /* has collectives in the open group */
  struct comm_link *next;
};

/* --- errors ---------------------------------------------------------------- */

#define CUDA_TRY(call) TRY(cuda_check((call), #call, __LINE__))

static enum status cuda_check(cudaError_t error, const char *call, int line) {
  if (error == cudaSuccess) return STATUS_OK;
  cudaGetLastError(); /* the next caller is not to be blamed */
  return status_set(STATUS_DEVICE, "%s failed at %s:%d: %s", call, __FILE__, line, cudaGetErrorString(error));
}

static enum status nccl_failed(enum status code, struct comm_link *link, ncclResult_t result) {
  const char *last = ncclGetLastError(link->comm);
  const int length = last ? (int)strcspn(last, "\n") : 0;
  link->state->failed = true;
  if (length == 0) return status_set(code, "group %s: NCCL: %s", link->name, ncclGetErrorString(result));
  return status_set(code, "group %s: NCCL: %s (%.*s)", link->name, ncclGetErrorString(result), length, last);
}

/* What comes through the network may be another rank's fault. */
static enum status blame(ncclResult_t result) {
  return result == ncclSystemError || result == ncclRemoteError ? STATUS_PEER : STATUS_DEVICE;
}

/* --- non-blocking calls ---------------------------------------------------- */

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Wait until the communicator is through with the last call. ncclInProgress: not in time. */
static ncclResult_t see_through(ncclComm_t comm, double limit) {
  const double until = seconds() + limit;
  const struct timespec pause = {0, 200 * 1000};
  for (int tries = 0;; tries++) {
    ncclResult_t state = ncclSuccess, result = ncclCommGetAsyncError(comm, &state);
    if (result != ncclSuccess) return result;
    if (state != ncclInProgress || seconds() > until) return state;
    if (tries < 1000)
      sched_yield();
    else
      nanosleep(&pause, NULL);
  }
}

/* The end of a call on one communicator that returned `result`. */
static enum status finish(struct comm_link *link, const char *what, ncclResult_t result) {
  struct comm_backend_state *state = link->state;
  if (result == ncclInProgress) result = see_through(link->comm, state->timeout_s);
  if (result == ncclSuccess) return STATUS_OK;
  if (result != ncclInProgress) return nccl_failed(blame(result), link, result);
  state->failed = true;
  return status_set(STATUS_PEER,
                    "group %s: NCCL: %s has not finished after %.0f s: another rank of the group is stuck or gone",
                    link->name, what, state->timeout_s);
}

/* --- opening and closing --------------------------------------------------- */

static enum status describe(char *text, size_t size) {
  int version = 0;
  ncclResult_t result = ncclGetVersion(&version);
  if (result != ncclSuccess) return status_set(STATUS_DEVICE, "ncclGetVersion failed: %s", ncclGetErrorString(result));
  if (version < NCCL_VERSION(2, 14, 0))
    return status_set(STATUS_DEVICE, "the NCCL found here has version code %d; 2.14 or later is needed", version);
  snprintf(text, size, "NCCL %d.%d.%d", version / 10000, version / 100 % 100, version % 100);
  return STATUS_OK;
}

static void close_state(struct comm_backend_state **state_p) {
  struct comm_backend_state *state = *state_p;
  if (!state) return;
  if (state->computed) cudaEventDestroy(state->computed);
  if (state->reduced) cudaEventDestroy(state->reduced);
  if (state->stream) cudaStreamDestroy(state->stream);
  free(state);
  *state_p = NULL;
}

static enum status create_queue(struct comm_backend_state *state) {
  int least, greatest;
  CUDA_TRY(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  CUDA_TRY(cudaStreamCreateWithPriority(&state->stream, cudaStreamNonBlocking, greatest));
  CUDA_TRY(cudaEventCreateWithFlags(&state->computed, cudaEventDisableTiming));
  CUDA_TRY(cudaEventCreateWithFlags(&state->reduced, cudaEventDisableTiming));
  return STATUS_OK;
}

static enum status open_state(void *stream, double timeout_s, struct comm_backend_state **state_p) {
  struct comm_backend_state *state = calloc(1, sizeof *state);
  if (!state) return status_set(STATUS_SYSTEM, "out of memory for NCCL");
  state->compute = stream;
  state->timeout_s = timeout_s;
  enum status status = create_queue(state);
  if (status != STATUS_OK)
    close_state(&state);
  else
    *state_p = state;
  return status;
}

static enum status make_id(char id[COMM_BACKEND_ID]) {
  ncclUniqueId unique;
  _Static_assert(sizeof unique.internal <= COMM_BACKEND_ID, "an identifier must fit");
  ncclResult_t result = ncclGetUniqueId(&unique);
  if (result != ncclSuccess)
    return status_set(STATUS_DEVICE, "NCCL: no identifier: %s (%s)", ncclGetErrorString(result),
                      ncclGetLastError(NULL));
  memcpy(id, unique.internal, sizeof unique.internal);
  return STATUS_OK;
}

static enum status join(struct comm_backend_state *state, const char *name, const char id[COMM_BACKEND_ID], int size,
                        int rank, struct comm_link **link_p) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  ncclUniqueId unique;
  struct comm_link *link = calloc(1, sizeof *link);
  if (!link) return status_set(STATUS_SYSTEM, "out of memory for group %s", name);
  link->state = state;
  link->name = name;
  memcpy(unique.internal, id, sizeof unique.internal);
  config.blocking = 0;
  ncclResult_t result = ncclCommInitRankConfig(&link->comm, size, unique, rank, &config);
  /* It exists from here on, unless the arguments were wrong. */
  if (link->comm && result == ncclSuccess) result = ncclInProgress;
  enum status status = finish(link, "joining", result);
  if (status != STATUS_OK) {
    if (link->comm) ncclCommAbort(link->comm);
    free(link);
    return status;
  }
  link->next = state->links;
  state->links = link;
  *link_p = link;
  return STATUS_OK;
}

static void give_up(struct comm_backend_state *state) { state->failed = true; }

/* Whether the communicator was destroyed in good order. */
static bool finalize(struct comm_link *link) {
  const double limit = link->state->timeout_s < LEAVE_SECONDS ? link->state->timeout_s : LEAVE_SECONDS;
  ncclResult_t result = ncclCommFinalize(link->comm);
  if (result == ncclSuccess || result == ncclInProgress) result = see_through(link->comm, limit);
  if (result != ncclSuccess) return false;
  ncclCommDestroy(link->comm);
  return true;
}

static void leave(struct comm_link **link_p) {
  struct comm_link *link = *link_p, **at;
  if (!link) return;
  struct comm_backend_state *state = link->state;
  if (state->grouping) { /* a collective failed in it; an open group would hold the abort back */
    ncclGroupEnd();
    state->grouping = false;
    state->failed = true;
  }
  if (state->failed || !finalize(link)) {
    state->failed = true;
    ncclCommAbort(link->comm);
  }
  for (at = &state->links; *at != link; at = &(*at)->next) continue;
  *at = link->next;
  free(link);
  *link_p = NULL;
}

/* --- collectives ----------------------------------------------------------- */

/* The collectives that are queued from here on see what the compute stream has done. */
static enum status fork_stream(struct comm_backend_state *state) {
  CUDA_TRY(cudaEventRecord(state->computed, state->compute));
  CUDA_TRY(cudaStreamWaitEvent(state->stream, state->computed, 0));
  return STATUS_OK;
}

/* What the compute stream does from here on sees the collectives. */
static enum status join_stream(struct comm_backend_state *state) {
  CUDA_TRY(cudaEventRecord(state->reduced, state->stream));
  CUDA_TRY(cudaStreamWaitEvent(state->compute, state->reduced, 0));
  return STATUS_OK;
}

static enum status before(struct comm_link *link) {
  return link->state->grouping ? STATUS_OK : fork_stream(link->state);
}

static enum status after(struct comm_link *link, const char *what, ncclResult_t result) {
  if (link->state->grouping && result == ncclInProgress) result = ncclSuccess; /* until the group's end */
  TRY(finish(link, what, result));
  if (!link->state->grouping) return join_stream(link->state);
  link->in_group = true;
  return STATUS_OK;
}

static enum status all_reduce_f32(struct comm_link *link, float *data, int64_t n, enum reduce_op op) {
  const ncclRedOp_t nccl_op = op == REDUCE_SUM ? ncclSum : op == REDUCE_MAX ? ncclMax : ncclMin;
  TRY(before(link));
  return after(link, "all-reduce",
               ncclAllReduce(data, data, (size_t)n, ncclFloat32, nccl_op, link->comm, link->state->stream));
}

static enum status all_gather(struct comm_link *link, const void *data, size_t bytes, void *gathered) {
  TRY(before(link));
  return after(link, "all-gather", ncclAllGather(data, gathered, bytes, ncclInt8, link->comm, link->state->stream));
}

static enum status reduce_scatter_f32(struct comm_link *link, float *data, int64_t n, float *own) {
  TRY(before(link));
  return after(link, "reduce-scatter",
               ncclReduceScatter(data, own, (size_t)n, ncclFloat32, ncclSum, link->comm, link->state->stream));
}

/* Both halves are one group: each would wait for the other rank's other half. */
static enum status exchange_f32(struct comm_link *link, const float *send, int64_t n_send, int to, float *recv,
                                int64_t n_recv, int from) {
  cudaStream_t stream = link->state->stream;
  TRY(before(link));
  ncclResult_t result = ncclGroupStart();
  if (result != ncclSuccess) return after(link, "exchange", result);
  if (to >= 0) result = ncclSend(send, (size_t)n_send, ncclFloat32, to, link->comm, stream);
  if (from >= 0 && (result == ncclSuccess || result == ncclInProgress))
    result = ncclRecv(recv, (size_t)n_recv, ncclFloat32, from, link->comm, stream);
  const ncclResult_t ended = ncclGroupEnd(); /* also after a failure */
  return after(link, "exchange", result == ncclSuccess || result == ncclInProgress ? ended : result);
}

static enum status copy(struct comm_backend_state *state, void *dst, const void *src, size_t bytes) {
  CUDA_TRY(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, state->compute));
  return STATUS_OK;
}

/* The communication stream must be part of a capture before NCCL sees it. */
static enum status group_begin(struct comm_backend_state *state) {
  TRY(fork_stream(state));
  ncclResult_t result = ncclGroupStart();
  if (result != ncclSuccess) {
    state->failed = true;
    return status_set(STATUS_DEVICE, "NCCL: ncclGroupStart failed: %s", ncclGetErrorString(result));
  }
  state->grouping = true;
  return STATUS_OK;
}

static enum status group_end(struct comm_backend_state *state) {
  /* NCCL queues all of the group now: it sees what was computed since the group began too. */
  enum status status = fork_stream(state);
  ncclResult_t result = ncclGroupEnd();
  state->grouping = false;
  for (struct comm_link *link = state->links; link; link = link->next) {
    if (!link->in_group) continue;
    link->in_group = false;
    /* Each communicator has its own state; the first error is the one to tell. */
    if (status == STATUS_OK)
      status = finish(link, "a group of collectives", result == ncclSuccess ? ncclInProgress : result);
  }
  if (status == STATUS_OK && result != ncclSuccess && result != ncclInProgress) /* of a group with nothing in it */
    status = status_set(STATUS_DEVICE, "NCCL: ncclGroupEnd failed: %s", ncclGetErrorString(result));
  return status == STATUS_OK ? join_stream(state) : status;
}

static enum status check(struct comm_link *link) {
  ncclResult_t state = ncclSuccess, result = ncclCommGetAsyncError(link->comm, &state);
  if (result == ncclSuccess) result = state;
  return result == ncclSuccess || result == ncclInProgress ? STATUS_OK : nccl_failed(STATUS_PEER, link, result);
}

extern const struct comm_backend lorashard_nccl_backend;
const struct comm_backend lorashard_nccl_backend = {
    .version = LORASHARD_VERSION,
    .describe = describe,
    .open = open_state,
    .close = close_state,
    .make_id = make_id,
    .join = join,
    .leave = leave,
    .give_up = give_up,
    .all_reduce_f32 = all_reduce_f32,
    .all_gather = all_gather,
    .reduce_scatter_f32 = reduce_scatter_f32,
    .exchange_f32 = exchange_f32,
    .copy = copy,
    .group_begin = group_begin,
    .group_end = group_end,
    .check = check,
};
