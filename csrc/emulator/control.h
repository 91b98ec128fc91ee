// SPDX-License-Identifier: Apache-2.0
// What a test says to the emulator, and what it learns from it. Needs no CUDA header.
#pragma once

#include <cstdint>

namespace specdec {

// Why the last failed launch of this host thread failed; empty if none has.
const char* emulator_last_error();

namespace emulator {

// Who runs next. Every order is reproducible; for a correct kernel all give the same result.
enum class Order : int32_t {
  in_order,        // every thread in turn, each until it must wait; blocks ascending
  reverse,         // the same from the last thread and block to the first
  shuffled,        // lanes and warps at random, blocks at random, also around atomics
  one_warp_ahead,  // one warp as far as it can go, then the next; who is ahead changes at every block barrier
};

struct Schedule {
  Order order = Order::in_order;
  uint64_t seed = 0;
  int resident = 1;  // clusters that run at the same time (a block without cluster is a cluster of one)
};

inline Schedule in_order() { return {}; }
inline Schedule reverse() { return {Order::reverse, 0, 1}; }
inline Schedule shuffled(uint64_t seed) { return {Order::shuffled, seed, 4}; }
inline Schedule one_warp_ahead(uint64_t seed) { return {Order::one_warp_ahead, seed, 4}; }

// Puts a schedule in force for the launches of all host threads, instead of that of the environment.
class UseSchedule {
 public:
  explicit UseSchedule(const Schedule& schedule);
  ~UseSchedule();
  UseSchedule(const UseSchedule&) = delete;
  UseSchedule& operator=(const UseSchedule&) = delete;

 private:
  const Schedule* before_;
  Schedule mine_;
};

// What kernels are told of the device: SPECDEC_EMULATOR_DEVICE=80 is a small one without clusters and with less shared
// memory, 90, the default, a large one that has them.
struct Device {
  int max_cluster;
  int64_t shared_bytes;
  int multiprocessors;
};
Device device();

// Global memory traffic is that of the wrappers alone (load_once, store, __ldg, cp_async_16).
struct Report {
  int64_t launches = 0;
  int64_t global_bytes_read = 0;
  int64_t global_bytes_written = 0;
  int64_t steps = 0;  // barriers and warp collectives entered, atomics
  int64_t switches = 0;
};

Report last_launch();  // of this host thread
Report total();        // of this host thread, since reset_total()
void reset_total();

// A launch that takes more steps fails; 0 restores the default, 2^30.
void set_step_limit(int64_t steps);

}  // namespace emulator
}  // namespace specdec
