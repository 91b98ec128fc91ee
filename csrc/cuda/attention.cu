// SPDX-License-Identifier: Apache-2.0
#include "../binding/attention_launchers.h"
#include "../binding/cuda_call.h"
#include "attention/tree_attention.cuh"

namespace specdec::cuda {
namespace {

struct Backend {
  static constexpr Device kDevice = kDeviceOfKernels;
  static void tree_attention(const TreeAttentionParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    const AttentionSetup setup = set_up_attention(p);
    const Tensor workspace = call.workspace(setup.bytes);
    call.check(launch_tree_attention(p, setup, workspace.data_ptr(), call.stream()));
  }
  static void merge_states(const MergeStatesParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_merge_states(p, call.stream()));
  }
};

}  // namespace

SPECDEC_CUDA_LIBRARY(library) { register_attention<Backend>(library); }

}  // namespace specdec::cuda
