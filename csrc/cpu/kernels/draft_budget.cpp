// SPDX-License-Identifier: Apache-2.0
// draft.budget: the keys of all candidates, of which those that may be admitted are sorted; then one step after the
// other. By one thread: all of it is a few microseconds.
#include <algorithm>
#include <vector>

#include "draft.h"

SPECDEC_ISA_BEGIN

namespace {

struct Sooner {
  bool operator()(uint64_t a, uint64_t b) const { return a < b; }
};

// How many of the keys, which are in order, to admit.
int64_t choose(const BudgetParams& p, const std::vector<uint64_t>& keys, int64_t most, int64_t requests) {
  int64_t tokens = requests << kGainBits, best = 0;
  double value = value_of(p, 0, tokens), largest = value;
  for (int64_t n = 1; n <= most; ++n) {
    tokens += gain_of(keys[static_cast<size_t>(n - 1)]);
    const double next = value_of(p, n, tokens);
    if (p.sampled && !(next > value)) break;
    if (next > largest) {
      largest = next;
      best = n;
    }
    value = next;
  }
  return best;
}

}  // namespace

void draft_budget(const BudgetParams& p) {
  std::vector<uint64_t> keys;
  keys.reserve(static_cast<size_t>(p.slots()));
  int64_t requests = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    p.counts[b] = 0;
    if (!is_at_work(p, b)) continue;
    ++requests;
    for (int64_t c = 0; c < p.columns; ++c) {
      const uint64_t key = budget_key_at(p, b, c);
      if (is_candidate(key)) keys.push_back(key);
    }
  }
  const int64_t count = static_cast<int64_t>(keys.size()), most = std::min(count, p.steps - 1);
  if (most < count) std::nth_element(keys.begin(), keys.begin() + most, keys.end(), Sooner());
  std::sort(keys.begin(), keys.begin() + most, Sooner());
  const int64_t admitted = choose(p, keys, most, requests);
  for (int64_t i = 0; i < admitted; ++i) ++p.counts[index_of_budget_key(keys[static_cast<size_t>(i)]) / p.columns];
}

SPECDEC_ISA_END
