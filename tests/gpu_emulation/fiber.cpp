/*
 * fiber.cpp: stacks from a pool that only grows, each above a page that faults,
 * and a switch that saves what the calling convention asks for and nothing else.
 */
#include "fiber.h"

#include <sys/mman.h>

#include <vector>

#include "emulation.h"

#if defined(__SANITIZE_ADDRESS__)
#define EMULATION_ASAN 1
#include <sanitizer/common_interface_defs.h>
#else
#define EMULATION_ASAN 0
#endif

namespace emulation {

static const size_t GUARD_BYTES = 64 * 1024; /* more than the largest frame, so that none steps over it */
static const size_t STACK_BYTES = EMULATION_ASAN ? 256 * 1024 : 64 * 1024;

static std::vector<char *> pool; /* lowest usable address of each stack */

void fiber_prepare(fiber &fiber, size_t index) {
  while (pool.size() <= index) {
    size_t bytes = GUARD_BYTES + STACK_BYTES;
    char *memory =
        (char *)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE) != 0) fail("no memory for a stack");
    pool.push_back(memory + GUARD_BYTES);
  }
  fiber.stack = pool[index];
  fiber.stack_bytes = STACK_BYTES;
  fiber.colour = index % 16 * 256;
}

bool fiber_is_guard(uintptr_t address) {
  for (char *stack : pool) {
    if (address < (uintptr_t)stack && address >= (uintptr_t)stack - GUARD_BYTES) return true;
  }
  return false;
}

#if EMULATION_ASAN
static fiber *switched_from; /* the fiber that the running one came from */

static void sanitizer_leave(fiber &from, fiber &to) {
  switched_from = &from;
  __sanitizer_start_switch_fiber(&from.sanitizer, to.stack, to.stack_bytes);
}

static void sanitizer_arrive(fiber *self) {
  const void *stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(self ? self->sanitizer : nullptr, &stack, &bytes);
  if (switched_from->stack == nullptr) { /* the thread's own stack: now its place is known */
    switched_from->stack = (char *)stack;
    switched_from->stack_bytes = bytes;
  }
}
#else
static void sanitizer_leave(fiber &, fiber &) {}
static void sanitizer_arrive(fiber *) {}
#endif

void fiber_entered() { sanitizer_arrive(nullptr); }

#if defined(__x86_64__)

extern "C" void emulation_switch_stack(void **save, void *load);
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".globl emulation_switch_stack\n"
    ".hidden emulation_switch_stack\n"
    ".type emulation_switch_stack, @function\n"
    "emulation_switch_stack:\n"
    "  endbr64\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  ret\n"
    ".size emulation_switch_stack, .-emulation_switch_stack\n");

void fiber_start(fiber &fiber, void (*function)()) {
  void **top = (void **)(fiber.stack + fiber.stack_bytes - fiber.colour);
  *--top = nullptr; /* where function would return to; keeps the stack aligned as after a call */
  *--top = (void *)function;
  for (int i = 0; i < 6; i++) *--top = nullptr;
  fiber.stack_pointer = top;
}

void fiber_switch(fiber &from, fiber &to) {
  sanitizer_leave(from, to);
  emulation_switch_stack(&from.stack_pointer, to.stack_pointer);
  sanitizer_arrive(&from);
}

#else

void fiber_start(fiber &fiber, void (*function)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, function, 0);
}

void fiber_switch(fiber &from, fiber &to) {
  sanitizer_leave(from, to);
  swapcontext(&from.context, &to.context);
  sanitizer_arrive(&from);
}

#endif

}  // namespace emulation
