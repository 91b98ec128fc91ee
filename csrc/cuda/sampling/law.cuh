// SPDX-License-Identifier: Apache-2.0
// The processed law of one row, held by a team: a cut in the order (larger logit, then lower id), and for every block
// of 4,096 ids the largest kept logit and the sum of the kept weights relative to it.
//
// Sums feed on weights in single precision, added by one warp in one order, then over blocks ascending in double
// precision; a weight that a decision hangs on is computed in double precision. Weights are exp((l - max) / T).
#pragma once

#include "row.cuh"

namespace specdec::cuda {

struct BlockStat {
  float max;  // of what is kept; -inf: nothing
  float sum;  // of weights relative to `max`
};

// Where a law keeps its things, in shared memory.
struct LawMemory {
  float* buffers;    // [Layout::buffers(), kBlock]
  float* lane_max;   // [owned, kWarp]
  BlockStat* stats;  // [owned]
  double* mass;      // [blocks], in the team's first block: relative to the law's maximum
  int32_t* removed;  // ids that were taken out, the same list in every block of the team

  SPECDEC_HD static int64_t bytes(const Layout& layout, int removed) {
    const int64_t bytes = layout.buffers() * static_cast<int64_t>(kBlock) * 4 + layout.owned() * (kWarp * 4 + 8ll) +
                          layout.blocks * 8 + removed * 4ll;
    return (bytes + 15) / 16 * 16;
  }
  // Takes its share of `memory`, 16 bytes aligned, and moves that on.
  __device__ static LawMemory carve(unsigned char*& memory, const Layout& layout, int removed) {
    LawMemory m;
    unsigned char* at = memory;
    memory += bytes(layout, removed);
    m.buffers = reinterpret_cast<float*>(at);
    at += layout.buffers() * static_cast<int64_t>(kBlock) * 4;
    m.lane_max = reinterpret_cast<float*>(at);
    at += layout.owned() * (kWarp * 4ll);
    m.stats = reinterpret_cast<BlockStat*>(at);
    at += layout.owned() * 8ll;
    m.mass = reinterpret_cast<double*>(at);
    at += layout.blocks * 8;
    m.removed = reinterpret_cast<int32_t*>(at);
    return m;
  }
};

// Weights of logits relative to a reference, in single precision.
class Weigher {
 public:
  __device__ explicit Weigher(float t) : temperature_(t), scale_(static_cast<float>(kLog2E / t)) {
    extreme_ = !(t >= 1e-30f && t <= 1e30f);  // single precision would overflow on the way
  }
  __device__ __forceinline__ float operator()(float logit, float reference) const {
    return extreme_ ? exactly(logit, reference) : fast(logit, reference);
  }
  // Loops choose between these two outside: a call inside costs registers, whether it is made or not.
  __device__ __forceinline__ bool is_extreme() const { return extreme_; }
  __device__ __forceinline__ float fast(float logit, float reference) const {
    return exp2f((logit - reference) * scale_);
  }
  __device__ __forceinline__ float exactly(float logit, float reference) const {
    return static_cast<float>(weight_of(logit, reference, temperature_));
  }
  // log2 of the weight; -inf for -inf.
  __device__ __forceinline__ float log2_of(float logit, float reference) const {
    if (!extreme_) return (logit - reference) * scale_;
    return logit == -INFINITY ? -INFINITY
                              : static_cast<float>((static_cast<double>(logit) - reference) / temperature_ * kLog2E);
  }

 private:
  float temperature_, scale_;
  bool extreme_;
};

struct Law {
  const Source* source;
  LawMemory memory;
  Layout layout;
  Settings settings;
  Cut cut;
  float max;     // of the row; -inf: nothing can be emitted
  double total;  // of the kept weights
  int removed;
  bool nan;

