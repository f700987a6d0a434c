/*
 * emulation.h: what the files of the emulation share.
 *
 * Host calls put operations on streams; operations run when somebody waits for
 * them (stream.cpp). One lock guards everything below. Functions of the CUDA,
 * cuBLASLt and NCCL interfaces take it (struct entry); functions declared here
 * expect it to be held unless they say otherwise.
 */
#ifndef LORASHARD_EMULATION_EMULATION_H
#define LORASHARD_EMULATION_EMULATION_H

#include <cuda_runtime.h>
#include <stdint.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace emulation {

/* Print "gpu emulation: ..." with the running kernel, block and thread, if any, and abort. Needs no lock. */
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Held by each function of the public interfaces. */
struct entry {
  entry();
  ~entry();
};
/* Release the lock for a moment, so that other threads and processes get on. `turn` counts the waits in a row. */
void rest(int turn);

/* --- device.cpp ------------------------------------------------------------------- */

int current_device();
int device_count();
cudaError_t record_error(cudaError_t error); /* for cudaGetLastError; returns it */

/* --- order.cpp: what happens before what --------------------------------------------- */

/* Per timeline (stream; 0 is the host) the number of its last operation that is known to have happened. */
typedef std::vector<uint64_t> clock_vector;
void clock_join(clock_vector &clock, const clock_vector &other);

struct access {
  uintptr_t begin, end; /* end is begin + 1 where the extent is unknown: kernels */
  bool write;
};

/* What was accessed by whom, to find accesses that nothing orders. */
struct history {
  struct entry {
    struct access access;
    size_t timeline;
    uint64_t number;
    std::string operation;
  };
  std::vector<entry> entries;
};
void history_add(history &history, const clock_vector &clock, size_t timeline, const std::string &operation,
                 const std::vector<access> &accesses);
void history_forget(history &history, uintptr_t begin, uintptr_t end);
clock_vector &host_clock();
history &global_history();

/* --- memory.cpp ---------------------------------------------------------------------- */

enum memory_kind { MEMORY_DEVICE, MEMORY_PINNED, MEMORY_HOST };
/* The kind of memory at an address, and the allocation it lies in (MEMORY_HOST: no bounds). */
enum memory_kind memory_find(uintptr_t address, uintptr_t *begin = nullptr, uintptr_t *end = nullptr);
/* Is this word the address of mapped host memory that the device cannot reach? */
bool memory_is_host_address(uint64_t word);
/* Device memory is open while operations run. */
void memory_open();
void memory_close();
/* Fail if [begin, end) is not inside one allocation of the kind it lies in. */
void memory_check_extent(const std::string &operation, const access &access);

/* --- stream.cpp ---------------------------------------------------------------------- */

struct operation {
  std::string name;
  std::vector<access> accesses;
  /* Returns false as long as it waits for another process. Called again then. */
  std::function<bool()> run;
  bool collective = false;
};

struct capture;

struct stream {
  size_t timeline; /* > 0 */
  int device;
  bool blocking; /* waits for the default stream and is waited for */
  std::deque<std::shared_ptr<operation>> queue;
  uint64_t queued = 0, done = 0;
  clock_vector clock;
  std::shared_ptr<capture> recording; /* NULL: none */
  int queries = 0;
};

/* The stream of a handle; 0 is the current device's default stream. NULL: no such stream. */
std::shared_ptr<stream> stream_find(cudaStream_t handle);
/* Put an operation on a stream, or into the graph it records; checks its accesses. */
void stream_queue(stream &stream, std::shared_ptr<operation> operation);
/* Wait until the stream has done `position` operations. */
void stream_finish(stream &stream, uint64_t position);
/* Without waiting: run what can be run. */
void stream_advance(stream &stream, uint64_t position);
/* Of all streams. */
void streams_finish();
void streams_advance_collectives();
std::vector<std::shared_ptr<stream>> &streams_all();
/* cudaSuccess, or the end of the process if a stream is recorded and `call` is forbidden then. */
void forbid_in_capture(const char *call, bool allowed_if_relaxed);
void forbid_on_recorded(const stream &stream, const char *call);
/* A thread that runs collectives while the host is busy elsewhere. collective.cpp asks for it. */
void background_start();

/* --- graph.cpp ----------------------------------------------------------------------- */

struct capture {
  const stream *origin;
  bool ended = false;
  enum cudaStreamCaptureMode mode;
  std::vector<std::shared_ptr<operation>> nodes; /* in an order that respects all edges */
  struct history history;
};

/* --- block.cpp ------------------------------------------------------------------------ */

struct launch {
  std::string name;
  dim3 grid, block;
  size_t shared;
  std::function<void()> thread;
};
void run_launch(const launch &launch);
/* "kernel x, block (..), thread (..)" of what runs now, or "". */
std::string running_place();

}  // namespace emulation

#endif
