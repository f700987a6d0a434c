/*
 * memory.cpp: device memory and pinned host memory.
 *
 * Every allocation has pages of its own at addresses that are never used again:
 * [slack][data, filled with NaN][guard page]. Device pages can be accessed only
 * while operations run, so the host, and whoever uses freed memory, faults.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>

#include "emulation.h"
#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
static const uint64_t LOWEST_HOST_ADDRESS = 0x10007fff8000; /* below lies the sanitizer's shadow */
#else
#define ASAN_POISON_MEMORY_REGION(address, size)   ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)0)
static const uint64_t LOWEST_HOST_ADDRESS = (uint64_t)1 << 32;
#endif

namespace emulation {

static const uintptr_t REGION_BEGIN = 0x2a5c00000000, REGION_END = 0x3a5c00000000;
static const size_t PAGE = 4096, ALIGNMENT = 256;
static const unsigned char NAN_BYTE = 0xff, SLACK_BYTE = 0xa5;

struct allocation {
  uintptr_t begin, end; /* as asked for */
  uintptr_t pages;      /* first page */
  size_t pages_bytes;   /* without the guard */
  enum memory_kind kind;
  int device;
};

static std::map<uintptr_t, allocation> allocations; /* by begin */
static uintptr_t next_address = REGION_BEGIN;
static bool is_open;
static size_t bytes_in_use;
static struct sigaction previous_handler;

static const allocation *find(uintptr_t address) {
  auto after = allocations.upper_bound(address);
  if (after == allocations.begin()) return nullptr;
  const allocation &a = std::prev(after)->second;
  /* The end itself belongs to it: an empty range may start there. */
  return address < a.end || address == a.begin ? &a : nullptr;
}

static bool in_region(uintptr_t address) { return address >= REGION_BEGIN && address < REGION_END; }

enum memory_kind memory_find(uintptr_t address, uintptr_t *begin, uintptr_t *end) {
  if (!in_region(address)) return MEMORY_HOST;
  const allocation *a = find(address);
  if (!a) return MEMORY_HOST;
  if (begin) *begin = a->begin;
  if (end) *end = a->end;
  return a->kind;
}

bool memory_is_host_address(uint64_t word) {
  if (word < LOWEST_HOST_ADDRESS || word >> 47 != 0 || in_region(word)) return false;
  return msync((void *)(word / PAGE * PAGE), PAGE, MS_ASYNC) == 0;
}

void memory_check_extent(const std::string &operation, const access &access) {
  const allocation *a = find(access.begin);
  if (a && access.end > a->end) {
    fail("%s: %zu bytes at %p, but the allocation has only %zu left there", operation.c_str(),
         (size_t)(access.end - access.begin), (void *)access.begin, (size_t)(a->end - access.begin));
  }
  if (!a && in_region(access.begin)) {
    fail("%s: %p lies in no allocation (freed, or beyond one)", operation.c_str(), (void *)access.begin);
  }
}

/* --- faults ---------------------------------------------------------------------------- */

static void on_fault(int number, siginfo_t *info, void *context) {
  uintptr_t address = (uintptr_t)info->si_addr;
  if (fiber_is_guard(address)) fail("stack overflow of a kernel's thread");
  if (in_region(address)) {
    const allocation *nearest = nullptr;
    auto after = allocations.upper_bound(address);
    if (after != allocations.begin()) nearest = &std::prev(after)->second;
    if (nearest && address < nearest->pages + nearest->pages_bytes) {
      fail("host access to device memory at %p: byte %zu of an allocation of %zu bytes", (void *)address,
           (size_t)(address - nearest->begin), (size_t)(nearest->end - nearest->begin));
    }
    fail("%s to memory at %p, which is freed or beyond an allocation", is_open ? "access" : "host access",
         (void *)address);
  }
  if (previous_handler.sa_flags & SA_SIGINFO) {
    previous_handler.sa_sigaction(number, info, context);
  } else if (previous_handler.sa_handler != SIG_DFL && previous_handler.sa_handler != SIG_IGN) {
    previous_handler.sa_handler(number);
  } else {
    signal(SIGSEGV, SIG_DFL); /* the access is repeated and ends the process */
  }
}

static void install_handler() {
  static bool installed;
  if (installed) return;
  installed = true;
  static char alternate[64 * 1024]; /* for a fault on a full stack */
  stack_t stack = {};
  if (sigaltstack(nullptr, &stack) == 0 && (stack.ss_flags & SS_DISABLE)) {
    stack = {};
    stack.ss_sp = alternate;
    stack.ss_size = sizeof alternate;
    sigaltstack(&stack, nullptr);
  }
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &previous_handler);
}

/* With a protection key opening and closing is one instruction, for the calling
 * thread alone; without one (older processors) a system call for each allocation. */
static int protection_key() {
  static const int key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
  return key;
}

static void protect_device(bool open) {
  if (protection_key() >= 0) {
    pkey_set(protection_key(), open ? 0 : PKEY_DISABLE_ACCESS);
    return;
  }
  for (auto &pair : allocations) {
    const allocation &a = pair.second;
    if (a.kind == MEMORY_DEVICE) mprotect((void *)a.pages, a.pages_bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE);
  }
}

void memory_open() {
  if (is_open) return;
  is_open = true;
  protect_device(true);
}

void memory_close() {
  if (!is_open) return;
  is_open = false;
  protect_device(false);
}