  __device__ bool dead() const { return max == -INFINITY; }
  __device__ bool is_open() const { return cut.logit == -kLargest && cut.id == kLastId; }
  // Weight relative to the maximum, in double precision.
  __device__ double weight(float logit, int64_t id) const {
    return is_kept(cut, logit, id) ? weight_of(logit, max, settings.temperature) : 0.0;
  }
  // The same of an id of a source that is not listed, and its probability. Of ids that were removed as well.
  __device__ double weight_at(int64_t id) const {
    return dead() || id < 0 || id >= source->entries ? 0.0 : weight(logit_of(*source, id), id);
  }
  __device__ double probability(int64_t id) const { return weight_at(id) / total; }
};

// Sets entries of a block that were removed to -inf; by one warp.
SPECDEC_STEP void forget_removed(const Law& law, int from, int64_t block, float* buffer) {
  if (from >= law.removed) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = block * kBlock;
  const int count = law.source->length(block);
  __syncwarp();
  if (law.source->listed()) {
    for (int i = lane; i < count; i += kWarp) {
      const int64_t id = law.source->id(first + i);
      for (int r = from; r < law.removed; ++r) {
        if (law.memory.removed[r] == id) buffer[i] = -INFINITY;
      }
    }
  } else {
    for (int r = from + lane; r < law.removed; r += kWarp) {
      const int64_t at = law.memory.removed[r] - first;
      if (at >= 0 && at < count) buffer[at] = -INFINITY;
    }
  }
  __syncwarp();
}

// Calls visit(own index, block, buffer) for the blocks of this warp, which it can read then. The first pass over a row
// loads it (kLoad); later ones find it where it was kept. Whether this lane met a NaN while loading.
template <bool kLoad = false, class Visit>
__device__ __forceinline__ bool for_blocks(const Team& team, const Law& law, const Visit& visit) {
  bool nan = false;
  const int64_t blocks = law.source->blocks();
  for (int own = team.warp();; own += team.warps()) {
    const int64_t block = static_cast<int64_t>(own) * team.size() + team.rank();
    if (block >= blocks) break;
    float* buffer = law.memory.buffers + static_cast<int64_t>(law.layout.cached ? own : team.warp()) * kBlock;
    if (kLoad || !law.layout.cached) {
      nan |= load_block(*law.source, block, buffer);
      forget_removed(law, 0, block, buffer);
    }
    visit(own, block, buffer);
    __syncwarp();
  }
  return nan;
}

// A block that this warp owns, of a law that is looked at beside another one; for that warp, until its next block.
__device__ inline float* owned_block(const Team& team, const Law& law, int own, int64_t block) {
  float* buffer = law.memory.buffers + static_cast<int64_t>(law.layout.cached ? own : team.warp()) * kBlock;
  if (!law.layout.cached) {
    load_block(*law.source, block, buffer);
    forget_removed(law, 0, block, buffer);
  }
  return buffer;
}

// The statistic of a block, of whose logits `kept` gives those that count and -inf for others.
template <bool kWeigh, class Kept>
__device__ __forceinline__ BlockStat stat_of_kept(const Law& law, int own, int count, const float* buffer,
                                                  bool note_lanes, const Kept& kept) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float highest = -INFINITY;
  for (int i = lane * 4; i < count; i += kPadding) {
    const float4 x = *reinterpret_cast<const float4*>(buffer + i);
    highest = fmaxf(highest, fmaxf(fmaxf(kept(x.x, i), kept(x.y, i + 1)), fmaxf(kept(x.z, i + 2), kept(x.w, i + 3))));
  }
  if (note_lanes) law.memory.lane_max[own * kWarp + lane] = highest;
  highest = warp_reduce(highest, Largest());
  if (!kWeigh || highest == -INFINITY) return {highest, 0.0f};
  float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
  const auto add_up = [&](const auto& weight) {
    for (int i = lane * 4; i < count; i += kPadding) {
      const float4 x = *reinterpret_cast<const float4*>(buffer + i);
      sum.x += weight(kept(x.x, i));
      sum.y += weight(kept(x.y, i + 1));
      sum.z += weight(kept(x.z, i + 2));
      sum.w += weight(kept(x.w, i + 3));
    }
  };
  const Weigher weigher(law.settings.temperature);
  if (weigher.is_extreme()) {
    add_up([&](float logit) { return weigher.exactly(logit, highest); });
  } else {
    add_up([&](float logit) { return weigher.fast(logit, highest); });
  }
  const float mine = (sum.x + sum.y) + (sum.z + sum.w);
  return {highest, warp_reduce(mine, [](float a, float b) { return a + b; })};
}

// The statistic of a block under the law's cut, by one warp; with kWeigh the sum as well.
template <bool kWeigh>
SPECDEC_STEP BlockStat stat_of(const Law& law, int own, int64_t block, const float* buffer) {
  const int count = law.source->length(block);
  if (law.is_open()) return stat_of_kept<kWeigh>(law, own, count, buffer, true, [](float logit, int) { return logit; });
  const int64_t first = block * kBlock;
  const Cut cut = law.cut;
  return stat_of_kept<kWeigh>(law, own, count, buffer, false, [&](float logit, int i) {
    if (logit > cut.logit) return logit;
    const bool behind = logit < cut.logit || (cut.id != kLastId && law.source->id(first + i) > cut.id);
    return behind ? -INFINITY : logit;
  });
}

// The mass of an owned block relative to the law's maximum; by any lane of the warp that owns it.
SPECDEC_STEP double mass_of(const Law& law, const BlockStat& stat) {
  return stat.sum > 0.0f ? stat.sum * weight_of(stat.max, law.max, law.settings.temperature) : 0.0;
}

