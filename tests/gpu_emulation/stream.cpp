/*
 * stream.cpp: streams, events, and when operations run: as late as can be. An
 * operation runs when the host waits for its stream or event, or when one that
 * somebody waits for waits for it.
 */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "emulation.h"

namespace emulation {

struct event {
  std::shared_ptr<struct stream> stream; /* NULL: never recorded */
  uint64_t position = 0;
  clock_vector clock;
  std::shared_ptr<capture> recording; /* that it was recorded into */
  int queries = 0;
  double time = 0;
};

static std::mutex lock;
static uint64_t n_entries; /* calls so far: does the host still make some? */
static std::map<cudaStream_t, std::shared_ptr<stream>> streams;
static std::map<int, std::shared_ptr<stream>> default_streams; /* by device */
static std::map<cudaEvent_t, std::shared_ptr<event>> events;
static std::vector<std::shared_ptr<stream>> all_streams;
static size_t n_timelines = 1;
static uintptr_t next_handle = 1;

entry::entry() {
  lock.lock();
  n_entries++;
}
entry::~entry() { lock.unlock(); }

void rest(int turn) {
  lock.unlock();
  if (turn < 200) {
    sched_yield();
  } else {
    usleep(turn < 2000 ? 20 : 500);
  }
  lock.lock();
}

static double now() {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* --- running ------------------------------------------------------------------------- */

void stream_advance(stream &stream, uint64_t position) {
  if (stream.done >= position) return;
  memory_open();
  while (stream.done < position) {
    std::shared_ptr<operation> operation = stream.queue.front();
    if (!operation->run()) return;
    stream.queue.pop_front();
    stream.done++;
  }
}

/* What runs closes the memory again when it is done: the callers below. */
static void advance_all() {
  for (size_t i = 0; i < all_streams.size(); i++) stream_advance(*all_streams[i], all_streams[i]->queued);
}

void stream_finish(stream &stream, uint64_t position) {
  for (int turn = 0; stream.done < position; turn++) {
    stream_advance(stream, position);
    if (stream.done >= position) break;
    /* It waits for another process, which may wait for work on another stream of ours. */
    advance_all();
    memory_close();
    if (stream.done < position) rest(turn);
  }
  memory_close();
}

void streams_finish() {
  for (size_t i = 0; i < all_streams.size(); i++) {
    stream_finish(*all_streams[i], all_streams[i]->queued);
    clock_join(host_clock(), all_streams[i]->clock);
  }
}

void streams_advance_collectives() {
  for (size_t i = 0; i < all_streams.size(); i++) {
    stream &stream = *all_streams[i];
    uint64_t position = stream.done, last = 0;
    for (const auto &operation : stream.queue) {
      position++;
      if (operation->collective) last = position;
    }
    if (last) stream_advance(stream, last);
  }
  memory_close();
}

/* --- queueing ------------------------------------------------------------------------- */

/* `stream` goes on only after `other` has done `position` operations. */
static void queue_wait(stream &stream, std::shared_ptr<struct stream> other, uint64_t position) {
  auto wait = std::make_shared<operation>();
  wait->name = "wait for an event";
  wait->run = [other, position]() {
    stream_advance(*other, position);
    return other->done >= position;
  };
  stream.queue.push_back(wait);
  stream.queued++;
}

/* The default stream and blocking streams wait for each other. */
static void join_default_stream(stream &stream) {
  auto found = default_streams.find(stream.device);
  if (found == default_streams.end() || !stream.blocking) return;
  std::shared_ptr<struct stream> first = found->second;
  if (first.get() == &stream) {
    for (auto &other : all_streams) {
      if (other.get() == &stream || !other->blocking || other->device != stream.device) continue;
      if (other->done < other->queued) queue_wait(stream, other, other->queued);
      clock_join(stream.clock, other->clock);
    }
  } else {
    if (first->done < first->queued) queue_wait(stream, first, first->queued);
    clock_join(stream.clock, first->clock);
  }
}

void stream_queue(stream &stream, std::shared_ptr<operation> operation) {
  if (!stream.recording) join_default_stream(stream);
  clock_join(stream.clock, host_clock());
  if (stream.clock.size() <= stream.timeline) stream.clock.resize(stream.timeline + 1);
  stream.clock[stream.timeline]++;
  history &history = stream.recording ? stream.recording->history : global_history();
  history_add(history, stream.clock, stream.timeline, operation->name, operation->accesses);
  if (stream.recording) {
    stream.recording->nodes.push_back(operation);
    return;
  }
  stream.queue.push_back(operation);
  stream.queued++;
}

static std::shared_ptr<stream> create_stream(bool blocking) {
  auto stream = std::make_shared<struct stream>();
  stream->timeline = n_timelines++;
  stream->device = current_device();
  stream->blocking = blocking;
  stream->clock.resize(stream->timeline + 1);
  all_streams.push_back(stream);
  return stream;
}

std::shared_ptr<stream> stream_find(cudaStream_t handle) {
  if (!handle) {
    std::shared_ptr<stream> &stream = default_streams[current_device()];
    if (!stream) stream = create_stream(true);
    return stream;
  }
  auto found = streams.find(handle);
  return found == streams.end() ? nullptr : found->second;
}

std::vector<std::shared_ptr<stream>> &streams_all() { return all_streams; }

void forbid_in_capture(const char *call, bool allowed_if_relaxed) {
  for (auto &stream : all_streams) {
    if (stream->recording && !(allowed_if_relaxed && stream->recording->mode == cudaStreamCaptureModeRelaxed)) {
      fail("%s while a stream is recorded", call);
    }
  }
}

void forbid_on_recorded(const stream &stream, const char *call) {
  if (stream.recording) fail("%s on a stream that is recorded", call);
}

/* --- the thread that stands for the GPU's independence ------------------------------------ */

static bool process_ends;

static void *background(void *) {
  uint64_t seen = 0;
  for (;;) {
    usleep(10000);
    lock.lock();
    if (process_ends) {
      lock.unlock();
      return nullptr;
    }
    /* Only while the host makes no calls: it may wait for a process that waits for our part of a collective. */
    if (seen == n_entries) streams_advance_collectives();
    seen = n_entries;
    lock.unlock();
  }
}

void background_start() {
  static bool started;
  if (started) return;
  started = true;
  pthread_t thread;
  if (pthread_create(&thread, nullptr, background, nullptr) != 0) fail("cannot start a thread");
  pthread_detach(thread);
  atexit([]() {
    lock.lock();
    process_ends = true;
    lock.unlock();
  });
}

}  // namespace emulation

using namespace emulation;

static cudaError_t invalid_handle() { return record_error(cudaErrorInvalidResourceHandle); }

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags) {
  entry entry;
  if (flags & ~(unsigned)cudaStreamNonBlocking) return record_error(cudaErrorInvalidValue);
  *stream = (cudaStream_t)(0x5000 + 16 * next_handle++);
  streams[*stream] = create_stream(!(flags & cudaStreamNonBlocking));
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *leastPriority, int *greatestPriority) {
  *leastPriority = 0;
  *greatestPriority = -5;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  entry entry;
  std::shared_ptr<stream> stream = handle ? stream_find(handle) : nullptr;
  if (!stream) return invalid_handle();
  forbid_on_recorded(*stream, "cudaStreamDestroy");
  stream_finish(*stream, stream->queued); /* its work goes on without it; this is as good a time as any */
  streams.erase(handle);
  all_streams.erase(std::find(all_streams.begin(), all_streams.end(), stream));
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  entry entry;
  std::shared_ptr<stream> stream = stream_find(handle);
  if (!stream) return invalid_handle();
  forbid_on_recorded(*stream, "cudaStreamSynchronize");
  stream_finish(*stream, stream->queued);
  clock_join(host_clock(), stream->clock);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
  entry entry;
  forbid_in_capture("cudaDeviceSynchronize", false);
  streams_finish();
  return cudaSuccess;
}

