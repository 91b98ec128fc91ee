// SPDX-License-Identifier: Apache-2.0
// Barriers and warp collectives under their CUDA names.
//
// A mask must name the caller, and no lane that has exited or does not exist: stricter than the hardware, which does
// not wait for such lanes but gives undefined values for them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <bit>
#include <concepts>
#include <cstring>

#include "engine.h"

namespace specdec::emulator {

template <class T>
T& slot_of(void* const* data, int lane) {
  return *static_cast<T*>(data[lane]);
}

// Calls visit(lane) for the lanes of a mask, ascending.
template <class Visit>
void for_lanes(unsigned mask, const Visit& visit) {
  for (; mask != 0; mask &= mask - 1) visit(std::countr_zero(mask));
}

template <class T, class... Us>
concept OneOf = (std::same_as<T, Us> || ...);

// Other types convert implicitly on the device; here they must say to what.
template <class T>
concept Shuffled = OneOf<T, int, unsigned, long, unsigned long, long long, unsigned long long, float, double, __half,
                         __half2, __nv_bfloat16, __nv_bfloat162>;

template <Shuffled T>
T shuffle_from(Wait kind, unsigned mask, const T& value, int source, const Place& place) {
  struct Slot {
    T value;
    T result;
    int source;
  };
  if ((mask >> source & 1u) == 0) {
    fail(place, "%s with mask 0x%08x reads lane %d, which is not in it", name_of(kind), mask, source);
  }
  Slot slot{value, value, source};
  gather(kind, mask, place, &slot, [](void* const* data, unsigned lanes) {
    for_lanes(lanes, [&](int lane) {
      Slot& mine = slot_of<Slot>(data, lane);
      mine.result = slot_of<Slot>(data, mine.source).value;
    });
  });
  return slot.result;
}

inline int segment_of(int lane, int width, const Place& place) {
  if (width < 1 || width > kLanes || !std::has_single_bit(static_cast<unsigned>(width))) {
    fail(place, "a shuffle of width %d, which is not a power of two up to %d", width, kLanes);
  }
  return lane & ~(width - 1);
}

// Every lane of the mask gets the same: reduce(accumulator, value), in ascending order of lanes.
template <class T, class Reduce>
T reduce_lanes(Wait kind, unsigned mask, T value, const Place& place, Reduce) {
  gather(kind, mask, place, &value, [](void* const* data, unsigned lanes) {
    T total = slot_of<T>(data, std::countr_zero(lanes));
    for_lanes(lanes & (lanes - 1), [&](int lane) { total = Reduce{}(total, slot_of<T>(data, lane)); });
    for_lanes(lanes, [&](int lane) { slot_of<T>(data, lane) = total; });
  });
  return value;
}

inline unsigned ballot(Wait kind, unsigned mask, bool predicate, const Place& place) {
  const unsigned bit = predicate ? 1u << g_current->lane : 0u;
  return reduce_lanes(kind, mask, bit, place, [](unsigned a, unsigned b) { return a | b; });
}

template <class T>
unsigned match_any(unsigned mask, const T& value, const Place& place) {
  struct Slot {
    T value;
    unsigned equal;
  };
  Slot slot{value, 0};
  gather(Wait::match_any, mask, place, &slot, [](void* const* data, unsigned lanes) {
    for_lanes(lanes, [&](int a) {
      Slot& mine = slot_of<Slot>(data, a);
      for_lanes(lanes, [&](int b) {
        const bool equal = std::memcmp(&mine.value, &slot_of<Slot>(data, b).value, sizeof(T)) == 0;
        mine.equal |= equal ? 1u << b : 0u;
      });
    });
  });
  return slot.equal;
}

}  // namespace specdec::emulator

// ---- barriers ----
inline void __syncthreads(specdec::emulator::Place place = {}) {
  specdec::emulator::block_barrier(specdec::emulator::Wait::syncthreads, false, place);
}
inline int __syncthreads_count(int predicate, specdec::emulator::Place place = {}) {
  return specdec::emulator::block_barrier(specdec::emulator::Wait::syncthreads_count, predicate != 0, place).trues;
}
inline int __syncthreads_or(int predicate, specdec::emulator::Place place = {}) {
  return specdec::emulator::block_barrier(specdec::emulator::Wait::syncthreads_or, predicate != 0, place).trues != 0;
}
inline int __syncthreads_and(int predicate, specdec::emulator::Place place = {}) {
  const auto result = specdec::emulator::block_barrier(specdec::emulator::Wait::syncthreads_and, predicate != 0, place);
  return result.trues == result.total;
}
inline void __syncwarp(unsigned mask = ~0u, specdec::emulator::Place place = {}) {
  specdec::emulator::gather(specdec::emulator::Wait::syncwarp, mask, place, nullptr, [](void* const*, unsigned) {});
}

