// SPDX-License-Identifier: Apache-2.0
#include "kernels/draft.h"

#include "../binding/draft_launchers.h"

namespace specdec::cpu {
namespace {

struct Backend {
  static constexpr Device kDevice = Device::cpu;
  static void ngram_lookup(const NgramParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(ngram_lookup, p); }
  static void expand(const ExpandParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(expand, p); }
  static void block(const DraftBlockParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(draft_block, p); }
  static void budget(const BudgetParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(draft_budget, p); }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(specdec, CPU, library) { register_draft<Backend>(library); }

}  // namespace specdec::cpu
