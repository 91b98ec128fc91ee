// SPDX-License-Identifier: Apache-2.0
// What the verification rules are given and write, as raw pointers, and the mask of allowed ids.
#pragma once

#include <cstdint>

#include "sampling_law.h"
#include "tree_view.h"
#include "views.h"

namespace specdec {

// Which ids one row may emit.
struct Mask {
  const int32_t* words = nullptr;  // bit i of word w: id 32 w + i
  int64_t count = 0;               // words
  bool nothing = false;            // no id at all

  SPECDEC_HD bool is_open() const { return words == nullptr && !nothing; }
  SPECDEC_HD uint32_t word(int64_t index) const {
    return nothing || index >= count ? 0u : static_cast<uint32_t>(words[index]);
  }
  SPECDEC_HD bool allows(int64_t id) const { return is_open() || (word(id / 32) >> (id % 32) & 1u) != 0; }
};

// Rows of allowed ids, and which of them belongs to which row of logits.
struct MaskView {
  const int32_t* words = nullptr;  // [rows, columns]; null: everything is allowed
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t row_stride = 0;
  IndexView index;  // row of the mask, -1 = unrestricted; null: the owner's own

  // A row out of range allows nothing.
  SPECDEC_HD Mask of(int64_t owner) const {
    Mask mask;
    if (words == nullptr) return mask;
    const int64_t row = index ? index[owner] : owner;
    if (index && row == -1) return mask;
    mask.nothing = row < 0 || row >= rows;
    if (mask.nothing) return mask;
    mask.words = words + row * row_stride;
    mask.count = columns;
    return mask;
  }
};

enum class Logprobs : int32_t { none, processed, raw };

struct VerifyCall {
  TreeView tree;
  RowsView logits;
  IndexView rows;  // [total], row of logits of each node; null: its own
  MaskView mask;
  Strided<bool> active;  // [batch] or null
  IndexView max_tokens;  // [batch] or null
  Logprobs logprobs_mode = Logprobs::none;
  MutableIndexView out_tokens;    // [batch, max_depth + 1], as all that follow but the per-request ones
  int32_t* num_tokens = nullptr;  // [batch]
  int32_t* path = nullptr;
  int32_t* status = nullptr;  // [batch]
  float* logprobs = nullptr;  // null without log-probabilities
  float* lse = nullptr;
  float* divergence = nullptr;  // of lossy rules; null: not wanted

  SPECDEC_HD int64_t width() const { return tree.max_depth + 1; }

  // Nodes that a request may visit.
  SPECDEC_HD int64_t limit(int64_t request) const {
    const int64_t most = width();
    if (!max_tokens) return most;
    const int64_t asked = max_tokens[request];
    return asked < most ? asked : most;
  }
  SPECDEC_HD int64_t row_of(int64_t owner) const { return rows ? rows[owner] : owner; }
};

enum class Rule : int32_t {
  greedy,
  match,
  rejection,        // top-down: a coin at each child
  bottom_up,        // block and traversal verification
  greedy_plus_one,  // one coin, for the last child
  // Lossy.
  threshold,
  typical,
  relaxed,
  synthetic,
};

// Rules that look at the law of the drafts.
SPECDEC_HD constexpr bool uses_drafts(Rule rule) {
  return rule == Rule::rejection || rule == Rule::bottom_up || rule == Rule::greedy_plus_one;
}

struct VerifyParams {
  VerifyCall call;
  Rule rule = Rule::greedy;
  SamplingView sampling;   // not for greedy and relaxed: there every request is at temperature 0
  IndexView context_lens;  // [batch]; not for greedy and relaxed
  // Of the rules that use drafts' laws.
  RowsView draft_logits;  // null: all drafts are deterministic
  SamplingView draft_sampling;
  IndexView draft_rows;  // [total], row of the law of a node's children, -1 = deterministic; null: its own
  MaskView draft_mask;   // of the draws of a node's children
  IndexView draft_to_target, target_to_draft;
  bool replacement = false;
  // Of the lossy rules.
  double single = 1.0, accumulated = 1.0;  // threshold
  double epsilon = 0.0;                    // typical
  double delta = 0.0;                      // typical, relaxed
  int64_t top_k = 1;                       // relaxed
  Strided<bool> relax;                     // relaxed: [batch]; null: all
  Strided<float> rates;                    // synthetic: [max_depth] and more

  SPECDEC_HD Settings settings_of(int64_t request) const {
    Settings greedy;
    greedy.temperature = 0.0f;
    return rule == Rule::greedy || rule == Rule::relaxed ? greedy : sampling.of(request);
  }
};

// What a step must expect under each rule, without a coin: [batch] each.
struct ExpectParams {
  VerifyParams verify;  // without results
  float* token = nullptr;
  float* traversal = nullptr;
  float* greedy_plus_one = nullptr;
  float* bound = nullptr;
};

// ---- what the lossy rules share
// --------------------------------------------------------------------------------------

// The children of a node under two thresholds, one after the other: what they get beyond their probability is as much
// as all others get less than theirs.
struct ThresholdSum {
  double total = 0.0, given = 0.0, divergence = 0.0;
  bool sure = false;      // the child is accepted whatever the coin
  bool accepted = false;  // one has been

  // Whether a child of that probability is the one that the coin accepts.
  SPECDEC_HD bool offer(const VerifyParams& p, double probability, double coin) {
    total += probability;
    sure = probability > 0.0 && probability >= p.single;
    const bool here =
        !accepted && probability > 0.0 && (sure || total >= p.accumulated || coin * p.accumulated < total);
    const double share = total / p.accumulated;
    const double until = sure || share > 1.0 ? 1.0 : share;
    const double more = until - given - probability;
    divergence += more > 0.0 ? more : 0.0;
    given = until;
    accepted |= here;
    return here;
  }
};

// A draft must be likelier than this, given the entropy of its law.
SPECDEC_SHARED double typical_threshold(const VerifyParams& p, double entropy) {
  const double least = p.delta * exp_double(-entropy);
  return least < p.epsilon ? least : p.epsilon;
}

SPECDEC_SHARED double clamp_rate(float rate) { return !(rate > 0.0f) ? 0.0 : rate < 1.0f ? rate : 1.0; }

}  // namespace specdec
