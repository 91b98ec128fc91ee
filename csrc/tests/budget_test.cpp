// SPDX-License-Identifier: Apache-2.0
// draft.budget against its definition: every candidate is compared with every other, every number of drafts is tried.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ways.h"

using namespace specdec;
using testing::Guarded;
using testing::Numbers;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Candidate {
  float score;
  int64_t request;
  int64_t column;
};

bool comes_before(const Candidate& a, const Candidate& b) {
  if (a.score != b.score) return a.score > b.score;
  return a.request != b.request ? a.request < b.request : a.column < b.column;
}

struct Case {
  int64_t batch, columns;
  std::vector<float> scores;  // [batch, columns]
  std::vector<float> costs;
  std::vector<char> active;
  bool sampled = false;
};

std::vector<int32_t> by_definition(const Case& given) {
  std::vector<Candidate> candidates;
  int64_t tokens = 0;
  for (int64_t b = 0; b < given.batch; ++b) {
    if (!given.active[static_cast<size_t>(b)]) continue;
    tokens += int64_t{1} << kGainBits;
    for (int64_t c = 0; c < given.columns; ++c) {
      const float score = given.scores[static_cast<size_t>(b * given.columns + c)];
      if (score > -kInfinity) candidates.push_back({std::min(score, 0.0f), b, c});
    }
  }
  const int64_t count = static_cast<int64_t>(candidates.size());
  std::vector<Candidate> order(candidates.size());
  for (const Candidate& one : candidates) {
    int64_t before = 0;
    for (const Candidate& other : candidates) before += comes_before(other, one);
    order[static_cast<size_t>(before)] = one;
  }
  const int64_t most = std::min<int64_t>(count, static_cast<int64_t>(given.costs.size()) - 1);
  std::vector<double> value;
  for (int64_t n = 0; n <= most; ++n) {
    if (n > 0) tokens += gain_of(budget_key(order[static_cast<size_t>(n - 1)].score, 0));
    const float cost = given.costs[static_cast<size_t>(n)];
    value.push_back(std::isfinite(cost) && cost > 0 ? static_cast<double>(tokens) / cost : -1.0);
  }
  int64_t admitted = 0;
  if (given.sampled) {
    while (admitted < most && value[static_cast<size_t>(admitted + 1)] > value[static_cast<size_t>(admitted)]) {
      ++admitted;
    }
  } else {
    admitted = std::max_element(value.begin(), value.end()) - value.begin();  // the first of equal ones
  }
  std::vector<int32_t> counts(static_cast<size_t>(given.batch));
  for (int64_t n = 0; n < admitted; ++n) ++counts[static_cast<size_t>(order[static_cast<size_t>(n)].request)];
  return counts;
}

// Returns how many drafts were admitted.
int64_t check(const Case& given, int64_t column_stride, bool with_active) {
  const int64_t row_stride = given.columns * column_stride + 3;
  std::vector<float> scores(static_cast<size_t>(given.batch * row_stride + 1), 0.0f);
  for (int64_t b = 0; b < given.batch; ++b) {
    for (int64_t c = 0; c < given.columns; ++c) {
      scores[static_cast<size_t>(b * row_stride + c * column_stride)] =
          given.scores[static_cast<size_t>(b * given.columns + c)];
    }
  }
  std::vector<float> costs(2 * given.costs.size(), 1e-3f);
  for (size_t n = 0; n < given.costs.size(); ++n) costs[2 * n] = given.costs[n];
  const std::vector<int32_t> expected = by_definition(given);
  int64_t admitted = 0;
  for (int way = 0; way < testing::kWays; ++way) {
    Guarded<int32_t> counts(given.batch);
    BudgetParams p;
    p.scores = scores.data();
    p.row_stride = row_stride;
    p.column_stride = column_stride;
    p.batch = given.batch;
    p.columns = given.columns;
    p.costs = {costs.data(), 2};
    p.steps = static_cast<int64_t>(given.costs.size());
    if (with_active) p.active = {reinterpret_cast<const bool*>(given.active.data()), 1};
    p.sampled = given.sampled;
    p.counts = counts.data();
    testing::run(p, way);
    CHECK(counts.intact());
    for (int64_t b = 0; b < given.batch; ++b) {
      const int32_t wanted = expected[static_cast<size_t>(b)];
      CHECK(counts[b] == wanted, "way %d, request %ld: %d, not %d", way, (long)b, counts[b], wanted);
      if (way == 0) admitted += wanted;
    }
  }
  return admitted;
}