// ---- shuffles ----
template <specdec::emulator::Shuffled T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, specdec::emulator::Place place = {}) {
  const int begin = specdec::emulator::segment_of(specdec::emulator::g_current->lane, width, place);
  const int from = begin + (source & (width - 1));
  return specdec::emulator::shuffle_from(specdec::emulator::Wait::shfl, mask, value, from, place);
}
template <specdec::emulator::Shuffled T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, specdec::emulator::Place place = {}) {
  const int lane = specdec::emulator::g_current->lane;
  const int begin = specdec::emulator::segment_of(lane, width, place);
  const int from = static_cast<unsigned>(lane - begin) < delta ? lane : lane - static_cast<int>(delta);
  return specdec::emulator::shuffle_from(specdec::emulator::Wait::shfl_up, mask, value, from, place);
}
template <specdec::emulator::Shuffled T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, specdec::emulator::Place place = {}) {
  const int lane = specdec::emulator::g_current->lane;
  const int end = specdec::emulator::segment_of(lane, width, place) + width;
  const int from = delta >= static_cast<unsigned>(end - lane) ? lane : lane + static_cast<int>(delta);
  return specdec::emulator::shuffle_from(specdec::emulator::Wait::shfl_down, mask, value, from, place);
}
template <specdec::emulator::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, specdec::emulator::Place place = {}) {
  const int lane = specdec::emulator::g_current->lane;
  const int end = specdec::emulator::segment_of(lane, width, place) + width;
  const int other = lane ^ (lane_mask & 31);
  const int from = other < end ? other : lane;
  return specdec::emulator::shuffle_from(specdec::emulator::Wait::shfl_xor, mask, value, from, place);
}

// ---- votes and reductions ----
inline unsigned __ballot_sync(unsigned mask, int predicate, specdec::emulator::Place place = {}) {
  return specdec::emulator::ballot(specdec::emulator::Wait::ballot, mask, predicate != 0, place);
}
inline int __any_sync(unsigned mask, int predicate, specdec::emulator::Place place = {}) {
  return specdec::emulator::ballot(specdec::emulator::Wait::any, mask, predicate != 0, place) != 0;
}
inline int __all_sync(unsigned mask, int predicate, specdec::emulator::Place place = {}) {
  return specdec::emulator::ballot(specdec::emulator::Wait::all, mask, predicate != 0, place) == mask;
}
template <class T>
  requires specdec::emulator::OneOf<T, int, unsigned, long, unsigned long, long long, unsigned long long, float, double>
unsigned __match_any_sync(unsigned mask, T value, specdec::emulator::Place place = {}) {
  return specdec::emulator::match_any(mask, value, place);
}

#define SPECDEC_EMULATOR_REDUCE(name, T, expression)                                                   \
  inline T __reduce_##name##_sync(unsigned mask, T value, specdec::emulator::Place place = {}) {       \
    return specdec::emulator::reduce_lanes(specdec::emulator::Wait::reduce_##name, mask, value, place, \
                                           [](T a, T b) { return static_cast<T>(expression); });       \
  }
SPECDEC_EMULATOR_REDUCE(add, unsigned, a + b)
SPECDEC_EMULATOR_REDUCE(add, int, static_cast<unsigned>(a) + static_cast<unsigned>(b))
SPECDEC_EMULATOR_REDUCE(min, unsigned, b < a ? b : a)
SPECDEC_EMULATOR_REDUCE(min, int, b < a ? b : a)
SPECDEC_EMULATOR_REDUCE(max, unsigned, a < b ? b : a)
SPECDEC_EMULATOR_REDUCE(max, int, a < b ? b : a)
SPECDEC_EMULATOR_REDUCE(and, unsigned, a& b)
SPECDEC_EMULATOR_REDUCE(or, unsigned, a | b)
#undef SPECDEC_EMULATOR_REDUCE

// Which lanes run together is nobody's right to know: the caller alone.
inline unsigned __activemask() { return 1u << specdec::emulator::g_current->lane; }
