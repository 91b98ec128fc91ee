// SPDX-License-Identifier: Apache-2.0
// The filters. Each keeps a prefix of the order (larger logit, then lower id), so each is a cut, and several are the
// strictest of theirs. A cut is found by selection among the entries that can hold it: top-k starts from a logit that
// at least k entries reach, top-p passes over entries so light that all of them together cannot reach into it.
//
// Where the row is kept in shared memory, all this reads no global memory.
#pragma once

#include "law.cuh"
#include "select.cuh"

namespace specdec::cuda {

// What a filter counts: entries, or their weights.
enum class Measure { rank, mass };

// A logit that at least k entries reach; -kLargest if none was found in a hurry. In each block of the team the maxima
// of the lanes are ranked; the best of their k-th ones is taken.
SPECDEC_STEP float bound_of_rank(Team& team, const Law& law, int64_t k) {
  __syncthreads();  // other warps' maxima
  int64_t blocks = law.source->blocks() - team.rank();
  blocks = blocks <= 0 ? 0 : (blocks + team.size() - 1) / team.size();
  const int count = static_cast<int>(blocks) * kWarp;
  float bound = -INFINITY;
  // Ranking is quadratic: long rows are left to the selection.
  if (k <= count && count <= 1024) {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      const float mine = law.memory.lane_max[i];
      int above = 0, reach = 0;
      for (int j = 0; j < count; ++j) {
        above += law.memory.lane_max[j] > mine;
        reach += law.memory.lane_max[j] >= mine;
      }
      if (above < k && k <= reach) bound = fmaxf(bound, mine);
    }
  }
  bound = team.reduce(bound, -INFINITY, Largest());
  if (bound == -INFINITY && k <= law.source->blocks() * kWarp) {  // every lane's maximum reaches the smallest of them
    float smallest = INFINITY;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      smallest = fminf(smallest, law.memory.lane_max[i]);
    }
    bound = team.reduce(smallest, INFINITY, Smallest());
  }
  return bound > -kLargest ? bound : -kLargest;
}

class Filters {
 public:
  __device__ Filters(Team& team, BinStorage& bins, Law& law) : team_(team), bins_(bins), law_(law) {}

  // The processed law of `law.source` under `law.settings`, which have a temperature above 0.
  __device__ void run() {
    Settings& s = law_.settings;
    if (s.top_k >= law_.source->entries) s.top_k = 0;
    const bool joint = s.order == FilterOrder::joint, min_p_first = s.order == FilterOrder::min_p_first;
    // Whether top-p counts the mass of the whole row.
    const bool of_all = joint || (!has_top_k(s) && !(min_p_first && has_min_p(s)));
    if (!has_filter(s) || (has_top_p(s) && of_all)) {
      scan<true>(team_, law_);
    } else {
      scan<false>(team_, law_);
    }
    if (law_.dead() || !has_filter(s)) return;
    const double all = law_.total;
    unit_ = unit_of_mass(law_.source->entries);
    set_keys();
    Cut by_min_p = no_cut(), by_rank = no_cut();
    if (has_min_p(s)) {
      const int64_t best = s.min_p > 1.0f ? best_id(team_, law_) : 0;
      by_min_p = min_p_cut(law_.max, s.temperature, s.min_p, best);
    }
    if (has_top_k(s)) {
      const float least = bound_of_rank(team_, law_, s.top_k);
      by_rank = find(no_cut(), Measure::rank, static_cast<Amount>(s.top_k), least);
    }
    Cut cut = stricter(by_rank, by_min_p);
    if (has_top_p(s)) {
      const Cut first = joint ? no_cut() : min_p_first ? cut : by_rank;
      double total = all;
      if (!of_all) {
        law_.cut = first;
        weigh_again(team_, law_);
        total = law_.total;
        law_.cut = no_cut();
      }
      cut = stricter(cut, by_mass(first, total));
    }
    law_.cut = cut;
    weigh_again(team_, law_);
  }

  // The cut after the `num` best entries of a scanned row, among those that `first` keeps.
  __device__ Cut best(const Cut& first, int num) {
    set_keys();
    float least = first.logit;
    if (law_.is_open()) least = bound_of_rank(team_, law_, num);
    return find(first, Measure::rank, static_cast<Amount>(num), least);
  }

