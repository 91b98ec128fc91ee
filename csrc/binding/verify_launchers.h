// SPDX-License-Identifier: Apache-2.0
// The launchers of the verify family: last-line checks, and tensors to parameters. A backend has `kDevice`, and a
// function for each kind of parameters that takes them, the arguments' checker, and a tensor that says where the call
// belongs.
#pragma once

#include <cfloat>

#include "register.h"
#include "sampling_arguments.h"

namespace specdec {

template <class Backend>
void verify_greedy(const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                   const Tensor& ends, const Tensor& logits, const OptionalTensor& rows, const OptionalTensor& allowed,
                   const OptionalTensor& allowed_rows, const OptionalTensor& active, const OptionalTensor& max_tokens,
                   int64_t logprobs_mode, const Tensor& out_tokens, const Tensor& num_tokens, const Tensor& path,
                   const Tensor& status, const OptionalTensor& logprobs, const OptionalTensor& lse) {
  const Arguments a("verify.greedy", Backend::kDevice);
  VerifyParams p;
  p.call = read_verify_call(a, {cu_nodes, tokens, parents, depths, ends}, logits, rows, allowed, allowed_rows, active,
                            max_tokens, logprobs_mode, {out_tokens, num_tokens, path, status, logprobs, lse});
  Backend::verify(p, a, logits);
}

template <class Backend>
void verify_match(const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                  const Tensor& ends, const Tensor& logits, const Tensor& temperature, const OptionalTensor& top_k,
                  const OptionalTensor& top_p, const OptionalTensor& min_p, const Tensor& seed, int64_t filter_order,
                  const Tensor& context_lens, const OptionalTensor& rows, const OptionalTensor& allowed,
                  const OptionalTensor& allowed_rows, const OptionalTensor& active, const OptionalTensor& max_tokens,
                  int64_t logprobs_mode, const Tensor& out_tokens, const Tensor& num_tokens, const Tensor& path,
                  const Tensor& status, const OptionalTensor& logprobs, const OptionalTensor& lse) {
  const Arguments a("verify.match", Backend::kDevice);
  VerifyParams p;
  p.rule = Rule::match;
  p.call = read_verify_call(a, {cu_nodes, tokens, parents, depths, ends}, logits, rows, allowed, allowed_rows, active,
                            max_tokens, logprobs_mode, {out_tokens, num_tokens, path, status, logprobs, lse});
  const int64_t batch = p.call.tree.batch;
  p.sampling = read_settings(a, temperature, top_k, top_p, min_p, filter_order, batch);
  p.sampling.seed = a.vector<int64_t>("seed", seed, batch);
  p.context_lens = a.index("context_lens", context_lens, batch);
  Backend::verify(p, a, logits);
}

struct DraftSettings {
  const OptionalTensor& temperature;
  const OptionalTensor& top_k;
  const OptionalTensor& top_p;
  const OptionalTensor& min_p;
  int64_t filter_order;
};

// The laws that children were drawn from, behind the call; nothing of it means anything without logits.
inline void read_drafts(const Arguments& a, VerifyParams& p, const OptionalTensor& draft_logits,
                        const DraftSettings& settings, const OptionalTensor& draft_rows, const OptionalTensor& allowed,
                        const OptionalTensor& draft_allowed_rows, const OptionalTensor& draft_to_target,
                        const OptionalTensor& target_to_draft) {
  if (!draft_logits) return;
  const int64_t total = p.call.tree.total, vocab = p.call.logits.columns;
  p.draft_logits = read_logits(a, "draft_logits", *draft_logits);
  p.draft_sampling = read_settings(a, settings.temperature, settings.top_k, settings.top_p, settings.min_p,
                                   settings.filter_order, p.call.tree.batch, "draft_");
  p.draft_rows = a.index("draft_rows", draft_rows, total);
  SPECDEC_CHECK(draft_rows.has_value() || p.draft_logits.rows >= total, a.op(), ": draft_logits must have at least ",
                total, " rows, got ", p.draft_logits.rows);
  SPECDEC_CHECK(draft_to_target.has_value() == target_to_draft.has_value(), a.op(), ": ",
                draft_to_target ? "target_to_draft" : "draft_to_target",
                " must be given together with its inverse, got None");
  p.draft_to_target = a.index("draft_to_target", draft_to_target, p.draft_logits.columns);
  p.target_to_draft = a.index("target_to_draft", target_to_draft, vocab);
  SPECDEC_CHECK(draft_to_target.has_value() || p.draft_logits.columns == vocab, a.op(), ": draft_logits must have ",
                vocab, " columns, got ", p.draft_logits.columns);
  if (draft_allowed_rows) {
    p.draft_mask = read_mask(a, allowed, "draft_allowed_rows", draft_allowed_rows, total, vocab);
  }
}

template <class Backend>
void verify_rejection(const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                      const Tensor& ends, const Tensor& logits, const OptionalTensor& draft_logits,
                      const Tensor& temperature, const OptionalTensor& top_k, const OptionalTensor& top_p,
                      const OptionalTensor& min_p, const Tensor& seed, int64_t filter_order,
                      const OptionalTensor& draft_temperature, const OptionalTensor& draft_top_k,
                      const OptionalTensor& draft_top_p, const OptionalTensor& draft_min_p, int64_t draft_filter_order,
                      const Tensor& context_lens, int64_t rule, bool replacement, const OptionalTensor& rows,
                      const OptionalTensor& draft_rows, const OptionalTensor& allowed,
                      const OptionalTensor& allowed_rows, const OptionalTensor& draft_allowed_rows,
                      const OptionalTensor& draft_to_target, const OptionalTensor& target_to_draft,
                      const OptionalTensor& active, const OptionalTensor& max_tokens, int64_t logprobs_mode,
                      const Tensor& out_tokens, const Tensor& num_tokens, const Tensor& path, const Tensor& status,
                      const OptionalTensor& logprobs, const OptionalTensor& lse) {
  const Arguments a("verify.rejection", Backend::kDevice);
  SPECDEC_CHECK(rule >= 0 && rule <= 3, a.op(), ": rule must be between 0 and 3, got ", rule);
  static constexpr Rule kRules[] = {Rule::rejection, Rule::bottom_up, Rule::bottom_up, Rule::greedy_plus_one};
  VerifyParams p;
  p.rule = kRules[rule];
  p.call = read_verify_call(a, {cu_nodes, tokens, parents, depths, ends}, logits, rows, allowed, allowed_rows, active,
                            max_tokens, logprobs_mode, {out_tokens, num_tokens, path, status, logprobs, lse});
  const int64_t batch = p.call.tree.batch;
  p.sampling = read_settings(a, temperature, top_k, top_p, min_p, filter_order, batch);
  p.sampling.seed = a.vector<int64_t>("seed", seed, batch);
  p.context_lens = a.index("context_lens", context_lens, batch);
  p.replacement = replacement && p.rule != Rule::greedy_plus_one;  // which does not ask
  read_drafts(a, p, draft_logits, {draft_temperature, draft_top_k, draft_top_p, draft_min_p, draft_filter_order},
              draft_rows, allowed, draft_allowed_rows, draft_to_target, target_to_draft);
  Backend::verify(p, a, logits);
}

template <class Backend>
void verify_expect(const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                   const Tensor& ends, const Tensor& logits, const OptionalTensor& draft_logits,
                   const Tensor& temperature, const OptionalTensor& top_k, const OptionalTensor& top_p,
                   const OptionalTensor& min_p, int64_t filter_order, const OptionalTensor& draft_temperature,
                   const OptionalTensor& draft_top_k, const OptionalTensor& draft_top_p,
                   const OptionalTensor& draft_min_p, int64_t draft_filter_order, bool replacement,
                   const OptionalTensor& rows, const OptionalTensor& draft_rows, const OptionalTensor& allowed,
                   const OptionalTensor& allowed_rows, const OptionalTensor& draft_allowed_rows,
                   const OptionalTensor& draft_to_target, const OptionalTensor& target_to_draft,
                   const OptionalTensor& active, const OptionalTensor& max_tokens, int64_t max_depth,
                   const Tensor& token, const Tensor& traversal, const Tensor& greedy_plus_one, const Tensor& bound) {
  const Arguments a("verify.expect", Backend::kDevice);
  SPECDEC_CHECK(max_depth >= 0, a.op(), ": tree.max_depth must be at least 0, got ", max_depth);
  a.check_rank("out.token", token, 1);
  const int64_t batch = token.size(0);
  ExpectParams e;
  VerifyParams& p = e.verify;
  p.rule = Rule::rejection;
  p.call = read_verify_inputs(a, {cu_nodes, tokens, parents, depths, ends}, logits, rows, allowed, allowed_rows, active,
                              max_tokens, batch, max_depth);
  p.sampling = read_settings(a, temperature, top_k, top_p, min_p, filter_order, batch);
  p.replacement = replacement;
  read_drafts(a, p, draft_logits, {draft_temperature, draft_top_k, draft_top_p, draft_min_p, draft_filter_order},
              draft_rows, allowed, draft_allowed_rows, draft_to_target, target_to_draft);
  e.token = a.contiguous<float>("out.token", token, batch);
  e.traversal = a.contiguous<float>("out.traversal", traversal, batch);
  e.greedy_plus_one = a.contiguous<float>("out.greedy_plus_one", greedy_plus_one, batch);
  e.bound = a.contiguous<float>("out.bound", bound, batch);
  Backend::expect(e, a, logits);
}

// The arguments of a lossy rule that draws, behind the call.
inline void read_drawn(const Arguments& a, VerifyParams& p, const Tensor& temperature, const OptionalTensor& top_k,
                       const OptionalTensor& top_p, const OptionalTensor& min_p, const Tensor& seed,
                       int64_t filter_order, const Tensor& context_lens) {
  const int64_t batch = p.call.tree.batch;
  p.sampling = read_settings(a, temperature, top_k, top_p, min_p, filter_order, batch);
  p.sampling.seed = a.vector<int64_t>("seed", seed, batch);
  p.context_lens = a.index("context_lens", context_lens, batch);
}

inline void read_divergence(const Arguments& a, VerifyParams& p, const OptionalTensor& divergence) {
  if (!divergence) return;
  p.call.divergence = a.contiguous_rows<float>("divergence", *divergence, p.call.tree.batch, p.call.width());
}

template <class Backend>
void verify_threshold(const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                      const Tensor& ends, const Tensor& logits, const Tensor& temperature, const OptionalTensor& top_k,
                      const OptionalTensor& top_p, const OptionalTensor& min_p, const Tensor& seed,
                      int64_t filter_order, const Tensor& context_lens, double single, double accumulated,
                      const OptionalTensor& rows, const OptionalTensor& allowed, const OptionalTensor& allowed_rows,
                      const OptionalTensor& active, const OptionalTensor& max_tokens, int64_t logprobs_mode,
                      const Tensor& out_tokens, const Tensor& num_tokens, const Tensor& path, const Tensor& status,
                      const OptionalTensor& logprobs, const OptionalTensor& lse, const OptionalTensor& divergence) {
  const Arguments a("verify.threshold", Backend::kDevice);
  VerifyParams p;
  p.rule = Rule::threshold;
  p.call = read_verify_call(a, {cu_nodes, tokens, parents, depths, ends}, logits, rows, allowed, allowed_rows, active,
                            max_tokens, logprobs_mode, {out_tokens, num_tokens, path, status, logprobs, lse});
  read_drawn(a, p, temperature, top_k, top_p, min_p, seed, filter_order, context_lens);
  SPECDEC_CHECK(single >= 0 && single <= 1, a.op(), ": single must be between 0 and 1, got ", single);
  SPECDEC_CHECK(accumulated > 0 && accumulated <= 1, a.op(), ": accumulated must be above 0 and at most 1, got ",
                accumulated);
  p.single = single;
  p.accumulated = accumulated;
  read_divergence(a, p, divergence);
  Backend::verify(p, a, logits);
}

template <class Backend>
void verify_typical(const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                    const Tensor& ends, const Tensor& logits, const Tensor& temperature, const OptionalTensor& top_k,
                    const OptionalTensor& top_p, const OptionalTensor& min_p, const Tensor& seed, int64_t filter_order,
                    const Tensor& context_lens, double epsilon, double delta, const OptionalTensor& rows,
                    const OptionalTensor& allowed, const OptionalTensor& allowed_rows, const OptionalTensor& active,
                    const OptionalTensor& max_tokens, int64_t logprobs_mode, const Tensor& out_tokens,
                    const Tensor& num_tokens, const Tensor& path, const Tensor& status, const OptionalTensor& logprobs,
                    const OptionalTensor& lse, const OptionalTensor& divergence) {
  const Arguments a("verify.typical", Backend::kDevice);
  VerifyParams p;
  p.rule = Rule::typical;
  p.call = read_verify_call(a, {cu_nodes, tokens, parents, depths, ends}, logits, rows, allowed, allowed_rows, active,
                            max_tokens, logprobs_mode, {out_tokens, num_tokens, path, status, logprobs, lse});
  read_drawn(a, p, temperature, top_k, top_p, min_p, seed, filter_order, context_lens);
  SPECDEC_CHECK(epsilon >= 0 && epsilon <= 1, a.op(), ": epsilon must be between 0 and 1, got ", epsilon);
  SPECDEC_CHECK(delta >= 0, a.op(), ": delta must be at least 0, got ", delta);
  SPECDEC_CHECK(delta <= FLT_MAX, a.op(), ": delta must be a finite float32, got ", delta);
  p.epsilon = epsilon;
  p.delta = delta;
  read_divergence(a, p, divergence);
  Backend::verify(p, a, logits);
}

template <class Backend>
void verify_relaxed(const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                    const Tensor& ends, const Tensor& logits, int64_t top_k, double delta, const OptionalTensor& rows,
                    const OptionalTensor& allowed, const OptionalTensor& allowed_rows, const OptionalTensor& relax,
                    const OptionalTensor& active, const OptionalTensor& max_tokens, int64_t logprobs_mode,
                    const Tensor& out_tokens, const Tensor& num_tokens, const Tensor& path, const Tensor& status,
                    const OptionalTensor& logprobs, const OptionalTensor& lse, const OptionalTensor& divergence) {
  const Arguments a("verify.relaxed", Backend::kDevice);
  VerifyParams p;
  p.rule = Rule::relaxed;
  p.call = read_verify_call(a, {cu_nodes, tokens, parents, depths, ends}, logits, rows, allowed, allowed_rows, active,
                            max_tokens, logprobs_mode, {out_tokens, num_tokens, path, status, logprobs, lse});
  SPECDEC_CHECK(top_k >= 1 && top_k <= INT32_MAX, a.op(), ": top_k must be between 1 and 2147483647, got ", top_k);
  SPECDEC_CHECK(delta >= 0 && delta <= 1, a.op(), ": delta must be between 0 and 1, got ", delta);
  p.top_k = top_k;
  p.delta = delta;
  p.relax = a.vector<bool>("relax", relax, p.call.tree.batch);
  read_divergence(a, p, divergence);
  Backend::verify(p, a, logits);
}

template <class Backend>
void verify_synthetic(const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                      const Tensor& ends, const Tensor& logits, const Tensor& temperature, const OptionalTensor& top_k,
                      const OptionalTensor& top_p, const OptionalTensor& min_p, const Tensor& seed,
                      int64_t filter_order, const Tensor& context_lens, const Tensor& rates, const OptionalTensor& rows,
                      const OptionalTensor& allowed, const OptionalTensor& allowed_rows, const OptionalTensor& active,
                      const OptionalTensor& max_tokens, int64_t logprobs_mode, const Tensor& out_tokens,
                      const Tensor& num_tokens, const Tensor& path, const Tensor& status,
                      const OptionalTensor& logprobs, const OptionalTensor& lse, const OptionalTensor& divergence) {
  const Arguments a("verify.synthetic", Backend::kDevice);
  VerifyParams p;
  p.rule = Rule::synthetic;
  p.call = read_verify_call(a, {cu_nodes, tokens, parents, depths, ends}, logits, rows, allowed, allowed_rows, active,
                            max_tokens, logprobs_mode, {out_tokens, num_tokens, path, status, logprobs, lse});
  read_drawn(a, p, temperature, top_k, top_p, min_p, seed, filter_order, context_lens);
  p.rates = a.vector<float>("rates", rates, rates.dim() == 1 ? rates.size(0) : 0);
  SPECDEC_CHECK(rates.size(0) >= p.call.tree.max_depth, a.op(), ": rates must have at least ", p.call.tree.max_depth,
                " elements, got ", rates.size(0));
  read_divergence(a, p, divergence);
  Backend::verify(p, a, logits);
}

template <class Backend, class Library>
void register_verify(Library& library) {
  SPECDEC_IMPL(library, verify_greedy, verify_greedy<Backend>);
  SPECDEC_IMPL(library, verify_match, verify_match<Backend>);
  SPECDEC_IMPL(library, verify_rejection, verify_rejection<Backend>);
  SPECDEC_IMPL(library, verify_expect, verify_expect<Backend>);
  SPECDEC_IMPL(library, verify_threshold, verify_threshold<Backend>);
  SPECDEC_IMPL(library, verify_typical, verify_typical<Backend>);
  SPECDEC_IMPL(library, verify_relaxed, verify_relaxed<Backend>);
  SPECDEC_IMPL(library, verify_synthetic, verify_synthetic<Backend>);
}

}  // namespace specdec
