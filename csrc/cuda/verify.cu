// SPDX-License-Identifier: Apache-2.0
#include "../binding/cuda_runtime.h"
#include "../binding/register.h"
#include "verify/greedy.cuh"

namespace specdec::cuda {
namespace {

template <class T>
T* contiguous(const Arguments& arguments, const char* name, const Tensor& tensor, int64_t size) {
  const Strided<T> view = arguments.vector<T>(name, tensor, size);
  SPECDEC_CHECK(size <= 1 || view.stride == 1, arguments.op(), ": ", name, " must be contiguous, got stride ",
                view.stride);
  return view.data;
}

template <class T>
T* contiguous_rows(const Arguments& arguments, const char* name, const Tensor& tensor, int64_t rows, int64_t columns) {
  arguments.check_shape(name, tensor, rows, columns);
  arguments.check_type<T>(name, tensor);
  SPECDEC_CHECK(rows <= 1 || tensor.stride(0) == columns, arguments.op(), ": ", name,
                " must be contiguous, got row stride ", tensor.stride(0));
  return static_cast<T*>(tensor.data_ptr());
}

void verify_greedy(const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                   const Tensor& ends, const Tensor& logits, const OptionalTensor& rows, const OptionalTensor& allowed,
                   const OptionalTensor& allowed_rows, const OptionalTensor& active, const OptionalTensor& max_tokens,
                   int64_t logprobs_mode, const Tensor& out_tokens, const Tensor& num_tokens, const Tensor& path,
                   const Tensor& status, const OptionalTensor& logprobs, const OptionalTensor& lse) {
  const Arguments a("verify.greedy", Device::cuda);
  a.check_rank("tree.tokens", tokens, 1);
  a.check_rank("tree.cu_nodes", cu_nodes, 1);
  a.check_rank("out.path", path, 2);
  const int64_t total = tokens.size(0), batch = path.size(0), width = path.size(1);
  SPECDEC_CHECK(width >= 1, a.op(), ": out.path must have at least one column, got ", width);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  GreedyParams p;
  p.tree = {contiguous<int32_t>(a, "tree.cu_nodes", cu_nodes, batch + 1),
            a.index("tree.tokens", tokens, total),
            contiguous<int32_t>(a, "tree.parents", parents, total),
            contiguous<int32_t>(a, "tree.depths", depths, total),
            contiguous<int32_t>(a, "tree.ends", ends, total),
            batch,
            total,
            width - 1};
  p.logits = a.rows("logits", logits);
  p.rows = a.index("rows", rows, total);
  SPECDEC_CHECK(rows.has_value() || p.logits.rows >= total, a.op(), ": logits must have at least ", total,
                " rows, got ", p.logits.rows);
  if (allowed) {
    a.check_rank("allowed", *allowed, 2);
    a.check_shape("allowed", *allowed, allowed->size(0), (p.logits.columns + 31) / 32);
    a.check_type<int32_t>("allowed", *allowed);
    p.allowed = static_cast<const int32_t*>(allowed->data_ptr());
    p.allowed_stride = allowed->stride(0);
    p.allowed_count = allowed->size(0);
    p.allowed_rows = a.index("allowed_rows", allowed_rows, total);
  }
  p.active = a.vector<bool>("active", active, batch);
  p.max_tokens = a.index("max_tokens", max_tokens, batch);
  p.logprobs_mode = static_cast<int32_t>(logprobs_mode);
  if (p.tree.tokens.wide) {
    p.out_tokens = contiguous_rows<int64_t>(a, "out.tokens", out_tokens, batch, width);
  } else {
    p.out_tokens = contiguous_rows<int32_t>(a, "out.tokens", out_tokens, batch, width);
  }
  p.num_tokens = contiguous<int32_t>(a, "out.num_tokens", num_tokens, batch);
  p.path = contiguous_rows<int32_t>(a, "out.path", path, batch, width);
  p.status = contiguous<int32_t>(a, "out.status", status, batch);
  SPECDEC_CHECK(logprobs_mode == 0 || (logprobs && lse), a.op(),
                ": out.logprobs must be given with logprobs, got None");
  if (logprobs_mode != 0) {
    p.logprobs = contiguous_rows<float>(a, "out.logprobs", *logprobs, batch, width);
    p.lse = contiguous_rows<float>(a, "out.lse", *lse, batch, width);
  }
  check_launch(a.op(), launch_verify_greedy(p, current_stream(a.op(), logits)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(specdec, CUDA, library) { SPECDEC_IMPL(library, verify_greedy, verify_greedy); }

}  // namespace specdec::cuda
