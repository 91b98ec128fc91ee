// SPDX-License-Identifier: Apache-2.0
// The launchers of the draft family: last-line checks, and tensors to parameters. A backend has `kDevice`, and a
// function for each kind of parameters that takes them, the arguments' checker, and a tensor that says where the call
// belongs.
#pragma once

#include "../common/draft_params.h"
#include "register.h"
#include "sampling_arguments.h"

namespace specdec {

template <class Backend>
void draft_ngram_lookup(const Tensor& history, const Tensor& lengths, int64_t min_n, int64_t max_n,
                        const OptionalTensor& active, const Tensor& drafts, const Tensor& counts) {
  const Arguments arguments("draft.ngram_lookup", Backend::kDevice);
  arguments.check_rank("history", history, 2);
  const int64_t batch = history.size(0);
  SPECDEC_CHECK(history.size(1) <= 1 || history.stride(1) == 1, arguments.op(),
                ": history must have unit stride in the last dimension, got ", history.stride(1));
  SPECDEC_CHECK(min_n >= 1, arguments.op(), ": min_n must be at least 1, got ", min_n);
  SPECDEC_CHECK(max_n >= min_n, arguments.op(), ": max_n must be at least ", min_n, ", got ", max_n);
  arguments.check_rank("out[0]", drafts, 2);
  NgramParams p;
  p.history = history.data_ptr();
  p.wide = arguments.is_wide("history", history);
  p.row_stride = history.stride(0);
  p.batch = batch;
  p.columns = history.size(1);
  p.lengths = arguments.index("lengths", lengths, batch);
  p.min_n = min_n;
  p.max_n = max_n;
  p.num = drafts.size(1);
  p.active = arguments.vector<bool>("active", active, batch);
  arguments.check_contiguous_rows("out[0]", drafts, batch, p.num);
  SPECDEC_CHECK(arguments.is_wide("out[0]", drafts) == p.wide, arguments.op(),
                ": out[0] must have the dtype of history, got another dtype");
  p.drafts = drafts.data_ptr();
  p.counts = arguments.contiguous<int32_t>("out[1]", counts, batch);
  Backend::ngram_lookup(p, arguments, history);
}

template <class Backend>
void draft_expand(const Tensor& logits, const OptionalTensor& scores, int64_t num,
                  const OptionalTensor& draft_to_target, const Tensor& tokens, const Tensor& child_scores,
                  const Tensor& beams) {
  const Arguments a("draft.expand", Backend::kDevice);
  ExpandParams p;
  p.logits = read_logits(a, "logits", logits);
  p.batch = p.logits.rows;
  p.width = 1;
  if (scores) {
    a.check_rank("scores", *scores, 2);
    a.check_type<float>("scores", *scores);
    p.batch = scores->size(0);
    p.width = scores->size(1);
    SPECDEC_CHECK(p.width <= kMaxExpand, a.op(), ": scores must have at most ", kMaxExpand, " columns, got ", p.width);
    SPECDEC_CHECK(p.batch * p.width == p.logits.rows, a.op(), ": logits must have ", p.batch * p.width, " rows, got ",
                  p.logits.rows);
    p.scores = static_cast<const float*>(scores->data_ptr());
    p.score_row_stride = scores->stride(0);
    p.score_column_stride = scores->stride(1);
  }
  SPECDEC_CHECK(num >= 1 && num <= kMaxExpand, a.op(), ": num must be between 1 and ", kMaxExpand, ", got ", num);
  p.num = num;
  p.draft_to_target = a.index("draft_to_target", draft_to_target, p.logits.columns);
  a.check_rank("out.beams", beams, 2);
  p.beams = beams.size(1);
  SPECDEC_CHECK(p.beams >= 1 && p.beams <= kMaxExpand, a.op(), ": beams must be between 1 and ", kMaxExpand, ", got ",
                p.beams);
  p.tokens = a.contiguous_rows<int64_t>("out.tokens", tokens, p.batch, p.width * num);
  p.child_scores = a.contiguous_rows<float>("out.scores", child_scores, p.batch, p.width * num);
  p.beam_columns = a.contiguous_rows<int32_t>("out.beams", beams, p.batch, p.beams);
  Backend::expand(p, a, logits);
}

template <class Backend, class Library>
void register_draft(Library& library) {
  SPECDEC_IMPL(library, draft_ngram_lookup, draft_ngram_lookup<Backend>);
  SPECDEC_IMPL(library, draft_expand, draft_expand<Backend>);
}

}  // namespace specdec
