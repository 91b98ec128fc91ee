// SPDX-License-Identifier: Apache-2.0
// from_chains and ngram_lookup against their definitions, written out the slow way.
#include <algorithm>

#include "ways.h"

using namespace specdec;
using testing::Guarded;
using testing::Numbers;

namespace {

constexpr int32_t kMalformed = 8;

// ---- tree.from_chains ----
template <class Token, class Length>
void check_chains(int64_t batch, int64_t width, const std::vector<int64_t>& lengths, bool give_lengths) {
  Numbers numbers(static_cast<uint64_t>(batch * 31 + width));
  const int64_t row_stride = 2 * width + 3, column_stride = 2;
  std::vector<Token> chains(static_cast<size_t>(batch * row_stride + 1));
  for (Token& token : chains) token = static_cast<Token>(numbers.below(1000) - 3);
  std::vector<Length> given(lengths.begin(), lengths.end());
  Guarded<int32_t> cu_nodes(batch + 1), parents(batch * width), depths(batch * width), ends(batch * width),
      status(batch);
  Guarded<Token> tokens(batch * width);
  FromChainsParams p;
  p.chains = chains.data();
  p.wide = sizeof(Token) == 8;
  p.row_stride = row_stride;
  p.column_stride = column_stride;
  p.batch = batch;
  p.width = width;
  if (give_lengths) p.lengths = {given.data(), 1, sizeof(Length) == 8};
  p.cu_nodes = cu_nodes.data();
  p.tokens = {tokens.data(), 1, sizeof(Token) == 8};
  p.parents = parents.data();
  p.depths = depths.data();
  p.ends = ends.data();
  p.status = status.data();
  testing::run(p);
  CHECK(cu_nodes.intact() && tokens.intact() && parents.intact() && depths.intact() && ends.intact() &&
        status.intact());
  for (int64_t b = 0; b <= batch; ++b) CHECK(cu_nodes[b] == b * width);
  for (int64_t b = 0; b < batch; ++b) {
    int64_t length = give_lengths ? lengths[static_cast<size_t>(b)] : width;
    const bool wrong = length < 0 || length > width;
    if (wrong) length = std::min<int64_t>(1, width);
    CHECK(status[b] == (wrong ? kMalformed : 0));
    for (int64_t i = 0; i < width; ++i) {
      const int64_t row = b * width + i;
      const bool live = i < length;
      CHECK(tokens[row] == (live ? chains[static_cast<size_t>(b * row_stride + i * column_stride)] : -1));
      CHECK(parents[row] == (live ? i - 1 : -1));
      CHECK(depths[row] == (live ? i : 0));
      CHECK(ends[row] == (live ? length : 0));
    }
  }
}

void test_from_chains() {
  for (const int64_t width : {0, 1, 2, 7, 16}) {
    for (const int64_t batch : {0, 1, 5, 33}) {
      std::vector<int64_t> lengths;
      Numbers numbers(9);
      for (int64_t b = 0; b < batch; ++b) lengths.push_back(numbers.below(width + 4) - 1);  // -1 .. width + 2
      for (const bool give_lengths : {true, false}) {
        check_chains<int32_t, int64_t>(batch, width, lengths, give_lengths);
        check_chains<int64_t, int32_t>(batch, width, lengths, give_lengths);
      }
    }
  }
  check_chains<int64_t, int64_t>(3, 4, {INT64_MIN, INT64_MAX, 4}, true);
  check_chains<int32_t, int32_t>(3, 4, {INT32_MIN, INT32_MAX, 0}, true);
}

// ---- draft.ngram_lookup ----
// By the definition: for each n all occurrences are listed.
template <class Token>
std::vector<Token> continuation(const std::vector<Token>& text, int64_t min_n, int64_t max_n, int64_t num) {
  const int64_t length = static_cast<int64_t>(text.size());
  for (int64_t n = std::min(max_n, length - 1); n >= min_n; --n) {
    std::vector<int64_t> starts;
    for (int64_t s = 0; s < length - n; ++s) {
      if (std::equal(text.begin() + s, text.begin() + s + n, text.end() - n)) starts.push_back(s);
    }
    if (starts.empty()) continue;
    int64_t chosen = starts.front();
    for (const int64_t s : starts) {
      if (length - (s + n) >= num) chosen = s;  // the last such
    }
    const auto from = text.begin() + chosen + n;
    return {from, from + std::min(num, length - (chosen + n))};
  }
  return {};
}

template <class Token>
int64_t check_lookup(int64_t batch, int64_t columns, int64_t min_n, int64_t max_n, int64_t num, int64_t alphabet,
                     uint64_t seed, bool with_active) {
  Numbers numbers(seed);
  const int64_t row_stride = columns + numbers.below(3);
  std::vector<Token> history(static_cast<size_t>(batch > 0 ? (batch - 1) * row_stride + columns : 0));
  for (Token& token : history) token = static_cast<Token>(numbers.below(alphabet));
  std::vector<int64_t> lengths;
  std::vector<char> active;
  for (int64_t b = 0; b < batch; ++b) {
    lengths.push_back(numbers.below(4) == 0 ? numbers.below(3 * columns + 3) - columns - 1 : columns);
    active.push_back(numbers.below(3) != 0);
  }
  Guarded<Token> drafts(batch * num);
  Guarded<int32_t> counts(batch);
  NgramParams p;
  p.history = history.data();
  p.wide = sizeof(Token) == 8;
  p.row_stride = row_stride;
  p.batch = batch;
  p.columns = columns;
  p.lengths = {lengths.data(), 1, true};
  p.min_n = min_n;
  p.max_n = max_n;
  p.num = num;
  if (with_active) p.active = {reinterpret_cast<bool*>(active.data()), 1};
  p.drafts = drafts.data();
  p.counts = counts.data();
  testing::run(p);
  CHECK(drafts.intact() && counts.intact());
  int64_t found = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = std::clamp<int64_t>(lengths[static_cast<size_t>(b)], 0, columns);
    const auto row = history.begin() + b * row_stride;
    std::vector<Token> expected = continuation(std::vector<Token>(row, row + length), min_n, max_n, num);
    if (with_active && !active[static_cast<size_t>(b)]) expected.clear();
    CHECK(counts[b] == static_cast<int32_t>(expected.size()), "count %d, not %zu", counts[b], expected.size());
    for (int64_t i = 0; i < num; ++i) {
      const Token wanted = i < counts[b] ? expected[static_cast<size_t>(i)] : static_cast<Token>(-1);
      CHECK(drafts[b * num + i] == wanted);
    }
    found += counts[b];
  }
  return found;
}