/* --- allocating ------------------------------------------------------------------------- */

static size_t total_bytes() {
  const char *text = getenv("EMULATED_GPU_MEMORY");
  return text ? (size_t)strtoull(text, nullptr, 10) : (size_t)16 << 30;
}

static cudaError_t allocate(enum memory_kind kind, void **memory_p, size_t bytes) {
  install_handler();
  size_t data_bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  size_t pages_bytes = (data_bytes + PAGE - 1) / PAGE * PAGE;
  if (bytes > total_bytes() || (kind == MEMORY_DEVICE && bytes_in_use + pages_bytes > total_bytes())) {
    return record_error(cudaErrorMemoryAllocation);
  }
  void *pages = mmap((void *)next_address, pages_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (pages == MAP_FAILED) return record_error(cudaErrorMemoryAllocation);
  if ((uintptr_t)pages != next_address) fail("address %p is in use", (void *)next_address);
  allocation a = {};
  a.pages = next_address;
  a.pages_bytes = pages_bytes;
  a.begin = a.pages + pages_bytes - data_bytes;
  a.end = a.begin + bytes;
  a.kind = kind;
  a.device = current_device();
  next_address += pages_bytes + PAGE; /* nothing is ever mapped at the guard */
  memset((void *)a.pages, SLACK_BYTE, a.begin - a.pages);
  memset((void *)a.begin, NAN_BYTE, bytes);
  memset((void *)a.end, SLACK_BYTE, data_bytes - bytes);
  ASAN_POISON_MEMORY_REGION((void *)a.pages, a.begin - a.pages);
  ASAN_POISON_MEMORY_REGION((void *)a.end, data_bytes - bytes);
  if (kind == MEMORY_DEVICE) {
    bytes_in_use += pages_bytes;
    if (protection_key() >= 0) {
      pkey_mprotect(pages, pages_bytes, PROT_READ | PROT_WRITE, protection_key());
    } else {
      mprotect(pages, pages_bytes, PROT_NONE); /* no operation runs now */
    }
  }
  allocations[a.begin] = a;
  *memory_p = (void *)a.begin;
  return cudaSuccess;
}

static void check_slack(const allocation &a) {
  const unsigned char *first = (const unsigned char *)a.pages, *last = first + a.pages_bytes;
  for (const unsigned char *p = first; p < last; p++) {
    if (p == (const unsigned char *)a.begin) p = (const unsigned char *)a.end;
    if (p < last && *p != SLACK_BYTE) {
      fail("a write outside of an allocation of %zu bytes, %ld bytes from its start", (size_t)(a.end - a.begin),
           (long)((intptr_t)p - (intptr_t)a.begin));
    }
  }
}

static cudaError_t release(enum memory_kind kind, void *memory) {
  if (!memory) return cudaSuccess;
  auto found = allocations.find((uintptr_t)memory);
  if (found == allocations.end() || found->second.kind != kind) {
    fail("%s of %p, which is not such memory", kind == MEMORY_DEVICE ? "cudaFree" : "cudaFreeHost", memory);
  }
  streams_finish();
  allocation a = found->second;
  ASAN_UNPOISON_MEMORY_REGION((void *)a.pages, a.pages_bytes);
  memory_open();
  check_slack(a);
  memory_close();
  history_forget(global_history(), a.begin, a.end);
  munmap((void *)a.pages, a.pages_bytes);
  if (kind == MEMORY_DEVICE) bytes_in_use -= a.pages_bytes;
  allocations.erase(found);
  return cudaSuccess;
}

}  // namespace emulation

using namespace emulation;

extern "C" {

cudaError_t cudaMalloc(void **devPtr, size_t size) {
  entry entry;
  forbid_in_capture("cudaMalloc", true);
  *devPtr = nullptr;
  return size ? allocate(MEMORY_DEVICE, devPtr, size) : cudaSuccess;
}

cudaError_t cudaFree(void *devPtr) {
  entry entry;
  if (devPtr) forbid_in_capture("cudaFree", true);
  return release(MEMORY_DEVICE, devPtr);
}

cudaError_t cudaHostAlloc(void **pHost, size_t size, unsigned int) {
  entry entry;
  forbid_in_capture("cudaHostAlloc", true);
  *pHost = nullptr;
  return size ? allocate(MEMORY_PINNED, pHost, size) : cudaSuccess;
}

cudaError_t cudaMallocHost(void **ptr, size_t size) { return cudaHostAlloc(ptr, size, cudaHostAllocDefault); }

cudaError_t cudaFreeHost(void *ptr) {
  entry entry;
  if (ptr) forbid_in_capture("cudaFreeHost", true);
  return release(MEMORY_PINNED, ptr);
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  entry entry;
  *total = total_bytes();
  *free = *total - bytes_in_use;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *ptr) {
  entry entry;
  *attributes = {};
  enum memory_kind kind = memory_find((uintptr_t)ptr);
  attributes->type = kind == MEMORY_DEVICE   ? cudaMemoryTypeDevice
                     : kind == MEMORY_PINNED ? cudaMemoryTypeHost
                                             : cudaMemoryTypeUnregistered;
  attributes->devicePointer = kind == MEMORY_HOST ? nullptr : (void *)ptr;
  attributes->hostPointer = kind == MEMORY_DEVICE ? nullptr : (void *)ptr;
  return cudaSuccess;
}

}  // extern "C"
