/*
 * device.c: the CPU as a device: threads of this rank, memory, scratch.
 */
#include "model/device.h"

#include <errno.h>
#include <inttypes.h>
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/cpu/cpu_internal.h"
#include "model/device_backend.h"

enum { MAX_THREADS = 4096, HUGE_PAGE = 2 << 20 };

/* Cores this process may run on: the launcher's binding, not the machine. */
static int usable_cores(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  long online = sysconf(_SC_NPROCESSORS_ONLN); /* more than 1024 cores: the fixed set is too small */
  return online > 0 ? (int)online : 1;
}

static void cpu_close(struct device *d) {
  struct cpu_state *state = cpu_state(d);
  cpu_gemm_close(&state->gemm);
  for (int i = 0; i < CPU_SCRATCH_COUNT; i++)
    if (state->scratch[i].data) device_free(d, state->scratch[i].data, state->scratch[i].bytes);
  free(state->stage);
  free(state);
}

static size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

/* Fresh huge pages cost a seventh of fresh small ones to write for the first
 * time; they need an address that is a multiple of their size. */
static void *map_huge(size_t bytes) {
  size_t mapped = bytes + HUGE_PAGE;
  char *start = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return NULL;
  char *aligned = (char *)round_up((uintptr_t)start, HUGE_PAGE);
  if (aligned > start) munmap(start, (size_t)(aligned - start));
  if (start + mapped > aligned + bytes) munmap(aligned + bytes, (size_t)(start + mapped - aligned) - bytes);
  madvise(aligned, bytes, MADV_HUGEPAGE); /* advice: without it the memory is as good, but slower to get */
  return aligned;
}

static size_t block_bytes(size_t bytes) { return bytes < HUGE_PAGE ? round_up(bytes, 64) : round_up(bytes, HUGE_PAGE); }

static enum status cpu_alloc(struct device *device, size_t bytes, const char *what, void **memory_p) {
  void *memory = NULL;
  size_t block = bytes ? block_bytes(bytes) : 64;
  if (bytes > SIZE_MAX / 2) {
    memory = NULL;
  } else if (block < HUGE_PAGE) {
    memory = aligned_alloc(64, block);
    if (memory) memset(memory, 0, block);
  } else {
    memory = map_huge(block);
  }
  if (!memory) {
    return status_set(STATUS_SYSTEM, "%s: no memory for %zu MB (%" PRIu64 " MB held); %s", what, bytes >> 20,
                      device->allocated >> 20, device_memory_remedy(what));
  }
  device->allocations++;
  device->allocated += bytes;
  *memory_p = memory;
  return STATUS_OK;
}

static void cpu_free(struct device *device, void *memory, size_t bytes) {
  size_t block = bytes ? block_bytes(bytes) : 64;
  device->allocated -= bytes;
  if (block < HUGE_PAGE) {
    free(memory);
  } else {
    munmap(memory, block);
  }
}

enum status cpu_scratch(struct device *d, enum cpu_scratch_use use, size_t bytes, void **block_p) {
  struct cpu_block *block = &cpu_state(d)->scratch[use];
  if (block->bytes < bytes || !block->data) {
    device_free(d, block->data, block->bytes);
    *block = (struct cpu_block){0};
    size_t grown = block_bytes(bytes ? bytes : 1);
    TRY(device_alloc(d, grown, "scratch", &block->data));
    block->bytes = grown;
  }
  *block_p = block->data;
  return STATUS_OK;
}

/* "model name" of /proc/cpuinfo; "unknown processor" where there is none. */
static void processor_name(char *text, size_t size) {
  snprintf(text, size, "unknown processor");
  FILE *file = fopen("/proc/cpuinfo", "re");
  if (!file) return;
  char line[256];
  while (fgets(line, sizeof line, file)) {
    char *colon = strchr(line, ':');
    if (strncmp(line, "model name", 10) != 0 || !colon) continue;
    colon[1 + strcspn(colon + 1, "\n")] = '\0';
    snprintf(text, size, "%s", colon + 1 + strspn(colon + 1, " "));
    break;
  }
  fclose(file);
}

static void cpu_describe(const struct device *device, char *text, size_t size) {
  char processor[128], library[128];
  processor_name(processor, sizeof processor);
  cpu_gemm_describe(library, sizeof library);
  snprintf(text, size, "%s: %s, %s, %d thread%s", device->ops->name, processor, library, device->n_threads,
           device->n_threads == 1 ? "" : "s");
}

