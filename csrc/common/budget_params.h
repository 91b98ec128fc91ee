// SPDX-License-Identifier: Apache-2.0
// draft.budget: what it is given and writes, and its arithmetic, which has the same bits everywhere: gains are
// integers, so that sums are exact in any order, and only the last division is one of floats.
#pragma once

#include <cstdint>

#include "elementary.h"
#include "tree_order.h"
#include "views.h"

namespace specdec {

inline constexpr int kGainBits = 40;                     // of exp(score), behind the point
inline constexpr int64_t kMostBudgetRequests = 1 << 22;  // with as many drafts sums stay below 2^63
inline constexpr int64_t kMostBudgetCosts = 1 << 22;
inline constexpr int64_t kMostBudgetScores = INT32_MAX;  // places are the lower halves of keys
inline constexpr float kLeastGain = -30.0f;              // of a score: a lower one gains nothing

struct BudgetParams {
  const float* scores = nullptr;  // [batch, columns]
  int64_t row_stride = 0;
  int64_t column_stride = 1;
  int64_t batch = 0;
  int64_t columns = 0;
  Strided<const float> costs;  // [steps], of 0, 1, ... drafts
  int64_t steps = 1;
  Strided<const bool> active;  // [batch] or null
  bool sampled = false;
  int32_t* counts = nullptr;  // [batch]

  SPECDEC_HD int64_t slots() const { return batch * columns; }
  SPECDEC_HD int64_t most() const { return slots() < steps - 1 ? slots() : steps - 1; }
};

// The order of candidates: score descending, then request, then column; `index` is request * columns + column. What is
// no candidate comes last, and has a key of its own as well.
SPECDEC_SHARED uint64_t budget_key(float score, int64_t index) {
  const float safe = safe_score(score);
  const uint32_t high = safe == kAbsent ? UINT32_MAX : score_key(safe < 0.0f ? safe : 0.0f);
  return static_cast<uint64_t>(high) << 32 | static_cast<uint64_t>(index);
}
SPECDEC_SHARED bool is_candidate(uint64_t key) { return key >> 32 != UINT32_MAX; }
SPECDEC_SHARED int64_t index_of_budget_key(uint64_t key) { return static_cast<int64_t>(key & 0xffffffffu); }

SPECDEC_SHARED bool is_at_work(const BudgetParams& p, int64_t b) { return !p.active || p.active[b]; }

SPECDEC_SHARED uint64_t budget_key_at(const BudgetParams& p, int64_t b, int64_t column) {
  const float score = is_at_work(p, b) ? p.scores[b * p.row_stride + column * p.column_stride] : kAbsent;
  return budget_key(score, b * p.columns + column);
}

// What a candidate adds to the expected tokens of a step, in units of 2^-kGainBits.
SPECDEC_SHARED int64_t gain_of(uint64_t key) {
  if (!is_candidate(key)) return 0;
  const float score = score_of_key(key);
  if (score < kLeastGain) return 0;
  return static_cast<int64_t>(exp_double(static_cast<double>(score)) * (int64_t{1} << kGainBits) + 0.5);
}

// Expected tokens per time of a step with so many drafts; below that of every other step if its cost is none.
SPECDEC_SHARED double value_of(const BudgetParams& p, int64_t drafts, int64_t tokens) {
  const float cost = p.costs[drafts];
  return cost > 0.0f && cost < -kAbsent ? static_cast<double>(tokens) / static_cast<double>(cost) : -1.0;
}

}  // namespace specdec
