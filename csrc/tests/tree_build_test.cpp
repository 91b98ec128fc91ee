// SPDX-License-Identifier: Apache-2.0
// from_parents, from_beams and best_first against their definitions, written out the slow way: recursion, texts, a
// heap.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <queue>
#include <tuple>

#include "ways.h"

using namespace specdec;
using testing::Guarded;
using testing::Numbers;

namespace {

constexpr int32_t kMalformed = 8;
constexpr float kInf = INFINITY;

// A request as it should come out; nodes in pre-order.
struct Expected {
  std::vector<int64_t> tokens, sources;  // sources: the index where each node came from, -1 for a made-up root
  std::vector<int32_t> parents, depths, ends;
  std::vector<float> scores;
  int32_t status = 0;
};

// Children of each node in their order, and what to note of a node: the tree by recursion.
Expected walk(const std::vector<std::vector<int>>& children, const std::function<void(int, Expected&)>& note) {
  Expected made;
  const std::function<void(int, int, int)> visit = [&](int node, int parent, int depth) {
    const int here = static_cast<int>(made.parents.size());
    made.parents.push_back(parent);
    made.depths.push_back(depth);
    made.ends.push_back(0);
    note(node, made);
    for (const int child : children[static_cast<size_t>(node)]) visit(child, here, depth + 1);
    made.ends[static_cast<size_t>(here)] = static_cast<int32_t>(made.parents.size());
  };
  if (!children.empty()) visit(0, -1, 0);
  return made;
}

// The outputs of a builder, in guards.
struct Outputs {
  Outputs(int64_t batch, int64_t count)
      : cu_nodes(batch + 1), parents(count), depths(count), ends(count), status(batch), tokens(count) {}
  Guarded<int32_t> cu_nodes, parents, depths, ends, status;
  Guarded<int64_t> tokens;
  bool intact() const {
    return cu_nodes.intact() && parents.intact() && depths.intact() && ends.intact() && status.intact() &&
           tokens.intact();
  }
  NewTree tree(int64_t max_nodes) {
    return {max_nodes,   cu_nodes.data(), {tokens.data(), 1, true}, parents.data(), depths.data(),
            ends.data(), status.data()};
  }
  // Rows [first, first + rows) hold the request, then padding.
  void check(const Expected& wanted, int64_t first, int64_t rows) {
    const int64_t live = static_cast<int64_t>(wanted.parents.size());
    CHECK(live <= rows);
    for (int64_t i = 0; i < rows; ++i) {
      const size_t at = static_cast<size_t>(i);
      const bool there = i < live;
      CHECK(tokens[first + i] == (there ? wanted.tokens[at] : -1));
      CHECK(parents[first + i] == (there ? wanted.parents[at] : -1));
      CHECK(depths[first + i] == (there ? wanted.depths[at] : 0));
      CHECK(ends[first + i] == (there ? wanted.ends[at] : 0));
    }
  }
};

// ---- from_parents ----
void check_from_parents(uint64_t seed) {
  Numbers numbers(seed);
  const int64_t batch = numbers.below(5), most = seed % 7 == 0 ? 200 : 9;
  std::vector<int32_t> offsets(1, static_cast<int32_t>(numbers.below(3)));
  std::vector<int64_t> parents(static_cast<size_t>(offsets[0]), 5), lengths;
  std::vector<bool> spoiled;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t count = numbers.below(most + 1);
    for (int64_t i = 0; i < count; ++i) parents.push_back(i == 0 ? -1 : numbers.below(i));
    spoiled.push_back(count > 0 && numbers.below(4) == 0);
    if (spoiled.back()) {
      const int64_t at = numbers.below(count), wrong[] = {at, at + 1, -2, INT64_MIN, INT64_MAX, at == 0 ? 0 : -1};
      parents[parents.size() - static_cast<size_t>(count - at)] = wrong[numbers.below(6)];
    }
    offsets.push_back(static_cast<int32_t>(parents.size()));
    lengths.push_back(numbers.below(3) != 0 ? count : numbers.below(count + 3) - 1);
  }
  const int64_t owned = static_cast<int64_t>(parents.size()), total = owned + numbers.below(3);
  parents.resize(static_cast<size_t>(total), 7);
  std::vector<int64_t> tokens(static_cast<size_t>(total));
  for (int64_t& token : tokens) token = numbers.below(99) - 3;
  const int64_t max_nodes = numbers.below(3) ? kMaxTreeNodes : numbers.below(most + 1);
  const int64_t max_depth = numbers.below(3) ? most : numbers.below(4);
  const bool give_lengths = numbers.below(2), give_slots = numbers.below(2);
  for (int way = 0; way < testing::kWays; ++way) {
    Outputs out(batch, total);
    Guarded<int32_t> slots(total);
    Guarded<int64_t> order(total);
    FromParentsParams p;
    p.given_tokens = {tokens.data(), 1, true};
    p.given_parents = {parents.data(), 1, true};
    p.cu_nodes = {offsets.data(), 1};
    if (give_lengths) p.lengths = {lengths.data(), 1, true};
    p.batch = batch;
    p.total = total;
    p.max_nodes = max_nodes;
    p.max_depth = max_depth;
    p.tokens = {out.tokens.data(), 1, true};
    p.parents = out.parents.data();
    p.depths = out.depths.data();
    p.ends = out.ends.data();
    p.slots = give_slots ? slots.data() : nullptr;
    p.order = order.data();
    p.status = out.status.data();
    testing::run(p, way);
    CHECK(out.intact() && slots.intact() && order.intact());
    const auto check_row = [&](int64_t row, int64_t source, int64_t slot) {
      CHECK(order[row] == source);
      CHECK(give_slots ? slots[row] == slot : slots.untouched(row));
    };
    for (int64_t row = 0; row < offsets[0]; ++row) check_row(row, row, 0);
    for (int64_t row = owned; row < total; ++row) check_row(row, row, 0);
    out.check({}, 0, offsets[0]);
    out.check({}, owned, total - owned);
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t first = offsets[static_cast<size_t>(b)], rows = offsets[static_cast<size_t>(b) + 1] - first;
      int64_t live = give_lengths ? lengths[static_cast<size_t>(b)] : rows;
      bool wrong = live < 0 || live > rows || live > max_nodes;
      std::vector<std::vector<int>> children;
      std::vector<int> depths;
      for (int64_t i = 0; i < live && !wrong; ++i) {
        const int64_t parent = parents[static_cast<size_t>(first + i)];
        wrong = i == 0 ? parent != -1 : parent < 0 || parent >= i;
        if (wrong) break;
        depths.push_back(i == 0 ? 0 : depths[static_cast<size_t>(parent)] + 1);
        wrong = depths.back() > max_depth;
        children.emplace_back();
        if (i > 0) children[static_cast<size_t>(parent)].push_back(static_cast<int>(i));
      }
      if (wrong) children.assign(rows > 0 && max_nodes > 0 ? 1 : 0, {});
      CHECK(out.status[b] == (wrong ? kMalformed : 0));
      const Expected wanted = walk(children, [&](int node, Expected& made) {
        made.tokens.push_back(tokens[static_cast<size_t>(first + node)]);
        made.sources.push_back(node);
      });
      out.check(wanted, first, rows);
      for (int64_t i = 0; i < rows; ++i) {
        const bool there = i < static_cast<int64_t>(wanted.sources.size());
        const int64_t source = there ? wanted.sources[static_cast<size_t>(i)] : i;
        check_row(first + i, first + source, source);
      }
    }
  }
}

