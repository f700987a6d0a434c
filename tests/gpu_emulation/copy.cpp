/* copy.cpp: copies and fills, in stream order; pageable host memory is read when the call is made. */
#include <string.h>

#include "emulation.h"

using namespace emulation;

namespace {

struct plane { /* `height` rows of `width` bytes at a distance of `pitch` */
  uintptr_t data;
  size_t pitch;
};

access extent(plane p, size_t width, size_t height, bool write) {
  return {p.data, p.data + (height - 1) * p.pitch + width, write};
}

void check_direction(const char *name, plane dst, plane src, enum cudaMemcpyKind kind) {
  if (kind == cudaMemcpyDefault) return;
  bool dst_device = memory_find(dst.data) == MEMORY_DEVICE, src_device = memory_find(src.data) == MEMORY_DEVICE;
  bool dst_should = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  bool src_should = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (dst_device != dst_should) {
    fail("%s: the destination %p is %sdevice memory, against the kind of copy", name, (void *)dst.data,
         dst_device ? "" : "no ");
  }
  if (src_device != src_should) {
    fail("%s: the source %p is %sdevice memory, against the kind of copy", name, (void *)src.data,
         src_device ? "" : "no ");
  }
}

const char *const KIND_NAMES[] = {"host to host", "host to device", "device to host", "device to device", "default"};

cudaError_t copy(const char *call, plane dst, plane src, size_t width, size_t height, enum cudaMemcpyKind kind,
                 cudaStream_t handle) {
  std::shared_ptr<stream> stream = stream_find(handle);
  if (!stream) return record_error(cudaErrorInvalidResourceHandle);
  if ((unsigned)kind > cudaMemcpyDefault) return record_error(cudaErrorInvalidMemcpyDirection);
  if (width == 0 || height == 0) return cudaSuccess;
  if (dst.pitch < width || src.pitch < width) return record_error(cudaErrorInvalidValue);
  auto operation = std::make_shared<struct operation>();
  operation->name = std::string(call) + " of " + std::to_string(width * height) + " bytes, " + KIND_NAMES[kind];
  check_direction(operation->name.c_str(), dst, src, kind);
  access read = extent(src, width, height, false), write = extent(dst, width, height, true);
  memory_check_extent(operation->name, read);
  memory_check_extent(operation->name, write);
  enum memory_kind src_kind = memory_find(src.data), dst_kind = memory_find(dst.data);
  if (stream->recording && (src_kind == MEMORY_HOST || dst_kind == MEMORY_HOST)) {
    fail("%s: pageable host memory, while the stream is recorded", operation->name.c_str());
  }
  if (src_kind != MEMORY_HOST) operation->accesses.push_back(read);
  if (dst_kind != MEMORY_HOST) operation->accesses.push_back(write);
  auto rows = [=](uintptr_t from, size_t from_pitch) {
    for (size_t i = 0; i < height; i++) {
      memmove((char *)dst.data + i * dst.pitch, (const char *)from + i * from_pitch, width);
    }
  };
  if (src_kind == MEMORY_HOST) {
    auto bytes = std::make_shared<std::vector<char>>(width * height);
    for (size_t i = 0; i < height; i++)
      memcpy(bytes->data() + i * width, (const char *)src.data + i * src.pitch, width);
    operation->run = [=]() {
      rows((uintptr_t)bytes->data(), width);
      return true;
    };
  } else {
    operation->run = [=]() {
      rows(src.data, src.pitch);
      return true;
    };
  }
  stream_queue(*stream, operation);
  return cudaSuccess;
}

cudaError_t fill(const char *call, plane dst, int value, size_t width, size_t height, cudaStream_t handle) {
  std::shared_ptr<stream> stream = stream_find(handle);
  if (!stream) return record_error(cudaErrorInvalidResourceHandle);
  if (width == 0 || height == 0) return cudaSuccess;
  auto operation = std::make_shared<struct operation>();
  operation->name = std::string(call) + " of " + std::to_string(width * height) + " bytes";
  access write = extent(dst, width, height, true);
  memory_check_extent(operation->name, write);
  if (memory_find(dst.data) == MEMORY_HOST)
    fail("%s: %p is no device memory", operation->name.c_str(), (void *)dst.data);
  operation->accesses.push_back(write);
  operation->run = [=]() {
    for (size_t i = 0; i < height; i++) memset((char *)dst.data + i * dst.pitch, value, width);
    return true;
  };
  stream_queue(*stream, operation);
  return cudaSuccess;
}

void finish_default_stream() {
  std::shared_ptr<stream> stream = stream_find(nullptr);
  stream_finish(*stream, stream->queued);
}

}  // namespace

extern "C" {

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t count, enum cudaMemcpyKind kind, cudaStream_t stream) {
  entry entry;
  return copy("cudaMemcpyAsync", {(uintptr_t)dst, count}, {(uintptr_t)src, count}, count, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t height,
                              enum cudaMemcpyKind kind, cudaStream_t stream) {
  entry entry;
  return copy("cudaMemcpy2DAsync", {(uintptr_t)dst, dpitch}, {(uintptr_t)src, spitch}, width, height, kind, stream);
}

cudaError_t cudaMemsetAsync(void *devPtr, int value, size_t count, cudaStream_t stream) {
  entry entry;
  return fill("cudaMemsetAsync", {(uintptr_t)devPtr, count}, value, count, 1, stream);
}

cudaError_t cudaMemset2DAsync(void *devPtr, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream) {
  entry entry;
  return fill("cudaMemset2DAsync", {(uintptr_t)devPtr, pitch}, value, width, height, stream);
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t count, enum cudaMemcpyKind kind) {
  entry entry;
  forbid_in_capture("cudaMemcpy", false);
  cudaError_t error = copy("cudaMemcpy", {(uintptr_t)dst, count}, {(uintptr_t)src, count}, count, 1, kind, nullptr);
  if (error == cudaSuccess) finish_default_stream();
  return error;
}

cudaError_t cudaMemset(void *devPtr, int value, size_t count) {
  entry entry;
  forbid_in_capture("cudaMemset", false);
  return fill("cudaMemset", {(uintptr_t)devPtr, count}, value, count, 1, nullptr);
}

}  // extern "C"
