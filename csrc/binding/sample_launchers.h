// SPDX-License-Identifier: Apache-2.0
// The launchers of the sample family: last-line checks, and tensors to parameters. A backend has `kDevice`, and a
// function for each kind of parameters that takes them, the arguments' checker, and a tensor that says where the call
// belongs.
#pragma once

#include "../common/sample_params.h"
#include "register.h"
#include "sampling_arguments.h"

namespace specdec {

template <class Backend>
void sample_sample(const Tensor& logits, const Tensor& temperature, const OptionalTensor& top_k,
                   const OptionalTensor& top_p, const OptionalTensor& min_p, const Tensor& seed, int64_t filter_order,
                   const Tensor& positions, const OptionalTensor& allowed, const OptionalTensor& allowed_rows,
                   const OptionalTensor& active, const Tensor& out_tokens, const Tensor& status) {
  const Arguments a("sample.sample", Backend::kDevice);
  SampleParams p;
  p.logits = read_logits(a, "logits", logits);
  const int64_t batch = p.logits.rows;
  p.sampling = read_settings(a, temperature, top_k, top_p, min_p, filter_order, batch);
  p.sampling.seed = a.vector<int64_t>("seed", seed, batch);
  p.positions = a.index("positions", positions, batch);
  p.mask = read_mask(a, allowed, "allowed_rows", allowed_rows, batch, p.logits.columns);
  p.active = a.vector<bool>("active", active, batch);
  a.check_type<int64_t>("out", out_tokens);
  p.tokens = a.index_out("out", out_tokens, batch);
  p.status = a.vector<int32_t>("status", status, batch);
  Backend::sample_tokens(p, a, logits);
}

template <class Backend>
void sample_draft(const Tensor& logits, const Tensor& temperature, const OptionalTensor& top_k,
                  const OptionalTensor& top_p, const OptionalTensor& min_p, const Tensor& seed, int64_t filter_order,
                  const Tensor& positions, const OptionalTensor& requests, const OptionalTensor& depths,
                  const OptionalTensor& nodes, const OptionalTensor& allowed, const OptionalTensor& allowed_rows,
                  const OptionalTensor& draft_to_target, const OptionalTensor& min_confidence,
                  const OptionalTensor& max_entropy, bool replacement, int64_t top, bool coupled, const Tensor& drafts,
                  const Tensor& status, const OptionalTensor& certainty) {
  const Arguments a("sample.draft", Backend::kDevice);
  DraftParams p;
  p.logits = read_logits(a, "logits", logits);
  const int64_t rows = p.logits.rows;
  a.check_rank("temperature", temperature, 1);
  p.batch = temperature.size(0);
  SPECDEC_CHECK(requests.has_value() || p.batch == rows, a.op(), ": temperature must have shape [", rows, "], got ",
                shape_text(temperature));
  p.sampling = read_settings(a, temperature, top_k, top_p, min_p, filter_order, p.batch);
  p.sampling.seed = a.vector<int64_t>("seed", seed, p.batch);
  p.positions = a.index("positions", positions, rows);
  p.requests = a.index("requests", requests, rows);
  p.depths = a.index("depths", depths, rows);
  p.nodes = a.index("nodes", nodes, rows);
  p.mask = read_mask(a, allowed, "allowed_rows", allowed_rows, rows, draft_to_target ? 0 : p.logits.columns);
  p.draft_to_target = a.index("draft_to_target", draft_to_target, p.logits.columns);
  p.stops = read_stops(a, min_confidence, max_entropy, p.batch);
  p.replacement = replacement;
  p.coupled = coupled;
  a.check_rank("out", drafts, 2);
  const int64_t num = drafts.size(1);
  SPECDEC_CHECK(num >= 1 && num <= kMaxDraws, a.op(), ": num must be between 1 and ", kMaxDraws, ", got ", num);
  SPECDEC_CHECK(top >= 0 && top <= num, a.op(), ": top must be between 0 and ", num, ", got ", top);
  p.num = static_cast<int>(num);
  p.top = static_cast<int>(top);
  a.check_shape("out", drafts, rows, num);
  a.check_type<int64_t>("out", drafts);
  SPECDEC_CHECK(rows <= 1 || drafts.stride(0) >= num, a.op(),
                ": out must have rows that do not overlap, got row stride ", drafts.stride(0));
  p.drafts = static_cast<int64_t*>(drafts.data_ptr());
  p.drafts_stride = drafts.stride(0);
  p.status = a.vector<int32_t>("status", status, rows);
  if (certainty) p.certainty = a.contiguous_rows<float>("certainty", *certainty, rows, 2);
  Backend::draft_tokens(p, a, logits);
}

template <class Backend, class Library>
void register_sample(Library& library) {
  SPECDEC_IMPL(library, sample_sample, sample_sample<Backend>);
  SPECDEC_IMPL(library, sample_draft, sample_draft<Backend>);
}

}  // namespace specdec
