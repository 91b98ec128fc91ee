// SPDX-License-Identifier: Apache-2.0
// The filters, without sorting a row. Each keeps a prefix of the order (larger logit, then lower id), so each is a cut,
// and several are the strictest of theirs.
//
// The usual way: a logit is found below which nothing can be kept, the entries above it are gathered (a second read of
// the row, compares only), and the cuts are found among these. The bound of top-k is the k-th largest of the maxima of
// the sixteenths of blocks: at least k entries reach it. The bound of top-p is the maximum at which the weights of
// these maxima sum up to the mass that is wanted. The bound of min-p is its cut.
//
// The other way, where too many entries would be gathered: a bracket around the cut, which every reading of the row
// makes seven times narrower, until what is left can be gathered, or is one single float.
#include <algorithm>

#include "law.h"

SPECDEC_ISA_BEGIN
namespace {

constexpr int kRoundsAsNumbers = 5;  // of probes that are spaced as numbers: then the floats themselves are counted
constexpr float kNothing = -__builtin_inff();

struct Entry {
  float logit;
  float weight;
  int32_t id;
};

struct Better {
  bool operator()(const Entry& a, const Entry& b) const { return is_better(a.logit, a.id, b.logit, b.id); }
};

// What a filter counts: entries or their weights.
enum class Measure { rank, mass };

double amount(Measure measure, const Entry& entry) { return measure == Measure::rank ? 1.0 : entry.weight; }

// The cut after the last entry that has less than `limit` before it; `before` is what comes before all of them. The
// first entry always stays. No cut if all together do not reach the limit.
Cut cut_among(Entry* entries, int count, Measure measure, double limit, double before) {
  int begin = 0, end = count;
  while (end - begin > 32) {
    const int middle = begin + (end - begin) / 2;
    std::nth_element(entries + begin, entries + middle, entries + end, Better());
    double upper = 0.0;
    for (int i = begin; i < middle; ++i) upper += amount(measure, entries[i]);
    if (before + upper >= limit) {
      end = middle;
    } else {
      before += upper;
      begin = middle;
    }
  }
  std::sort(entries + begin, entries + end, Better());
  for (int i = begin; i < end; ++i) {
    before += amount(measure, entries[i]);
    if (before >= limit) return {entries[i].logit, entries[i].id};
  }
  return no_cut();
}

// Gathers the entries that `keep` keeps, with their weights, in the order of the row; -1 if they are more than kShort.
int gather(const Law& law, const Cut& keep, float highest, Entry* to) {
  const F16 least = broadcast(keep.logit);
  int count = 0;
  alignas(64) float buffer[kBlock];
  for (int64_t b = 0; b < law.source.blocks(); ++b) {
    if (law.block_max[b] < keep.logit || law.block_max[b] == kNothing) continue;
    const Block block = load_block(law.source, b, buffer);
    const float* logits = block.logits;
    const int length = block.count;
    for (int i = 0; i < length; i += kLanes) {
      if (!any(load(logits + i) >= least)) continue;
      for (int j = i; j < i + kLanes && j < length; ++j) {
        if (logits[j] > highest) continue;
        const int64_t id = law.source.id(b * kBlock + j);
        if (!is_kept(keep, logits[j], id)) continue;
        if (count == kShort) return -1;
        to[count++] = {logits[j], 0.0f, (int32_t)id};
      }
    }
  }
  const Weigher weigher(law.settings.temperature);
  for (int i = 0; i < count; i += kLanes) {
    alignas(64) float values[kLanes];
    for (int j = 0; j < kLanes; ++j) values[j] = i + j < count ? to[i + j].logit : kNothing;
    weigher.weigh(values, kLanes, law.max, values);
    for (int j = 0; j < kLanes && i + j < count; ++j) to[i + j].weight = values[j];
  }
  return count;
}

// Between two floats there are this many probes; a reading of the row tells between which of them a cut lies.
constexpr int kProbes = 6;

// Adds up, in one reading, what reaches each of the probes, which are above `first`.
void probe(const Law& law, Measure measure, const float (&probes)[kProbes], double (&amounts)[kProbes]) {
  const Weigher weigher(law.settings.temperature);
  std::fill(amounts, amounts + kProbes, 0.0);
  float least = probes[0];
  for (const float value : probes) least = std::min(least, value);
  alignas(64) float buffer[kBlock], weights[kBlock];
  if (measure == Measure::rank) std::fill(weights, weights + kBlock, 1.0f);
  for (int64_t b = 0; b < law.source.blocks(); ++b) {
    if (law.block_max[b] < least || law.block_max[b] == kNothing) continue;
    const Block block = load_block(law.source, b, buffer);
    if (measure == Measure::mass) weigher.weigh(block.logits, block.count, law.max, weights);
    F16 limits[kProbes], sums[kProbes];
    for (int k = 0; k < kProbes; ++k) {
      limits[k] = broadcast(probes[k]);
      sums[k] = broadcast(0.0f);
    }
    for (int i = 0; i < block.count; i += kLanes) {
      const F16 values = load(block.logits + i), weight = load(weights + i);
#pragma GCC unroll 6
      for (int k = 0; k < kProbes; ++k) sums[k] = sums[k] + keep(values >= limits[k], weight);
    }
    for (int k = 0; k < kProbes; ++k) amounts[k] += sum(sums[k]);
  }
}

// The id of the `rank`-th (from 1) of the kept entries with exactly this logit.
int64_t id_of_tie(const Law& law, const Cut& first, float logit, int64_t rank) {
  const auto up_to = [&](int64_t last) {
    int64_t count = 0;
    alignas(64) float buffer[kBlock];
    for (int64_t b = 0; b < law.source.blocks(); ++b) {
      if (law.block_max[b] < logit) continue;
      const Block block = load_block(law.source, b, buffer);
      const float* logits = block.logits;
      const int length = block.count;
      for (int i = 0; i < length; ++i) {
        if (logits[i] != logit) continue;
        const int64_t id = law.source.id(b * kBlock + i);
        count += id <= last && is_kept(first, logit, id);
        if (!law.source.listed() && count == rank) return id;
      }
    }
    return law.source.listed() ? count : law.source.entries - 1;
  };
  if (!law.source.listed()) return up_to(kLastId);
  int64_t low = -1, high = Source::kLastListedId;  // the count up to `high` suffices, that up to `low` does not
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (up_to(middle) >= rank ? high : low) = middle;
  }
  return high;
}

