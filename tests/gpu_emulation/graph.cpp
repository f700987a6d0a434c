/* graph.cpp: recording the work of streams, and repeating it. A record runs its operations in the order of the calls.
 */
#include <set>

#include "emulation.h"

struct CUgraph_st {
  std::vector<std::shared_ptr<emulation::operation>> nodes;
};
struct CUgraphExec_st {
  std::vector<std::shared_ptr<emulation::operation>> nodes;
};

using namespace emulation;

static std::set<cudaGraph_t> graphs;
static std::set<cudaGraphExec_t> execs;

/* Has the recorded stream's last operation something after it on the origin? */
static bool is_joined(const stream &stream, const struct stream &origin) {
  return stream.timeline < origin.clock.size() && origin.clock[stream.timeline] >= stream.clock[stream.timeline];
}

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode mode) {
  entry entry;
  std::shared_ptr<stream> stream = handle ? stream_find(handle) : nullptr;
  if (!stream) return record_error(cudaErrorStreamCaptureUnsupported);
  if (stream->recording) return record_error(cudaErrorStreamCaptureUnsupported);
  stream->recording = std::make_shared<capture>();
  stream->recording->origin = stream.get();
  stream->recording->mode = mode;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *pGraph) {
  entry entry;
  *pGraph = nullptr;
  std::shared_ptr<stream> stream = handle ? stream_find(handle) : nullptr;
  if (!stream || !stream->recording) return record_error(cudaErrorInvalidValue);
  std::shared_ptr<capture> recording = stream->recording;
  if (recording->origin != stream.get()) return record_error(cudaErrorStreamCaptureUnmatched);
  bool joined = true;
  for (auto &other : streams_all()) {
    if (other->recording != recording) continue;
    joined = joined && is_joined(*other, *stream);
    other->recording = nullptr;
  }
  recording->ended = true;
  if (!joined) return record_error(cudaErrorStreamCaptureUnjoined);
  *pGraph = new CUgraph_st{recording->nodes};
  graphs.insert(*pGraph);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus *pCaptureStatus) {
  entry entry;
  std::shared_ptr<stream> stream = stream_find(handle);
  if (!stream) return record_error(cudaErrorInvalidResourceHandle);
  *pCaptureStatus = stream->recording ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *pGraphExec, cudaGraph_t graph, unsigned long long) {
  entry entry;
  if (!graphs.count(graph)) return record_error(cudaErrorInvalidValue);
  *pGraphExec = new CUgraphExec_st{graph->nodes};
  execs.insert(*pGraphExec);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *pGraphExec, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiate(pGraphExec, graph, flags);
}

cudaError_t cudaGraphUpload(cudaGraphExec_t graphExec, cudaStream_t) {
  entry entry;
  return execs.count(graphExec) ? cudaSuccess : record_error(cudaErrorInvalidValue);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graphExec, cudaStream_t handle) {
  entry entry;
  std::shared_ptr<stream> stream = stream_find(handle);
  if (!stream || !execs.count(graphExec)) return record_error(cudaErrorInvalidValue);
  if (stream->recording) fail("cudaGraphLaunch on a stream that is recorded");
  auto nodes = std::make_shared<std::vector<std::shared_ptr<operation>>>(graphExec->nodes);
  auto operation = std::make_shared<struct operation>();
  operation->name = "cudaGraphLaunch";
  for (auto &node : *nodes) {
    for (auto &access : node->accesses) {
      if (memory_find(access.begin) == MEMORY_HOST) {
        fail("cudaGraphLaunch: %s uses %p, which is freed since it was recorded", node->name.c_str(),
             (void *)access.begin);
      }
    }
    operation->accesses.insert(operation->accesses.end(), node->accesses.begin(), node->accesses.end());
    operation->collective = operation->collective || node->collective;
  }
  auto next = std::make_shared<size_t>(0);
  operation->run = [nodes, next]() {
    while (*next < nodes->size()) {
      if (!(*nodes)[*next]->run()) return false;
      ++*next;
    }
    return true;
  };
  stream_queue(*stream, operation);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graphExec) {
  entry entry;
  if (!execs.erase(graphExec)) return record_error(cudaErrorInvalidValue);
  delete graphExec;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  entry entry;
  if (!graphs.erase(graph)) return record_error(cudaErrorInvalidValue);
  delete graph;
  return cudaSuccess;
}

}  // extern "C"
