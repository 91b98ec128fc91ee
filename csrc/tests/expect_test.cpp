// SPDX-License-Identifier: Apache-2.0
// verify.expect against the recursion of the rules with whole laws in double precision, and its promise: the same bits
// for any number of threads and any instruction set.
#include "verify_cases.h"
#include "ways.h"

using namespace specdec;
using namespace specdec::testing;

namespace {

struct Means {
  double token = 0.0, traversal = 0.0, plus_one = 0.0, bound = 0.0;
};

class SlowMeans : public SlowRequest {
 public:
  using SlowRequest::SlowRequest;

  Means run() {
    if (!open()) return means_;
    if (greedy(settings_)) {
      means_.token = means_.traversal = means_.plus_one = static_cast<double>(argmax_length());
      means_.bound = means_.token > 1 ? 1.0 : 0.0;
      return means_;
    }
    top_down(0, 1.0);
    plus_one(0, 1.0);
    settle(0, 1.0);
    find_bound();
    return means_;
  }

 private:
  int64_t argmax_length() {
    int64_t length = 0;
    for (int64_t node = 0, next; node >= 0 && length < limit_; node = next, ++length) {
      const int64_t best = best_of(read(node));
      next = -1;
      for (const int64_t child : children(node)) {
        if (next < 0 && token_of(child) == best) next = child;
      }
    }
    return length;
  }

  // A node before its children are tried, which become none where nothing can be emitted.
  Left begin(int64_t node, double budget, Ids* drafts) {
    *drafts = children(node);
    const Row row = drafts->empty() ? Row{Doubles(ids_.size(), -kInfinity), {}} : read(node);
    if (best_of(row) < 0) drafts->clear();
    Left left(law(row), budget, 0.0);
    left.q = law_of_drafts(node, drafts, &left.sampled);
    left.replacement = c_.replacement;
    return left;
  }

  double handed_down(const Left& left, int64_t token) const {
    double doubt = 0.0;
    return left.handed_down(token, &doubt);
  }

  void top_down(int64_t node, double here) {
    if (!(here > 0) || depth(node) >= limit_) return;
    means_.token += here;
    Ids drafts;
    Left left = begin(node, 1.0, &drafts);
    for (const int64_t child : drafts) {
      const double accepted = handed_down(left, token_of(child));
      top_down(child, here * accepted);
      here *= 1.0 - accepted;
      left.reject(token_of(child), &result_.margin);
      if (left.exhausted) return;
    }
  }

  void plus_one(int64_t node, double here) {
    if (!(here > 0) || depth(node) >= limit_) return;
    means_.plus_one += here;
    Ids drafts;
    Left left = begin(node, 1.0, &drafts);
    left.replacement = false;
    const Ids all = children(node, true);
    if (!drafts.empty() && drafts.back() == all.back()) {
      const int64_t sampled = drafts.back();
      drafts.pop_back();
      if (left.sampled) {
        for (const int64_t chosen : drafts) left.q.remove(token_of(chosen));
        left.q.normalise();
      }
      const double accepted = handed_down(left, token_of(sampled));
      plus_one(sampled, here * accepted);
      here *= 1.0 - accepted;
      left.reject(token_of(sampled), &result_.margin);
      if (left.exhausted) return;
    }
    Ids seen;
    for (const int64_t chosen : drafts) {
      if (std::find(seen.begin(), seen.end(), token_of(chosen)) == seen.end()) {
        plus_one(chosen, here * left.w.w[token_of(chosen)]);
      }
      seen.push_back(token_of(chosen));
    }
  }

  // In post-order, each node ends the path with the probability of what its children leave of its budget.
  void settle(int64_t node, double budget) {
    Ids drafts;
    Left left = begin(node, budget, &drafts);
    for (const int64_t child : drafts) {
      const double its_budget = handed_down(left, token_of(child));
      if (its_budget > 0) settle(child, its_budget);
      left.reject(token_of(child), &result_.margin);
      if (left.exhausted) break;
    }
    const double ends = node == 0 ? 1.0 : left.budget;
    means_.traversal += going_on_ * ends * static_cast<double>(std::min(depth(node) + 1, limit_));
    going_on_ *= 1.0 - ends;
  }