// Six floats that cut the floats from `low` to `high` into seven parts, ascending: evenly spaced as numbers, or by how
// many floats lie between.
void place_probes(int32_t low, int32_t high, bool as_numbers, float (&probes)[kProbes]) {
  const double from = from_ordered(low), to = from_ordered(high);
  for (int k = 0; k < kProbes; ++k) {
    const double share = (k + 1.0) / (kProbes + 1);
    int32_t key = as_numbers ? ordered((float)(from + (to - from) * share))
                             : (int32_t)(low + (int64_t)(((double)high - low) * share));
    probes[k] = from_ordered(std::clamp(key, std::min(low + 1, high), high));
  }
}

// The cut of one filter over the entries that `first` keeps, by bracketing. `high` is a float that fewer than `limit`
// strictly exceed; the cut is at or above `low`.
Cut cut_by_probes(const Law& law, const Cut& first, Measure measure, double limit, double total, Entry* entries) {
  if (total < limit) return no_cut();
  int32_t low = ordered(first.logit), high = ordered(law.max);
  if (measure == Measure::mass) {
    // All entries of a weight below this have together less mass than the cut leaves.
    const double least = std::max((total - limit) / (2.0 * (double)law.source.entries), 1e-38);
    const double depth = law.settings.temperature * log_double(least);
    low = std::max(low, ordered((float)std::max(law.max + depth, -(double)kLargest)));
  }
  double above = 0.0;      // strictly above `high`
  double reached = total;  // at or above `low`
  for (int round = 0;; ++round) {
    const double weight = weight_of(from_ordered(high), law.max, law.settings.temperature);
    const double each = measure == Measure::rank ? 1.0 : std::max(weight, 1e-30);
    if (round > 0 && (reached - above) / each <= kShort) {
      const int count = gather(law, stricter(first, {from_ordered(low), kLastId}), from_ordered(high), entries);
      if (count >= 0) {
        const Cut cut = cut_among(entries, count, measure, limit, above);
        return cut.logit > -kLargest ? cut : Cut{from_ordered(low), kLastId};  // sums of another order fell short
      }
    }
    if (low == high) break;
    float probes[kProbes];
    double amounts[kProbes];
    place_probes(low, high, round < kRoundsAsNumbers, probes);
    probe(law, measure, probes, amounts);
    // The highest probe that the limit is reached at bounds the cut from below, the next one above it from above.
    int k = kProbes - 1;
    while (k >= 0 && amounts[k] < limit) --k;
    if (k + 1 < kProbes && ordered(probes[k + 1]) - 1 < high) {
      high = ordered(probes[k + 1]) - 1;
      above = amounts[k + 1];
    }
    if (k >= 0) {
      low = ordered(probes[k]);
      reached = amounts[k];
    }
  }
  // Many entries with one and the same logit.
  const float logit = from_ordered(low);
  const double each = measure == Measure::rank ? 1.0 : weight_of(logit, law.max, law.settings.temperature);
  const double wanted = each > 0 ? (limit - above) / each : 1.0;
  int64_t rank = wanted < 1 ? 1 : (int64_t)wanted;
  if ((double)rank < wanted) ++rank;
  return {logit, id_of_tie(law, first, logit, rank)};
}

