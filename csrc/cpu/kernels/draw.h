// SPDX-License-Identifier: Apache-2.0
// Draws from a law by exponential races (csrc/common/race.h).
//
// A race over thousands of ids is run in single precision first; the ids whose score comes within 1e-4 of the best are
// run again in double precision, and these scores decide. So the estimate may be off in its last digits, the winner is
// that of double precision.
#pragma once

#include "law.h"

SPECDEC_ISA_BEGIN

// The smallest score so far; equal scores go to the lower id.
struct Winner {
  double score = __builtin_inf();
  int64_t id = -1;

  void offer(double other, int64_t candidate) {
    if (id < 0 || other < score || (other == score && candidate < id)) {
      score = other;
      id = candidate;
    }
  }
};

// The race of the ids `first` to `first + count - 1`, of which `first` is a multiple of 64, with the estimated weights
// `weights` (kBlock elements) and the exact ones `exact(i)`; -1 if all are zero.
template <class Exact>
int64_t race_block(const Place& place, int64_t first, float* weights, int count, const Exact& exact) {
  alignas(64) float scores[kBlock];
  const int padded = (count + kNoiseIds - 1) / kNoiseIds * kNoiseIds;
  for (int i = count; i < padded; ++i) weights[i] = 0.0f;
  F16 best = broadcast(__builtin_inff());
  for (int i = 0; i < padded; i += kNoiseIds) {
    alignas(64) uint32_t noise[kNoiseIds];
    noise_of_ids(place, first + i, noise);
    for (int j = 0; j < kNoiseIds; j += kLanes) {
      const F16 score = exponential_lanes(load_as<U16>(noise + j)) / load(weights + i + j);
      best = min(score, best);
      store(scores + i + j, score);
    }
  }
  // The smallest of the lanes, with room for what the estimates are off.
  const float limit = min_lane(best) * 1.0001f;
  Winner winner;
  if (limit == __builtin_inff()) return -1;
  for (int i = 0; i < padded; i += kLanes) {
    if (!any(load(scores + i) <= broadcast(limit))) continue;
    for (int j = i; j < i + kLanes; ++j) {
      if (!(scores[j] <= limit)) continue;
      const double weight = exact(j);
      if (weight > 0) winner.offer(exponential_of_id(place, first + j) / weight, first + j);
    }
  }
  return winner.id;
}

// The block that wins the race of the blocks; -1 if all masses are zero.
int64_t race_of_blocks(const Place& place, const std::vector<double>& masses);

// The two-level race of ids in ascending order with the weights `weights`; the index of the winner, -1 if all are zero.
int race_list(const Place& place, const int32_t* ids, const double* weights, int count);

// One id of a law at a temperature above 0, by the two-level race; -1 if nothing is left of it.
int64_t draw(const Law& law, const Place& place);

// The first `num` (at most kMaxDraws) ids to arrive in one race of all ids of a law; how many there are.
int arrivals(const Law& law, const Place& place, int num, int64_t* to);

SPECDEC_ISA_END
