// SPDX-License-Identifier: Apache-2.0
#include "context.h"

#include <sys/mman.h>

#include <cstring>
#include <vector>

#if defined(SPECDEC_EMULATOR_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(SPECDEC_EMULATOR_PORTABLE)
asm(R"(
  .text
  .p2align 4
  .globl specdec_emulator_switch
  .hidden specdec_emulator_switch
  .type specdec_emulator_switch, @function
specdec_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  subq $8, %rsp
  stmxcsr (%rsp)
  fnstcw 4(%rsp)
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  ldmxcsr (%rsp)
  fldcw 4(%rsp)
  addq $8, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size specdec_emulator_switch, . - specdec_emulator_switch
)");
#endif

namespace specdec::emulator {
namespace {

constexpr size_t kGuardBytes = 4096 * 4;  // a whole number of pages on every processor with pages up to 16 KiB
constexpr size_t kSlab = 64;              // stacks per mapping

}  // namespace

char* stack_at(size_t index) {
  static std::vector<char*> slabs;
  constexpr size_t stride = kGuardBytes + kStackBytes;
  while (slabs.size() <= index / kSlab) {
    void* slab =
        mmap(nullptr, kSlab * stride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slab == MAP_FAILED) return nullptr;
    for (size_t i = 0; i < kSlab; ++i) {
      if (mprotect(static_cast<char*>(slab) + i * stride, kGuardBytes, PROT_NONE) != 0) {
        munmap(slab, kSlab * stride);
        return nullptr;
      }
    }
    slabs.push_back(static_cast<char*>(slab));
  }
  return slabs[index / kSlab] + (index % kSlab) * stride + kGuardBytes;
}

bool prepare(Context& context, size_t stack_index, void (*entry)()) {
  char* stack = stack_at(stack_index);
  if (stack == nullptr) return false;
#if defined(SPECDEC_EMULATOR_ASAN)
  __asan_unpoison_memory_region(stack, kStackBytes);  // frames of an earlier fiber that never returned
#endif
  context.bottom = stack;
  context.bytes = kStackBytes;
  context.fake_stack = nullptr;
  // The hot frames of neighbours begin in different cache sets.
  const size_t bytes = kStackBytes - (stack_index * 9 % 64) * 64;
#if defined(SPECDEC_EMULATOR_PORTABLE)
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
#else
  uint64_t frame[9] = {};  // control words, r15, r14, r13, r12, rbx, rbp, entry, a return address that ends backtraces
  uint32_t mxcsr;
  uint16_t control;
  asm volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr), "=m"(control));
  frame[0] = mxcsr | static_cast<uint64_t>(control) << 32;
  frame[7] = reinterpret_cast<uint64_t>(entry);
  context.stack_pointer = stack + bytes - sizeof(frame);  // so that the entry finds the ABI's alignment, 8 modulo 16
  std::memcpy(context.stack_pointer, frame, sizeof(frame));
#endif
  return true;
}

#if defined(SPECDEC_EMULATOR_ASAN)
namespace {
Context* g_departed = nullptr;
}

void announce_departure(Context& from, const Context& to, bool forever) {
  g_departed = &from;
  __sanitizer_start_switch_fiber(forever ? nullptr : &from.fake_stack, to.bottom, to.bytes);
}

// The sanitizer tells where the stack is that was left: the only way to know that of a host thread's own stack.
void announce_arrival(Context& self) {
  __sanitizer_finish_switch_fiber(self.fake_stack, &g_departed->bottom, &g_departed->bytes);
  self.fake_stack = nullptr;
}

// A switch to the context and away from it forever, without running anything there.
__attribute__((no_sanitize("address"))) void forget(Context& context) {
  if (context.fake_stack == nullptr) return;
  void* mine = nullptr;
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_start_switch_fiber(&mine, context.bottom, context.bytes);
  __sanitizer_finish_switch_fiber(context.fake_stack, &bottom, &bytes);
  __sanitizer_start_switch_fiber(nullptr, bottom, bytes);
  __sanitizer_finish_switch_fiber(mine, nullptr, nullptr);
  context.fake_stack = nullptr;
}
#endif

}  // namespace specdec::emulator
