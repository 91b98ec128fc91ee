// SPDX-License-Identifier: Apache-2.0
#include "../binding/cuda_call.h"
#include "../binding/draft_launchers.h"
#include "draft/budget.cuh"
#include "draft/expand.cuh"
#include "draft/next_block.cuh"
#include "draft/ngram_lookup.cuh"

namespace specdec::cuda {
namespace {

struct Backend {
  static constexpr Device kDevice = kDeviceOfKernels;
  static void ngram_lookup(const NgramParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_ngram_lookup(p, call.stream()));
  }
  static void expand(const ExpandParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_expand(p, call.stream()));
  }
  static void block(const DraftBlockParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_draft_block(p, call.stream()));
  }
  static void budget(const BudgetParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    const Tensor workspace = call.workspace(BudgetCall::bytes(p));
    call.check(launch_draft_budget(p, workspace.data_ptr(), call.stream()));
  }
};

}  // namespace

SPECDEC_CUDA_LIBRARY(library) { register_draft<Backend>(library); }

}  // namespace specdec::cuda