// Offsets in any order: nothing is written twice or left out, and sound requests are as they would be alone.
void check_offsets(uint64_t seed) {
  Numbers numbers(seed);
  constexpr int64_t total = 12;
  const int64_t batch = 1 + numbers.below(5);
  std::vector<int32_t> offsets;
  for (int64_t b = 0; b <= batch; ++b) {
    const int32_t odd[] = {INT32_MIN, INT32_MAX, -1, total + 1};
    offsets.push_back(numbers.below(8) == 0 ? odd[numbers.below(4)] : static_cast<int32_t>(numbers.below(total + 1)));
  }
  std::vector<int64_t> parents(total, -1), tokens(total, 4), lengths(static_cast<size_t>(batch), 1);
  for (int way = 0; way < testing::kWays; ++way) {
    Outputs out(batch, total);
    Guarded<int64_t> order(total);
    FromParentsParams p;
    p.given_tokens = {tokens.data(), 1, true};
    p.given_parents = {parents.data(), 1, true};
    p.cu_nodes = {offsets.data(), 1};
    p.lengths = {lengths.data(), 1, true};
    p.batch = batch;
    p.total = total;
    p.max_nodes = p.max_depth = 9;
    p.tokens = {out.tokens.data(), 1, true};
    p.parents = out.parents.data();
    p.depths = out.depths.data();
    p.ends = out.ends.data();
    p.order = order.data();
    p.status = out.status.data();
    testing::run(p, way);
    CHECK(out.intact() && order.intact());
    std::vector<bool> root(total);
    int64_t before = std::clamp<int64_t>(offsets[0], 0, total);
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t from = offsets[static_cast<size_t>(b)], to = offsets[static_cast<size_t>(b) + 1];
      const bool sound = from == before && to >= from && to <= total;
      CHECK(out.status[b] == (sound && to > from ? 0 : kMalformed));
      if (sound && to > from) root[static_cast<size_t>(from)] = true;
      before = std::min(std::max(before, to), total);
    }
    for (int64_t row = 0; row < total; ++row) {
      const bool live = root[static_cast<size_t>(row)];
      CHECK(out.tokens[row] == (live ? 4 : -1) && out.ends[row] == live && order[row] == row);
    }
  }
}

