// SPDX-License-Identifier: Apache-2.0
// The processed law of one row, without a buffer of the size of the vocabulary. It has one of two forms:
//
// * dense: a cut in the order (larger logit, then lower id), and the mass of every block of 4,096 ids; the weights of a
//   block are computed again when they are needed;
// * short: the kept ids themselves, ascending, if there are at most kShort of them.
//
// Weights are exp((l - max) / T): the best id has 1. In single precision they feed sums (blocks in a fixed order, then
// over blocks in double precision); a weight that a decision hangs on is computed in double precision.
#pragma once

#include <vector>

#include "lanes_math.h"
#include "row.h"

SPECDEC_ISA_BEGIN

inline constexpr int kShort = 4096;

// Weights of sixteen logits at a time, relative to `reference` (their maximum, or a larger logit).
class Weigher {
 public:
  explicit Weigher(float t) : temperature_(t), scale_((float)(kLog2E / t)) {}

  // Whether single precision would overflow on the way: then `log2_exactly` is to be used.
  bool extreme() const { return !(temperature_ >= 1e-30f && temperature_ <= 1e30f); }

  // log2 of the weights; -inf for -inf.
  __attribute__((always_inline)) F16 log2_of(const F16& logits, const F16& reference) const {
    return (logits - reference) * broadcast(scale_);
  }
  F16 log2_exactly(const F16& logits, float reference) const;

  // The weights of `count` logits, and of what follows up to a multiple of sixteen.
  void weigh(const float* logits, int count, float reference, float* to) const;

  // Their sum, in a fixed order; meanwhile the cache lines from `ahead` on are asked for.
  float sum(const float* logits, int count, float reference, const char* ahead, int ahead_bytes) const;

 private:
  float temperature_;
  float scale_;  // log2(e) / T
};

struct Law {
  Source source;
  Settings settings;
  bool nan = false;
  float max = 0.0f;  // -inf: nothing can be emitted
  Cut cut = no_cut();
  double total = 0.0;  // of the kept weights
  bool is_short = false;

  // Short: kept entries, by id ascending.
  int count = 0;
  std::vector<int32_t> ids;
  std::vector<float> logits;

  // Dense: per block of ids (of a listed source: blocks of the ids, not of the entries).
  std::vector<double> block_mass;
  std::vector<int64_t> removed;  // ids that are taken out, see `remove`

  // Of every block of entries, without what was removed.
  std::vector<float> block_max;
  std::vector<char> block_nan;  // 0 or 1
  std::vector<float> lane_max;  // sixteen per block

  bool dead() const { return max == -__builtin_inff(); }
  // Weight relative to the maximum, in double precision; 0 if the id was filtered or does not exist.
  double weight(float logit, int64_t id) const {
    return is_kept(cut, logit, id) ? weight_of(logit, max, settings.temperature) : 0.0;
  }
  // The same of an id of a source that is not listed, and its probability.
  double weight_at(int64_t id) const {
    return dead() || id < 0 || id >= source.entries ? 0.0 : weight(logit_of(source, id), id);
  }
  double probability(int64_t id) const { return weight_at(id) / total; }
};

// The sum of weights in a fixed order.
float sum_block(const float* weights, int count);

// Maxima only: `nan`, `max`, `block_max`, and `lane_max` if it is wanted.
void scan_maxima(Law& law, const Source& source, int threads, bool lanes = false);

// The same, and `total` and `block_mass` of the unfiltered law at a temperature above 0.
void scan_law(Law& law, const Source& source, float temperature, int threads, bool lanes = false);

// The processed law at a temperature above 0.
void find_law(Law& law, const Source& source, const Settings& settings, int threads);

// The kept weights of a block of the law's source, relative to `reference`, with what was removed at 0.
void weigh_block(const Law& law, int64_t index, const Block& block, float reference, float* weights);

// `block_mass` and `total` of the dense form, for the law's cut and without what was removed.
void find_masses(Law& law);

// The largest kept logit of a block without some ids; -inf if nothing is left.
float largest_without(const Law& law, int64_t index, const Block& block, const std::vector<int64_t>& ids);

// The mass of one block of a source that is not listed without some ids, relative to the law's maximum. It is found
// from the largest logit that is left, so that it has full precision however far below the maximum that is.
double mass_without(const Law& law, int64_t index, const std::vector<int64_t>& ids);

// Takes an id out of the law: it cannot be drawn from here on. `total` is not adjusted.
void remove(Law& law, int64_t id);

// The law's weights in double precision of the short form, what was removed at 0.
void exact_weights(const Law& law, double* to);

// The entropy of a law that is not dead, in nats.
double entropy(const Law& law, int threads);

// How many ids of a scanned row come before one that has a logit in it, up to `most`.
int64_t rank_of(const Law& law, int64_t id, int64_t most);

// The best id of a scanned row; -1 at a dead end.
int64_t best_id(const Law& law);

// The `num` best ids of a scanned row with a positive weight under its cut, in order; of all of them at temperature 0.
// Returns how many there are.
int best_ids(const Law& law, int num, int64_t* to);

// Whether an entry comes before another: larger logit, then lower id.
static inline bool is_better(float logit, int64_t id, float other_logit, int64_t other_id) {
  return logit > other_logit || (logit == other_logit && id < other_id);
}

// cut.cpp: the law under the filters of `law.settings`.
void find_filtered_law(Law& law, const Source& source, int threads);

SPECDEC_ISA_END
