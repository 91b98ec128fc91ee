// SPDX-License-Identifier: Apache-2.0
// What the exports see of a request.
#pragma once

#include "../../common/tree_params.h"
#include "../team.cuh"
#include "../tree_check.cuh"

namespace specdec::cuda {

inline constexpr int kExportThreads = 256;
inline constexpr int kExportWarps = kExportThreads / kWarp;

// open_bounded_request, by all threads of a block.
__device__ inline RequestNodes open_bounded_request_in_parallel(const TreeView& tree, int64_t request, int64_t nodes) {
  RequestNodes opened = open_request_in_parallel(tree, request);
  if (opened.count > nodes) {
    opened.malformed = true;
    opened.count = nodes < 1 ? 0 : 1;
  }
  return opened;
}

// end_of of a live node; of a root that stands alone `ends` may say anything.
__device__ __forceinline__ int32_t end_of_live(const TreeView& tree, const RequestNodes& nodes, int64_t node) {
  return nodes.count == 1 ? 1 : end_of(tree, nodes, static_cast<int32_t>(node));
}

// Whether live node i is live node j or below it; i may be any row, j any column that is not negative.
__device__ __forceinline__ bool sees(const TreeView& tree, const RequestNodes& nodes, int64_t i, int64_t j) {
  return j <= i && i < nodes.count && i < end_of_live(tree, nodes, j);
}

// Bits [32 * word, 32 * word + 32) of row i of the mask, for all lanes of a warp.
__device__ __forceinline__ uint32_t visible_word(const TreeView& tree, const RequestNodes& nodes, int64_t i,
                                                 int64_t word) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (i >= nodes.count || word * kWarp > i) return 0;
  return __ballot_sync(~0u, sees(tree, nodes, i, word * kWarp + lane));
}

// Calls visit(i) for some rows of a request, the same in all lanes of a warp. The rows of a request are cut into pieces
// of so many; block k has piece k % pieces of request k / pieces.
template <class Visit>
__device__ __forceinline__ void rows_of_piece(int64_t piece, int64_t rows_of_each, int64_t nodes, const Visit& visit) {
  const int64_t after = (piece + 1) * rows_of_each < nodes ? (piece + 1) * rows_of_each : nodes;
  for (int64_t i = piece * rows_of_each + threadIdx.x / kWarp; i < after; i += kExportWarps) visit(i);
}

// Rows that one block writes, of so many bytes each.
inline int64_t rows_of_block(int64_t bytes) {
  constexpr int64_t kBytes = 16384;
  const int64_t rows = kBytes / (bytes < 1 ? 1 : bytes) / kExportWarps * kExportWarps;
  return rows < kExportWarps ? kExportWarps : rows;
}

}  // namespace specdec::cuda