// ---- from_beams ----
void check_from_beams(uint64_t seed) {
  Numbers numbers(seed);
  const int64_t batch = 1 + numbers.below(3), pool = seed % 9 == 0 ? 300 : numbers.below(14);
  const int64_t max_nodes = numbers.below(12), max_depth = numbers.below(3) ? 400 : numbers.below(4);
  const size_t size = static_cast<size_t>(batch * pool);
  std::vector<int64_t> tokens(size), roots, budgets, lengths;
  std::vector<int32_t> parents(size);
  std::vector<float> scores(size);
  for (int64_t b = 0; b < batch; ++b) {
    roots.push_back(numbers.below(5) ? 77 : -1);
    budgets.push_back(numbers.below(max_nodes + 3) - 1);
    lengths.push_back(numbers.below(4) ? pool : numbers.below(pool + 3) - 1);
    for (int64_t i = 0; i < pool; ++i) {
      const size_t at = static_cast<size_t>(b * pool + i);
      const int32_t odd[] = {-2, INT32_MIN, INT32_MAX, static_cast<int32_t>(i)};
      const float strange[] = {-kInf, NAN, kInf, -0.0f};
      tokens[at] = numbers.below(9) ? numbers.below(3) : -1 - numbers.below(2) * INT64_MAX;
      parents[at] = numbers.below(12) ? static_cast<int32_t>(numbers.below(i + 1) - 1) : odd[numbers.below(4)];
      scores[at] = numbers.below(9) ? -static_cast<float>(numbers.below(6)) / 4 : strange[numbers.below(4)];
    }
  }
  for (int way = 0; way < testing::kWays; ++way) {
    Outputs out(batch, batch * max_nodes);
    Guarded<int32_t> order(batch * max_nodes);
    FromBeamsParams p;
    p.root_tokens = {roots.data(), 1, true};
    p.pool_tokens = {tokens.data(), pool, 1, true};
    p.pool_parents = {parents.data(), pool, 1, false};
    p.scores = scores.data();
    p.score_row_stride = pool;
    p.lengths = {lengths.data(), 1, true};
    p.budgets = {budgets.data(), 1, true};
    p.batch = batch;
    p.pool = pool;
    p.max_depth = max_depth;
    p.tree = out.tree(max_nodes);
    p.order = order.data();
    testing::run(p, way);
    CHECK(out.intact() && order.intact());
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t budget = std::clamp<int64_t>(budgets[static_cast<size_t>(b)], 0, max_nodes);
      const bool live = roots[static_cast<size_t>(b)] >= 0 && budget > 0;
      int64_t length = lengths[static_cast<size_t>(b)];
      bool wrong = live && (length < 0 || length > pool);
      if (wrong || !live) length = 0;
      // Texts: the tokens on the path to a candidate. Those that spell the same are one.
      struct Text {
        float score;
        int64_t first;
      };
      std::map<std::vector<int64_t>, Text> texts;
      std::vector<std::vector<int64_t>> spelled(static_cast<size_t>(length));  // empty: absent
      for (int64_t i = 0; i < length; ++i) {
        const size_t at = static_cast<size_t>(b * pool + i);
        if (!(scores[at] > -kInf) || tokens[at] < 0) continue;
        const int64_t parent = parents[at];
        wrong |= parent < -1 || parent >= i;
        if (parent < -1 || parent >= i || (parent >= 0 && spelled[static_cast<size_t>(parent)].empty())) continue;
        std::vector<int64_t> text = parent < 0 ? std::vector<int64_t>() : spelled[static_cast<size_t>(parent)];
        if (static_cast<int64_t>(text.size()) >= max_depth) continue;
        text.push_back(tokens[at]);
        const auto [found, is_new] = texts.insert({text, {scores[at], i}});
        if (!is_new) found->second.score = std::max(found->second.score, scores[at]);
        spelled[static_cast<size_t>(i)] = text;
      }
      using Key = std::tuple<float, size_t, int64_t, std::vector<int64_t>>;
      std::vector<Key> ranked;
      for (const auto& [text, entry] : texts) {
        float least = entry.score;
        for (size_t n = 1; n < text.size(); ++n) {
          least = std::min(least, texts.at({text.begin(), text.begin() + static_cast<int64_t>(n)}).score);
        }
        ranked.push_back({-least, text.size(), entry.first, text});
      }
      std::sort(ranked.begin(), ranked.end());
      if (static_cast<int64_t>(ranked.size()) > budget - 1)
        ranked.resize(static_cast<size_t>(std::max<int64_t>(budget - 1, 0)));
      std::vector<std::vector<int>> children(live ? ranked.size() + 1 : 0);
      for (size_t k = 0; k < ranked.size() && live; ++k) {
        std::vector<int64_t> above = std::get<3>(ranked[k]);
        above.pop_back();
        size_t parent = 0;
        for (size_t j = 0; j < k; ++j) parent = std::get<3>(ranked[j]) == above ? j + 1 : parent;
        children[parent].push_back(static_cast<int>(k) + 1);
      }
      const Expected wanted = walk(children, [&](int node, Expected& made) {
        made.sources.push_back(node == 0 ? -1 : std::get<2>(ranked[static_cast<size_t>(node) - 1]));
        made.tokens.push_back(node == 0 ? 77 : std::get<3>(ranked[static_cast<size_t>(node) - 1]).back());
      });
      out.check(wanted, b * max_nodes, max_nodes);
      CHECK(out.status[b] == (wrong ? kMalformed : 0));
      CHECK(out.cu_nodes[b + 1] == (b + 1) * max_nodes);
      for (int64_t i = 0; i < max_nodes; ++i) {
        const bool there = i < static_cast<int64_t>(wanted.sources.size());
        CHECK(order[b * max_nodes + i] == (there ? wanted.sources[static_cast<size_t>(i)] : -1));
      }
    }
  }
}

