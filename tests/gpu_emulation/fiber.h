/* fiber.h: stacks that a function runs on, and switching between them. */
#ifndef LORASHARD_EMULATION_FIBER_H
#define LORASHARD_EMULATION_FIBER_H

#include <stddef.h>
#include <stdint.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {

struct fiber {
  void *stack_pointer = nullptr; /* of a fiber that does not run */
  char *stack = nullptr;         /* lowest address; NULL for the thread's own stack */
  size_t stack_bytes = 0;
  size_t colour = 0;         /* bytes left unused, so that stacks do not share cache lines of the same few sets */
  void *sanitizer = nullptr; /* AddressSanitizer's part of a fiber that does not run */
#if !defined(__x86_64__)
  ucontext_t context;
#endif
};

/* Fill *fiber with the stack numbered `index` of the pool. */
void fiber_prepare(fiber &fiber, size_t index);
/* Let it begin with function() at the next switch; function never returns. */
void fiber_start(fiber &fiber, void (*function)());
/* Run `to` from here on, until somebody switches to `from`. */
void fiber_switch(fiber &from, fiber &to);
/* First thing that a started fiber does. */
void fiber_entered();
/* Does the address lie in the guard below a stack of the pool? */
bool fiber_is_guard(uintptr_t address);

}  // namespace emulation

#endif