 private:
  __device__ void set_keys() {
    const FloatType type = law_.source->type;
    keys_.drop = law_.max == kLargest ? 0 : type == FloatType::bfloat16 ? 16 : type == FloatType::float16 ? 13 : 0;
  }

  __device__ Cut by_mass(const Cut& first, double total) {
    const double wanted = law_.settings.top_p * total;
    // All entries of a weight below this have together less mass than the cut leaves.
    double least = (total - wanted) / (2.0 * static_cast<double>(law_.source->entries));
    least = least > 1e-38 ? least : 1e-38;
    double logit = law_.max + law_.settings.temperature * log_double(least);
    logit = logit > -static_cast<double>(kLargest) ? logit : -static_cast<double>(kLargest);
    float from = static_cast<float>(logit);
    from = first.logit > from ? first.logit : from;
    from = from < law_.max ? from : law_.max;
    const double limit = wanted * unit_;
    const Cut cut = find(first, Measure::mass, limit > 1.0 ? static_cast<Amount>(limit) : 1ull, from);
    // Sums of another order fell short of what the total had promised.
    return cut.logit > -kLargest || !(from > first.logit) ? cut : Cut{from, kLastId};
  }

  // The cut after the last of the entries kept by `first` and at or above `least` that has less than `limit` before it.
  __device__ __noinline__ Cut find(const Cut& first, Measure measure, Amount limit, float least) {
    const Law& law = law_;
    const Weigher weigher(law.settings.temperature);
    const float unit = static_cast<float>(unit_);
    const auto visit = [&](const auto& add) {
      for_blocks(team_, law, [&](int own, int64_t block, float* buffer) {
        if (law.memory.stats[own].max < least) return;
        const int count = law.source->length(block);
        for (int i = team_.lane(); i < count; i += kWarp) {
          const float logit = buffer[i];
          if (!(logit >= least) || !is_kept(first, logit, law.source->id(block * kBlock + i))) continue;
          add(logit, measure == Measure::rank ? 1ull : static_cast<Amount>(weigher(logit, law.max) * unit));
        }
      });
    };
    const Chosen chosen = select_value(team_, bins_, keys_, least, law.max, limit, visit);
    if (!chosen.found) return no_cut();
    const float logit = keys_.value(chosen.key);
    // So many of the entries with exactly this logit stay.
    const Amount each = measure == Measure::rank ? 1ull : static_cast<Amount>(weigher(logit, law.max) * unit);
    const Amount left = limit - chosen.above;
    const Amount rank = each > 0 ? (left + each - 1) / each : 1ull;
    return {logit, id_of_tie(first, logit, rank)};
  }

  // The id of the `rank`-th (from 1) of the kept entries with exactly this logit; kLastId if it is the last one.
  __device__ __noinline__ int64_t id_of_tie(const Cut& first, float logit, Amount rank) {
    const Law& law = law_;
    struct Count {
      Amount ties;
    };
    Amount mine = 0;
    const auto visit = [&](const auto& each) {
      for_blocks(team_, law, [&](int own, int64_t block, float* buffer) {
        if (law.memory.stats[own].max < logit) return;
        const int count = law.source->length(block);
        for (int i = team_.lane(); i < count; i += kWarp) {
          if (buffer[i] != logit) continue;
          const int64_t id = law.source->id(block * kBlock + i);
          if (is_kept(first, logit, id)) each(id);
        }
      });
    };
    visit([&](int64_t) { ++mine; });
    const Amount ties =
        team_.reduce(Count{mine}, Count{0}, [](const Count& a, const Count& b) { return Count{a.ties + b.ties}; }).ties;
    if (rank >= ties) return kLastId;
    const int64_t last = law.source->listed() ? Source::kLastListedId : law.source->entries - 1;
    const Chosen chosen = select(team_, bins_, 0, last, rank, [&](const auto& add) {
      visit([&](int64_t id) { add(last - id, 1ull); });  // lower ids are better
    });
    return last - chosen.key;
  }

  Team& team_;
  BinStorage& bins_;
  Law& law_;
  Keys keys_;
  double unit_ = 1.0;
};

SPECDEC_STEP void find_law(Team& team, BinStorage& bins, Law& law) { Filters(team, bins, law).run(); }

}  // namespace specdec::cuda
