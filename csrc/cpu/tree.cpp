// SPDX-License-Identifier: Apache-2.0
#include "kernels/tree.h"

#include "../binding/tree_launchers.h"

namespace specdec::cpu {
namespace {

struct Backend {
  static constexpr Device kDevice = Device::cpu;
  static void from_chains(const FromChainsParams& p, const Arguments&, const Tensor&) {
    SPECDEC_DISPATCH(from_chains, p);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(specdec, CPU, library) { register_tree<Backend>(library); }

}  // namespace specdec::cpu
