/*
 * block.cpp: runs a kernel: block after block, and in a block thread after
 * thread, each until it waits for others or ends. A fiber that has ended its
 * thread goes on with the next one, so a thread that never waits costs no switch.
 *
 * The order of blocks and threads, and in which order threads leave a barrier,
 * changes from launch to launch in a fixed pseudo-random way: a missing barrier
 * shows as a wrong result.
 */
#include <stdlib.h>
#include <string.h>

#include "emulation.h"
#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {

static const int WARP = 32;
static const int MAX_THREADS = 1024;

enum thread_state { THREAD_NEW, THREAD_READY, THREAD_BARRIER, THREAD_WARP, THREAD_DONE };

struct place {
  const char *file;
  int line;
};

struct thread {
  enum thread_state state;
  uint3 index;
  int fiber; /* that it runs on, once started */
  struct place place;
  /* A warp operation. */
  enum emulation_warp_kind kind;
  unsigned int mask;
  uint64_t value, result;
  int operand, width;
};

struct warp_group { /* lanes of a warp that have come to an operation with the same mask */
  unsigned int mask, arrived;
};

struct warp {
  unsigned int present; /* lanes that exist */
  int n_groups;
  warp_group groups[WARP];
};

static const launch *running;
static uint64_t random_state = 0x9e3779b97f4a7c15u;
static thread threads[MAX_THREADS];
static warp warps[MAX_THREADS / WARP];
static int n_threads, n_started, n_done, n_at_barrier;
static int order_first, order_step; /* the i-th thread to start is (first + i step) mod n */
static int ready[MAX_THREADS], ready_head, n_ready;
static int current = -1; /* thread */
static fiber fibers[MAX_THREADS];
static int free_fibers[MAX_THREADS], n_free, n_fibers;
static fiber home; /* the stack that run_launch was called on */
static int current_fiber;
static void *dynamic_shared;

static uint64_t random_next() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

