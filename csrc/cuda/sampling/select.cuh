// SPDX-License-Identifier: Apache-2.0
// Selection without sorting: the largest key at which the amounts (counts, or masses in fixed point) of all entries
// from the top reach a limit. Every pass adds entries to 256 bins and goes on inside one of them. Integers only, so
// that the order of the additions does not matter.
#pragma once

#include "../../common/sampling_law.h"
#include "../team.cuh"

namespace specdec::cuda {

inline constexpr int kBins = 256;
inline constexpr int kBinBits = 8;
using Amount = unsigned long long;

// Weights in fixed point: so many binary digits that a row of them cannot overflow.
__device__ inline double unit_of_mass(int64_t entries) {
  int bits = 1;
  while (entries >> bits != 0) ++bits;
  return double_from_bits(static_cast<uint64_t>(1023 + 62 - bits) << 52);
}

struct BinStorage {
  Amount bin[kBins];
  Amount sum[kBins];  // over the team, in its first block
};

// Adds to a 64-bit number in two halves: shared memory has no such addition of its own. The carry goes up with whoever
// caused it, so that the sum does not depend on the order.
__device__ __forceinline__ void add_to(Amount& bin, Amount amount) {
  unsigned* halves = reinterpret_cast<unsigned*>(&bin);
  const unsigned low = static_cast<unsigned>(amount);
  const unsigned before = atomicAdd(&halves[0], low);
  const unsigned high = static_cast<unsigned>(amount >> 32) + (before + low < before ? 1u : 0u);
  if (high != 0) atomicAdd(&halves[1], high);
}

// Sums the bins of all blocks up, for the threads of the team's first one.
__device__ inline void add_up_bins(const Team& team, BinStorage& bins) {
  team.sync();
  if (team.rank() != 0) return;
  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += static_cast<int>(blockDim.x)) {
    Amount sum = 0;
    for (int rank = 0; rank < team.size(); ++rank) sum += team.of(bins.bin, rank)[b];
    bins.sum[b] = sum;
  }
  __syncthreads();
}

struct Chosen {
  int64_t key;
  Amount above;  // of what has a larger key
  bool found;    // false: all together do not reach the limit
};

// Where the limit is reached among the bins of all blocks, from the top; for all threads. bin -1: nowhere.
struct ChosenBin {
  Amount above;
  int32_t bin;
  int32_t pad;
};

SPECDEC_STEP ChosenBin choose_bin(Team& team, BinStorage& bins, Amount limit) {
  add_up_bins(team, bins);
  ChosenBin chosen{0, -1, 0};
  bool mine = false;
  if (team.rank() == 0) {
    if (team.warp() == 0) {
      // Lane 0 has the highest eight bins.
      constexpr int kEach = kBins / kWarp;
      const int top = kBins - 1 - kEach * team.lane();
      Amount own = 0;
      for (int i = 0; i < kEach; ++i) own += bins.sum[top - i];
      Amount until = own;
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const Amount before = __shfl_up_sync(~0u, until, offset);
        if (team.lane() >= offset) until += before;
      }
      const unsigned reached = __ballot_sync(~0u, until >= limit);
      const int lane = reached == 0 ? 0 : __ffs(static_cast<int>(reached)) - 1;
      mine = team.lane() == lane;
      if (mine && reached != 0) {
        chosen.above = until - own;
        chosen.bin = top;
        while (chosen.above + bins.sum[chosen.bin] < limit) chosen.above += bins.sum[chosen.bin--];
      }
    }
  }
  return team.publish(chosen, mine);
}

// How keys come from values: floats in order, without the bits that the row's type does not have.
struct Keys {
  int drop = 0;

  __device__ int64_t of(float value) const { return ordered(value) >> drop; }
  __device__ float value(int64_t key) const { return from_ordered(static_cast<int32_t>(key) * (1 << drop)); }
};

// `visit(add)` calls add(key, amount) for the team's entries; keys outside [low, high] are passed over. `limit` > 0.
template <class Visit>
__device__ inline Chosen select(Team& team, BinStorage& bins, int64_t low, int64_t high, Amount limit,
                                const Visit& visit) {
  Amount above = 0;
  do {
    int shift = 0;
    while ((high - low) >> shift >= kBins) ++shift;
    for (int b = static_cast<int>(threadIdx.x); b < kBins; b += static_cast<int>(blockDim.x)) bins.bin[b] = 0;
    __syncthreads();
    visit([&](int64_t key, Amount amount) {
      if (key >= low && key <= high) add_to(bins.bin[(key - low) >> shift], amount);
    });
    const ChosenBin chosen = choose_bin(team, bins, limit - above);
    if (chosen.bin < 0) return {low, above, false};
    above += chosen.above;
    low += static_cast<int64_t>(chosen.bin) << shift;
    const int64_t last = low + (int64_t{1} << shift) - 1;
    high = last < high ? last : high;
  } while (low < high);
  return {low, above, true};
}

// The same for values from `least` to `most`, whose first pass spaces its bins evenly as numbers: floats are many more
// near zero than entries are. `visit(add)` calls add(value, amount).
template <class Visit>
__device__ inline Chosen select_value(Team& team, BinStorage& bins, const Keys& keys, float least, float most,
                                      Amount limit, const Visit& visit) {
  const float step = (most - least) / kBins;
  int64_t low = keys.of(least), high = keys.of(most);
  Amount above = 0;
  if (high - low >= kBins && step > 0.0f && step < 1e30f) {
    const auto bin_of = [&](float value) {
      const float bin = (value - least) / step;  // grows with the value, whatever the rounding
      return bin < kBins - 1 ? static_cast<int>(bin) : kBins - 1;
    };
    for (int b = static_cast<int>(threadIdx.x); b < kBins; b += static_cast<int>(blockDim.x)) bins.bin[b] = 0;
    __syncthreads();
    visit([&](float value, Amount amount) {
      if (value >= least && value <= most) add_to(bins.bin[bin_of(value)], amount);
    });
    const ChosenBin chosen = choose_bin(team, bins, limit);
    if (chosen.bin < 0) return {low, 0, false};
    above = chosen.above;
    // The first key that falls into a bin from `bin` on.
    const auto first_of = [&](int bin) {
      int64_t below = low - 1, at = high + 1;
      while (at - below > 1) {
        const int64_t middle = below + (at - below) / 2;
        (bin_of(keys.value(middle)) >= bin ? at : below) = middle;
      }
      return at;
    };
    const int64_t first = first_of(chosen.bin), after = first_of(chosen.bin + 1);
    low = first;
    high = chosen.bin == kBins - 1 ? high : after - 1;
  }
  Chosen chosen = select(team, bins, low, high, limit - above, [&](const auto& add) {
    visit([&](float value, Amount amount) { add(keys.of(value), amount); });
  });
  chosen.above += above;
  return chosen;
}

}  // namespace specdec::cuda
