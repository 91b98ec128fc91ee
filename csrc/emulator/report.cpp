// SPDX-License-Identifier: Apache-2.0
// Messages: who waits where, and what is wrong with that.
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <iterator>

#include "state.h"

namespace specdec::emulator {
namespace {

constexpr size_t kMaxBlocks = 4;  // described in one message

template <class... Values>
Text text(const char* format, Values... values) {
  Text result;
  std::snprintf(result.chars, sizeof(result.chars), format, values...);
  return result;
}

Text text_of(const uint3& index) { return text("(%u, %u, %u)", index.x, index.y, index.z); }

struct Group {
  const Fiber* first;
  int threads;
};

bool waits_alike(const Fiber& a, const Fiber& b) {
  return a.wait == b.wait && a.place.line == b.place.line && a.place.file == b.place.file &&
         (is_block_barrier(a.wait) || a.mask == b.mask);
}

std::vector<Group> groups_of(const Block& block) {
  std::vector<Group> groups;
  for (int t = 0; t < g_shape.threads(); ++t) {
    const Fiber& fiber = block.fibers[t];
    if (fiber.wait == Wait::exited) continue;
    size_t i = 0;
    while (i < groups.size() && !waits_alike(*groups[i].first, fiber)) ++i;
    if (i == groups.size()) groups.push_back({&fiber, 0});
    ++groups[i].threads;
  }
  return groups;
}

std::string describe(const Block& block, const std::vector<Group>& groups) {
  constexpr size_t kMaxGroups = 6;
  std::string result = std::string("; block ") + text_of(block.index).chars + ": ";
  for (size_t i = 0; i < groups.size() && i < kMaxGroups; ++i) {
    const Fiber& fiber = *groups[i].first;
    if (i > 0) result += ", ";
    const char* format = groups[i].threads == 1 ? "%d thread %s in %s" : "%d threads (the first is %s) in %s";
    result += text(format, groups[i].threads, text_of(fiber.index).chars, name_of(fiber.wait)).chars;
    if (!is_block_barrier(fiber.wait)) result += text(" with mask 0x%08x", fiber.mask).chars;
    result += std::string(" at ") + at(fiber.place).chars;
  }
  if (groups.size() > kMaxGroups) result += " and elsewhere";
  if (block.live < g_shape.threads()) result += text(", %d have exited", g_shape.threads() - block.live).chars;
  return result;
}

}  // namespace

const char* name_of(Wait wait) {
  static constexpr const char* kNames[] = {"no wait",
                                           "__syncthreads",
                                           "__syncthreads_count",
                                           "__syncthreads_and",
                                           "__syncthreads_or",
                                           "cluster_sync",
                                           "__syncwarp",
                                           "__shfl_sync",
                                           "__shfl_up_sync",
                                           "__shfl_down_sync",
                                           "__shfl_xor_sync",
                                           "__ballot_sync",
                                           "__any_sync",
                                           "__all_sync",
                                           "__match_any_sync",
                                           "__reduce_add_sync",
                                           "__reduce_min_sync",
                                           "__reduce_max_sync",
                                           "__reduce_and_sync",
                                           "__reduce_or_sync",
                                           "ldmatrix",
                                           "mma",
                                           "exit"};
  static_assert(std::size(kNames) == static_cast<size_t>(Wait::exited) + 1);
  return kNames[static_cast<size_t>(wait)];
}

Text at(const Place& place) { return text("%s:%d", place.file, place.line); }

Text name_of(const Fiber& fiber) {
  const uint3 thread = fiber.index, block = fiber.block->index;
  return text("thread (%u, %u, %u) of block (%u, %u, %u)", thread.x, thread.y, thread.z, block.x, block.y, block.z);
}

void fail(const Place& place, const char* format, ...) {
  char message[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  g_state.error = message;
  if (place.line == 0) {
    g_state.error += "; found at the end of block ";
    g_state.error += text_of(g_current->block->index).chars;
  } else {
    g_state.error += "; in ";
    g_state.error += name_of(*g_current).chars;
    g_state.error += " at ";
    g_state.error += at(place).chars;
  }
  leave(Stop::failure);
}

std::string describe_deadlock() {
  bool at_barrier = false, elsewhere = false, collective = false;
  size_t blocks = 0;
  std::string result;
  for (const Block& block : g_state.blocks) {
    if (block.live == 0) continue;
    const std::vector<Group> groups = groups_of(block);
    for (const Group& group : groups) {
      const bool barrier = is_block_barrier(group.first->wait);
      at_barrier |= barrier;
      collective |= !barrier;
      elsewhere |= !waits_alike(*groups[0].first, *group.first);
    }
    if (++blocks <= kMaxBlocks) result += describe(block, groups);
  }
  if (blocks > kMaxBlocks) result += "; " + std::to_string(blocks - kMaxBlocks) + " blocks more";
  const char* kind = at_barrier && (elsewhere || collective) ? "divergent barrier" : "mismatched collectives";
  return (collective || elsewhere ? std::string("deadlock (") + kind + ")" : "deadlock") + ": no thread can run" +
         result;
}

}  // namespace specdec::emulator
