// SPDX-License-Identifier: Apache-2.0
#include "../binding/cuda_runtime.h"
#include "../binding/register.h"
#include "../binding/sampling_arguments.h"
#include "verify/greedy.cuh"

namespace specdec::cuda {
namespace {

void verify_greedy(const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                   const Tensor& ends, const Tensor& logits, const OptionalTensor& rows, const OptionalTensor& allowed,
                   const OptionalTensor& allowed_rows, const OptionalTensor& active, const OptionalTensor& max_tokens,
                   int64_t logprobs_mode, const Tensor& out_tokens, const Tensor& num_tokens, const Tensor& path,
                   const Tensor& status, const OptionalTensor& logprobs, const OptionalTensor& lse) {
  const Arguments a("verify.greedy", Device::cuda);
  const VerifyCall call =
      read_verify_call(a, {cu_nodes, tokens, parents, depths, ends}, logits, rows, allowed, allowed_rows, active,
                       max_tokens, logprobs_mode, {out_tokens, num_tokens, path, status, logprobs, lse});
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  check_launch(a.op(), launch_verify_greedy(call, current_stream(a.op(), logits)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(specdec, CUDA, library) { SPECDEC_IMPL(library, verify_greedy, verify_greedy); }

}  // namespace specdec::cuda
