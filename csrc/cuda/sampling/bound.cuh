// SPDX-License-Identifier: Apache-2.0
// What no rule exceeds at a node whose children were drawn from q: common/bound.h has the formula.
//
// Memory traffic: the rows of p and q once, and that of q once per child up to 16 where they were drawn without
// replacement; nothing where rows are kept in shared memory. The sums over sets are in fixed point, so that the order
// of the additions does not matter.
#pragma once

#include "../../common/bound.h"
#include "law.cuh"
#include "select.cuh"

namespace specdec::cuda {

inline constexpr double kUnitOfShare = 0x1p62;
inline constexpr int kSharesOfQ = kBins / 2;  // from this bin on
static_assert(kBoundSets < kSharesOfQ);

struct Shares {
  const Amount* of_set;
  __device__ double operator()(int set) const { return static_cast<double>(of_set[set]) / kUnitOfShare; }
};

// The sums of p and q over the ids of which each set is the first; in `sum`, for the team's first block.
SPECDEC_STEP void sum_by_set(Team& team, BinStorage& bins, const Law& p, const Law& q) {
  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += static_cast<int>(blockDim.x)) bins.bin[b] = 0;
  __syncthreads();
  for_blocks(team, p, [&](int own, int64_t block, float* buffer) {
    if (p.memory.stats[own].max == -INFINITY && q.memory.stats[own].max == -INFINITY) return;
    const float* drafts = owned_block(team, q, own, block);
    const int count = p.source->length(block);
    for (int i = team.lane(); i < count; i += kWarp) {
      const int64_t id = block * kBlock + i;
      const double mine = p.weight(buffer[i], id) / p.total, other = q.weight(drafts[i], id) / q.total;
      if (!(mine > 0.0 || other > 0.0)) continue;
      const int set = bound_set(mine, other);
      add_to(bins.bin[set], static_cast<Amount>(mine * kUnitOfShare));
      add_to(bins.bin[kSharesOfQ + set], static_cast<Amount>(other * kUnitOfShare));
    }
  });
  add_up_bins(team, bins);
}

// The sums of the largest 1, 2, .. `most` probabilities of a law; how many it has.
SPECDEC_STEP int sum_largest(Team& team, const Law& law, int most, double* sums) {
  struct Entry {
    int64_t key;  // the larger logit, then the lower id
  };
  constexpr int64_t kOfLogit = int64_t{1} << 32;
  Entry before{INT64_MAX};
  for (int found = 0; found < most; ++found) {
    Entry best{INT64_MIN};
    for_blocks(team, law, [&](int own, int64_t block, float* buffer) {
      if (law.memory.stats[own].max == -INFINITY) return;
      const int count = law.source->length(block);
      for (int i = team.lane(); i < count; i += kWarp) {
        const int64_t id = block * kBlock + i;
        if (!is_kept(law.cut, buffer[i], id)) continue;
        const int64_t key = ordered(buffer[i]) * kOfLogit + (INT32_MAX - id);
        if (key < before.key && key > best.key) best.key = key;
      }
    });
    best = team.reduce(best, Entry{INT64_MIN}, [](const Entry& a, const Entry& b) { return a.key > b.key ? a : b; });
    if (best.key == INT64_MIN) return found;
    const float logit = from_ordered(static_cast<int32_t>(best.key >> 32));
    sums[found] = weight_of(logit, law.max, law.settings.temperature) / law.total + (found > 0 ? sums[found - 1] : 0.0);
    before = best;
  }
  return most;
}

// Of `number` drafts, drawn from a law from which nothing is taken out; for the thread that leads.
SPECDEC_STEP double bound_of_drafts(Team& team, BinStorage& bins, const Law& p, const Law& q, int64_t number,
                                    bool replacement) {
  if (q.dead()) return 1.0;  // drafts that cannot have been drawn are taken wherever p is not 0
  double tops[kBoundTops];
  const int64_t most = replacement ? 0 : number - 1;
  const int known = sum_largest(team, q, static_cast<int>(most < kBoundTops ? most : kBoundTops), tops);
  sum_by_set(team, bins, p, q);
  double bound = 0.0;
  if (team.leads()) {
    bound = bound_of_sets(Shares{bins.sum}, Shares{bins.sum + kSharesOfQ}, number, tops, known);
  }
  team.sync();  // the bins are free
  return bound;
}

}  // namespace specdec::cuda
