// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention.h"

#include "../binding/attention_launchers.h"

namespace specdec::cpu {
namespace {

struct Backend {
  static constexpr Device kDevice = Device::cpu;
  static void tree_attention(const TreeAttentionParams& p, const Arguments&, const Tensor&) {
    SPECDEC_DISPATCH(tree_attention, p);
  }
  static void merge_states(const MergeStatesParams& p, const Arguments&, const Tensor&) {
    SPECDEC_DISPATCH(merge_states, p);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(specdec, CPU, library) { register_attention<Backend>(library); }

}  // namespace specdec::cpu
