// SPDX-License-Identifier: Apache-2.0
#include "kernels/sample.h"

#include "../binding/sample_launchers.h"

namespace specdec::cpu {
namespace {

struct Backend {
  static constexpr Device kDevice = Device::cpu;
  static void sample_tokens(const SampleParams& p, const Arguments&, const Tensor&) {
    SPECDEC_DISPATCH(sample_tokens, p);
  }
  static void draft_tokens(const DraftParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(draft_tokens, p); }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(specdec, CPU, library) { register_sample<Backend>(library); }

}  // namespace specdec::cpu
