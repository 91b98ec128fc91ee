// SPDX-License-Identifier: Apache-2.0
// A team: the threads of one block, or of the blocks of one cluster, that work on one row together. Where there are no
// clusters (before sm_90) a team is a block. Results never depend on the size of a team: what is combined across it is
// either free of order (extrema, integers) or added up in a fixed order by one thread.
#pragma once

#include "device.cuh"

namespace specdec::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kMaxWarps = 8;    // of a block of a team
inline constexpr int kMaxCluster = 8;  // blocks of a team: what every GPU with clusters can do
inline constexpr int kSlotBytes = 16;

// Of kernels whose blocks are those of teams: two of them should find room on one multiprocessor.
#define SPECDEC_TEAM_BOUNDS __launch_bounds__(::specdec::cuda::kMaxWarps* ::specdec::cuda::kWarp, 2)

struct TeamStorage {
  alignas(16) unsigned char slot[2][kMaxWarps][kSlotBytes];
};

// A value of another lane, whatever its type.
template <class T>
__device__ __forceinline__ T exchange(const T& value, int lane_mask) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 4 == 0);
  unsigned words[sizeof(T) / 4];
  memcpy(words, static_cast<const void*>(&value), sizeof(T));
#pragma unroll
  for (unsigned& word : words) word = __shfl_xor_sync(~0u, word, lane_mask);
  T other;
  memcpy(static_cast<void*>(&other), words, sizeof(T));
  return other;
}

template <class T, class Combine>
__device__ __forceinline__ T warp_reduce(T mine, const Combine& combine) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) mine = combine(mine, exchange(mine, mask));
  return mine;
}

class Team {
 public:
  __device__ explicit Team(TeamStorage& shared)
      : shared_(shared), rank_(cluster_rank()), size_(cluster_size()), warps_(static_cast<int>(blockDim.x) / kWarp) {}

  __device__ int rank() const { return rank_; }  // of this block
  __device__ int size() const { return size_; }  // blocks
  __device__ int warps() const { return warps_; }
  __device__ int warp() const { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ int lane() const { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ int thread() const { return rank_ * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x); }
  __device__ int threads() const { return size_ * static_cast<int>(blockDim.x); }
  __device__ bool leads() const { return thread() == 0; }

  // Which team of the grid this is.
  __device__ int64_t index() const { return static_cast<int64_t>(blockIdx.x) / size_; }

  __device__ void sync() const {
    if (size_ > 1) {
      cluster_sync();
    } else {
      __syncthreads();
    }
  }

  // The same place in the shared memory of the team's first block.
  template <class T>
  __device__ T* first(T* shared_pointer) const {
    return size_ > 1 ? cluster_map(shared_pointer, 0) : shared_pointer;
  }
  template <class T>
  __device__ T* of(T* shared_pointer, int rank) const {
    return size_ > 1 ? cluster_map(shared_pointer, rank) : shared_pointer;
  }

  // All threads get the combination of all threads' values; `combine` must not depend on the order, and `neutral`
  // changes nothing. One barrier: a slot is written again only by the call after the next.
  template <class T, class Combine>
  __device__ T reduce(T mine, const T& neutral, const Combine& combine) {
    static_assert(sizeof(T) <= kSlotBytes);
    mine = warp_reduce(mine, combine);
    const int parts = size_ * warps_;
    if (parts == 1) return mine;
    auto& slots = shared_.slot[turn_];
    turn_ ^= 1;
    if (lane() == 0) memcpy(slots[warp()], static_cast<const void*>(&mine), sizeof(T));
    sync();
    T all = neutral;
    for (int i = lane(); i < parts; i += kWarp) {
      T other;
      memcpy(static_cast<void*>(&other), of(&slots, i / warps_)[0][i % warps_], sizeof(T));
      all = combine(all, other);
    }
    return warp_reduce(all, combine);
  }

  // All threads get the value of the one thread that says it is its own; it must be in the first block.
  template <class T>
  __device__ T publish(const T& value, bool mine) {
    static_assert(sizeof(T) <= kSlotBytes);
    auto& slots = shared_.slot[turn_];
    turn_ ^= 1;
    if (mine) memcpy(slots[0], static_cast<const void*>(&value), sizeof(T));
    sync();
    T all;
    memcpy(static_cast<void*>(&all), first(&slots)[0][0], sizeof(T));
    return all;
  }

 private:
  TeamStorage& shared_;
  int rank_, size_, warps_;
  int turn_ = 0;
};

struct Largest {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Smallest {
  __device__ float operator()(float a, float b) const { return fminf(a, b); }
};

// The smallest score so far; equal scores go to the lower id.
struct Winner {
  double score;
  int64_t id;

  __device__ void offer(double other, int64_t candidate) {
    if (id < 0 || other < score || (other == score && candidate < id)) {
      score = other;
      id = candidate;
    }
  }
};
__device__ __forceinline__ Winner nobody() { return {static_cast<double>(INFINITY), -1}; }
struct Sooner {
  __device__ Winner operator()(Winner a, const Winner& b) const {
    if (b.id >= 0) a.offer(b.score, b.id);
    return a;
  }
};

}  // namespace specdec::cuda