// ---- best_first ----
struct Popped {
  float score;
  int depth, place, parent, rank;  // parent: 0 is the root, i + 1 is entry i
};

// What a heap pops with the key (score, depth, place of the parent, rank).
std::vector<Popped> popped(const float* log_probs, const int64_t* ids, int64_t depth, int64_t ranks, int64_t count) {
  using Key = std::tuple<float, int, int, int, int>;  // and the parent
  std::priority_queue<Key, std::vector<Key>, std::greater<Key>> heap;
  std::vector<Popped> done;
  std::vector<int> at(static_cast<size_t>(depth) + 2);
  const auto push = [&](int parent, int rank) {
    const int d = parent == 0 ? 1 : done[static_cast<size_t>(parent) - 1].depth + 1;
    if (d > depth) return;
    for (; rank < ranks; ++rank) {
      float least = 0.0f;
      for (int r = 0; r <= rank; ++r) {
        const float value = log_probs[(d - 1) * ranks + r];
        least = std::isnan(value) ? -kInf : std::min(least, value);
      }
      const float above = parent == 0 ? 0.0f : done[static_cast<size_t>(parent) - 1].score;
      if (ids[(d - 1) * ranks + rank] < 0 || !(above + least > -kInf)) continue;
      const int place = parent == 0 ? 0 : done[static_cast<size_t>(parent) - 1].place;
      heap.push({-(above + least), d, place, rank, parent});
      return;
    }
  };
  push(0, 0);
  while (static_cast<int64_t>(done.size()) < count && !heap.empty()) {
    const auto [score, d, place, rank, parent] = heap.top();
    heap.pop();
    done.push_back({-score, d, at[static_cast<size_t>(d)]++, parent, rank});
    push(parent, rank + 1);
    push(static_cast<int>(done.size()), 0);
  }
  return done;
}