// A logit that at least k entries reach.
float bound_of_rank(const Law& law, int64_t k) {
  static thread_local std::vector<float> maxima;
  maxima = law.lane_max;
  if (k > (int64_t)maxima.size()) return kNothing;
  std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<float>());
  return maxima[k - 1];
}

// A logit such that the entries that reach it have at least the mass `limit`.
float bound_of_mass(const Law& law, double limit) {
  static thread_local std::vector<float> maxima;
  maxima = law.lane_max;
  std::make_heap(maxima.begin(), maxima.end());
  double mass = 0.0;
  for (auto end = maxima.end(); end != maxima.begin(); --end) {
    const float logit = maxima.front();
    if (logit == kNothing) break;
    mass += weight_of(logit, law.max, law.settings.temperature);
    if (mass >= limit * (1 + 1e-5)) return logit;
    std::pop_heap(maxima.begin(), end);
  }
  return kNothing;
}

class Filters {
 public:
  Filters(Law& law, int threads) : law_(law), threads_(threads), s_(law.settings) {}

  void run(const Source& source) {
    if (s_.top_k >= source.entries) s_.top_k = 0;
    joint_ = s_.order == FilterOrder::joint;
    min_p_first_ = s_.order == FilterOrder::min_p_first;
    // Whether top-p counts the mass of the whole row, and whether all entries can be gathered.
    of_all_ = joint_ || (!has_top_k(s_) && !(min_p_first_ && has_min_p(s_)));
    whole_ = source.entries <= kShort;
    if (has_top_p(s_) && of_all_ && !whole_) {
      scan_law(law_, source, s_.temperature, threads_, true);
    } else {
      scan_maxima(law_, source, threads_, !whole_);
    }
    law_.settings = s_;
    if (law_.dead()) {
      law_.total = 0.0;
      return;
    }
    if (has_min_p(s_)) {
      min_p_cut_ = min_p_cut(law_.max, s_.temperature, s_.min_p, s_.min_p > 1.0f ? best_id(law_) : 0);
    }
    const float bound = whole_ ? -kLargest : lower_bound();
    if (bound > kNothing) count_ = gather(law_, {bound, kLastId}, kLargest, entries_);
    Cut cut = find_cut();
    if (count_ >= 0 && !whole_ && cut.logit < bound) {  // rounding: what is kept goes on below the bound
      count_ = -1;
      cut = find_cut();
    }
    law_.cut = cut;
    if (count_ < 0) count_ = gather(law_, cut, kLargest, entries_);
    if (count_ < 0) return find_masses(law_);
    keep_entries();
  }

