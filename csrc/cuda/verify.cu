// SPDX-License-Identifier: Apache-2.0
#include "../binding/cuda_call.h"
#include "../binding/verify_launchers.h"
#include "verify/expect.cuh"
#include "verify/walk.cuh"

namespace specdec::cuda {
namespace {

struct Backend {
  static constexpr Device kDevice = kDeviceOfKernels;
  static void verify(const VerifyParams& p, const Arguments& a, const Tensor& logits) {
    const Call call(a, logits);
    const Tensor workspace = call.workspace(VerifyWorkspace::bytes(p.call.tree.batch, p.call.tree.total));
    call.check(launch_verify(p, workspace.data_ptr(), call.stream()));
  }
  static void expect(const ExpectParams& p, const Arguments& a, const Tensor& logits) {
    const Call call(a, logits);
    const Tensor workspace = call.workspace(expect_bytes(p.verify.call.tree.total));
    call.check(launch_expect(p, workspace.data_ptr(), call.stream()));
  }
};

}  // namespace

SPECDEC_CUDA_LIBRARY(library) { register_verify<Backend>(library); }

}  // namespace specdec::cuda