static std::string place_of(const uint3 &i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

std::string running_place() {
  if (!running) return "";
  std::string text = "kernel " + running->name + ", block " + place_of(blockIdx);
  if (current >= 0) text += ", thread " + place_of(threads[current].index);
  return text;
}

/* --- who runs next ------------------------------------------------------------------ */

static void make_ready(int t) {
  threads[t].state = THREAD_READY;
  ready[(ready_head + n_ready++) % MAX_THREADS] = t;
}

static void set_current(int t) {
  current = t;
  threadIdx = threads[t].index;
}

static bool same_place(const place &a, const place &b) {
  return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

static std::string describe(int t) {
  const thread &thread = threads[t];
  std::string text = "thread " + place_of(thread.index);
  if (thread.state == THREAD_DONE) return text + " has ended";
  text += thread.state == THREAD_BARRIER         ? " waits in __syncthreads"
          : thread.kind == EMULATION_WARP_SYNC   ? " waits in __syncwarp"
          : thread.kind == EMULATION_WARP_BALLOT ? " waits in a vote"
                                                 : " waits in a shuffle";
  return text + " at " + thread.place.file + ":" + std::to_string(thread.place.line);
}

[[noreturn]] static void fail_divergence() {
  /* Of a warp operation first: it is the narrower statement. */
  int waiting = -1, other = -1;
  for (int t = 0; t < n_threads && waiting < 0; t++) {
    if (threads[t].state == THREAD_WARP) waiting = t;
  }
  if (waiting >= 0) {
    const warp &warp = warps[waiting / WARP];
    for (int t = waiting / WARP * WARP; t < n_threads && t < (waiting / WARP + 1) * WARP && other < 0; t++) {
      bool asked = (threads[waiting].mask & warp.present) >> (t % WARP) & 1;
      if (asked && (threads[t].state != THREAD_WARP || threads[t].mask != threads[waiting].mask)) other = t;
    }
    current = waiting;
    fail("divergent warp: %s, mask %08x, but %s", describe(waiting).c_str(), threads[waiting].mask,
         describe(other < 0 ? waiting : other).c_str());
  }
  for (int t = 0; t < n_threads; t++) {
    if (threads[t].state == THREAD_BARRIER && waiting < 0) waiting = t;
    if (threads[t].state != THREAD_BARRIER && other < 0) other = t;
  }
  current = waiting;
  fail("divergent __syncthreads: %s, but %s", describe(waiting).c_str(), describe(other).c_str());
}

static void fiber_main();

/* Leave the current fiber for whoever can run. */
static void switch_away(fiber &from) {
  if (n_ready > 0) {
    int t = ready[ready_head];
    ready_head = (ready_head + 1) % MAX_THREADS;
    n_ready--;
    fiber &to = fibers[threads[t].fiber];
    current_fiber = threads[t].fiber;
    set_current(t);
    if (&to != &from) fiber_switch(from, to);
    return;
  }
  if (n_started < n_threads) {
    int f;
    if (n_free > 0) {
      f = free_fibers[--n_free];
    } else {
      f = n_fibers++;
      if (!fibers[f].stack) fiber_prepare(fibers[f], (size_t)f);
      fiber_start(fibers[f], fiber_main);
    }
    current_fiber = f;
    fiber_switch(from, fibers[f]);
    return;
  }
  if (n_done < n_threads) fail_divergence();
  current_fiber = -1;
  fiber_switch(from, home);
}

static void wait_here() { switch_away(fibers[current_fiber]); }

/* Each fiber: start threads until none is left to start, then step aside; never ends, is used again. */
static void fiber_main() {
  fiber_entered();
  for (;;) {
    while (n_started < n_threads) {
      int t = (int)(((int64_t)order_first + (int64_t)n_started * order_step) % n_threads);
      n_started++;
      threads[t].fiber = current_fiber;
      threads[t].state = THREAD_READY;
      set_current(t);
      running->thread();
      threads[current].state = THREAD_DONE;
      n_done++;
      if (n_ready > 0) break;
    }
    int f = current_fiber;
    free_fibers[n_free++] = f;
    switch_away(fibers[f]);
  }
}

/* --- barrier ------------------------------------------------------------------------- */

static void release_barrier() {
  n_at_barrier = 0;
  int first = (int)(random_next() % (uint64_t)n_threads), step = random_next() & 1 ? 1 : n_threads - 1;
  for (int i = 0; i < n_threads; i++) {
    int t = (int)(((int64_t)first + (int64_t)i * step) % n_threads);
    if (t == current) {
      threads[t].state = THREAD_READY;
      continue;
    }
    make_ready(t);
  }
}

static void barrier(const char *file, int line) {
  if (!running) fail("__syncthreads outside of a kernel");
  thread &self = threads[current];
  self.state = THREAD_BARRIER;
  self.place = {file, line};
  if (++n_at_barrier == n_threads) {
    for (int t = 0; t < n_threads; t++) {
      if (!same_place(threads[t].place, threads[current].place)) {
        fail("divergent __syncthreads: %s, but %s", describe(current).c_str(), describe(t).c_str());
      }
    }
    release_barrier();
    return;
  }
  wait_here();
}

/* --- warps ---------------------------------------------------------------------------- */

static int source_lane(const thread &thread, int lane) {
  int first = lane & ~(thread.width - 1), last = first + thread.width - 1, source = lane;
  switch (thread.kind) {
    case EMULATION_WARP_INDEX:
      source = first + (thread.operand & (thread.width - 1));
      break;
    case EMULATION_WARP_XOR:
      source = lane ^ thread.operand;
      break;
    case EMULATION_WARP_UP:
      source = lane - thread.operand;
      break;
    case EMULATION_WARP_DOWN:
      source = lane + thread.operand;
      break;
    default:
      break;
  }
  if (thread.kind == EMULATION_WARP_XOR) return source > last ? lane : source;
  return source < first || source > last ? lane : source;
}

static void exchange(int base, unsigned int lanes) {
  uint64_t ballot = 0;
  const thread &self = threads[current];
  for (unsigned int left = lanes; left; left &= left - 1) {
    const thread &thread = threads[base + __builtin_ctz(left)];
    if (thread.kind != self.kind || !same_place(thread.place, self.place)) {
      fail("divergent warp: %s, but %s", describe(current).c_str(), describe(base + __builtin_ctz(left)).c_str());
    }
    ballot |= (uint64_t)(thread.value & 1) << __builtin_ctz(left);
  }
  for (unsigned int left = lanes; left; left &= left - 1) {
    int lane = __builtin_ctz(left);
    thread &thread = threads[base + lane];
    if (thread.kind == EMULATION_WARP_BALLOT) {
      thread.result = ballot;
    } else if (thread.kind != EMULATION_WARP_SYNC) {
      int source = source_lane(thread, lane);
      if (!(lanes >> source & 1)) {
        fail("shuffle reads from a lane that takes no part: %s, mask %08x, reads lane %d",
             describe(base + lane).c_str(), thread.mask, source);
      }
      thread.result = threads[base + source].value;
    }
  }
}

static uint64_t warp_operation(enum emulation_warp_kind kind, unsigned int mask, uint64_t value, int operand, int width,
                               const char *file, int line) {
  if (!running) fail("a warp operation outside of a kernel");
  thread &self = threads[current];
  int lane = current % WARP, base = current - lane;
  warp &warp = warps[current / WARP];
  self.kind = kind;
  self.mask = mask;
  self.value = value;
  self.operand = operand;
  self.width = width;
  self.place = {file, line};
  self.state = THREAD_WARP;
  if (!(mask >> lane & 1)) fail("%s, whose mask %08x lacks the thread itself", describe(current).c_str(), mask);
  if (width < 1 || width > WARP || (width & (width - 1)) != 0) fail("shuffle with a width of %d", width);
  unsigned int lanes = mask & warp.present;
  int g = 0;
  while (g < warp.n_groups && warp.groups[g].mask != lanes) g++;
  if (g == warp.n_groups) warp.groups[warp.n_groups++] = {lanes, 0};
  warp.groups[g].arrived |= 1u << lane;
  if (warp.groups[g].arrived != lanes) {
    wait_here();
    return self.result;
  }
  exchange(base, lanes);
  warp.groups[g] = warp.groups[--warp.n_groups];
  self.state = THREAD_READY;
  for (unsigned int left = lanes & ~(1u << lane); left; left &= left - 1) make_ready(base + __builtin_ctz(left));
  return self.result;
}

/* --- blocks ---------------------------------------------------------------------------- */

static void prepare_threads(const launch &launch) {
  n_threads = (int)(launch.block.x * launch.block.y * launch.block.z);
  int t = 0;
  for (unsigned int z = 0; z < launch.block.z; z++) {
    for (unsigned int y = 0; y < launch.block.y; y++) {
      for (unsigned int x = 0; x < launch.block.x; x++) threads[t++].index = {x, y, z};
    }
  }
  for (int w = 0; w * WARP < n_threads; w++) {
    int lanes = n_threads - w * WARP;
    warps[w].present = lanes >= WARP ? 0xffffffffu : (1u << lanes) - 1;
  }
}

static void run_block() {
  n_started = n_done = n_at_barrier = n_ready = ready_head = 0;
  for (int t = 0; t < n_threads; t++) threads[t].state = THREAD_NEW;
  for (int w = 0; w * WARP < n_threads; w++) warps[w].n_groups = 0;
  order_first = (int)(random_next() % (uint64_t)n_threads);
  order_step = random_next() & 1 ? 1 : n_threads - 1;
  switch_away(home);
  current = -1;
}

static uint64_t common_divisor(uint64_t a, uint64_t b) {
  while (b) {
    uint64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

void run_launch(const launch &launch) {
  running = &launch;
  home.stack = nullptr; /* of whichever thread this is */
  blockDim = launch.block;
  gridDim = launch.grid;
  prepare_threads(launch);
  uint64_t n_blocks = (uint64_t)launch.grid.x * launch.grid.y * launch.grid.z;
  /* A step without common divisor visits each block once. */
  uint64_t step = 1 + random_next() % n_blocks, block = random_next() % n_blocks;
  while (common_divisor(step, n_blocks) != 1) step++;
  step %= n_blocks ? n_blocks : 1;
  dynamic_shared = launch.shared ? aligned_alloc(16, (launch.shared + 15) / 16 * 16) : nullptr;
#if defined(__SANITIZE_ADDRESS__)
  if (launch.shared % 16) {
    ASAN_POISON_MEMORY_REGION((char *)dynamic_shared + launch.shared, 16 - launch.shared % 16);
  }
#endif
  for (uint64_t i = 0; i < n_blocks; i++, block = (block + step) % n_blocks) {
    blockIdx.x = (unsigned int)(block % launch.grid.x);
    blockIdx.y = (unsigned int)(block / launch.grid.x % launch.grid.y);
    blockIdx.z = (unsigned int)(block / launch.grid.x / launch.grid.y);
    if (dynamic_shared) memset(dynamic_shared, 0xff, launch.shared);
    run_block();
  }
#if defined(__SANITIZE_ADDRESS__)
  if (launch.shared % 16) {
    ASAN_UNPOISON_MEMORY_REGION((char *)dynamic_shared + launch.shared, 16 - launch.shared % 16);
  }
#endif
  free(dynamic_shared);
  dynamic_shared = nullptr;
  running = nullptr;
}

}  // namespace emulation

void emulation_barrier(const char *file, int line) { emulation::barrier(file, line); }

uint64_t emulation_warp(enum emulation_warp_kind kind, unsigned int mask, uint64_t value, int operand, int width,
                        const char *file, int line) {
  return emulation::warp_operation(kind, mask, value, operand, width, file, line);
}

void *emulation_dynamic_shared() {
  if (!emulation::dynamic_shared) emulation::fail("the kernel uses dynamic shared memory but was launched without any");
  return emulation::dynamic_shared;
}
