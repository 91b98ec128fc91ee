// SPDX-License-Identifier: Apache-2.0
#include "../binding/cuda_call.h"
#include "../binding/tree_launchers.h"
#include "tree/from_chains.cuh"

namespace specdec::cuda {
namespace {

struct Backend {
  static constexpr Device kDevice = kDeviceOfKernels;
  static void from_chains(const FromChainsParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_from_chains(p, call.stream()));
  }
};

}  // namespace

SPECDEC_CUDA_LIBRARY(library) { register_tree<Backend>(library); }

}  // namespace specdec::cuda
