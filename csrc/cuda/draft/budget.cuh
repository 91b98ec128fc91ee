// SPDX-License-Identifier: Apache-2.0
// draft.budget: candidates as keys, put in order; then one block adds up the gains in that order, finds how many drafts
// are worth their step, and counts those of each request: the candidates whose keys are not behind the last one.
//
// Up to kBudgetTile candidates are sorted by the block that goes on: one launch. More are sorted in tiles of so many,
// the place of a key among all is found by bisection in the other tiles, and requests are counted by warps of the whole
// grid: four launches, and a workspace of 8 bytes per candidate and 8 per draft that may be admitted.
#pragma once

#include "../../common/budget_params.h"
#include "../block.cuh"

namespace specdec::cuda {

inline constexpr int kBudgetTile = 4 * kMaxBlockThreads;
inline constexpr int kBudgetThreads = 256;  // where threads work alone, or in warps

struct BudgetCall {
  BudgetParams params;
  uint64_t* tiles = nullptr;   // [slots], sorted in tiles
  uint64_t* sorted = nullptr;  // [most], the first of all
  uint64_t* last = nullptr;    // the key of the last draft that is admitted, 0 if none is

  static int64_t bytes(const BudgetParams& p) { return p.slots() <= kBudgetTile ? 0 : 8 * (p.slots() + p.most() + 1); }
  SPECDEC_HD int64_t tile_count() const { return (params.slots() + kBudgetTile - 1) / kBudgetTile; }
  SPECDEC_HD int tile_size(int64_t tile) const {
    const int64_t left = params.slots() - tile * kBudgetTile;
    return static_cast<int>(left < kBudgetTile ? left : kBudgetTile);
  }
};

struct BestStep {
  double value;
  int64_t drafts;
};
struct BetterStep {
  __device__ BestStep operator()(const BestStep& a, const BestStep& b) const {
    return b.value > a.value || (b.value == a.value && b.drafts < a.drafts) ? b : a;
  }
};

struct BudgetStorage {
  ScanStorage scan;
  int64_t gain[2][kMaxBlockWarps];
  BestStep best[kMaxBlockWarps];
  uint64_t key[kBudgetTile];
};

struct Gains {
  int64_t before;  // of the threads before
  int64_t all;
};

// One barrier; a slot is written again only by the call after the next.
__device__ inline Gains sum_gains(BudgetStorage& shared, int turn, int64_t mine) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  int64_t until = mine;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int64_t before = __shfl_up_sync(~0u, until, offset);
    if (lane >= offset) until += before;
  }
  auto& slots = shared.gain[turn % 2];
  if (lane == kWarp - 1) slots[warp] = until;
  __syncthreads();
  Gains gains{until - mine, 0};
  for (int w = 0; w < warps; ++w) {
    gains.all += slots[w];
    if (w < warp) gains.before += slots[w];
  }
  return gains;
}

__device__ inline BestStep best_of_block(BudgetStorage& shared, BestStep mine) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  mine = warp_reduce(mine, BetterStep());
  if (lane == 0) shared.best[threadIdx.x / kWarp] = mine;
  __syncthreads();
  return warp_reduce(shared.best[lane < warps ? lane : 0], BetterStep());
}

// How many of the keys, which are in order, to admit; for all threads of a block, to which they must be visible before.
__device__ inline int64_t choose_drafts(const BudgetParams& p, BudgetStorage& shared, const uint64_t* keys) {
  BlockScan scan(shared.scan);
  const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  int32_t requests = 0;
  for (int64_t base = 0; base < p.batch; base += threads) {
    requests += scan.count(base + t < p.batch && is_at_work(p, base + t)).all;
  }
  int64_t tokens = static_cast<int64_t>(requests) << kGainBits;
  BestStep best{value_of(p, 0, tokens), 0};
  const int64_t most = p.most();
  int turn = 0;
  for (int64_t base = 0; base < most; base += threads) {
    const int64_t n = base + t;  // drafts before this one
    const bool there = n < most && is_candidate(keys[n]);
    const int64_t gain = there ? gain_of(keys[n]) : 0;
    const Gains gains = sum_gains(shared, turn++, gain);
    const int64_t before = tokens + gains.before;
    const double value = there ? value_of(p, n + 1, before + gain) : -1.0;
    if (p.sampled) {
      const bool stops = !there || !(value > value_of(p, n, before));
      const int32_t left = scan.largest(stops ? threads - t : 0);  // of the first thread that stops
      if (left > 0) return base + threads - left;
    } else {
      best = BetterStep()(best, {value, n + 1});
    }
    tokens += gains.all;
  }
  return p.sampled ? most : best_of_block(shared, best).drafts;
}

