/*
 * cuda_runtime.h: CUDA C for the host compiler: qualifiers, vector types, what a
 * kernel may call, and the launch. From C it is cuda_runtime_api.h.
 */
#ifndef LORASHARD_EMULATION_CUDA_RUNTIME_H
#define LORASHARD_EMULATION_CUDA_RUNTIME_H

#include "cuda_runtime_api.h"

#ifdef __cplusplus

#include <functional>
#include <tuple>
#include <type_traits>

#include "device_math.h"
#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __shared__      static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

/* Of the thread that runs now. */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
static const int warpSize = 32;

/* --- waiting for each other -------------------------------------------------------- */

enum emulation_warp_kind {
  EMULATION_WARP_SYNC,
  EMULATION_WARP_INDEX, /* from lane `operand` of the segment */
  EMULATION_WARP_XOR,
  EMULATION_WARP_UP,
  EMULATION_WARP_DOWN,
  EMULATION_WARP_BALLOT,
};
void emulation_barrier(const char *file, int line);
/* The value that the lane gets: another's, its own where that lies outside the
 * segment of `width` lanes, or the ballot. */
uint64_t emulation_warp(enum emulation_warp_kind kind, unsigned int mask, uint64_t value, int operand, int width,
                        const char *file, int line);
void *emulation_dynamic_shared();

#define EMULATION_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(EMULATION_PLACE) { emulation_barrier(file, line); }
static inline void __syncwarp(unsigned int mask = 0xffffffffu, EMULATION_PLACE) {
  emulation_warp(EMULATION_WARP_SYNC, mask, 0, 0, 32, file, line);
}
static inline unsigned int __ballot_sync(unsigned int mask, int predicate, EMULATION_PLACE) {
  return (unsigned int)emulation_warp(EMULATION_WARP_BALLOT, mask, predicate != 0, 0, 32, file, line);
}
static inline int __any_sync(unsigned int mask, int predicate, EMULATION_PLACE) {
  return emulation_warp(EMULATION_WARP_BALLOT, mask, predicate != 0, 0, 32, file, line) != 0;
}
static inline int __all_sync(unsigned int mask, int predicate, EMULATION_PLACE) {
  return emulation_warp(EMULATION_WARP_BALLOT, mask, predicate == 0, 0, 32, file, line) == 0;
}

template <typename T>
static inline T emulation_shuffle(enum emulation_warp_kind kind, unsigned int mask, T value, int operand, int width,
                                  const char *file, int line) {
  static_assert(std::is_arithmetic<T>::value && sizeof(T) >= 4, "shuffles move numbers of 4 or 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = emulation_warp(kind, mask, bits, operand, width, file, line);
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <typename T>
static inline T __shfl_sync(unsigned int mask, T value, int lane, int width = 32, EMULATION_PLACE) {
  return emulation_shuffle(EMULATION_WARP_INDEX, mask, value, lane, width, file, line);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned int mask, T value, int lanes, int width = 32, EMULATION_PLACE) {
  return emulation_shuffle(EMULATION_WARP_XOR, mask, value, lanes, width, file, line);
}
template <typename T>
static inline T __shfl_up_sync(unsigned int mask, T value, unsigned int lanes, int width = 32, EMULATION_PLACE) {
  return emulation_shuffle(EMULATION_WARP_UP, mask, value, (int)lanes, width, file, line);
}
template <typename T>
static inline T __shfl_down_sync(unsigned int mask, T value, unsigned int lanes, int width = 32, EMULATION_PLACE) {
  return emulation_shuffle(EMULATION_WARP_DOWN, mask, value, (int)lanes, width, file, line);
}
#undef EMULATION_PLACE

static inline void __threadfence() {}
static inline void __threadfence_block() {}
template <typename T>
static inline T atomicAdd(T *p, T value) {
  T before = *p;
  *p = before + value;
  return before;
}
template <typename T>
static inline T atomicMax(T *p, T value) {
  T before = *p;
  if (before < value) *p = value;
  return before;
}

/* --- launching ------------------------------------------------------------------- */

enum emulation_argument_kind {
  EMULATION_VALUE, /* a number, or a struct whose words may be pointers */
  EMULATION_POINTER,
  EMULATION_CONST_POINTER, /* to what the kernel only reads */
};
struct emulation_argument {
  enum emulation_argument_kind kind;
  const void *bytes;
  size_t size;
};
void emulation_queue_kernel(const char *name, const void *function, dim3 grid, dim3 block, size_t shared,
                            cudaStream_t stream, std::function<void()> thread, const emulation_argument *arguments,
                            size_t n_arguments);

template <typename T>
static inline emulation_argument emulation_describe(const T &value) {
  enum emulation_argument_kind kind = EMULATION_VALUE;
  if (std::is_pointer<T>::value) {
    kind = std::is_const<typename std::remove_pointer<T>::type>::value ? EMULATION_CONST_POINTER : EMULATION_POINTER;
  }
  return {kind, &value, sizeof value};
}

/* Queue kernel<<<grid, block, shared, stream>>>(arguments...). Errors as CUDA has them: cudaGetLastError. */
template <typename... Parameters, typename... Arguments>
static inline void emulation_launch(const char *name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                    size_t shared, cudaStream_t stream, Arguments &&...arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "the kernel takes another number of arguments");
  typedef std::tuple<typename std::decay<Parameters>::type...> values_t;
  values_t values(static_cast<Parameters>(arguments)...);
  emulation_argument described[sizeof...(Parameters) + 1] = {};
  size_t n = 0;
  std::apply([&](const auto &...value) { ((described[n++] = emulation_describe(value)), ...); }, values);
  emulation_queue_kernel(
      name, (const void *)kernel, grid, block, shared, stream, [kernel, values]() { std::apply(kernel, values); },
      described, n);
}

/* --- what cuda_runtime.h adds to the C interface ------------------------------------- */

template <typename T>
static inline cudaError_t cudaMalloc(T **devPtr, size_t size) {
  return cudaMalloc((void **)devPtr, size);
}
template <typename T>
static inline cudaError_t cudaMallocHost(T **ptr, size_t size) {
  return cudaMallocHost((void **)ptr, size);
}
template <typename T>
static inline cudaError_t cudaFuncSetAttribute(T *func, enum cudaFuncAttribute attr, int value) {
  return cudaFuncSetAttribute((const void *)func, attr, value);
}

#endif /* __cplusplus */

#endif
