// SPDX-License-Identifier: Apache-2.0
// A request under verification as docs/verify.md defines it, with whole laws in double precision: its tree, its rows,
// what it emits. The rules are in slow_rules.h.
#pragma once

#include <algorithm>
#include <numeric>

#include "rows_of_logits.h"

namespace specdec::testing {

// A batch of trees with padding, some of which are none.
struct Trees {
  std::vector<int32_t> cu_nodes{0}, parents, depths, ends;
  Ids tokens;
  Indices given_tokens;
  int32_t max_depth = 0;

  int64_t total() const { return static_cast<int64_t>(parents.size()); }
  int64_t batch() const { return static_cast<int64_t>(cu_nodes.size()) - 1; }
  TreeView view() const {
    return {{cu_nodes.data(), 1},
            given_tokens.view(),
            {parents.data(), 1},
            {depths.data(), 1},
            {ends.data(), 1},
            batch(),
            total(),
            max_depth};
  }
};

struct Case {
  Rule rule = Rule::greedy;
  Trees trees;
  LogitRows logits, draft_logits;
  SettingsTable sampling, draft_sampling;
  Indices rows, draft_rows, context_lens, max_tokens, draft_to_target, target_to_draft, draft_mask_rows;
  Masks masks;
  bool sampled_drafts = false, replacement = false, some = false, some_relaxed = false;
  std::vector<char> active, relax;
  std::vector<float> rates;
  double single = 1.0, accumulated = 1.0, epsilon = 0.0, delta = 0.0;
  int64_t top_k = 1;
  Logprobs logprobs = Logprobs::none;

  bool undrawn() const { return rule == Rule::greedy || rule == Rule::relaxed; }
  bool lossy() const { return rule >= Rule::threshold; }
};

struct Nodes {
  int64_t first = 0, count = 0;
  bool malformed = false;
};

// A tree is one in depth-first pre-order if each node's parent comes before it and its subtree is the nodes up to
// `ends`.
inline bool is_sound(const Trees& t, int64_t first, int64_t rows) {
  const int64_t count = t.ends[first];
  if (count < 1 || count > rows || t.parents[first] != -1 || t.depths[first] != 0) return false;
  for (int64_t i = 1; i < count; ++i) {
    const int64_t parent = t.parents[first + i];
    if (parent < 0 || parent >= i || t.depths[first + i] != t.depths[first + parent] + 1) return false;
    if (t.depths[first + i] > t.max_depth) return false;
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = i; j < count; ++j) {
      int64_t up = j;
      while (up > i) up = t.parents[first + up];
      if ((up == i) != (j < t.ends[first + i])) return false;
    }
    if (t.ends[first + i] > count) return false;
  }
  return true;
}

inline Nodes open_slowly(const Trees& t, int64_t b) {
  const int64_t first = t.cu_nodes[b], after = t.cu_nodes[b + 1];
  if (first < 0 || after < first || after > t.total()) return {0, 0, true};
  if (first == after || t.ends[first] == 0) return {first, 0, false};
  if (!is_sound(t, first, after - first)) return {first, 1, true};
  return {first, t.ends[first], false};
}

struct Result {
  Ids tokens, path;
  Doubles logprobs, lse, divergences;
  int32_t status = 0;
  int64_t rejections = 0;
  bool scores_doubtful = false;
  Margin margin;
};

// A row of the target: under the mask, and as it came.
struct Row {
  Doubles logits, raw;
};

class SlowRequest {
 public:
  SlowRequest(const Case& c, int64_t request) : c_(c), b_(request), ids_(static_cast<size_t>(c.logits.columns())) {
    std::iota(ids_.begin(), ids_.end(), 0);
    settings_ = c.undrawn() ? Settings{0.0f} : c.sampling.settings[b_];
  }

 protected:
  // False if there is nothing to do.
  bool open() {
    if (c_.some && !c_.active[b_]) return false;
    nodes_ = open_slowly(c_.trees, b_);
    if (nodes_.malformed) result_.status |= kStatusMalformed;
    limit_ = c_.trees.max_depth + 1;
    if (c_.max_tokens) limit_ = std::min(limit_, c_.max_tokens[b_]);
    return nodes_.count > 0 && limit_ > 0;
  }
  bool full() const { return static_cast<int64_t>(result_.tokens.size()) >= limit_; }

  int64_t depth(int64_t node) const { return node == 0 ? 0 : c_.trees.depths[nodes_.first + node]; }
  int64_t token_of(int64_t node) const { return c_.trees.tokens[nodes_.first + node]; }
  bool present(int64_t node) const { return token_of(node) >= 0 && token_of(node) < c_.logits.columns(); }
  Ids children(int64_t node, bool absent_too = false) const {
    Ids found;
    for (int64_t i = node + 1; i < nodes_.count; ++i) {
      if (c_.trees.parents[nodes_.first + i] == node && (absent_too || present(i))) found.push_back(i);
    }
    return found;
  }

