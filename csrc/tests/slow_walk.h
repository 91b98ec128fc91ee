// SPDX-License-Identifier: Apache-2.0
// The walks of docs/verify.md as they are defined, with whole laws in double precision.
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
  bool sampled_drafts = false, replacement = false, some = false;
  std::vector<char> active;
  Logprobs logprobs = Logprobs::none;
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
  Doubles logprobs, lse;
  int32_t status = 0;
  int64_t rejections = 0;
  bool scores_doubtful = false;
  Margin margin;
};

class SlowWalk {
 public:
  SlowWalk(const Case& c, int64_t request) : c_(c), b_(request), ids_(static_cast<size_t>(c.logits.columns())) {
    std::iota(ids_.begin(), ids_.end(), 0);
    settings_ = c.rule == Rule::greedy ? Settings{0.0f} : c.sampling.settings[b_];
  }

  Result run() {
    if (c_.some && !c_.active[b_]) return result_;
    nodes_ = open_slowly(c_.trees, b_);
    if (nodes_.malformed) result_.status |= kStatusMalformed;
    int64_t limit = c_.trees.max_depth + 1;
    if (c_.max_tokens) limit = std::min(limit, c_.max_tokens[b_]);
    int64_t node = nodes_.count > 0 ? 0 : -1;
    while (node >= 0 && static_cast<int64_t>(result_.tokens.size()) < limit) {
      int64_t child = -1;
      const int64_t token = visit(node, &child);
      if (token < 0) result_.status |= kStatusDeadEnd;
      result_.tokens.push_back(token);
      result_.path.push_back(node);
      score(token);
      node = child;
    }
    return result_;
  }

 private:
  int64_t depth(int64_t node) const { return node == 0 ? 0 : c_.trees.depths[nodes_.first + node]; }
  int64_t token_of(int64_t node) const { return c_.trees.tokens[nodes_.first + node]; }
  Place place(int64_t node, Stream stream, int64_t counted_depth, int64_t counted) const {
    return make_place(c_.sampling.seeds[b_], c_.context_lens[b_] + depth(node) + 1, stream, counted_depth, counted, 0);
  }
  Ids children(int64_t node) const {
    Ids found;
    for (int64_t i = node + 1; i < nodes_.count; ++i) {
      const bool there = token_of(i) >= 0 && token_of(i) < c_.logits.columns();
      if (c_.trees.parents[nodes_.first + i] == node && there) found.push_back(i);
    }
    return found;
  }

  int64_t visit(int64_t node, int64_t* child) {
    const int64_t owner = nodes_.first + node, row = c_.rows ? c_.rows[owner] : owner;
    logits_.assign(ids_.size(), -kInfinity);
    raw_ = logits_;
    if (row >= 0 && row < c_.logits.rows()) {
      bool nan = false;
      logits_ = raw_ = c_.logits.clean(row, &nan);
      c_.masks.apply(owner, ids_, logits_);
      if (nan) result_.status |= kStatusNan;
    } else {
      result_.status |= kStatusMalformed;
    }
    const Ids order = ranking(logits_);
    if (order.empty()) return -1;
    if (!greedy(settings_) && c_.rule == Rule::rejection) return accept_or_reject(node, child);
    const int64_t token = greedy(settings_) ? order[0]
                                            : draw_of(law_of(logits_, settings_), place(node, Stream::target, 0, 0),
                                                      ids_, &result_.margin);
    for (const int64_t i : children(node)) {
      if (*child < 0 && token_of(i) == token) *child = i;
    }
    return token;
  }

  int64_t accept_or_reject(int64_t node, int64_t* child) {
    Margin& margin = result_.margin;
    Mass p = law_of(logits_, settings_);
    p.normalise();
    const Mass target = p;
    Mass q;
    Ids drafts = children(node);
    const int64_t owner = nodes_.first + node, row = c_.draft_rows ? c_.draft_rows[owner] : owner;
    const bool sampled = c_.sampled_drafts && !greedy(c_.draft_sampling.settings[b_]) && !(c_.draft_rows && row == -1);
    if (sampled && !drafts.empty()) {
      if (row < 0 || row >= c_.draft_logits.rows()) {
        result_.status |= kStatusMalformed;
        drafts.clear();
      } else {
        q = law_of(draft_row(owner, row), c_.draft_sampling.settings[b_]);
        q.normalise();
      }
    }
    for (const int64_t draft : drafts) {
      const int64_t token = token_of(draft);
      if (!sampled) {
        q = {Doubles(ids_.size(), 0.0), Doubles(ids_.size(), 0.0)};
        q.w[token] = 1.0;
      }
      if (toss(p, q, token, place(node, Stream::coin, depth(node), draft), &margin)) {
        *child = draft;
        return token;
      }
      ++result_.rejections;
      p.subtract(q);
      const double left = std::accumulate(p.w.begin(), p.w.end(), 0.0);
      const double doubt = std::accumulate(p.doubt.begin(), p.doubt.end(), 0.0);
      margin.add(left / std::max(doubt, 1e-300));  // where all that is left may be rounding
      p.normalise();
      if (!p.any()) {
        result_.status |= kStatusFallback;
        p = target;
        break;
      }
      if (sampled && !c_.replacement) {
        q.remove(token);
        q.normalise();
      }
    }
    return draw_of(p, place(node, Stream::residual, depth(node), node), ids_, &margin);
  }

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

  void score(int64_t token) {
    double logprob = -kInfinity, lse = -kInfinity;
    if (token >= 0) {
      const bool raw = c_.logprobs == Logprobs::raw;
      const Doubles& logits = raw ? raw_ : logits_;
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

  const Case& c_;
  const int64_t b_;
  Ids ids_;
  Settings settings_;
  Nodes nodes_;
  Doubles logits_, raw_;
  Result result_;
};

}  // namespace specdec::testing
