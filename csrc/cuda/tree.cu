// SPDX-License-Identifier: Apache-2.0
#include "../binding/cuda_call.h"
#include "../binding/tree_launchers.h"
#include "tree/best_first.cuh"
#include "tree/from_beams.cuh"
#include "tree/from_chains.cuh"
#include "tree/from_parents.cuh"
#include "tree/to_dense_mask.cuh"
#include "tree/to_links.cuh"
#include "tree/to_packed_mask.cuh"
#include "tree/to_paths.cuh"

namespace specdec::cuda {
namespace {

struct Backend {
  static constexpr Device kDevice = kDeviceOfKernels;
  static void from_chains(const FromChainsParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_from_chains(p, call.stream()));
  }
  static void from_parents(const FromParentsParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_from_parents(p, call.stream()));
  }
  static void from_beams(const FromBeamsParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_from_beams(p, call.stream()));
  }
  static void best_first(const BestFirstParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    const Tensor workspace = call.workspace(BestFirstWorkspace::bytes(p));
    call.check(launch_best_first(p, workspace.data_ptr(), call.stream()));
  }
  static void to_dense_mask(const DenseMaskParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_to_dense_mask(p, call.stream()));
  }
  static void to_packed_mask(const PackedMaskParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    const Tensor workspace = call.workspace(PackedMaskCall::bytes(p));
    call.check(launch_to_packed_mask(p, workspace.data_ptr(), call.stream()));
  }
  static void to_links(const LinksParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_to_links(p, call.stream()));
  }
  static void to_paths(const PathsParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_to_paths(p, call.stream()));
  }
};

}  // namespace

SPECDEC_CUDA_LIBRARY(library) { register_tree<Backend>(library); }

}  // namespace specdec::cuda
