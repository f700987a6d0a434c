/*
 * nccl.cpp: NCCL's interface: communicators, groups, and queueing of calls.
 *
 * On a communicator that is not blocking, the work of a call is on its stream
 * only once ncclCommGetAsyncError has said ncclSuccess: who records an event
 * before has recorded it too early.
 */
#include <nccl.h>

#include <algorithm>
#include <map>

#include "collective.h"
#include "emulation.h"

namespace emulation {

/* Calls that are made but not yet queued. */
struct batch {
  std::vector<std::pair<cudaStream_t, std::shared_ptr<call>>> calls;
  bool queued = false;
};

struct handle {
  std::shared_ptr<communicator> comm;
  int device;
  bool blocking;
  int polls_left; /* answers of ncclInProgress still to give */
  std::shared_ptr<struct batch> batch;
};

}  // namespace emulation

struct ncclComm {
  emulation::handle handle;
};

namespace emulation {

static std::map<ncclComm_t, ncclComm *> comms;
static int group_depth;
static std::shared_ptr<batch> group;
static std::vector<ncclComm_t> group_members;

static handle &handle_of(ncclComm_t comm, const char *function) {
  if (!comms.count(comm)) fail("%s: this is no communicator (destroyed, or never made)", function);
  return comm->handle;
}

/* All calls of one group on one stream run side by side, those of one communicator in order. */
static void queue_on(cudaStream_t stream_handle, std::vector<std::shared_ptr<call>> calls) {
  std::shared_ptr<stream> stream = stream_find(stream_handle);
  auto operation = std::make_shared<struct operation>();
  operation->collective = true;
  for (auto &call : calls) {
    operation->name += (operation->name.empty() ? "" : " + ") + call_describe(*call);
    uintptr_t send = (uintptr_t)call->send, recv = (uintptr_t)call->recv;
    size_t send_bytes = call_send_bytes(*call), recv_bytes = call_recv_bytes(*call);
    if (send_bytes) operation->accesses.push_back({send, send + send_bytes, false});
    if (recv_bytes) operation->accesses.push_back({recv, recv + recv_bytes, true});
  }
  operation->run = [calls]() {
    bool done = true;
    std::vector<communicator *> held; /* have a collective that is not done */
    for (auto &call : calls) {
      bool mail = call->kind == CALL_SEND || call->kind == CALL_RECV;
      if (!mail && std::find(held.begin(), held.end(), call->comm.get()) != held.end()) {
        done = false;
        continue;
      }
      if (call_advance(*call)) continue;
      done = false;
      if (!mail) held.push_back(call->comm.get());
    }
    if (done) {
      for (auto &call : calls) call_reset(*call);
    }
    return done;
  };
  stream_queue(*stream, operation);
}

static void queue_batch(batch &batch) {
  if (batch.queued) return;
  batch.queued = true;
  while (!batch.calls.empty()) {
    cudaStream_t stream = batch.calls.front().first;
    std::vector<std::shared_ptr<call>> same;
    auto take = [&](const std::pair<cudaStream_t, std::shared_ptr<call>> &entry) {
      if (entry.first != stream) return false;
      same.push_back(entry.second);
      return true;
    };
    batch.calls.erase(std::remove_if(batch.calls.begin(), batch.calls.end(), take), batch.calls.end());
    queue_on(stream, same);
  }
}

static ncclResult_t submit(std::shared_ptr<batch> batch, const std::vector<ncclComm_t> &members) {
  bool blocking = true;
  for (ncclComm_t member : members) blocking = blocking && member->handle.blocking;
  if (blocking) {
    queue_batch(*batch);
    return ncclSuccess;
  }
  for (ncclComm_t member : members) {
    member->handle.batch = batch;
    member->handle.polls_left = 1;
  }
  return ncclInProgress;
}

static void check_buffer(const call &call, const void *buffer, size_t bytes) {
  if (bytes == 0) return;
  std::string name = call_describe(call);
  uintptr_t address = (uintptr_t)buffer;
  if (memory_find(address) == MEMORY_HOST) fail("%s: %p is host memory that no GPU can access", name.c_str(), buffer);
  memory_check_extent(name, {address, address + bytes, false});
}

static ncclResult_t add(const char *function, enum call_kind kind, const void *send, void *recv, size_t count,
                        ncclDataType_t type, ncclRedOp_t operation, int peer, ncclComm_t comm, cudaStream_t stream) {
  entry entry;
  handle &handle = handle_of(comm, function);
  if (handle.comm->finalized || handle.comm->aborted) fail("%s: on a communicator that is finalized", function);
  if (handle.polls_left > 0 || handle.batch)
    fail("%s: the last call on the communicator is still ncclInProgress", function);
  if (!stream_find(stream) || (unsigned)type >= ncclNumTypes || (unsigned)operation >= ncclNumOps)
    return ncclInvalidArgument;
  if (peer < -1 || peer >= handle.comm->size) return ncclInvalidArgument;
  if (handle.device != stream_find(stream)->device) fail("%s: the stream belongs to another device", function);
  auto call = std::make_shared<struct call>();
  call->kind = kind;
  call->comm = handle.comm;
  call->send = send;
  call->recv = recv;
  call->count = count;
  call->type = type;
  call->operation = operation;
  call->peer = peer;
  check_buffer(*call, send, call_send_bytes(*call));
  check_buffer(*call, recv, call_recv_bytes(*call));
  if (group_depth > 0) {
    group->calls.push_back({stream, call});
    if (std::find(group_members.begin(), group_members.end(), comm) == group_members.end())
      group_members.push_back(comm);
    return ncclSuccess;
  }
  auto single = std::make_shared<batch>();
  single->calls.push_back({stream, call});
  return submit(single, {comm});
}

static ncclResult_t join(ncclComm_t *comm, int size, const ncclUniqueId &id, int rank, bool blocking) {
  const char *reason;
  *comm = nullptr;
  std::shared_ptr<communicator> joined = communicator_join(id, size, rank, &reason);
  if (!joined) return ncclInvalidArgument;
  background_start();
  ncclComm_t made = new ncclComm{{joined, current_device(), blocking, blocking ? 0 : 2, nullptr}};
  comms[made] = made;
  *comm = made;
  if (!blocking) return ncclInProgress;
  for (int turn = 0; !communicator_is_complete(*joined); turn++) rest(turn);
  return ncclSuccess;
}

/* What ncclCommGetAsyncError answers. */
static ncclResult_t poll(handle &handle) {
  if (handle.comm->aborted) return ncclInvalidUsage;
  if (!communicator_is_complete(*handle.comm)) return ncclInProgress;
  if (handle.polls_left > 0) {
    handle.polls_left--;
    return ncclInProgress;
  }
  if (handle.batch) {
    queue_batch(*handle.batch);
    handle.batch = nullptr;
  }
  if (!handle.comm->finalized) return ncclSuccess;
  streams_advance_collectives();
  for (auto &stream : streams_all()) {
    for (auto &operation : stream->queue) {
      if (operation->collective) return ncclInProgress;
    }
  }
  communicator_say_final(*handle.comm);
  return communicator_is_final(*handle.comm) ? ncclSuccess : ncclInProgress;
}

static void remove(ncclComm_t comm) {
  comms.erase(comm);
  delete comm;
}

}  // namespace emulation