// Sums `value(own)` over all blocks ascending: each warp computes those of its blocks, one thread adds. They are left
// in `mass` of the team's first block.
template <class Value>
__device__ inline double sum_over_blocks(Team& team, const Law& law, const Value& value) {
  const int64_t blocks = law.source->blocks();
  double* mass = team.first(law.memory.mass);
  for (int own = team.warp() + team.lane() * team.warps();; own += kWarp * team.warps()) {
    const int64_t block = static_cast<int64_t>(own) * team.size() + team.rank();
    if (block >= blocks) break;
    mass[block] = value(own);
  }
  team.sync();
  double total = 0.0;
  if (team.leads()) {
    for (int64_t b = 0; b < blocks; ++b) total += law.memory.mass[b];
  }
  return team.publish(total, team.leads());
}

SPECDEC_STEP void find_masses(Team& team, Law& law) {
  law.total = sum_over_blocks(team, law, [&](int own) { return mass_of(law, law.memory.stats[own]); });
}

// The first pass over a row: its maximum, and with kWeigh the masses of its law without filters.
template <bool kWeigh>
SPECDEC_STEP void scan(Team& team, Law& law) {
  struct Seen {
    float max;
    unsigned nan;
  };
  law.cut = no_cut();
  law.removed = 0;
  Seen seen{-INFINITY, 0};
  bool nan = for_blocks<true>(team, law, [&](int own, int64_t block, float* buffer) {
    const BlockStat stat = stat_of<kWeigh>(law, own, block, buffer);
    if (team.lane() == 0) law.memory.stats[own] = stat;
    seen.max = fmaxf(seen.max, stat.max);
  });
  const Source& source = *law.source;
  if (source.column_of && source.data != nullptr) {  // also where no target id stands
    for (int64_t c = team.thread(); c < source.columns; c += team.threads()) nan |= isnan(element(source, c));
  }
  seen.nan = nan ? 1u : 0u;
  seen = team.reduce(seen, Seen{-INFINITY, 0},
                     [](const Seen& a, const Seen& b) { return Seen{fmaxf(a.max, b.max), a.nan | b.nan}; });
  law.max = seen.max;
  law.nan = seen.nan != 0;
  law.total = 0.0;
  if (kWeigh && !law.dead()) find_masses(team, law);
}

// Another pass: the masses under the cut and without what was removed.
SPECDEC_STEP void weigh_again(Team& team, Law& law) {
  for_blocks(team, law, [&](int own, int64_t block, float* buffer) {
    const BlockStat stat = stat_of<true>(law, own, block, buffer);
    if (team.lane() == 0) law.memory.stats[own] = stat;
  });
  find_masses(team, law);
}

// The best id of a scanned row; -1 at a dead end.
SPECDEC_STEP int64_t best_id(Team& team, const Law& law) {
  if (law.dead()) return -1;
  struct Lowest {
    int64_t id;
  };
  int64_t best = kLastId;
  for_blocks(team, law, [&](int own, int64_t block, float* buffer) {
    if (law.memory.stats[own].max != law.max) return;
    const int count = law.source->length(block);
    for (int i = team.lane(); i < count; i += kWarp) {
      if (buffer[i] != law.max) continue;
      const int64_t id = law.source->id(block * kBlock + i);
      if (id < best) best = id;
    }
  });
  return team
      .reduce(Lowest{best}, Lowest{kLastId}, [](const Lowest& a, const Lowest& b) { return a.id < b.id ? a : b; })
      .id;
}

// Takes an id out of the law: it cannot be drawn from here on. The masses are found anew from what is left, so that
// they have full precision however far below the maximum that is.
SPECDEC_STEP void remove(Team& team, Law& law, int64_t id) {
  if (threadIdx.x == 0) law.memory.removed[law.removed] = static_cast<int32_t>(id);
  __syncthreads();
  const int before = law.removed++;
  for_blocks(team, law, [&](int own, int64_t block, float* buffer) {
    if (!law.source->listed() && id / kBlock != block) return;
    forget_removed(law, law.layout.cached ? before : law.removed, block, buffer);
    const BlockStat stat = stat_of<true>(law, own, block, buffer);
    if (team.lane() == 0) law.memory.stats[own] = stat;
  });
  find_masses(team, law);
}

// Puts back what was taken out, from another read of the row.
SPECDEC_STEP void put_back(Team& team, Law& law) {
  if (law.removed == 0) return;
  law.removed = 0;
  for_blocks<true>(team, law, [&](int own, int64_t block, float* buffer) {
    const BlockStat stat = stat_of<true>(law, own, block, buffer);
    if (team.lane() == 0) law.memory.stats[own] = stat;
  });
  find_masses(team, law);
}

}  // namespace specdec::cuda
