// SPDX-License-Identifier: Apache-2.0
// What the threads of one block do together where a problem fits into its shared memory: sums and counts over the
// threads before, and sorting. Blocks are whole warps, at most kMaxBlockThreads threads.
#pragma once

#include "team.cuh"

namespace specdec::cuda {

inline constexpr int kMaxBlockThreads = 1024;
inline constexpr int kMaxBlockWarps = kMaxBlockThreads / kWarp;

// The smallest power of two that is at least `count` and at least `least`, itself one.
SPECDEC_SHARED int power_of_two(int64_t count, int least) {
  int size = least;
  while (size < count) size *= 2;
  return size;
}

// How many threads work on `count` items: one each, as far as a block has them.
inline int block_threads(int64_t count) {
  const int size = power_of_two(count < kMaxBlockThreads ? count : kMaxBlockThreads, kWarp);
  return size;
}

struct ScanStorage {
  int32_t slot[2][kMaxBlockWarps];
};

// For one thread: of the threads before it, and of all.
struct Prefix {
  int32_t before;
  int32_t all;
};

// Each call has one barrier, which comes after all that threads have written before the call. A slot is written again
// only by the call after the next.
class BlockScan {
 public:
  __device__ explicit BlockScan(ScanStorage& shared) : shared_(shared) {}

  __device__ Prefix sum(int32_t mine) {
    int32_t until = mine;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int32_t before = __shfl_up_sync(~0u, until, offset);
      if (lane() >= offset) until += before;
    }
    const Prefix warps = over_warps(until, lane() == kWarp - 1);
    return {warps.before + until - mine, warps.all};
  }

  __device__ Prefix count(bool mine) {
    const unsigned lanes = __ballot_sync(~0u, mine);
    const Prefix warps = over_warps(__popc(lanes), lane() == 0);
    return {warps.before + __popc(lanes & ((1u << lane()) - 1)), warps.all};
  }

  __device__ int32_t largest(int32_t mine) {
    const int32_t own = __reduce_max_sync(~0u, mine);
    auto& slots = next_slots();
    if (lane() == 0) slots[warp()] = own;
    __syncthreads();
    return __reduce_max_sync(~0u, lane() < warps() ? slots[lane()] : own);
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ static int warps() { return static_cast<int>(blockDim.x) / kWarp; }

  __device__ int32_t (&next_slots()) [kMaxBlockWarps] {
    turn_ ^= 1;
    return shared_.slot[turn_];
  }

  // Sums of what one lane of each warp brings. All lanes read all of them: that is faster than shuffles.
  __device__ Prefix over_warps(int32_t brought, bool brings) {
    auto& slots = next_slots();
    if (brings) slots[warp()] = brought;
    __syncthreads();
    Prefix sums{0, 0};
    const int own = warp(), count = warps();
#pragma unroll 4
    for (int w = 0; w < count; ++w) {
      const int32_t value = slots[w];
      sums.all += value;
      if (w < own) sums.before += value;
    }
    return sums;
  }

  ScanStorage& shared_;
  int turn_ = 0;
};

// A bitonic sort of the first `count` of `size` keys, ascending; the others become the last ones. Thread t has elements
// kEach * t and following, and keeps them in registers: neighbours within a warp exchange by shuffles, only those
// further apart through `keys`.
template <int kEach, class Key>
SPECDEC_STEP void sort_in_registers(Key* keys, int count, int size) {
  const int threads = size / kEach, t = static_cast<int>(threadIdx.x);
  const bool works = t < threads;  // whole warps
  Key mine[kEach];
  if (works) {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int at = e * threads + t;  // in any order
      mine[e] = at < count ? keys[at] : ~Key{0};
    }
  }
  // Of two elements `distance` apart, the lower one keeps the smaller key where a run of `run` ascends.
  const auto keep = [&](int e, Key other, int run, int distance) {
    const int at = t * kEach + e;
    const bool smaller = ((at & distance) == 0) == ((at & run) == 0);
    if ((other < mine[e]) == smaller) mine[e] = other;
  };
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      if (distance >= kWarp * kEach) {
        if (works) {
#pragma unroll
          for (int e = 0; e < kEach; ++e) keys[e * threads + t] = mine[e];
        }
        __syncthreads();
        if (works) {
#pragma unroll
          for (int e = 0; e < kEach; ++e) keep(e, keys[e * threads + (t ^ (distance / kEach))], run, distance);
        }
        __syncthreads();
      } else if (!works) {
        continue;
      } else if (distance >= kEach) {
#pragma unroll
        for (int e = 0; e < kEach; ++e) keep(e, __shfl_xor_sync(~0u, mine[e], distance / kEach), run, distance);
      } else {
        Key before[kEach];
#pragma unroll
        for (int e = 0; e < kEach; ++e) before[e] = mine[e];
#pragma unroll
        for (int e = 0; e < kEach; ++e) {
          // Written so that every index is known when this is compiled.
          keep(e, distance == 1 ? before[(e ^ 1) % kEach] : before[(e ^ 2) % kEach], run, distance);
        }
      }
    }
  }
  if (works) {
#pragma unroll
    for (int e = 0; e < kEach; ++e) keys[t * kEach + e] = mine[e];
  }
  __syncthreads();
}

// How many neighbouring threads share the work on one of `count` items: a power of two, so that groups stay in warps.
__device__ inline int group_size(int count) {
  int size = 1;
  while (size < kWarp && 2 * size * count <= static_cast<int>(blockDim.x)) size *= 2;
  return size;
}

// The sum over the threads of each group.
__device__ inline int sum_of_group(int mine, int group) {
  for (int mask = 1; mask < group; mask *= 2) mine += __shfl_xor_sync(~0u, mine, mask);
  return mine;
}

// The place of a key is the number of smaller ones. `count` is at most the number of threads.
template <class Key>
SPECDEC_STEP void sort_by_counting(Key* keys, int count) {
  const int group = group_size(count), t = static_cast<int>(threadIdx.x);
  const int item = t / group, part = t % group;
  const Key mine = item < count ? keys[item] : Key{0};
  int smaller = 0;
  if (item < count) {
#pragma unroll 4
    for (int j = part; j < count; j += group) smaller += keys[j] < mine;
  }
  smaller = sum_of_group(smaller, group);
  __syncthreads();
  if (item < count && part == 0) keys[smaller] = mine;
  __syncthreads();
}

// How many comparisons per thread are as fast as sorting.
inline constexpr int kComparisons = 64;

// Sorts keys in shared memory, no two of them equal; for all threads, to which they must be visible before. There is
// room for the next power of two, from kWarp on, and it is at most four times the number of threads.
template <class Key>
__device__ inline void sort_keys(Key* keys, int count) {
  const int threads = static_cast<int>(blockDim.x), size = power_of_two(count, kWarp);
  if (count <= threads && count * count <= kComparisons * threads) {
    sort_by_counting(keys, count);
  } else if (size <= threads) {
    sort_in_registers<1>(keys, count, size);
  } else if (size <= 2 * threads) {
    sort_in_registers<2>(keys, count, size);
  } else {
    sort_in_registers<4>(keys, count, size);
  }
}

}  // namespace specdec::cuda
