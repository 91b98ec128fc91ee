// SPDX-License-Identifier: Apache-2.0
// Random batches of trees to be verified: chains, trees and bushes with padding and damage, rows and settings with
// every oddity, and drafts that the rules follow at times.
#pragma once

#include "slow_rules.h"

namespace specdec::testing {

enum class Growth { chain, tree, bush };

inline void add_tree(Numbers& numbers, int64_t vocab, Growth growth, Trees& trees) {
  const int64_t count = once_in(numbers, 10) ? 0 : 1 + numbers.below(12);
  const int64_t rows = count + (once_in(numbers, 2) ? numbers.below(3) : 0), first = trees.total();
  std::vector<int32_t> branch;  // from the root to the node that was added last
  for (int64_t i = 0; i < rows; ++i) {
    const bool live = i < count;
    if (live && growth != Growth::chain) {
      while (branch.size() > 1 && once_in(numbers, 4) == (growth == Growth::tree)) branch.pop_back();
    }
    trees.parents.push_back(live && i > 0 ? branch.back() : -1);
    trees.depths.push_back(live ? static_cast<int32_t>(branch.size()) : 0);
    trees.ends.push_back(live ? static_cast<int32_t>(i + 1) : 0);
    constexpr int64_t kOdd[] = {-1, -1, -5, INT32_MAX};
    trees.tokens.push_back(once_in(numbers, 12) ? one_of(numbers, kOdd) : numbers.below(vocab + once_in(numbers, 20)));
    if (!live) continue;
    for (const int32_t node : branch) trees.ends[first + node] = static_cast<int32_t>(i + 1);
    branch.push_back(static_cast<int32_t>(i));
    trees.max_depth = std::max(trees.max_depth, trees.depths.back());
  }
  trees.cu_nodes.push_back(static_cast<int32_t>(first + rows));
}

inline void damage(Numbers& numbers, Trees& trees) {
  if (trees.total() == 0) return;
  constexpr int32_t kValues[] = {-1, 0, 1, 2, 3, -7, INT32_MAX, INT32_MIN};
  std::vector<int32_t>* columns[] = {&trees.parents, &trees.depths, &trees.ends, &trees.ends};
  const int64_t row = numbers.below(trees.total());
  (*one_of(numbers, columns))[row] = one_of(numbers, kValues);
  if (once_in(numbers, 6)) trees.cu_nodes[numbers.below(trees.batch() + 1)] = one_of(numbers, kValues);
  if (once_in(numbers, 6) && trees.max_depth > 0) --trees.max_depth;
}

// Maps between the target's ids and the columns of a draft's vocabulary, with some that do not agree.
inline void add_maps(Numbers& numbers, int64_t vocab, Case* c) {
  Ids targets, columns(static_cast<size_t>(vocab), -1);
  for (int64_t id = 0; id < vocab; ++id) {
    if (id == 0 || !once_in(numbers, 3)) targets.push_back(id);
  }
  if (once_in(numbers, 2)) {
    for (size_t i = targets.size() - 1; i > 0; --i) std::swap(targets[i], targets[numbers.below(i + 1)]);
  }
  for (size_t i = 0; i < targets.size(); ++i) columns[targets[i]] = static_cast<int64_t>(i);
  constexpr int64_t kOdd[] = {-1, -9, INT32_MAX};
  if (once_in(numbers, 2)) targets[numbers.below(static_cast<int64_t>(targets.size()))] = one_of(numbers, kOdd);
  if (once_in(numbers, 2)) columns[numbers.below(vocab)] = one_of(numbers, kOdd);
  if (once_in(numbers, 2)) targets.push_back(vocab + numbers.below(9));
  c->draft_to_target = random_indices(numbers, targets);
  c->target_to_draft = random_indices(numbers, columns);
}

// Drafts of the best ids of the row of their parent, the target's or the drafter's: walks go on, and drafts are
// rejected that had a good part of their law.
inline void choose_tokens(Numbers& numbers, const LogitRows& logits, const Indices& given_rows, Case* c) {
  Trees& t = c->trees;
  for (int64_t b = 0; b < t.batch(); ++b) {
    const Nodes nodes = open_slowly(t, b);
    std::vector<Ids> best(static_cast<size_t>(nodes.count));
    for (int64_t i = 1; i < nodes.count; ++i) {
      const int64_t parent = t.parents[nodes.first + i], owner = nodes.first + parent;
      const int64_t row = given_rows ? given_rows[owner] : owner;
      if (once_in(numbers, 3) || row < 0 || row >= logits.rows()) continue;
      if (best[parent].empty()) {
        bool nan = false;
        best[parent] = ranking(logits.clean(row, &nan));
      }
      const int64_t there = static_cast<int64_t>(best[parent].size());
      if (there > 0) t.tokens[nodes.first + i] = best[parent][numbers.below(std::min<int64_t>(there, 3))];
    }
  }
}

// What the lossy rules are given.
inline void add_limits(Numbers& numbers, Case* c) {
  constexpr double kSingle[] = {0.0, 0.01, 0.37, 1.0}, kAccumulated[] = {0.05, 0.6, 1.0};
  constexpr double kEpsilon[] = {0.0, 0.09, 0.53}, kDelta[] = {0.0, 0.3, 0.07, 1.0};
  constexpr int64_t kTopK[] = {1, 2, 5, 100};
  constexpr float kRates[] = {0.0f, 0.5f, 0.9f, 1.0f, 1.5f, -1.0f, NAN};
  c->single = one_of(numbers, kSingle);
  c->accumulated = one_of(numbers, kAccumulated);
  c->epsilon = one_of(numbers, kEpsilon);
  c->delta = one_of(numbers, kDelta);
  c->top_k = one_of(numbers, kTopK);
  c->some_relaxed = once_in(numbers, 2);
  for (int64_t b = 0; b < c->trees.batch(); ++b) c->relax.push_back(once_in(numbers, 2));
  for (int64_t d = 0; d < c->trees.max_depth; ++d) c->rates.push_back(one_of(numbers, kRates));
}

inline Case random_case(Numbers& numbers, Rule rule, int64_t vocab, int64_t batch, bool wide_tokens) {
  constexpr Logprobs kModes[] = {Logprobs::none, Logprobs::processed, Logprobs::raw};
  constexpr Growth kGrowths[] = {Growth::chain, Growth::tree, Growth::bush};
  constexpr int64_t kOddRows[] = {-1, -2, 1 << 20, INT32_MIN};
  Case c;
  c.rule = rule;
  const Growth growth = one_of(numbers, kGrowths);
  for (int64_t b = 0; b < batch; ++b) add_tree(numbers, vocab, growth, c.trees);
  if (once_in(numbers, 4)) damage(numbers, c.trees);
  const int64_t total = c.trees.total(), spare = numbers.below(2);
  c.logits = random_rows(numbers, total + spare, vocab);
  if (once_in(numbers, 3)) {
    Ids rows;
    for (int64_t i = 0; i < total; ++i) {
      rows.push_back(once_in(numbers, 12) ? one_of(numbers, kOddRows) : numbers.below(total + spare));
    }
    c.rows = random_indices(numbers, rows);
  }
  choose_tokens(numbers, c.logits, c.rows, &c);
  const int64_t token_stride = 1 + numbers.below(2);
  c.trees.given_tokens = Indices(c.trees.tokens, wide_tokens, token_stride);
  c.sampling = random_settings(numbers, batch, vocab, !once_in(numbers, 3));
  if (once_in(numbers, 3) && total > 0) c.masks = random_masks(numbers, total, vocab);
  Ids contexts, limits;
  for (int64_t b = 0; b < batch; ++b) {
    contexts.push_back(numbers.below(3000));
    limits.push_back(numbers.below(8) - 1);
    c.active.push_back(!once_in(numbers, 5));
  }
  c.context_lens = random_indices(numbers, contexts);
  if (once_in(numbers, 4)) c.max_tokens = random_indices(numbers, limits);
  c.some = once_in(numbers, 4);
  c.logprobs = one_of(numbers, kModes);
  c.replacement = once_in(numbers, 2) && rule != Rule::greedy_plus_one;  // for which it says nothing
  if (c.lossy()) add_limits(numbers, &c);
  if (!uses_drafts(rule) || once_in(numbers, 4)) return c;
  c.sampled_drafts = true;
  c.draft_sampling = random_settings(numbers, batch, vocab, !once_in(numbers, 2));
  if (once_in(numbers, 3)) add_maps(numbers, vocab, &c);
  c.draft_logits = random_rows(numbers, total + spare, c.draft_to_target ? c.draft_to_target.size() : vocab);
  if (!c.draft_to_target && once_in(numbers, 2)) {
    // A drafter that resembles its target: both residuals and acceptance are then of some size.
    const float distance = once_in(numbers, 2) ? 0.5f : 4.0f;
    for (int64_t r = 0; r < total; ++r) {
      for (int64_t i = 0; i < vocab; ++i) {
        c.draft_logits.set(r, i, static_cast<float>(c.logits.get(r, i)) + distance * numbers.symmetric());
      }
    }
  }
  if (once_in(numbers, 2)) {
    Ids rows;
    for (int64_t i = 0; i < total; ++i) {
      rows.push_back(once_in(numbers, 8) ? one_of(numbers, kOddRows) : numbers.below(total + spare));
    }
    c.draft_rows = random_indices(numbers, rows);
  }
  if (!c.draft_to_target && !once_in(numbers, 3)) {
    choose_tokens(numbers, c.draft_logits, c.draft_rows, &c);
    c.trees.given_tokens = Indices(c.trees.tokens, wide_tokens, token_stride);
  }
  if (c.masks.given && once_in(numbers, 2)) c.draft_mask_rows = mask_rows(numbers, total, c.masks.rows);
  return c;
}

// What a kernel is given, without results.
inline VerifyParams parameters(Case& c) {
  VerifyParams p;
  p.call.tree = c.trees.view();
  p.call.logits = c.logits.view();
  p.call.rows = c.rows.view();
  p.call.mask = c.masks.view();
  if (c.some) p.call.active = {reinterpret_cast<bool*>(c.active.data()), 1};
  p.call.max_tokens = c.max_tokens.view();
  p.call.logprobs_mode = c.logprobs;
  p.rule = c.rule;
  if (!c.undrawn()) {
    p.sampling = c.sampling.view();
    p.context_lens = c.context_lens.view();
  }
  if (uses_drafts(c.rule) && c.sampled_drafts) {
    p.draft_logits = c.draft_logits.view();
    p.draft_sampling = c.draft_sampling.view();
    p.draft_sampling.seed = {};  // not used
    p.draft_rows = c.draft_rows.view();
    p.draft_to_target = c.draft_to_target.view();
    p.target_to_draft = c.target_to_draft.view();
    if (c.draft_mask_rows) {
      p.draft_mask = c.masks.view();
      p.draft_mask.index = c.draft_mask_rows.view();
    }
  }
  p.replacement = c.replacement;
  p.single = c.single;
  p.accumulated = c.accumulated;
  p.epsilon = c.epsilon;
  p.delta = c.delta;
  p.top_k = c.top_k;
  if (c.some_relaxed) p.relax = {reinterpret_cast<bool*>(c.relax.data()), 1};
  p.rates = {c.rates.data(), 1};
  return p;
}

}  // namespace specdec::testing