cudaError_t cudaDeviceReset(void) { return cudaDeviceSynchronize(); }

/* Every second query gets a step further: callers must be able to wait. */
static cudaError_t query(stream &stream, uint64_t position, const clock_vector &clock, int *queries) {
  if (stream.done < position && ++*queries % 2 == 0) {
    stream_advance(stream, position);
    if (stream.done < position) streams_advance_collectives();
    memory_close();
  }
  if (stream.done < position) return record_error(cudaErrorNotReady);
  clock_join(host_clock(), clock);
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  entry entry;
  std::shared_ptr<stream> stream = stream_find(handle);
  if (!stream) return invalid_handle();
  forbid_on_recorded(*stream, "cudaStreamQuery");
  return query(*stream, stream->queued, clock_vector(stream->clock), &stream->queries);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned int) {
  entry entry;
  std::shared_ptr<stream> stream = stream_find(handle);
  auto found = events.find(event_handle);
  if (!stream || found == events.end()) return invalid_handle();
  event &event = *found->second;
  if (!event.stream) return cudaSuccess;
  if (event.recording) { /* the stream's work belongs to the graph from here on */
    if (event.recording->ended) fail("a wait for an event that was recorded into a graph whose record has ended");
    if (stream->recording && stream->recording != event.recording) return record_error(cudaErrorStreamCaptureMerge);
    stream->recording = event.recording;
  } else if (stream->recording) {
    fail("a stream that is recorded waits for an event that is not part of the record");
  } else if (event.stream != stream && event.stream->done < event.position) {
    queue_wait(*stream, event.stream, event.position);
  }
  clock_join(stream->clock, event.clock);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int) {
  entry entry;
  *event = (cudaEvent_t)(0x5008 + 16 * next_handle++);
  events[*event] = std::make_shared<struct event>();
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  entry entry;
  return events.erase(event) ? cudaSuccess : invalid_handle();
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
  entry entry;
  std::shared_ptr<stream> stream = stream_find(stream_handle);
  auto found = events.find(handle);
  if (!stream || found == events.end()) return invalid_handle();
  event &event = *found->second;
  clock_join(stream->clock, host_clock());
  event.stream = stream;
  event.position = stream->queued;
  event.clock = stream->clock;
  event.recording = stream->recording;
  event.queries = 0;
  event.time = now();
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  entry entry;
  auto found = events.find(handle);
  if (found == events.end()) return invalid_handle();
  event &event = *found->second;
  if (!event.stream) return cudaSuccess;
  if (event.recording) fail("cudaEventQuery of an event that belongs to a record");
  return query(*event.stream, event.position, event.clock, &event.queries);
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  entry entry;
  auto found = events.find(handle);
  if (found == events.end()) return invalid_handle();
  event &event = *found->second;
  if (!event.stream) return cudaSuccess;
  if (event.recording) fail("cudaEventSynchronize of an event that belongs to a record");
  std::shared_ptr<struct event> keep = found->second;
  stream_finish(*event.stream, event.position);
  clock_join(host_clock(), event.clock);
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
  entry entry;
  auto first = events.find(start), last = events.find(end);
  if (first == events.end() || last == events.end()) return invalid_handle();
  for (auto &event : {first->second, last->second}) {
    if (!event->stream) return invalid_handle();
    if (event->stream->done < event->position) return cudaErrorNotReady;
  }
  *ms = (float)(last->second->time - first->second->time);
  return cudaSuccess;
}

}  // extern "C"
