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

enum class Rule : int32_t { greedy, match, rejection };

struct VerifyParams {
  VerifyCall call;
  Rule rule = Rule::greedy;
  SamplingView sampling;   // not for greedy: there every request is at temperature 0
  IndexView context_lens;  // [batch]; not for greedy
  // Of rejection alone.
  RowsView draft_logits;  // null: all drafts are deterministic
  SamplingView draft_sampling;
  IndexView draft_rows;  // [total], row of the law of a node's children, -1 = deterministic; null: its own
  MaskView draft_mask;   // of the draws of a node's children
  IndexView draft_to_target, target_to_draft;
  bool replacement = false;

  SPECDEC_HD Settings settings_of(int64_t request) const {
    Settings greedy;
    greedy.temperature = 0.0f;
    return rule == Rule::greedy ? greedy : sampling.of(request);
  }
};

}  // namespace specdec