void test_lookup() {
  int64_t found = 0;
  uint64_t seed = 1;
  for (const int64_t columns : {0, 1, 2, 3, 9, 64, 200}) {
    for (const int64_t alphabet : {1, 2, 4, 50}) {
      for (const auto& [min_n, max_n] : {std::pair<int64_t, int64_t>{1, 1}, {1, 4}, {2, 3}, {3, 300}, {5, 5}}) {
        for (const int64_t num : {1, 3, 7, 100}) {
          for (const int64_t batch : {0, 1, 6}) {
            ++seed;
            found += check_lookup<int32_t>(batch, columns, min_n, max_n, num, alphabet, seed, seed % 2);
            found += check_lookup<int64_t>(batch, columns, min_n, max_n, num, alphabet, seed, seed % 2);
          }
        }
      }
    }
  }
  CHECK(found > 10000, "only %ld drafts", (long)found);
  check_lookup<int32_t>(40, 2000, 1, 4, 7, 300, 77, false);  // enough for several threads
}

// The choice among the occurrences, by hand: (text, min_n, max_n, num) -> drafts.
void test_lookup_examples() {
  struct Example {
    std::vector<int32_t> text;
    int64_t min_n, max_n, num;
    std::vector<int32_t> drafts;
  };
  const Example examples[] = {
      {{1, 2, 9, 1, 2, 8, 1, 2}, 1, 2, 2, {8, 1}},              // the most recent of two
      {{1, 2, 9, 1, 2, 8, 1, 2}, 1, 2, 4, {9, 1, 2, 8}},        // the most recent one that is long enough
      {{1, 2, 9, 1, 2, 8, 1, 2}, 1, 2, 7, {9, 1, 2, 8, 1, 2}},  // none is: the earliest
      {{5, 2, 7, 1, 2, 8, 5, 2}, 1, 4, 1, {7}},                 // the longer suffix wins over the more recent one
      {{5, 2, 7, 1, 2, 8, 6, 2}, 1, 4, 1, {8}},
      {{4, 4, 4}, 1, 4, 2, {4}},  // an occurrence may overlap the suffix
      {{1, 2, 3}, 1, 4, 2, {}},
  };
  for (const Example& e : examples) {
    CHECK(continuation(e.text, e.min_n, e.max_n, e.num) == e.drafts);
    Guarded<int32_t> drafts(e.num), counts(1);
    const int64_t length = static_cast<int64_t>(e.text.size());
    NgramParams p;
    p.history = e.text.data();
    p.row_stride = p.columns = length;
    p.batch = 1;
    p.lengths = {&length, 1, true};
    p.min_n = e.min_n;
    p.max_n = e.max_n;
    p.num = e.num;
    p.drafts = drafts.data();
    p.counts = counts.data();
    testing::run(p);
    CHECK(drafts.intact() && counts.intact() && counts[0] == static_cast<int32_t>(e.drafts.size()));
    for (int64_t i = 0; i < counts[0]; ++i) CHECK(drafts[i] == e.drafts[static_cast<size_t>(i)]);
  }
}

}  // namespace

int main() {
  test_from_chains();
  test_lookup();
  test_lookup_examples();
  std::printf("tree, draft (%s): passed\n", testing::kernels_in_use());
  return 0;
}
