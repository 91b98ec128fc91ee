// SPDX-License-Identifier: Apache-2.0
// The launchers of the draft family: last-line checks, and tensors to parameters. A backend has `kDevice`, and a
// function for each kind of parameters that takes them, the arguments' checker, and a tensor that says where the call
// belongs.
#pragma once

#include <utility>

#include "../common/budget_params.h"
#include "../common/draft_params.h"
#include "paged_arguments.h"
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
                  const OptionalTensor& draft_to_target, const OptionalTensor& min_confidence,
                  const OptionalTensor& max_entropy, const Tensor& tokens, const Tensor& child_scores,
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
  p.stops = read_stops(a, min_confidence, max_entropy, p.batch);
  a.check_rank("out.beams", beams, 2);
  p.beams = beams.size(1);
  SPECDEC_CHECK(p.beams >= 1 && p.beams <= kMaxExpand, a.op(), ": beams must be between 1 and ", kMaxExpand, ", got ",
                p.beams);
  p.tokens = a.contiguous_rows<int64_t>("out.tokens", tokens, p.batch, p.width * num);
  p.child_scores = a.contiguous_rows<float>("out.scores", child_scores, p.batch, p.width * num);
  p.beam_columns = a.contiguous_rows<int32_t>("out.beams", beams, p.batch, p.beams);
  Backend::expand(p, a, logits);
}

// Where the slots of a block come from; all of it is given, or nothing.
inline void read_block_slots(const Arguments& a, const OptionalTensor& block_table, const OptionalTensor& table_rows,
                             int64_t page_size, const OptionalTensor& slots, DraftBlockParams& p) {
  SPECDEC_CHECK(slots.has_value() == block_table.has_value(), a.op(), ": out.slots must be ",
                block_table ? "given with block_table, got None" : "None without block_table, got a tensor");
  if (!block_table) {
    SPECDEC_CHECK(!table_rows, a.op(), ": block_table must be given with table_rows, got None");
    SPECDEC_CHECK(page_size == 0, a.op(), ": block_table must be given with page_size, got None");
    return;
  }
  SPECDEC_CHECK(page_size >= 1 && (page_size & (page_size - 1)) == 0, a.op(),
                ": page_size must be a power of two, got ", page_size);
  p.table = read_block_table(a, *block_table, table_rows, p.batch);
  p.page_size = page_size;
  p.slots = a.contiguous_rows<int64_t>("out.slots", *slots, p.batch, p.size);
}

template <class Backend>
void draft_block(const Tensor& tokens, const Tensor& num_tokens, const Tensor& context_lens, int64_t mask_token,
                 const OptionalTensor& block_table, const OptionalTensor& table_rows, int64_t page_size,
                 const OptionalTensor& active, const Tensor& roots, const Tensor& ids, const Tensor& positions,
                 const OptionalTensor& slots, const Tensor& new_context_lens, const OptionalTensor& status) {
  const Arguments a("draft.block", Backend::kDevice);
  a.check_rank("tokens", tokens, 2);
  DraftBlockParams p;
  p.tokens = tokens.data_ptr();
  p.wide = a.is_wide("tokens", tokens);
  p.row_stride = tokens.stride(0);
  p.column_stride = tokens.stride(1);
  p.batch = tokens.size(0);
  p.width = tokens.size(1);
  p.num_tokens = read_int32(a, "num_tokens", num_tokens, p.batch);
  p.context_lens = a.index("context_lens", context_lens, p.batch);
  SPECDEC_CHECK(mask_token >= 0 && mask_token <= INT32_MAX, a.op(), ": mask_token must be between 0 and ", INT32_MAX,
                ", got ", mask_token);
  p.mask_token = mask_token;
  a.check_rank("out.ids", ids, 2);
  p.size = ids.size(1);
  SPECDEC_CHECK(p.size >= 1, a.op(), ": block_size must be at least 1, got ", p.size);
  a.check_contiguous_rows("out.ids", ids, p.batch, p.size);
  p.ids = ids.data_ptr();
  p.roots = a.index_out("out.roots", roots, p.batch);
  for (const auto& [name, wide] : {std::pair{"out.ids", a.is_wide("out.ids", ids)}, {"out.roots", p.roots.wide}}) {
    SPECDEC_CHECK(wide == p.wide, a.op(), ": ", name, " must have the dtype of tokens, got another dtype");
  }
  p.positions = a.contiguous_rows<int64_t>("out.positions", positions, p.batch, p.size);
  read_block_slots(a, block_table, table_rows, page_size, slots, p);
  p.new_contexts = a.index_out("out.context_lens", new_context_lens, p.batch);
  SPECDEC_CHECK(p.new_contexts.wide == p.context_lens.wide, a.op(),
                ": out.context_lens must have the dtype of context_lens, got another dtype");
  for (const auto& [name, out] : {std::pair{"out.roots", p.roots}, {"out.context_lens", p.new_contexts}}) {
    SPECDEC_CHECK(p.batch <= 1 || out.stride == 1, a.op(), ": ", name, " must be contiguous, got stride ", out.stride);
  }
  p.active = read_active(a, active, p.batch);
  p.status = read_status(a, status, p.batch);
  Backend::block(p, a, tokens);
}

template <class Backend>
void draft_budget(const Tensor& scores, const Tensor& costs, const OptionalTensor& active, bool sampled,
                  const Tensor& counts) {
  const Arguments a("draft.budget", Backend::kDevice);
  a.check_rank("scores", scores, 2);
  a.check_type<float>("scores", scores);
  BudgetParams p;
  p.batch = scores.size(0);
  p.columns = scores.size(1);
  SPECDEC_CHECK(p.batch <= kMostBudgetRequests, a.op(), ": scores must have at most ", kMostBudgetRequests,
                " rows, got ", p.batch);
  SPECDEC_CHECK(p.columns == 0 || p.batch <= kMostBudgetScores / p.columns, a.op(), ": scores must have at most ",
                kMostBudgetScores, " elements, got shape ", shape_text(scores));
  p.scores = static_cast<const float*>(scores.data_ptr());
  p.row_stride = scores.stride(0);
  p.column_stride = scores.stride(1);
  a.check_rank("costs", costs, 1);
  a.check_type<float>("costs", costs);
  p.steps = costs.size(0);
  SPECDEC_CHECK(p.steps >= 1 && p.steps <= kMostBudgetCosts, a.op(), ": costs must have between 1 and ",
                kMostBudgetCosts, " elements, got ", p.steps);
  p.costs = {static_cast<const float*>(costs.data_ptr()), costs.stride(0)};
  p.active = read_active(a, active, p.batch);
  p.sampled = sampled;
  p.counts = a.contiguous<int32_t>("out", counts, p.batch);
  Backend::budget(p, a, scores);
}

template <class Backend, class Library>
void register_draft(Library& library) {
  SPECDEC_IMPL(library, draft_ngram_lookup, draft_ngram_lookup<Backend>);
  SPECDEC_IMPL(library, draft_expand, draft_expand<Backend>);
  SPECDEC_IMPL(library, draft_block, draft_block<Backend>);
  SPECDEC_IMPL(library, draft_budget, draft_budget<Backend>);
}

}  // namespace specdec
