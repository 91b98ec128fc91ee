// SPDX-License-Identifier: Apache-2.0
// Draws from a law by the two-level exponential race (common/race.h): every warp races the blocks that it owns, then
// the block of the team that owns the winner races its ids with all its threads.
//
// Scores are estimated in single precision; those that come within 1e-4 of the best (and within what the estimate of
// their weight may be off) are computed in double precision, and these decide. So the winner is that of double
// precision, whoever looked at which ids.
#pragma once

#include "law.cuh"
#include "select.cuh"

namespace specdec::cuda {

inline constexpr float kNearBest = 1.0001f;

// E(r) in single precision, with full relative precision at both ends.
__device__ __forceinline__ float estimate(uint32_t r) {
  if (r < 0x80000000u) return -log1pf(-(static_cast<float>(r) + 0.5f) * 0x1p-32f);
  return -logf((static_cast<float>(~r) + 0.5f) * 0x1p-32f);
}

__device__ __forceinline__ uint32_t word_of(const Place& place, int64_t id) {
  return words_at(place, static_cast<uint32_t>(id / 4)).word[id % 4];
}

// The best of what one thread has seen.
struct Runner {
  Winner winner = nobody();
  float best = INFINITY;

  // `exact()` gives the weight in double precision.
  template <class Exact>
  __device__ __forceinline__ void offer(uint32_t word, float weight, int64_t id, const Exact& exact) {
    if (!(weight > 0.0f)) return;
    const float score = estimate(word) / weight;
    if (!(score <= best * kNearBest)) return;
    const double precise = exact();
    if (!(precise > 0.0)) return;
    best = fminf(best, score);
    winner.offer(exponential(word) / precise, id);
  }
};

// The block that wins a race in which the owner of a block knows its mass; for all threads.
template <class Mass>
__device__ inline int64_t race_of_blocks(Team& team, const Place& place, int64_t blocks, const Mass& mass) {
  Winner best = nobody();
  for (int own = team.warp() + team.lane() * team.warps();; own += kWarp * team.warps()) {
    const int64_t block = static_cast<int64_t>(own) * team.size() + team.rank();
    if (block >= blocks) break;
    const double m = mass(own);
    if (m > 0.0) best.offer(block_exponential(place, block) / m, block);
  }
  return team.reduce(best, nobody(), Sooner()).id;
}

// A block that all threads of the team's block that owns it can read. They call it together.
SPECDEC_STEP const float* open_block(const Team& team, const Law& law, int64_t block) {
  const int own = static_cast<int>(block / team.size());
  float* buffer = law.memory.buffers + static_cast<int64_t>(law.layout.cached ? own : 0) * kBlock;
  if (!law.layout.cached) {
    __syncthreads();
    if (team.warp() == 0) {
      load_block(*law.source, block, buffer);
      forget_removed(law, 0, block, buffer);
    }
  }
  __syncthreads();
  return buffer;
}

// A weight in single precision, and how far it may be off.
struct Estimated {
  float weight;
  float slack;
};

// The race of the ids of one block with weights estimate_of(i) and exact_of(i), i from its first id; for all threads.
template <class Estimate, class Exact>
__device__ inline int64_t race_of_ids(Team& team, const Place& place, int64_t block, int count, bool owner,
                                      const Estimate& estimate_of, const Exact& exact_of) {
  // Calls visit(word, weight, i) for the ids of this thread.
  const auto ids = [&](const auto& visit) {
    for (int quad = static_cast<int>(threadIdx.x); 4 * quad < count; quad += static_cast<int>(blockDim.x)) {
      const PhiloxWords words = words_at(place, static_cast<uint32_t>(block * (kBlock / 4) + quad));
      for (int c = 0; c < 4 && 4 * quad + c < count; ++c) {
        const Estimated weight = estimate_of(4 * quad + c);
        if (weight.weight + weight.slack > 0.0f) visit(words.word[c], weight, 4 * quad + c);
      }
    }
  };
  // No score can be better than `first`, and some score is at least as good as `sure`.
  float first = INFINITY, sure = INFINITY;
  if (owner) {
    ids([&](uint32_t word, const Estimated& weight, int) {
      // E(r) is at least (r + 0.5) 2^-32: most ids are too late without a logarithm.
      const float most = weight.weight + weight.slack;
      if ((static_cast<float>(word) + 0.5f) * 0x1p-32f > sure * kNearBest * most) return;
      const float time = estimate(word);
      first = fminf(first, time / most);
      if (weight.weight > weight.slack) sure = fminf(sure, time / (weight.weight - weight.slack));
    });
  }
  const float limit = team.reduce(sure, INFINITY, Smallest()) * kNearBest;
  Winner winner = nobody();
  if (owner && first <= limit) {
    ids([&](uint32_t word, const Estimated& weight, int i) {
      if (!(estimate(word) / (weight.weight + weight.slack) <= limit)) return;
      const double precise = exact_of(i);
      if (precise > 0.0) winner.offer(exponential(word) / precise, block * kBlock + i);
    });
  }
  return team.reduce(winner, nobody(), Sooner()).id;
}

// A race of a listed source, whose ids lie anywhere in the row. The masses of the blocks of ids are added in fixed
// point, 256 blocks at a time.
SPECDEC_STEP int64_t draw_listed(Team& team, BinStorage& bins, const Law& law, const Place& place) {
  struct Next {
    int64_t block;
    float max;
    int32_t pad;
  };
  const Source& source = *law.source;
  const Weigher weigher(law.settings.temperature);
  // Calls visit(logit, id) for the entries that can be drawn.
  const auto entries = [&](const auto& visit) {
    for_blocks(team, law, [&](int own, int64_t block, float* buffer) {
      if (law.memory.stats[own].max < law.cut.logit) return;
      const int count = source.length(block);
      for (int i = team.lane(); i < count; i += kWarp) {
        const float logit = buffer[i];
        if (logit < law.cut.logit) continue;
        const int64_t id = source.id(block * kBlock + i);
        if (id >= 0 && is_kept(law.cut, logit, id)) visit(logit, id);
      }
    });
  };
  // Relative to the largest logit that is left.
  Winner best = nobody();
  float reference = -INFINITY;
  for (int64_t from = 0;;) {
    Next mine{kLastId, -INFINITY, 0};
    entries([&](float logit, int64_t id) {
      mine.max = fmaxf(mine.max, logit);
      if (id / kBlock >= from && id / kBlock < mine.block) mine.block = id / kBlock;
    });
    const Next next = team.reduce(mine, Next{kLastId, -INFINITY, 0}, [](const Next& a, const Next& b) {
      return Next{a.block < b.block ? a.block : b.block, fmaxf(a.max, b.max), 0};
    });
    reference = next.max;
    if (next.block == kLastId) break;
    for (int b = static_cast<int>(threadIdx.x); b < kBins; b += static_cast<int>(blockDim.x)) bins.bin[b] = 0;
    __syncthreads();
    const double unit = unit_of_mass(source.entries);
    entries([&](float logit, int64_t id) {
      const int64_t at = id / kBlock - next.block;
      if (at < 0 || at >= kBins) return;
      add_to(bins.bin[at], static_cast<Amount>(weigher(logit, reference) * static_cast<float>(unit)));
    });
    team.sync();
    for (int b = team.thread(); b < kBins; b += team.threads()) {
      Amount sum = 0;
      for (int rank = 0; rank < team.size(); ++rank) sum += team.of(bins.bin, rank)[b];
      if (sum > 0) best.offer(block_exponential(place, next.block + b) / static_cast<double>(sum), next.block + b);
    }
    team.sync();
    from = next.block + kBins;
  }
  const int64_t winner = team.reduce(best, nobody(), Sooner()).id;
  if (winner < 0) return -1;
  Runner runner;
  entries([&](float logit, int64_t id) {
    if (id / kBlock != winner) return;
    runner.offer(word_of(place, id), weigher(logit, reference), id, [&] { return law.weight(logit, id); });
  });
  return team.reduce(runner.winner, nobody(), Sooner()).id;
}

// One id of a law at a temperature above 0; -1 if nothing is left of it. For all threads.
SPECDEC_STEP int64_t draw(Team& team, BinStorage& bins, const Law& law, const Place& place) {
  if (law.source->listed()) return draw_listed(team, bins, law, place);
  const int64_t block =
      race_of_blocks(team, place, law.source->blocks(), [&](int own) { return mass_of(law, law.memory.stats[own]); });
  if (block < 0) return -1;
  const bool owner = block % team.size() == team.rank();
  const Weigher weigher(law.settings.temperature);
  const float* logits = nullptr;
  float highest = 0.0f;
  if (owner) {
    logits = open_block(team, law, block);
    highest = law.memory.stats[block / team.size()].max;
  }
  return race_of_ids(
      team, place, block, law.source->length(block), owner,
      [&](int i) {
        const bool kept = is_kept(law.cut, logits[i], block * kBlock + i);
        return Estimated{kept ? weigher(logits[i], highest) : 0.0f, 0.0f};
      },
      [&](int i) { return law.weight(logits[i], block * kBlock + i); });
}

}  // namespace specdec::cuda