Case make(Numbers& numbers, int64_t batch, int64_t columns, int64_t steps, bool odd) {
  Case made{batch, columns, {}, {}, {}};
  for (int64_t b = 0; b < batch; ++b) {
    float score = 0.0f;
    for (int64_t c = 0; c < columns; ++c) {
      score -= odd ? static_cast<float>(numbers.below(3)) / 4 : static_cast<float>(numbers.below(1000)) / 2000;
      made.scores.push_back(score);
      const float bad[] = {kNaN, -kInfinity, kInfinity, 2.0f, -0.0f, -31.0f, -1e30f};
      if (odd && numbers.below(8) == 0) made.scores.back() = bad[numbers.below(7)];
    }
    made.active.push_back(odd ? numbers.below(4) != 0 : 1);
  }
  float cost = 1.0f;
  for (int64_t n = 0; n < steps; ++n) {
    made.costs.push_back(cost);
    if (!odd || numbers.below(3) == 0)
      cost += static_cast<float>(numbers.below(100)) / 1000 / static_cast<float>(batch + 1);
    const float bad[] = {kNaN, -kInfinity, kInfinity, 0.0f, -1.0f, 1e-42f};
    if (odd && numbers.below(12) == 0) made.costs.back() = bad[numbers.below(6)];
  }
  return made;
}

void test_random() {
  Numbers numbers(5);
  int64_t admitted = 0;
  for (int round = 0; round < 60; ++round) {
    for (const auto& [batch, columns] :
         {std::pair<int64_t, int64_t>{0, 4}, {1, 1}, {3, 0}, {2, 5}, {7, 3}, {40, 2}, {5, 40}}) {
      const int64_t steps[] = {1, 2, 9, batch * columns + 1, 2 * batch * columns + 3};
      Case given = make(numbers, batch, columns, steps[numbers.below(5)], round % 2 != 0);
      for (const bool sampled : {false, true}) {
        given.sampled = sampled;
        admitted += check(given, 1 + round % 3, round % 2 != 0);
      }
    }
  }
  CHECK(admitted > 1000, "only %ld drafts", (long)admitted);
}

// More than one block sorts at a time, with few and many drafts that may be admitted.
void test_many() {
  Numbers numbers(6);
  const int64_t sizes[][3] = {{64, 64, 70}, {64, 64, 5000}, {100, 50, 33}, {1500, 3, 2000}, {2, 4100, 9000}};
  for (const auto& [batch, columns, steps] : sizes) {
    for (const bool odd : {false, true}) {
      Case given = make(numbers, batch, columns, steps, odd);
      for (const bool sampled : {false, true}) {
        given.sampled = sampled;
        check(given, 1, odd);
      }
    }
  }
}

// 0.9, 0.7, 0.5, 0.1 in order: the tokens per time of 0 to 4 drafts are 2/10, 2.9/11, 3.6/12, 4.1/14, 4.2/20. And with
// a plateau, which only those reach that may look past a step that is not worth its cost.
void test_examples() {
  const std::vector<float> scores{std::log(0.9f), std::log(0.5f), std::log(0.7f), std::log(0.1f)};
  Case given{2, 2, scores, {10, 11, 12, 14, 20}, {1, 1}};
  CHECK(by_definition(given) == (std::vector<int32_t>{1, 1}) && check(given, 1, false) == 2);
  given.costs = {10, 15, 15, 15, 15};
  CHECK(by_definition(given) == (std::vector<int32_t>{2, 2}) && check(given, 1, false) == 4);
  given.sampled = true;
  CHECK(by_definition(given) == (std::vector<int32_t>{0, 0}) && check(given, 1, false) == 0);
  given.costs = {-1, 11, 12, kNaN, 1};  // the first cost counts for nothing, and the way ends at the one without
  CHECK(by_definition(given) == (std::vector<int32_t>{1, 1}) && check(given, 1, false) == 2);
}

void test_gains() {
  Numbers numbers(7);
  const int64_t one = int64_t{1} << kGainBits;
  CHECK(gain_of(budget_key(0.0f, 3)) == one && gain_of(budget_key(kInfinity, 3)) == one);
  CHECK(gain_of(budget_key(kNaN, 3)) == 0 && gain_of(budget_key(-31.0f, 3)) == 0 &&
        gain_of(budget_key(-30.0f, 3)) == 0);
  for (int i = 0; i < 20000; ++i) {
    const float score = -static_cast<float>(numbers.below(1 << 24)) / (1 << 19);
    const double exact = std::exp(static_cast<double>(score)) * static_cast<double>(one);
    CHECK(std::abs(static_cast<double>(gain_of(budget_key(score, i))) - exact) <= 0.501, "exp(%g)", score);
  }
}

}  // namespace

int main() {
  test_gains();
  test_examples();
  test_random();
  test_many();
  std::printf("draft.budget (%s): passed\n", testing::kernels_in_use());
}