void check_best_first(uint64_t seed) {
  Numbers numbers(seed);
  const int64_t batch = 1 + numbers.below(4), depth = numbers.below(5), ranks = numbers.below(6);
  const int64_t max_nodes = seed % 9 == 0 ? 100 : numbers.below(16);
  const size_t size = static_cast<size_t>(batch * depth * ranks);
  std::vector<int64_t> ids(size), roots, budgets;
  std::vector<float> log_probs(size);
  for (size_t i = 0; i < size; ++i) {
    const float strange[] = {-kInf, NAN, kInf, 0.25f, -3e38f};
    ids[i] = numbers.below(12) ? numbers.below(50) : -1;
    log_probs[i] = numbers.below(20) ? -static_cast<float>(numbers.below(5)) / 4 : strange[numbers.below(5)];
    if (numbers.below(4) == 0) log_probs[i] -= 0.01f * numbers.symmetric();
  }
  for (int64_t b = 0; b < batch; ++b) {
    roots.push_back(numbers.below(6) ? 77 : -1);
    budgets.push_back(numbers.below(max_nodes + 3) - 1);
  }
  const int64_t total = numbers.below(2) ? -1 : numbers.below(batch * max_nodes + 1);
  std::vector<std::vector<Popped>> wanted;
  using Key = std::tuple<float, int, int64_t, int>;
  std::vector<Key> all;
  int64_t left = total;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t budget = std::clamp<int64_t>(budgets[static_cast<size_t>(b)], 0, max_nodes);
    if (roots[static_cast<size_t>(b)] < 0) budgets[static_cast<size_t>(b)] = 0;
    const bool live = roots[static_cast<size_t>(b)] >= 0 && budget > 0;
    left -= live;
    wanted.push_back(popped(log_probs.data() + b * depth * ranks, ids.data() + b * depth * ranks, depth, ranks,
                            live ? budget - 1 : 0));
    for (const Popped& node : wanted.back()) all.push_back({-node.score, node.depth, b, node.place});
  }
  if (total >= 0) {
    std::sort(all.begin(), all.end());
    all.resize(static_cast<size_t>(std::clamp<int64_t>(left, 0, static_cast<int64_t>(all.size()))));
    std::vector<size_t> counts(static_cast<size_t>(batch));
    for (const Key& key : all) ++counts[static_cast<size_t>(std::get<2>(key))];
    for (size_t b = 0; b < counts.size(); ++b) wanted[b].resize(counts[b]);
  }
  for (int way = 0; way < testing::kWays; ++way) {
    Outputs out(batch, batch * max_nodes);
    Guarded<float> scores(batch * max_nodes);
    BestFirstParams p;
    p.root_tokens = {roots.data(), 1, true};
    p.log_probs = log_probs.data();
    p.token_ids = ids.data();
    p.wide = true;
    for (int i = 0; i < 3; ++i) {
      p.log_prob_strides[i] = p.token_id_strides[i] = i == 0 ? depth * ranks : i == 1 ? ranks : 1;
    }
    p.budgets = {budgets.data(), 1, true};
    p.batch = batch;
    p.depth = depth;
    p.ranks = ranks;
    p.total_budget = total;
    p.tree = out.tree(max_nodes);
    p.scores = scores.data();
    testing::run(p, way);
    CHECK(out.intact() && scores.intact());
    for (int64_t b = 0; b < batch; ++b) {
      const std::vector<Popped>& nodes = wanted[static_cast<size_t>(b)];
      const bool live = budgets[static_cast<size_t>(b)] > 0 && max_nodes > 0;
      std::vector<std::vector<int>> children(live ? nodes.size() + 1 : 0);
      for (size_t i = 0; i < nodes.size(); ++i)
        children[static_cast<size_t>(nodes[i].parent)].push_back(static_cast<int>(i) + 1);
      const Expected made = walk(children, [&](int node, Expected& to) {
        if (node == 0) {
          to.tokens.push_back(77);
          to.scores.push_back(0.0f);
          return;
        }
        const Popped& from = nodes[static_cast<size_t>(node) - 1];
        to.tokens.push_back(ids[static_cast<size_t>((b * depth + from.depth - 1) * ranks + from.rank)]);
        to.scores.push_back(from.score);
      });
      out.check(made, b * max_nodes, max_nodes);
      CHECK(out.status[b] == 0 && out.cu_nodes[b] == b * max_nodes);
      for (int64_t i = 0; i < max_nodes; ++i) {
        const bool there = i < static_cast<int64_t>(made.scores.size());
        CHECK(scores[b * max_nodes + i] == (there ? made.scores[static_cast<size_t>(i)] : -kInf));
      }
    }
  }
}

}  // namespace

int main() {
#if defined(SPECDEC_EMULATED)
  constexpr uint64_t kSeeds = 100;
#else
  constexpr uint64_t kSeeds = 300;
#endif
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    check_from_parents(seed);
    check_offsets(seed);
    check_from_beams(seed);
    check_best_first(seed);
  }
  std::printf("tree builders (%s): passed\n", testing::kernels_in_use());
  return 0;
}