/* --- memory that is the host's anyway --------------------------------------- */

static enum status cpu_host_alloc(struct device *device, size_t bytes, const char *what, void **memory_p) {
  (void)device;
  *memory_p = aligned_alloc(64, round_up(bytes ? bytes : 1, 64));
  return *memory_p ? STATUS_OK : status_set(STATUS_SYSTEM, "%s: no memory for %zu MB", what, bytes >> 20);
}

static void cpu_host_free(struct device *device, void *memory) {
  (void)device;
  free(memory);
}

static enum status cpu_copy_out(struct device *device, void *dst, const void *src, size_t bytes) {
  (void)device;
  memcpy(dst, src, bytes);
  return STATUS_OK;
}

static enum status cpu_zero_bytes(struct device *device, void *p, size_t bytes) {
  (void)device;
  memset(p, 0, bytes);
  return STATUS_OK;
}

static enum status cpu_stage_take(struct device *device, void **buffer_p) {
  struct cpu_state *state = cpu_state(device);
  if (!state->stage) TRY(cpu_host_alloc(device, DEVICE_STAGE_BYTES, "staging buffer", &state->stage));
  *buffer_p = state->stage;
  return STATUS_OK;
}

static enum status cpu_stage_send(struct device *device, void *dst, size_t bytes) {
  memcpy(dst, cpu_state(device)->stage, bytes);
  return STATUS_OK;
}

static enum status cpu_synchronize(struct device *device) {
  (void)device;
  return STATUS_OK;
}

static void cpu_set_watch(struct device *device, device_watch_func_t *watch, void *context) {
  (void)device; /* nothing is ever waited for */
  (void)watch;
  (void)context;
}

static void *cpu_stream(const struct device *device) {
  (void)device;
  return NULL;
}

static enum status cpu_graph_begin(struct device *device, const void *key, size_t key_bytes, int *slot_p,
                                   bool *repeated_p) {
  (void)device;
  (void)key;
  (void)key_bytes;
  *slot_p = -1;
  *repeated_p = false;
  return STATUS_OK;
}

static enum status cpu_graph_end(struct device *device) {
  (void)device;
  return STATUS_OK;
}

static uint64_t cpu_memory(const struct device *device) {
  (void)device;
  long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  uint64_t bytes = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
  unsigned long long granted;
  FILE *file = fopen("/sys/fs/cgroup/memory.max", "re"); /* "max": no limit */
  if (file && fscanf(file, "%llu", &granted) == 1 && granted < bytes) bytes = granted;
  if (file) fclose(file);
  return bytes;
}

static void cpu_identity(const struct device *device, char identity[DEVICE_IDENTITY]) {
  (void)device;
  identity[0] = 0;
}

static const struct device_functions cpu_functions = {
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .host_alloc = cpu_host_alloc,
    .host_free = cpu_host_free,
    .copy_out = cpu_copy_out,
    .zero = cpu_zero_bytes,
    .stage_take = cpu_stage_take,
    .stage_send = cpu_stage_send,
    .synchronize = cpu_synchronize,
    .set_watch = cpu_set_watch,
    .stream = cpu_stream,
    .graph_begin = cpu_graph_begin,
    .graph_end = cpu_graph_end,
    .graph_drop = cpu_synchronize,
    .identity = cpu_identity,
    .memory = cpu_memory,
    .describe = cpu_describe,
};

enum status cpu_device_open(const struct device_options *options, struct device *d) {
  int n_threads = options->n_threads;
  if (n_threads < 0 || n_threads > MAX_THREADS) {
    return status_set(STATUS_USAGE, "%d threads: give 1 to %d, or 0 for all cores of this rank", n_threads,
                      MAX_THREADS);
  }
  struct cpu_state *state = calloc(1, sizeof *state);
  if (!state) return status_set(STATUS_SYSTEM, "device cpu: out of memory");
  d->ops = &cpu_ops;
  d->functions = &cpu_functions;
  d->state = state;
  d->n_threads = n_threads ? n_threads : usable_cores();
  d->host_memory = true;
  omp_set_num_threads(d->n_threads);
  enum status status = cpu_gemm_open(d, &state->gemm);
  if (status != STATUS_OK) cpu_close(d);
  return status;
}
