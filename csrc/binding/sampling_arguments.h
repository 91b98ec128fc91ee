// SPDX-License-Identifier: Apache-2.0
// Groups of arguments that several ops share, as torch-free views: settings, masks, and what every verification rule is
// given (specdec_kernels/_schema.py names the groups).
#pragma once

#include "../common/sampling_law.h"
#include "../common/verify_call.h"
#include "checks.h"
#include "tree_arguments.h"

namespace specdec {

// The four settings of a law over `batch` requests; `prefix` is that of their names.
inline SamplingView read_settings(const Arguments& a, const OptionalTensor& temperature, const OptionalTensor& top_k,
                                  const OptionalTensor& top_p, const OptionalTensor& min_p, int64_t order,
                                  int64_t batch, const std::string& prefix = "") {
  SamplingView view;
  view.temperature = a.vector<float>((prefix + "temperature").c_str(), temperature, batch);
  view.top_k = a.vector<int32_t>((prefix + "top_k").c_str(), top_k, batch);
  view.top_p = a.vector<float>((prefix + "top_p").c_str(), top_p, batch);
  view.min_p = a.vector<float>((prefix + "min_p").c_str(), min_p, batch);
  SPECDEC_CHECK(order >= 0 && order <= 2, a.op(), ": ", prefix, "filter_order must be 0, 1 or 2, got ", order);
  view.order = static_cast<FilterOrder>(order);
  return view;
}

// Columns are addressed by 32-bit ids.
inline RowsView read_logits(const Arguments& a, const char* name, const Tensor& logits) {
  const RowsView rows = a.rows(name, logits);
  SPECDEC_CHECK(rows.columns >= 1 && rows.columns <= INT32_MAX, a.op(), ": ", name,
                " must have between 1 and 2147483647 columns, got ", rows.columns);
  return rows;
}

// `owners` rows of logits have a row of the mask each, which `index`, the argument `name`, names. `vocab` 0: of a
// vocabulary that is not known here.
inline MaskView read_mask(const Arguments& a, const OptionalTensor& allowed, const char* name,
                          const OptionalTensor& index, int64_t owners, int64_t vocab) {
  MaskView view;
  SPECDEC_CHECK(allowed.has_value() || !index.has_value(), a.op(), ": allowed must be given with ", name, ", got None");
  if (!allowed) return view;
  a.check_rank("allowed", *allowed, 2);
  a.check_shape("allowed", *allowed, allowed->size(0), vocab > 0 ? (vocab + 31) / 32 : allowed->size(1));
  a.check_type<int32_t>("allowed", *allowed);
  view.words = static_cast<const int32_t*>(address_of(*allowed));  // an empty mask restricts all the same
  view.rows = allowed->size(0);
  view.columns = allowed->size(1);
  view.row_stride = allowed->stride(0);
  view.index = a.index(name, index, owners);
  SPECDEC_CHECK(index.has_value() || view.rows >= owners, a.op(), ": allowed must have at least ", owners,
                " rows, got ", view.rows);
  return view;
}

inline StopsView read_stops(const Arguments& a, const OptionalTensor& min_confidence, const OptionalTensor& max_entropy,
                            int64_t batch) {
  StopsView view;
  view.min_confidence = a.vector<float>("min_confidence", min_confidence, batch);
  view.max_entropy = a.vector<float>("max_entropy", max_entropy, batch);
  return view;
}

struct ResultTensors {
  const Tensor& tokens;
  const Tensor& num_tokens;
  const Tensor& path;
  const Tensor& status;
  const OptionalTensor& logprobs;
  const OptionalTensor& lse;
};

inline VerifyCall read_verify_inputs(const Arguments& a, const TreeTensors& tree, const Tensor& logits,
                                     const OptionalTensor& rows, const OptionalTensor& allowed,
                                     const OptionalTensor& allowed_rows, const OptionalTensor& active,
                                     const OptionalTensor& max_tokens, int64_t batch, int64_t max_depth) {
  VerifyCall call;
  call.tree = read_tree(a, tree, batch, max_depth);
  const int64_t total = call.tree.total;
  call.logits = read_logits(a, "logits", logits);
  call.rows = a.index("rows", rows, total);
  SPECDEC_CHECK(rows.has_value() || call.logits.rows >= total, a.op(), ": logits must have at least ", total,
                " rows, got ", call.logits.rows);
  call.mask = read_mask(a, allowed, "allowed_rows", allowed_rows, total, call.logits.columns);
  call.active = a.vector<bool>("active", active, batch);
  call.max_tokens = a.index("max_tokens", max_tokens, batch);
  return call;
}

inline VerifyCall read_verify_call(const Arguments& a, const TreeTensors& tree, const Tensor& logits,
                                   const OptionalTensor& rows, const OptionalTensor& allowed,
                                   const OptionalTensor& allowed_rows, const OptionalTensor& active,
                                   const OptionalTensor& max_tokens, int64_t logprobs_mode,
                                   const ResultTensors& result) {
  a.check_rank("out.path", result.path, 2);
  const int64_t batch = result.path.size(0), width = result.path.size(1);
  SPECDEC_CHECK(width >= 1, a.op(), ": out.path must have at least one column, got ", width);
  SPECDEC_CHECK(logprobs_mode >= 0 && logprobs_mode <= 2, a.op(), ": logprobs must be 0, 1 or 2, got ", logprobs_mode);
  VerifyCall call =
      read_verify_inputs(a, tree, logits, rows, allowed, allowed_rows, active, max_tokens, batch, width - 1);
  call.logprobs_mode = static_cast<Logprobs>(logprobs_mode);
  a.check_contiguous_rows("out.tokens", result.tokens, batch, width);
  call.out_tokens = {result.tokens.data_ptr(), 1, a.is_wide("out.tokens", result.tokens)};
  call.num_tokens = a.contiguous<int32_t>("out.num_tokens", result.num_tokens, batch);
  call.path = a.contiguous_rows<int32_t>("out.path", result.path, batch, width);
  call.status = a.contiguous<int32_t>("out.status", result.status, batch);
  if (logprobs_mode != 0) {
    SPECDEC_CHECK(result.logprobs && result.lse, a.op(), ": out.logprobs must be given with logprobs, got None");
    call.logprobs = a.contiguous_rows<float>("out.logprobs", *result.logprobs, batch, width);
    call.lse = a.contiguous_rows<float>("out.lse", *result.lse, batch, width);
  }
  return call;
}

}  // namespace specdec