  // Noise of a node, of which `counted` is the number in the counter; and of the token that plain decoding draws.
  Place place(int64_t node, Stream stream, int64_t counted) const {
    return make_place(c_.sampling.seeds[b_], position(node), stream, depth(node), counted, 0);
  }
  Place plain_place(int64_t node) const {
    return make_place(c_.sampling.seeds[b_], position(node), Stream::target, 0, 0, 0);
  }

  Row read(int64_t node) {
    const int64_t owner = nodes_.first + node, row = c_.rows ? c_.rows[owner] : owner;
    Row read{Doubles(ids_.size(), -kInfinity), Doubles(ids_.size(), -kInfinity)};
    if (row >= 0 && row < c_.logits.rows()) {
      bool nan = false;
      read.logits = read.raw = c_.logits.clean(row, &nan);
      c_.masks.apply(owner, ids_, read.logits);
      if (nan) result_.status |= kStatusNan;
    } else {
      result_.status |= kStatusMalformed;
    }
    return read;
  }
  static int64_t best_of(const Row& row) {
    const Ids order = ranking(row.logits);
    return order.empty() ? -1 : order[0];
  }
  // The processed law, which sums to 1 unless the row is dead.
  Mass law(const Row& row) const {
    Mass mass = law_of(row.logits, settings_);
    mass.normalise();
    return mass;
  }

  // The law that the children of a node were drawn from; `sampled` says whether they were. Without a row of it, they
  // count as absent.
  Mass law_of_drafts(int64_t node, Ids* drafts, bool* sampled) {
    const int64_t owner = nodes_.first + node, row = c_.draft_rows ? c_.draft_rows[owner] : owner;
    *sampled = c_.sampled_drafts && !greedy(c_.draft_sampling.settings[b_]) && !(c_.draft_rows && row == -1);
    Mass q;
    if (!*sampled || drafts->empty()) return q;
    if (row < 0 || row >= c_.draft_logits.rows()) {
      result_.status |= kStatusMalformed;
      drafts->clear();
    } else {
      q = law_of(draft_row(owner, row), c_.draft_sampling.settings[b_]);
      q.normalise();
    }
    return q;
  }

  void emit(int64_t node, const Row& row, int64_t token, double divergence = 0.0) {
    if (token < 0) result_.status |= kStatusDeadEnd;
    result_.tokens.push_back(token);
    result_.path.push_back(node);
    result_.divergences.push_back(divergence);
    score(token, row);
  }

  const Case& c_;
  const int64_t b_;
  Ids ids_;
  Settings settings_;
  Nodes nodes_;
  int64_t limit_ = 0;
  Result result_;

 private:
  int64_t position(int64_t node) const { return c_.context_lens[b_] + depth(node) + 1; }

  // A draft's row seen from the target's ids.
  Doubles draft_row(int64_t owner, int64_t row) {
    bool nan = false;
    const Doubles columns = c_.draft_logits.clean(row, &nan);
    if (nan) result_.status |= kStatusNan;
    Doubles values(ids_.size(), -kInfinity);
    for (const int64_t id : ids_) {
      int64_t column = id;
      if (c_.target_to_draft) {
        column = c_.target_to_draft[id];
        if (column < 0 || column >= c_.draft_logits.columns() || c_.draft_to_target[column] != id) continue;
      }
      if (!c_.draft_mask_rows || c_.masks.allows(owner, id, c_.draft_mask_rows)) values[id] = columns[column];
    }
    return values;
  }

  void score(int64_t token, const Row& row) {
    double logprob = -kInfinity, lse = -kInfinity;
    if (token >= 0) {
      const bool raw = c_.logprobs == Logprobs::raw;
      const Doubles& logits = raw ? row.raw : row.logits;
      const double max = *std::max_element(logits.begin(), logits.end());
      if (!raw && greedy(settings_)) {
        logprob = 0.0;
        lse = max;
      } else {
        const Settings s = raw ? Settings{} : settings_;
        bool uncertain = false;
        const Mass mass = law_of(logits, s, &uncertain);
        result_.scores_doubtful |= uncertain;
        const double log_sum = std::log(std::accumulate(mass.w.begin(), mass.w.end(), 0.0));
        logprob = (logits[token] - max) / s.temperature - log_sum;
        lse = max / s.temperature + log_sum;
      }
    }
    result_.logprobs.push_back(logprob);
    result_.lse.push_back(lse);
  }
};

}  // namespace specdec::testing
