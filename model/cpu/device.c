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

enum { MAX_THREADS = 4096, HUGE_PAGE = 2 << 20 };

/* Cores this process may run on: the launcher's binding, not the machine. */
static int usable_cores(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  long online = sysconf(_SC_NPROCESSORS_ONLN); /* more than 1024 cores: the fixed set is too small */
  return online > 0 ? (int)online : 1;
}

enum status device_open(const char *name, int n_threads, struct device **device_p) {
  if (strcmp(name, "auto") != 0 && strcmp(name, "cpu") != 0) {
    return status_set(STATUS_USAGE, "device '%s': this build has 'cpu' only; use auto or cpu", name);
  }
  if (n_threads < 0 || n_threads > MAX_THREADS) {
    return status_set(STATUS_USAGE, "%d threads: give 1 to %d, or 0 for all cores of this rank", n_threads,
                      MAX_THREADS);
  }
  struct device *d = calloc(1, sizeof *d);
  struct cpu_state *state = calloc(1, sizeof *state);
  if (!d || !state) {
    free(d);
    free(state);
    return status_set(STATUS_SYSTEM, "device '%s': out of memory", name);
  }
  d->ops = &cpu_ops;
  d->state = state;
  d->n_threads = n_threads ? n_threads : usable_cores();
  omp_set_num_threads(d->n_threads);
  enum status status = cpu_gemm_open(d, &state->gemm);
  if (status != STATUS_OK) {
    device_close(&d);
    return status;
  }
  *device_p = d;
  return STATUS_OK;
}

void device_close(struct device **device_p) {
  struct device *d = *device_p;
  if (!d) return;
  struct cpu_state *state = cpu_state(d);
  cpu_gemm_close(&state->gemm);
  for (int i = 0; i < CPU_SCRATCH_COUNT; i++) device_free(d, state->scratch[i].data, state->scratch[i].bytes);
  free(state);
  free(d);
  *device_p = NULL;
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

enum status device_alloc(struct device *device, size_t bytes, const char *what, void **memory_p) {
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
    return status_set(STATUS_SYSTEM,
                      "%s: no memory for %zu MB (%" PRIu64
                      " MB held); use a smaller batch, shorter "
                      "sequences or more ranks",
                      what, bytes >> 20, device->allocated >> 20);
  }
  device->allocations++;
  device->allocated += bytes;
  *memory_p = memory;
  return STATUS_OK;
}

void device_free(struct device *device, void *memory, size_t bytes) {
  if (!memory) return;
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

void device_describe(const struct device *device, char *text, size_t size) {
  char processor[128], library[128];
  processor_name(processor, sizeof processor);
  cpu_gemm_describe(library, sizeof library);
  snprintf(text, size, "%s: %s, %s, %d thread%s", device->ops->name, processor, library, device->n_threads,
           device->n_threads == 1 ? "" : "s");
}
