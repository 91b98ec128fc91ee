// SPDX-License-Identifier: Apache-2.0
#include "kernels/verify.h"

#include "../binding/verify_launchers.h"

namespace specdec::cpu {
namespace {

struct Backend {
  static constexpr Device kDevice = Device::cpu;
  static void verify(const VerifyParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(verify, p); }
  static void expect(const ExpectParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(verify_expect, p); }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(specdec, CPU, library) { register_verify<Backend>(library); }

}  // namespace specdec::cpu
