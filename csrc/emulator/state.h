// SPDX-License-Identifier: Apache-2.0
// What the engine's own files share.
#pragma once

#include <string>
#include <vector>

#include "engine.h"
#include "scheduler.h"

namespace specdec::emulator {

// Why control is back in the host thread's own context.
enum class Stop : uint8_t { none, cluster_done, deadlock, failure };

struct State {
  Context main;
  Stop stop = Stop::none;
  std::string error;
  Kernel kernel{};
  Scheduler scheduler;
  int64_t step_limit = 0;
  int64_t steps_since_switch = 0;
  // Of the resident clusters, in ascending order.
  std::vector<Cluster> clusters;
  std::vector<Block> blocks;
  std::vector<Warp> warps;
  std::vector<Fiber> fibers;
};
inline State g_state;

[[noreturn]] void fiber_main();
// Ends the current fiber for good.
[[noreturn]] void leave(Stop stop);

// ---- shared memory ----
char* allocate_shared(size_t bytes);  // between canaries, or between the sanitizer's red zones
void free_shared(char* memory, size_t bytes);
void open_shared(char* memory, size_t bytes);   // poisoned
void close_shared(char* memory, size_t bytes);  // no thread may use it from here on
// The offset of a byte that was overwritten outside, or 0 (no such offset) if all are intact.
int64_t overwritten(const char* memory, size_t bytes);

// ---- messages ----
// Without heap memory: a failing thread's stack is abandoned, not unwound.
struct Text {
  char chars[256];
};
Text at(const Place& place);
Text name_of(const Fiber& fiber);
std::string describe_deadlock();

}  // namespace specdec::emulator
