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
  static void from_parents(const FromParentsParams& p, const Arguments&, const Tensor&) {
    SPECDEC_DISPATCH(from_parents, p);
  }
  static void from_beams(const FromBeamsParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(from_beams, p); }
  static void best_first(const BestFirstParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(best_first, p); }
  static void to_dense_mask(const DenseMaskParams& p, const Arguments&, const Tensor&) {
    SPECDEC_DISPATCH(to_dense_mask, p);
  }
  static void to_packed_mask(const PackedMaskParams& p, const Arguments&, const Tensor&) {
    SPECDEC_DISPATCH(to_packed_mask, p);
  }
  static void to_links(const LinksParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(to_links, p); }
  static void to_paths(const PathsParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(to_paths, p); }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(specdec, CPU, library) { register_tree<Backend>(library); }

}  // namespace specdec::cpu