// The admitted drafts of one request; for all lanes of a warp.
__device__ inline void count_drafts(const BudgetParams& p, int64_t b, uint64_t last) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int32_t count = 0;
  for (int64_t c = lane; c < p.columns; c += kWarp) count += budget_key_at(p, b, c) <= last;
  count = __reduce_add_sync(~0u, count);
  if (lane == 0) p.counts[b] = count;
}

// The keys of one tile in shared memory, in order; for all threads.
__device__ inline void sort_tile(const BudgetCall& call, BudgetStorage& shared, int64_t tile) {
  const BudgetParams& p = call.params;
  const int count = call.tile_size(tile);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    const int64_t index = tile * kBudgetTile + i, b = index / p.columns;
    shared.key[i] = budget_key_at(p, b, index - b * p.columns);
  }
  __syncthreads();
  sort_keys(shared.key, count);
}

// All candidates in one block.
[[maybe_unused]] static __global__ void __launch_bounds__(kMaxBlockThreads)
    budget_kernel(const __grid_constant__ BudgetCall call) {
  auto& shared = shared_storage<BudgetStorage>();
  const BudgetParams& p = call.params;
  sort_tile(call, shared, 0);
  const int64_t admitted = choose_drafts(p, shared, shared.key);
  const uint64_t last = admitted > 0 ? shared.key[admitted - 1] : 0;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int64_t b = threadIdx.x / kWarp; b < p.batch; b += warps) count_drafts(p, b, last);
}

// The same in four launches.
[[maybe_unused]] static __global__ void __launch_bounds__(kMaxBlockThreads)
    budget_tile_kernel(const __grid_constant__ BudgetCall call) {
  auto& shared = shared_storage<BudgetStorage>();
  const int64_t tile = blockIdx.x;
  sort_tile(call, shared, tile);
  const int count = call.tile_size(tile);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    call.tiles[tile * kBudgetTile + i] = shared.key[i];
  }
}

[[maybe_unused]] static __global__ void __launch_bounds__(kBudgetThreads)
    budget_place_kernel(const __grid_constant__ BudgetCall call) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, most = call.params.most();
  if (at >= call.params.slots()) return;
  const int64_t own = at / kBudgetTile, tiles = call.tile_count();
  const uint64_t key = call.tiles[at];
  int64_t place = at - own * kBudgetTile;
  for (int64_t tile = 0; tile < tiles && place < most; ++tile) {
    if (tile == own) continue;
    const uint64_t* keys = call.tiles + tile * kBudgetTile;
    int low = 0, high = call.tile_size(tile);
    while (low < high) {
      const int middle = (low + high) / 2;
      if (keys[middle] < key) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    place += low;
  }
  if (place < most) call.sorted[place] = key;
}

[[maybe_unused]] static __global__ void __launch_bounds__(kMaxBlockThreads)
    budget_choose_kernel(const __grid_constant__ BudgetCall call) {
  auto& shared = shared_storage<BudgetStorage>();
  const int64_t admitted = choose_drafts(call.params, shared, call.sorted);
  if (threadIdx.x == 0) *call.last = admitted > 0 ? call.sorted[admitted - 1] : 0;
}

[[maybe_unused]] static __global__ void __launch_bounds__(kBudgetThreads)
    budget_count_kernel(const __grid_constant__ BudgetCall call) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * (kBudgetThreads / kWarp) + threadIdx.x / kWarp;
  if (b < call.params.batch) count_drafts(call.params, b, *call.last);
}

inline cudaError_t launch_draft_budget(const BudgetParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  const size_t bytes = sizeof(BudgetStorage);
  BudgetCall call{p};
  if (p.slots() <= kBudgetTile) {
    const unsigned threads = static_cast<unsigned>(block_threads(p.slots()));
    return launch(budget_kernel, {1, threads, bytes, stream}, call);
  }
  call.tiles = static_cast<uint64_t*>(workspace);
  call.sorted = call.tiles + p.slots();
  call.last = call.sorted + p.most();
  const auto blocks = [](int64_t items, int64_t each) { return static_cast<unsigned>((items + each - 1) / each); };
  const unsigned tiles = static_cast<unsigned>(call.tile_count());
  cudaError_t error = launch(budget_tile_kernel, {tiles, kMaxBlockThreads, bytes, stream}, call);
  if (error != cudaSuccess) return error;
  error = launch(budget_place_kernel, {blocks(p.slots(), kBudgetThreads), kBudgetThreads, 0, stream}, call);
  if (error != cudaSuccess) return error;
  const unsigned threads = static_cast<unsigned>(block_threads(p.most()));
  error = launch(budget_choose_kernel, {1, threads, bytes, stream}, call);
  if (error != cudaSuccess) return error;
  const unsigned requests = blocks(p.batch, kBudgetThreads / kWarp);
  return launch(budget_count_kernel, {requests, kBudgetThreads, 0, stream}, call);
}

}  // namespace specdec::cuda
