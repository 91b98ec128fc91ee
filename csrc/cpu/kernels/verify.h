// SPDX-License-Identifier: Apache-2.0
// The verification rules on the CPU.
#pragma once

#include "../../common/sampling_law.h"
#include "../../common/verify_call.h"
#include "../isa.h"

namespace specdec::cpu {

enum class Rule { greedy, match, rejection };

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
};

}  // namespace specdec::cpu

SPECDEC_DECLARE_KERNEL(void, verify, (const VerifyParams&))
