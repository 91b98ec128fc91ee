// SPDX-License-Identifier: Apache-2.0
// Fibers at their lowest level: stacks, and the switch from one to another.
//
// On x86-64 the switch saves what the System V ABI asks a callee to save, mxcsr and the x87 control word; elsewhere, or
// with SPECDEC_EMULATOR_UCONTEXT, it is swapcontext (correct, but a system call each time). Under the address sanitizer
// every switch is announced to it, or it would take the stacks for one.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) || defined(SPECDEC_EMULATOR_UCONTEXT)
#define SPECDEC_EMULATOR_PORTABLE 1
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define SPECDEC_EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SPECDEC_EMULATOR_ASAN 1
#endif
#endif

#if !defined(SPECDEC_EMULATOR_PORTABLE)
// Saves the running context at *from and goes on where `to` was saved.
extern "C" void specdec_emulator_switch(void** from, void* to);
#endif

namespace specdec::emulator {

// A suspended flow of control.
struct Context {
#if defined(SPECDEC_EMULATOR_PORTABLE)
  ucontext_t state;
#else
  void* stack_pointer = nullptr;
#endif
  // For the address sanitizer: the stack, and the frames that it keeps elsewhere to find uses after return.
  const void* bottom = nullptr;
  size_t bytes = 0;
  void* fake_stack = nullptr;
};

// Stacks with a guard page below each, made on demand and kept for the life of the process.
inline constexpr size_t kStackBytes = 256 * 1024;
char* stack_at(size_t index);  // lowest byte; null where the system gives no more

// `context` will start with a call of `entry`, which must never return, on the stack of that index.
bool prepare(Context& context, size_t stack_index, void (*entry)());

#if defined(SPECDEC_EMULATOR_ASAN)
// To be called first by an entry function.
void announce_arrival(Context& self);
void announce_departure(Context& from, const Context& to, bool forever);
// Frees what the sanitizer keeps for a context that will not be resumed.
void forget(Context& context);
#else
inline void announce_arrival(Context&) {}
inline void announce_departure(Context&, const Context&, bool) {}
inline void forget(Context&) {}
#endif

// `forever`: `from` will not be resumed.
inline void switch_context(Context& from, Context& to, bool forever = false) {
  announce_departure(from, to, forever);
#if defined(SPECDEC_EMULATOR_PORTABLE)
  swapcontext(&from.state, &to.state);
#else
  specdec_emulator_switch(&from.stack_pointer, to.stack_pointer);
#endif
  announce_arrival(from);
}

}  // namespace specdec::emulator
