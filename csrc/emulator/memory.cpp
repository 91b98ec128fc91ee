// SPDX-License-Identifier: Apache-2.0
// Shared memory: exact, poisoned, guarded. With the address sanitizer it stands between the sanitizer's red zones, else
// between canaries that are looked at when the block ends.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "state.h"

#if defined(SPECDEC_EMULATOR_ASAN)
#include <sanitizer/asan_interface.h>
#endif

namespace specdec::emulator {
namespace {

constexpr size_t kAlignment = 128;
#if defined(SPECDEC_EMULATOR_ASAN)
constexpr size_t kCanaryBytes = 0;
#else
constexpr size_t kCanaryBytes = 1024;
#endif
constexpr unsigned char kCanary = 0xc5;

bool holds(const char* memory, const void* pointer, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(memory), at = reinterpret_cast<uintptr_t>(pointer);
  return at >= begin && at - begin <= g_shape.shared_bytes && bytes <= g_shape.shared_bytes - (at - begin);
}

}  // namespace

char* allocate_shared(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, kCanaryBytes + bytes + kCanaryBytes) != 0) return nullptr;
  std::memset(memory, kCanary, kCanaryBytes + bytes + kCanaryBytes);
  return static_cast<char*>(memory) + kCanaryBytes;
}

void free_shared(char* memory, size_t bytes) {
  if (memory == nullptr) return;
#if defined(SPECDEC_EMULATOR_ASAN)
  __asan_unpoison_memory_region(memory, bytes);
#else
  (void)bytes;
#endif
  std::free(memory - kCanaryBytes);
}

void open_shared(char* memory, size_t bytes) {
#if defined(SPECDEC_EMULATOR_ASAN)
  __asan_unpoison_memory_region(memory, bytes);
#endif
  if (bytes > 0) std::memset(memory, kPoison, bytes);
}

void close_shared(char* memory, size_t bytes) {
  if (bytes > 0) std::memset(memory, kPoison, bytes);
#if defined(SPECDEC_EMULATOR_ASAN)
  __asan_poison_memory_region(memory, bytes);
#endif
}

int64_t overwritten(const char* memory, size_t bytes) {
  for (size_t i = 0; i < kCanaryBytes; ++i) {
    if (static_cast<unsigned char>(memory[bytes + i]) != kCanary) return static_cast<int64_t>(bytes + i);
    if (static_cast<unsigned char>(*(memory - 1 - i)) != kCanary) return -1 - static_cast<int64_t>(i);
  }
  return 0;
}

char* shared_memory(size_t bytes, const Place& place) {
  if (bytes > g_shape.shared_bytes) {
    fail(place, "shared_storage of %zu bytes in a launch with %zu bytes of shared memory", bytes, g_shape.shared_bytes);
  }
  return g_current->block->shared;
}

char* cluster_memory(const void* mine, int rank, const Place& place) {
  const Block& block = *g_current->block;
  if (rank < 0 || rank >= g_shape.cluster) fail(place, "cluster_map to rank %d of %d", rank, g_shape.cluster);
  if (!holds(block.shared, mine, 1)) fail(place, "cluster_map of a pointer that is not to this block's shared memory");
  const Block& other = block.cluster->blocks[rank];
  if (other.live == 0) fail(place, "cluster_map to rank %d, which has exited (cluster_sync before the end?)", rank);
  return other.shared + (static_cast<const char*>(mine) - block.shared);
}

bool is_shared(const void* pointer, size_t bytes) { return holds(g_current->block->shared, pointer, bytes); }

bool is_any_shared(const void* pointer) {
  for (int rank = 0; rank < g_shape.cluster; ++rank) {
    if (holds(g_current->block->cluster->blocks[rank].shared, pointer, 1)) return true;
  }
  return false;
}

void check_global(const void* pointer, size_t alignment, const char* what, const Place& place) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignment != 0) {
    fail(place, "%s of an address that is not a multiple of %zu", what, alignment);
  }
  if (is_any_shared(pointer)) fail(place, "%s of shared memory, where it needs global memory", what);
}

}  // namespace specdec::emulator
