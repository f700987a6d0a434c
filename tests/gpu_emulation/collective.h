/* collective.h: members of a communicator find each other and exchange data: collective.cpp; NCCL's interface:
 * nccl.cpp. */
#ifndef LORASHARD_EMULATION_COLLECTIVE_H
#define LORASHARD_EMULATION_COLLECTIVE_H

#include <nccl.h>

#include <memory>
#include <string>

namespace emulation {

struct shared_segment; /* memory that the members share */

struct communicator {
  int size, rank;
  shared_segment *segment;
  uint64_t phase;    /* steps of collectives done so far */
  uint64_t sequence; /* collectives begun so far */
  const void *busy;  /* the collective that is under way */
  bool aborted, finalized;
  int running; /* operations queued or under way */
  ~communicator();
};

/* Begin to join; NULL and *reason if that is impossible. */
std::shared_ptr<communicator> communicator_join(const ncclUniqueId &id, int size, int rank, const char **reason);
bool communicator_is_complete(const communicator &communicator);
/* All members have said so. */
void communicator_say_final(communicator &communicator);
bool communicator_is_final(const communicator &communicator);
void unique_id_make(ncclUniqueId *id);

enum call_kind {
  CALL_ALL_REDUCE,
  CALL_REDUCE,
  CALL_BROADCAST,
  CALL_REDUCE_SCATTER,
  CALL_ALL_GATHER,
  CALL_SEND,
  CALL_RECV
};

/* One call; its state while it runs. */
struct call {
  enum call_kind kind;
  std::shared_ptr<communicator> comm;
  const void *send;
  void *recv;
  size_t count; /* elements, as in the call */
  ncclDataType_t type;
  ncclRedOp_t operation;
  int peer; /* or root; -1: none */

  bool done = false;
  bool begun = false, waits_for_others = false;
  size_t moved = 0; /* bytes */
};
std::string call_describe(const call &call);
size_t call_send_bytes(const call &call);
size_t call_recv_bytes(const call &call);
/* Get on as far as possible without waiting; true when it has ended. */
bool call_advance(call &call);
void call_reset(call &call);

}  // namespace emulation

#endif
