// SPDX-License-Identifier: Apache-2.0
// The state of a running kernel, and what the functions of device code are made of: every CUDA thread is a fiber that
// runs until it must wait for others.
//
// One launch runs at a time (a mutex), in the host thread that asked for it: the state is plain global data, so that
// device code reaches it without the cost of thread-local storage.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "context.h"
#include "control.h"

namespace specdec::emulator {

inline constexpr int kLanes = 32;
inline constexpr size_t kMaxSharedBytes = 227 * 1024;
inline constexpr int kPoison = 0xff;  // a NaN in every floating-point type, -1 in every integer

// A default argument of this type is the place of the call.
struct Place {
  constexpr Place(const char* in_file = __builtin_FILE(), int at_line = __builtin_LINE())
      : file(in_file), line(at_line) {}
  const char* file;
  int line;
};

// What a thread does where it may have to wait.
enum class Wait : uint8_t {
  none,
  syncthreads,
  syncthreads_count,
  syncthreads_and,
  syncthreads_or,
  cluster_sync,
  syncwarp,
  shfl,
  shfl_up,
  shfl_down,
  shfl_xor,
  ballot,
  any,
  all,
  match_any,
  reduce_add,
  reduce_min,
  reduce_max,
  reduce_and,
  reduce_or,
  ldmatrix,
  mma,
  exited,
};
const char* name_of(Wait wait);
inline bool is_block_barrier(Wait wait) { return wait >= Wait::syncthreads && wait <= Wait::cluster_sync; }

struct Warp;
struct Block;
struct Cluster;

// An asynchronous copy of 16 bytes that has not arrived yet.
struct PendingCopy {
  void* to;
  const void* from;  // null: zeros
  int64_t group;
};

struct Fiber {
  Context context;
  Warp* warp = nullptr;
  Block* block = nullptr;
  uint3 index{};
  int lane = 0;
  unsigned mask = 0;  // of the warp collective that it waits in
  Place place;
  Wait wait = Wait::none;
  int64_t copy_groups = 0;  // committed so far
  std::vector<PendingCopy> copies;
};

// Some lanes of a warp have arrived at a collective, others are awaited.
struct Gathering {
  unsigned mask;
  unsigned arrived;
  Wait kind;
  void (*combine)(void* const* data, unsigned mask);
};

struct Warp {
  unsigned ready = 0;  // lanes that can run, at the positions that the scheduler gives them
  unsigned live = 0;   // lanes that have not exited
  unsigned rank = 0;   // the scheduler's number
  int gatherings = 0;
  Block* block = nullptr;
  Fiber* fibers = nullptr;  // lane 0
  void* data[kLanes];       // what each waiting lane brought
  Gathering gathering[kLanes];
};

struct Barrier {
  int arrived = 0;
  int trues = 0;  // arrived with a true predicate
  const Fiber* first = nullptr;
  int last_trues = 0;  // of the barrier that was released last
  int last_total = 0;
};

struct Block {
  uint3 index{};
  int rank = 0;  // in its cluster
  int live = 0;  // threads that have not exited
  Barrier barrier;
  Cluster* cluster = nullptr;
  Warp* warps = nullptr;
  Fiber* fibers = nullptr;
  char* shared = nullptr;
};

struct Cluster {
  int live = 0;
  Barrier barrier;
  Block* blocks = nullptr;
};

struct Shape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  int cluster = 1;
  int threads() const { return static_cast<int>(block.x * block.y * block.z); }
  int warps() const { return (threads() + kLanes - 1) / kLanes; }
};

struct Kernel {
  void (*call)(const void* arguments);
  const void* arguments;
};

inline Fiber* g_current = nullptr;
inline Shape g_shape;
inline Report g_report;

inline const uint3& thread_index() { return g_current->index; }
inline const uint3& block_index() { return g_current->block->index; }

// Runs the whole grid.
cudaError_t run(const Shape& shape, const Kernel& kernel);

// ---- called by device code ----

// Waits until every lane of `mask` has come with the same kind, mask and function. The last one to come calls it with
// what all have brought: pointers into their stacks, by lane.
void gather(Wait kind, unsigned mask, const Place& place, void* data,
            void (*combine)(void* const* data, unsigned mask));

struct BarrierResult {
  int trues;
  int total;
};
BarrierResult block_barrier(Wait kind, bool predicate, const Place& place);
void cluster_barrier(const Place& place);

// A point between whose sides other threads may run.
void interleave(const Place& place);

// Ends the launch with a message that names the current thread and the place.
[[noreturn, gnu::format(printf, 2, 3)]] void fail(const Place& place, const char* format, ...);

char* shared_memory(size_t bytes, const Place& place);
char* cluster_memory(const void* mine, int rank, const Place& place);
bool is_shared(const void* pointer, size_t bytes);  // wholly in the shared memory of this block
bool is_any_shared(const void* pointer);            // of any block of this cluster
// Fails if the pointer is misaligned, or into shared memory.
void check_global(const void* pointer, size_t alignment, const char* what, const Place& place);

}  // namespace specdec::emulator
