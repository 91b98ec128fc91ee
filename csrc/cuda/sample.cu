// SPDX-License-Identifier: Apache-2.0
#include "../binding/cuda_call.h"
#include "../binding/sample_launchers.h"
#include "sample/sample.cuh"

namespace specdec::cuda {
namespace {

struct Backend {
  static constexpr Device kDevice = kDeviceOfKernels;
  static void sample_tokens(const SampleParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_sample(p, call.stream()));
  }
  static void draft_tokens(const DraftParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_draft(p, call.stream()));
  }
};

}  // namespace

SPECDEC_CUDA_LIBRARY(library) { register_sample<Backend>(library); }

}  // namespace specdec::cuda