using namespace emulation;

extern "C" {

ncclResult_t ncclGetVersion(int *version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *uniqueId) {
  unique_id_make(uniqueId);
  return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
  static const char *const TEXTS[] = {"no error",
                                      "unhandled cuda error",
                                      "unhandled system error",
                                      "internal error",
                                      "invalid argument",
                                      "invalid usage",
                                      "remote process exited or there was a network error",
                                      "NCCL operation in progress"};
  return (unsigned)result < ncclNumResults ? TEXTS[result] : "unknown result code";
}
const char *ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int nranks, ncclUniqueId commId, int rank, ncclConfig_t *config) {
  entry entry;
  if (config && (config->size != sizeof *config || config->magic != 0xcafebeef)) return ncclInvalidArgument;
  return join(comm, nranks, commId, rank, !config || config->blocking != 0);
}
ncclResult_t ncclCommInitRank(ncclComm_t *comm, int nranks, ncclUniqueId commId, int rank) {
  return ncclCommInitRankConfig(comm, nranks, commId, rank, nullptr);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *asyncError) {
  entry entry;
  *asyncError = poll(handle_of(comm, "ncclCommGetAsyncError"));
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  entry entry;
  handle &handle = handle_of(comm, "ncclCommFinalize");
  if (handle.comm->finalized) return ncclInvalidUsage;
  if (group_depth > 0) fail("ncclCommFinalize in a group that was not ended");
  if (handle.batch) queue_batch(*handle.batch);
  handle.batch = nullptr;
  handle.comm->finalized = true;
  if (!handle.blocking) {
    handle.polls_left = 1;
    return ncclInProgress;
  }
  for (int turn = 0; poll(handle) == ncclInProgress; turn++) rest(turn);
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  entry entry;
  handle &handle = handle_of(comm, "ncclCommDestroy");
  if (!handle.comm->finalized) { /* as if it had been called */
    handle.comm->finalized = true;
    handle.polls_left = 0;
    for (int turn = 0; poll(handle) == ncclInProgress; turn++) rest(turn);
  }
  remove(comm);
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  entry entry;
  handle_of(comm, "ncclCommAbort").comm->aborted = true;
  remove(comm);
  return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int *count) {
  entry entry;
  *count = handle_of(comm, "ncclCommCount").comm->size;
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank) {
  entry entry;
  *rank = handle_of(comm, "ncclCommUserRank").comm->rank;
  return ncclSuccess;
}
ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int *device) {
  entry entry;
  *device = handle_of(comm, "ncclCommCuDevice").device;
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *sendbuff, void *recvbuff, size_t count, ncclDataType_t datatype, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  return add("ncclAllReduce", CALL_ALL_REDUCE, sendbuff, recvbuff, count, datatype, op, -1, comm, stream);
}
ncclResult_t ncclReduce(const void *sendbuff, void *recvbuff, size_t count, ncclDataType_t datatype, ncclRedOp_t op,
                        int root, ncclComm_t comm, cudaStream_t stream) {
  return add("ncclReduce", CALL_REDUCE, sendbuff, recvbuff, count, datatype, op, root, comm, stream);
}
ncclResult_t ncclBroadcast(const void *sendbuff, void *recvbuff, size_t count, ncclDataType_t datatype, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  return add("ncclBroadcast", CALL_BROADCAST, sendbuff, recvbuff, count, datatype, ncclSum, root, comm, stream);
}
ncclResult_t ncclReduceScatter(const void *sendbuff, void *recvbuff, size_t recvcount, ncclDataType_t datatype,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return add("ncclReduceScatter", CALL_REDUCE_SCATTER, sendbuff, recvbuff, recvcount, datatype, op, -1, comm, stream);
}
ncclResult_t ncclAllGather(const void *sendbuff, void *recvbuff, size_t sendcount, ncclDataType_t datatype,
                           ncclComm_t comm, cudaStream_t stream) {
  return add("ncclAllGather", CALL_ALL_GATHER, sendbuff, recvbuff, sendcount, datatype, ncclSum, -1, comm, stream);
}
ncclResult_t ncclSend(const void *sendbuff, size_t count, ncclDataType_t datatype, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add("ncclSend", CALL_SEND, sendbuff, nullptr, count, datatype, ncclSum, peer, comm, stream);
}
ncclResult_t ncclRecv(void *recvbuff, size_t count, ncclDataType_t datatype, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add("ncclRecv", CALL_RECV, nullptr, recvbuff, count, datatype, ncclSum, peer, comm, stream);
}

ncclResult_t ncclGroupStart(void) {
  entry entry;
  if (group_depth++ == 0) {
    group = std::make_shared<batch>();
    group_members.clear();
  }
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
  entry entry;
  if (group_depth == 0) fail("ncclGroupEnd without ncclGroupStart");
  if (--group_depth > 0) return ncclSuccess;
  std::shared_ptr<batch> all = group;
  group = nullptr;
  std::vector<ncclComm_t> members;
  for (ncclComm_t comm : group_members) {
    if (comms.count(comm)) members.push_back(comm);
  }
  return all->calls.empty() ? ncclSuccess : submit(all, members);
}

}  // extern "C"