  void find_bound() {
    Ids drafts;
    const Left left = begin(0, 1.0, &drafts);
    if (drafts.empty()) return;
    if (!left.sampled) {
      Ids seen;
      for (const int64_t child : drafts) {
        if (std::find(seen.begin(), seen.end(), token_of(child)) == seen.end()) {
          means_.bound += left.w.w[token_of(child)];
        }
        seen.push_back(token_of(child));
      }
      return;
    }
    Doubles sorted = left.q.w, gone{0.0};
    std::sort(sorted.rbegin(), sorted.rend());
    for (size_t k = 0; k + 1 < drafts.size(); ++k) {
      const bool counts = !left.replacement && k < 16 && k < sorted.size();
      gone.push_back(gone.back() + (counts ? sorted[k] : 0.0));
    }
    means_.bound = 1.0;
    for (int j = -32; j <= 32; ++j) {
      double p = 0.0, q = 0.0, together = 1.0;
      for (size_t i = 0; i < sorted.size(); ++i) {
        if (!(left.w.w[i] <= std::exp2(j / 4.0) * left.q.w[i])) continue;
        p += left.w.w[i];
        q += left.q.w[i];
      }
      for (const double s : gone) together *= s < 1.0 ? std::max(q - s, 0.0) / (1.0 - s) : 0.0;
      means_.bound = std::min(means_.bound, 1.0 + p - together);
    }
    means_.bound = std::max(means_.bound, 0.0);
  }

  Means means_;
  double going_on_ = 1.0;
};

// How many requests were compared, how many were off, and how many had drafts that may be accepted.
struct Seen {
  int64_t compared = 0, off = 0, hopeful = 0;
};

void check_case(Case& c, Seen* seen) {
  const int64_t batch = c.trees.batch();
  ExpectParams e;
  e.verify = parameters(c);
  e.verify.sampling.seed = {};  // not used
  e.verify.context_lens = {};
  std::vector<Guarded<float>> columns[4];
  for (int way = 0; way < kWays; ++way) {
    for (auto& column : columns) column.emplace_back(batch);
    e.token = columns[0][way].data();
    e.traversal = columns[1][way].data();
    e.greedy_plus_one = columns[2][way].data();
    e.bound = columns[3][way].data();
    run(e, way);
    for (auto& column : columns) {
      CHECK(column[way].intact());
      CHECK(same_bits(column[0].data(), column[way].data(), batch), "way %d", way);
    }
  }
  for (int64_t b = 0; b < batch; ++b) {
    const Means expected = SlowMeans(c, b).run();
    const double wanted[] = {expected.token, expected.traversal, expected.plus_one, expected.bound};
    bool off = false;
    for (int i = 0; i < 4; ++i) off |= !(std::fabs(columns[i][0][b] - wanted[i]) <= 1e-4 * std::max(1.0, wanted[i]));
    ++seen->compared;
    seen->off += off;
    seen->hopeful += wanted[0] > 1.01 && wanted[1] > 1.01 && wanted[2] > 1.01 && wanted[3] > 0.01;
  }
}

void test_random(int rounds, uint64_t seed) {
  constexpr int64_t kSmall[] = {1, 2, 3, 5, 16, 17, 64, 300};
  constexpr int64_t kLarge[] = {4095, 4097, 9000};
  Seen seen;
  Numbers numbers(seed + 11);
  const auto one = [&](int64_t vocab, int64_t batch) {
    Case c = random_case(numbers, Rule::rejection, vocab, batch, once_in(numbers, 2));
    check_case(c, &seen);
  };
  for (int round = 0; round < rounds; ++round) {
    for (const int64_t vocab : kSmall) one(vocab, numbers.below(5));
    if (round % 4 == 0) {
      for (const int64_t vocab : kLarge) one(vocab, numbers.below(3));
    }
  }
  for (int round = 0; round < rounds / 8; ++round) one(17000 + numbers.below(9000), 1);
  std::printf("expect: %lld requests, %lld of them off, %lld with drafts of some worth\n",
              static_cast<long long>(seen.compared), static_cast<long long>(seen.off),
              static_cast<long long>(seen.hopeful));
  CHECK(50 * seen.off <= seen.compared);  // an id at the very edge of a filter may fall on either side
  CHECK(5 * seen.hopeful > seen.compared);
}

}  // namespace

// An argument is another seed, for runs over many.
int main(int argc, char** argv) {
  std::printf("instruction set %s\n", kernels_in_use());
  test_random(60, argc > 1 ? 100 * std::strtoull(argv[1], nullptr, 10) : 0);
  std::puts("expect: ok");
  return 0;
}