 private:
  // A logit that everything reaches that is kept, or that top-p must count; -inf if there is none.
  float lower_bound() const {
    const float by_rank = has_top_k(s_) ? bound_of_rank(law_, s_.top_k) : kNothing;
    const float by_min_p = has_min_p(s_) ? min_p_cut_.logit : kNothing;
    if (!has_top_p(s_)) return std::max(by_rank, by_min_p);
    if (!of_all_) return min_p_first_ ? std::max(by_rank, by_min_p) : by_rank;
    return std::max({by_rank, by_min_p, bound_of_mass(law_, s_.top_p * law_.total)});
  }

  Cut find_cut() {
    const Cut by_rank = has_top_k(s_) ? select(no_cut(), Measure::rank, s_.top_k) : no_cut();
    Cut cut = stricter(by_rank, min_p_cut_);
    if (has_top_p(s_)) {
      const Cut first = joint_ ? no_cut() : min_p_first_ ? cut : by_rank;
      cut = stricter(cut, select(first, Measure::mass, s_.top_p * mass(first)));
    }
    return cut;
  }

  Cut select(const Cut& first, Measure measure, double limit) {
    if (count_ < 0) {
      const double total = measure == Measure::mass ? law_.total : (double)INT64_MAX;
      return cut_by_probes(law_, first, measure, limit, total, scratch_);
    }
    int count = 0;
    for (int i = 0; i < count_; ++i) {
      if (is_kept(first, entries_[i].logit, entries_[i].id)) scratch_[count++] = entries_[i];
    }
    return cut_among(scratch_, count, measure, limit, 0.0);
  }

  double mass(const Cut& first) {
    if (of_all_ && !whole_) return law_.total;
    if (count_ < 0) {
      law_.cut = first;
      find_masses(law_);
      law_.cut = no_cut();
      return law_.total;
    }
    double total = 0.0;
    for (int i = 0; i < count_; ++i) {
      if (is_kept(first, entries_[i].logit, entries_[i].id)) total += entries_[i].weight;
    }
    return total;
  }

  // The short form.
  void keep_entries() {
    if (law_.source.listed()) {
      std::sort(entries_, entries_ + count_, [](const Entry& a, const Entry& b) { return a.id < b.id; });
    }
    law_.is_short = true;
    law_.count = 0;
    law_.ids.resize((size_t)count_);
    law_.logits.resize((size_t)count_);
    law_.total = 0.0;
    for (int i = 0; i < count_; ++i) {
      const Entry& entry = entries_[i];
      if (!is_kept(law_.cut, entry.logit, entry.id)) continue;
      law_.ids[law_.count] = entry.id;
      law_.logits[law_.count] = entry.logit;
      ++law_.count;
      law_.total += entry.weight;
    }
  }

  Law& law_;
  int threads_;
  Settings s_;
  bool joint_ = false, min_p_first_ = false, of_all_ = false, whole_ = false;
  Cut min_p_cut_ = no_cut();
  int count_ = -1;  // gathered entries; -1: too many
  Entry entries_[kShort], scratch_[kShort];
};

}  // namespace

void find_filtered_law(Law& law, const Source& source, int threads) { Filters(law, threads).run(source); }

SPECDEC_ISA_END
