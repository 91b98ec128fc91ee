// SPDX-License-Identifier: Apache-2.0
// Several ids of a row at once: the first to arrive in one race of all ids, or the best. Those that can be among them
// are selected by estimates, gathered in the team's first block, and put in order by exact comparison.
#pragma once

#include "cut.cuh"
#include "race.cuh"

namespace specdec::cuda {

// Some more than can be asked for: estimates are blurred at the edge.
inline constexpr int kMaxGathered = 2 * kMaxDraws;

struct Gathered {
  double score;  // smaller comes first, then the lower id
  int64_t id;
};

struct GatherStorage {
  Gathered item[kMaxGathered];
  int count;  // may be larger than what there is room for
};

// All threads empty the list, fill it by `fill(add)` with add(score, id), and put its first `num` in order into
// to[0..num), which any thread of the team may then read in its first block. Returns how many there are.
template <class Fill>
__device__ inline int gather_in_order(Team& team, GatherStorage& shared, int num, int64_t* to, const Fill& fill) {
  if (team.leads()) shared.count = 0;
  team.sync();
  GatherStorage* list = team.first(&shared);
  fill([&](double score, int64_t id) {
    const int at = atomicAdd(&list->count, 1);
    if (at < kMaxGathered) list->item[at] = {score, id};
  });
  team.sync();
  const int count = list->count < kMaxGathered ? list->count : kMaxGathered;
  if (team.rank() == 0) {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      const Gathered mine = shared.item[i];
      int rank = 0;
      for (int j = 0; j < count; ++j) {
        const Gathered& other = shared.item[j];
        rank += other.score < mine.score || (other.score == mine.score && other.id < mine.id);
      }
      if (rank < num) to[rank] = mine.id;
    }
  }
  team.sync();
  return count < num ? count : num;
}

// The first `num` (at most kMaxDraws) ids to arrive in one race of all ids of a law.
SPECDEC_STEP int arrivals(Team& team, BinStorage& bins, GatherStorage& shared, const Law& law, const Place& place,
                          int num, int64_t* to) {
  const Source& source = *law.source;
  const Weigher weigher(law.settings.temperature);
  // E / w has the order of log2 E - log2 w, in which weights of any size can be compared. Calls visit(that, id, logit,
  // word) for the entries with a weight.
  const auto entries = [&](const auto& visit) {
    for_blocks(team, law, [&](int own, int64_t block, float* buffer) {
      if (law.memory.stats[own].max < law.cut.logit) return;
      const int count = source.length(block);
      for (int quad = team.lane(); 4 * quad < count; quad += kWarp) {
        PhiloxWords words;
        if (!source.listed()) words = words_at(place, static_cast<uint32_t>(block * (kBlock / 4) + quad));
        for (int c = 0; c < 4 && 4 * quad + c < count; ++c) {
          const float logit = buffer[4 * quad + c];
          if (logit == -INFINITY || logit < law.cut.logit) continue;
          const int64_t id = source.id(block * kBlock + 4 * quad + c);
          if (id < 0 || !is_kept(law.cut, logit, id)) continue;
          const float weight = weigher.log2_of(logit, law.max);
          if (!(weight > -1080.0f)) continue;  // 0 in double precision as well
          const uint32_t word = source.listed() ? word_of(place, id) : words.word[c];
          visit(log2f(estimate(word)) - weight, id, logit, word);
        }
      }
    });
  };
  struct Range {
    float least, most;
  };
  Range mine{INFINITY, -INFINITY};
  entries([&](float score, int64_t, float, uint32_t) {
    mine.least = fminf(mine.least, score);
    mine.most = fmaxf(mine.most, score);
  });
  const Range range = team.reduce(mine, Range{INFINITY, -INFINITY}, [](const Range& a, const Range& b) {
    return Range{fminf(a.least, b.least), fmaxf(a.most, b.most)};
  });
  if (!(range.least <= range.most)) return 0;
  const Chosen chosen = select_value(
      team, bins, Keys{}, -range.most, -range.least, static_cast<Amount>(num),
      [&](const auto& add) { entries([&](float score, int64_t, float, uint32_t) { add(-score, 1ull); }); });
  // Room for what the estimates are off: some units in the last place of log2 w and of log2 E.
  float last = chosen.found ? -Keys{}.value(chosen.key) : range.most;
  last += 2e-3f + 2e-6f * fabsf(last);
  return gather_in_order(team, shared, num, to, [&](const auto& add) {
    entries([&](float score, int64_t id, float logit, uint32_t word) {
      if (!(score <= last)) return;
      const double weight = law.weight(logit, id);
      if (weight > 0.0) add(exponential(word) / weight, id);
    });
  });
}

// The `num` best ids of a scanned row with a positive weight under its cut, in order; of all of them at temperature 0.
SPECDEC_STEP int best_ids(Team& team, BinStorage& bins, GatherStorage& shared, Law& law, int num, int64_t* to) {
  const bool greedy = is_greedy(law.settings);
  const Cut among = law.cut;
  const Cut best = stricter(among, Filters(team, bins, law).best(among, num));
  const int count = gather_in_order(team, shared, num, to, [&](const auto& add) {
    for_blocks(team, law, [&](int own, int64_t block, float* buffer) {
      if (law.memory.stats[own].max < best.logit) return;
      const int length = law.source->length(block);
      for (int i = team.lane(); i < length; i += kWarp) {
        const float logit = buffer[i];
        if (logit == -INFINITY) continue;
        const int64_t id = law.source->id(block * kBlock + i);
        if (id < 0 || !is_kept(best, logit, id)) continue;
        if (greedy || law.weight(logit, id) > 0.0) add(-static_cast<double>(logit), id);
      }
    });
  });
  return count;
}

}  // namespace specdec::cuda
