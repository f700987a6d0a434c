/*
 * collective.cpp: collectives between processes of one machine, through a file in
 * shared memory whose name is in the unique identifier: members cannot meet those
 * of another communicator.
 *
 * A collective goes in steps. Each member writes its next piece into its slot and
 * counts a step; when all have counted it, each reads the slots it needs and
 * counts again; nobody writes before all have read. The first piece comes with a
 * description of the call, which must be everybody's. Sums are in the order of the
 * ranks. Sending goes through a mailbox for each pair.
 */
#include "collective.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "emulation.h"

namespace emulation {

static const size_t PIECE = 128 * 1024, MAIL = 64 * 1024;
static const int MOST_MEMBERS = 64;
static const char ID_MAGIC[16] = "emulated nccl";

struct description { /* of a call, comparable as bytes */
  uint64_t sequence, count;
  int32_t kind, type, operation, root;
};

struct member {
  std::atomic<uint64_t> phase;
  std::atomic<int> present, final;
  description call;
  alignas(64) char piece[PIECE];
};

struct mailbox {
  std::atomic<uint64_t> written, read; /* letters */
  uint64_t count;
  int32_t type;
  uint64_t bytes;
  alignas(64) char letter[MAIL];
};

struct shared_segment {
  std::atomic<int> size, joined;
  member members[MOST_MEMBERS];
  mailbox mailboxes[MOST_MEMBERS][MOST_MEMBERS]; /* [from][to]; pages that nobody touches cost nothing */
};

/* --- joining ---------------------------------------------------------------------------- */

static std::string segment_path(const ncclUniqueId &id) {
  std::string path = ::access("/dev/shm", W_OK) == 0 ? "/dev/shm/emulated_nccl_" : "/tmp/emulated_nccl_";
  for (int i = 0; i < 16; i++) {
    char digits[3];
    snprintf(digits, sizeof digits, "%02x", (unsigned char)id.internal[sizeof ID_MAGIC + i]);
    path += digits;
  }
  return path;
}

void unique_id_make(ncclUniqueId *id) {
  memset(id, 0, sizeof *id);
  memcpy(id->internal, ID_MAGIC, sizeof ID_MAGIC);
  int file = open("/dev/urandom", O_RDONLY);
  if (file < 0 || read(file, id->internal + sizeof ID_MAGIC, 16) != 16) fail("no random numbers for an identifier");
  close(file);
}

std::shared_ptr<communicator> communicator_join(const ncclUniqueId &id, int size, int rank, const char **reason) {
  *reason = nullptr;
  if (memcmp(id.internal, ID_MAGIC, sizeof ID_MAGIC) != 0) *reason = "this is no identifier of ncclGetUniqueId";
  if (size < 1 || size > MOST_MEMBERS || rank < 0 || rank >= size) *reason = "no such rank";
  if (*reason) return nullptr;
  std::string path = segment_path(id);
  int file = open(path.c_str(), O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, sizeof(shared_segment)) != 0)
    fail("cannot open %s: %s", path.c_str(), strerror(errno));
  void *memory = mmap(nullptr, sizeof(shared_segment), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  close(file);
  if (memory == MAP_FAILED) fail("cannot map %s: %s", path.c_str(), strerror(errno));
  auto comm = std::make_shared<communicator>();
  *comm = {};
  comm->size = size;
  comm->rank = rank;
  comm->segment = (shared_segment *)memory;
  int expected = 0;
  if (!comm->segment->size.compare_exchange_strong(expected, size) && expected != size) {
    fail("ncclCommInitRank: this rank says there are %d ranks, another says %d", size, expected);
  }
  if (comm->segment->members[rank].present.exchange(1)) {
    unlink(path.c_str());
    fail("ncclCommInitRank: two processes are rank %d of one communicator, or an identifier is used twice", rank);
  }
  if (++comm->segment->joined == size) unlink(path.c_str()); /* nobody else will come */
  return comm;
}

communicator::~communicator() { munmap(segment, sizeof *segment); }

bool communicator_is_complete(const communicator &comm) { return comm.segment->joined.load() == comm.size; }
void communicator_say_final(communicator &comm) { comm.segment->members[comm.rank].final = 1; }
bool communicator_is_final(const communicator &comm) {
  for (int r = 0; r < comm.size; r++) {
    if (!comm.segment->members[r].final.load()) return false;
  }
  return true;
}

/* --- what a call is ----------------------------------------------------------------------- */

static const size_t TYPE_BYTES[ncclNumTypes] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
static const char *const TYPE_NAMES[ncclNumTypes] = {"int8",    "uint8",   "int32",   "uint32",   "int64",   "uint64",
                                                     "float16", "float32", "float64", "bfloat16", "fp8e4m3", "fp8e5m2"};
static const char *const KIND_NAMES[] = {"ncclAllReduce", "ncclReduce", "ncclBroadcast", "ncclReduceScatter",
                                         "ncclAllGather", "ncclSend",   "ncclRecv"};
static const char *const OPERATION_NAMES[] = {"sum", "product", "max", "min", "average"};

static bool is_mail(const call &call) { return call.kind == CALL_SEND || call.kind == CALL_RECV; }
static bool reduces(int kind) { return kind == CALL_ALL_REDUCE || kind == CALL_REDUCE || kind == CALL_REDUCE_SCATTER; }

static std::string describe(const description &d) {
  std::string text = std::string(KIND_NAMES[d.kind]) + " of " + std::to_string(d.count) + " " + TYPE_NAMES[d.type];
  if (reduces(d.kind)) text += std::string(", ") + OPERATION_NAMES[d.operation];
  if (d.root >= 0)
    text += (d.kind == CALL_SEND   ? ", to rank "
             : d.kind == CALL_RECV ? ", from rank "
                                   : ", root ") +
            std::to_string(d.root);
  if (d.kind != CALL_SEND && d.kind != CALL_RECV) text += ", number " + std::to_string(d.sequence);
  return text;
}

static description description_of_call(const call &call) {
  description d;
  memset(&d, 0, sizeof d);
  d.sequence = call.comm->sequence;
  d.count = call.count;
  d.kind = call.kind;
  d.type = call.type;
  d.operation = reduces(call.kind) ? call.operation : 0;
  d.root = call.peer;
  return d;
}

std::string call_describe(const call &call) {
  description d = description_of_call(call);
  std::string text = describe(d);
  return is_mail(call) ? text : text.substr(0, text.rfind(", number"));
}

static size_t bytes_of(const call &call, size_t elements) { return elements * TYPE_BYTES[call.type]; }

size_t call_send_bytes(const call &call) {
  if (call.kind == CALL_RECV || (call.kind == CALL_BROADCAST && call.comm->rank != call.peer)) return 0;
  return bytes_of(call, call.count) * (call.kind == CALL_REDUCE_SCATTER ? (size_t)call.comm->size : 1);
}

size_t call_recv_bytes(const call &call) {
  if (call.kind == CALL_SEND || (call.kind == CALL_REDUCE && call.comm->rank != call.peer)) return 0;
  return bytes_of(call, call.count) * (call.kind == CALL_ALL_GATHER ? (size_t)call.comm->size : 1);
}

/* --- sums ------------------------------------------------------------------------------------ */

template <typename T>
static T combine(ncclRedOp_t operation, T a, T b) {
  switch (operation) {
    case ncclProd:
      return a * b;
    case ncclMax:
      return a < b ? b : a;
    case ncclMin:
      return b < a ? b : a;
    default:
      return a + b;
  }
}

static float load_bf16(const char *p) {
  uint16_t bits;
  memcpy(&bits, p, sizeof bits);
  uint32_t word = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

static void store_bf16(char *p, float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  uint16_t bits = (uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16);
  if ((word & 0x7fffffff) > 0x7f800000) bits = (uint16_t)(word >> 16 | 0x40);
  memcpy(p, &bits, sizeof bits);
}

/* dst[n] = the slots' elements from byte `from` on, combined in the order of the ranks. */
template <typename T>
static void reduce_as(const call &call, char *dst, size_t from, size_t n) {
  const communicator &comm = *call.comm;
  for (size_t i = 0; i < n; i++) {
    T result, next;
    memcpy(&result, comm.segment->members[0].piece + from + i * sizeof(T), sizeof(T));
    for (int r = 1; r < comm.size; r++) {
      memcpy(&next, comm.segment->members[r].piece + from + i * sizeof(T), sizeof(T));
      result = combine(call.operation, result, next);
    }
    if (call.operation == ncclAvg) result = result / (T)comm.size;
    memcpy(dst + i * sizeof(T), &result, sizeof(T));
  }
}

static void reduce_bf16(const call &call, char *dst, size_t from, size_t n) {
  const communicator &comm = *call.comm;
  for (size_t i = 0; i < n; i++) {
    float result = load_bf16(comm.segment->members[0].piece + from + 2 * i);
    for (int r = 1; r < comm.size; r++) {
      result = combine(call.operation, result, load_bf16(comm.segment->members[r].piece + from + 2 * i));
    }
    store_bf16(dst + 2 * i, call.operation == ncclAvg ? result / (float)comm.size : result);
  }
}

static void reduce(const call &call, char *dst, size_t from, size_t bytes) {
  size_t n = bytes / TYPE_BYTES[call.type];
  switch (call.type) {
    case ncclInt8:
      return reduce_as<int8_t>(call, dst, from, n);
    case ncclUint8:
      return reduce_as<uint8_t>(call, dst, from, n);
    case ncclInt32:
      return reduce_as<int32_t>(call, dst, from, n);
    case ncclUint32:
      return reduce_as<uint32_t>(call, dst, from, n);
    case ncclInt64:
      return reduce_as<int64_t>(call, dst, from, n);
    case ncclUint64:
      return reduce_as<uint64_t>(call, dst, from, n);
    case ncclFloat32:
      return reduce_as<float>(call, dst, from, n);
    case ncclFloat64:
      return reduce_as<double>(call, dst, from, n);
    case ncclBfloat16:
      return reduce_bf16(call, dst, from, n);
    default:
      fail("%s: the emulation has no arithmetic for this type", call_describe(call).c_str());
  }
}

/* --- steps ------------------------------------------------------------------------------------- */

/* Have all members done as many steps as this one? */
static bool all_arrived(const communicator &comm) {
  for (int r = 0; r < comm.size; r++) {
    if (comm.segment->members[r].phase.load(std::memory_order_acquire) < comm.phase) return false;
  }
  return true;
}

static void count_step(communicator &comm) {
  comm.segment->members[comm.rank].phase.store(++comm.phase, std::memory_order_release);
}

/* Bytes that go through the slots in all. */
static size_t total_bytes(const call &call) {
  return bytes_of(call, call.count) * (call.kind == CALL_REDUCE_SCATTER ? (size_t)call.comm->size : 1);
}

static size_t piece_bytes(const call &call) { return std::min(total_bytes(call) - call.moved, PIECE); }

static void write_piece(call &call) {
  communicator &comm = *call.comm;
  member &self = comm.segment->members[comm.rank];
  if (call.moved == 0) {
    comm.sequence++;
    self.call = description_of_call(call);
  }
  if (call_send_bytes(call) > 0) memcpy(self.piece, (const char *)call.send + call.moved, piece_bytes(call));
}

static void compare_calls(const call &call) {
  const communicator &comm = *call.comm;
  const member *members = comm.segment->members;
  for (int r = 0; r < comm.size; r++) {
    if (memcmp(&members[r].call, &members[comm.rank].call, sizeof(description)) == 0) continue;
    fail("the ranks of a communicator disagree: rank %d calls %s; rank %d calls %s", comm.rank,
         describe(members[comm.rank].call).c_str(), r, describe(members[r].call).c_str());
  }
}

static void read_pieces(const call &call) {
  const communicator &comm = *call.comm;
  size_t bytes = piece_bytes(call), part = bytes_of(call, call.count);
  char *recv = (char *)call.recv;
  if (call.moved == 0) compare_calls(call);
  switch (call.kind) {
    case CALL_REDUCE:
      if (comm.rank != call.peer) return;
      [[fallthrough]];
    case CALL_ALL_REDUCE:
      return reduce(call, recv + call.moved, 0, bytes);
    case CALL_BROADCAST:
      memcpy(recv + call.moved, comm.segment->members[call.peer].piece, bytes);
      return;
    case CALL_ALL_GATHER:
      for (int r = 0; r < comm.size; r++) {
        memcpy(recv + (size_t)r * part + call.moved, comm.segment->members[r].piece, bytes);
      }
      return;
    case CALL_REDUCE_SCATTER: {
      size_t first = std::max(call.moved, (size_t)comm.rank * part);
      size_t last = std::min(call.moved + bytes, ((size_t)comm.rank + 1) * part);
      if (first < last) reduce(call, recv + (first - (size_t)comm.rank * part), first - call.moved, last - first);
      return;
    }
    default:
      return;
  }
}

static bool advance_collective(call &call) {
  communicator &comm = *call.comm;
  if (comm.busy && comm.busy != &call) return false; /* one after another */
  comm.busy = &call;
  for (;;) {
    if (!all_arrived(comm)) return false;
    if (!call.waits_for_others) {
      write_piece(call);
      count_step(comm);
      call.waits_for_others = true;
      continue;
    }
    read_pieces(call);
    call.moved += piece_bytes(call);
    call.waits_for_others = false;
    count_step(comm);
    if (call.moved >= total_bytes(call)) break;
  }
  comm.busy = nullptr;
  return true;
}

/* A letter is on its way while written > read. */
static bool advance_send(call &call) {
  mailbox &box = call.comm->segment->mailboxes[call.comm->rank][call.peer];
  size_t total = bytes_of(call, call.count);
  while (!call.begun || call.moved < total) {
    if (box.written.load(std::memory_order_acquire) != box.read.load(std::memory_order_acquire)) return false;
    size_t bytes = std::min(total - call.moved, MAIL);
    box.count = call.count;
    box.type = call.type;
    box.bytes = bytes;
    memcpy(box.letter, (const char *)call.send + call.moved, bytes);
    box.written.fetch_add(1, std::memory_order_release);
    call.moved += bytes;
    call.begun = true;
  }
  return true;
}

static bool advance_recv(call &call) {
  mailbox &box = call.comm->segment->mailboxes[call.peer][call.comm->rank];
  size_t total = bytes_of(call, call.count);
  while (!call.begun || call.moved < total) {
    if (box.written.load(std::memory_order_acquire) == box.read.load(std::memory_order_acquire)) return false;
    if (box.count != call.count || box.type != call.type) {
      fail("the ranks of a communicator disagree: rank %d calls %s; rank %d sends %zu %s", call.comm->rank,
           call_describe(call).c_str(), call.peer, (size_t)box.count, TYPE_NAMES[box.type]);
    }
    memcpy((char *)call.recv + call.moved, box.letter, box.bytes);
    call.moved += box.bytes;
    call.begun = true;
    box.read.fetch_add(1, std::memory_order_release);
  }
  return true;
}

bool call_advance(call &call) {
  if (call.done) return true;
  if (call.comm->aborted) {
    if (call.comm->busy == &call) call.comm->busy = nullptr;
    return call.done = true;
  }
  if (!communicator_is_complete(*call.comm)) return false;
  call.done = call.kind == CALL_SEND   ? advance_send(call)
              : call.kind == CALL_RECV ? advance_recv(call)
                                       : advance_collective(call);
  return call.done;
}

void call_reset(call &call) {
  call.done = call.begun = call.waits_for_others = false;
  call.moved = 0;
}

}  // namespace emulation
