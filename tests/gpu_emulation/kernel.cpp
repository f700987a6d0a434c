/* kernel.cpp: checks a launch as CUDA does, and its arguments as CUDA cannot, and queues it. */
#include <string.h>

#include <map>

#include "emulation.h"

using namespace emulation;

namespace {

const size_t SHARED_DEFAULT = 48 * 1024, SHARED_LIMIT = 227 * 1024;

std::map<const void *, size_t> shared_allowed; /* by kernel */

void add_pointer(operation &operation, uint64_t word, bool write, bool is_pointer, size_t argument) {
  if (word == 0) return;
  /* An enum and the padding behind it, in which bytes of an old address may lie: no heap or stack is that low. */
  if (!is_pointer && (uint32_t)word < 4096) return;
  enum memory_kind kind = memory_find((uintptr_t)word);
  if (kind != MEMORY_HOST) {
    operation.accesses.push_back({(uintptr_t)word, (uintptr_t)word + 1, write});
    return;
  }
  if (memory_is_host_address(word)) {
    fail("%s: argument %zu %s host memory at %p, which a GPU cannot access", operation.name.c_str(), argument + 1,
         is_pointer ? "points to" : "holds the address of", (void *)word);
  }
}

bool launch_fits(const void *function, dim3 grid, dim3 block, size_t shared) {
  uint64_t threads = (uint64_t)block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64) return false;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return false;
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return false;
  auto allowed = shared_allowed.find(function);
  return shared <= (allowed == shared_allowed.end() ? SHARED_DEFAULT : allowed->second);
}

}  // namespace

void emulation_queue_kernel(const char *name, const void *function, dim3 grid, dim3 block, size_t shared,
                            cudaStream_t handle, std::function<void()> thread, const emulation_argument *arguments,
                            size_t n_arguments) {
  entry entry;
  std::shared_ptr<stream> stream = stream_find(handle);
  if (!stream || stream->device != current_device()) {
    record_error(cudaErrorInvalidResourceHandle);
    return;
  }
  if (!launch_fits(function, grid, block, shared)) {
    fail(
        "kernel %s: cannot be launched with a grid of (%u, %u, %u), a block of (%u, %u, %u) and %zu bytes of shared "
        "memory",
        name, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared);
  }
  auto operation = std::make_shared<struct operation>();
  operation->name = std::string("kernel ") + name;
  for (size_t i = 0; i < n_arguments; i++) {
    const emulation_argument &argument = arguments[i];
    bool is_pointer = argument.kind != EMULATION_VALUE;
    for (size_t at = 0; at + 8 <= argument.size; at += 8) {
      uint64_t word;
      memcpy(&word, (const char *)argument.bytes + at, sizeof word);
      add_pointer(*operation, word, argument.kind != EMULATION_CONST_POINTER, is_pointer, i);
    }
  }
  launch launch = {name, grid, block, shared, std::move(thread)};
  operation->run = [launch]() {
    run_launch(launch);
    return true;
  };
  stream_queue(*stream, operation);
}

extern "C" cudaError_t cudaFuncSetAttribute(const void *func, enum cudaFuncAttribute attr, int value) {
  entry entry;
  if (attr != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || (size_t)value > SHARED_LIMIT) return record_error(cudaErrorInvalidValue);
  size_t &allowed = shared_allowed[func];
  allowed = (size_t)value > SHARED_DEFAULT ? (size_t)value : SHARED_DEFAULT;
  return cudaSuccess;
}
