// SPDX-License-Identifier: Apache-2.0
// common/tree_view.h, open_request, by all threads of a block.
#pragma once

#include "../common/tree_view.h"
#include "device.cuh"

namespace specdec::cuda {

// is_tree. The parent of a node is the first of the node before it and its ancestors whose subtree reaches on; those
// that are climbed over end where the node stands, so that each is climbed over once, whatever the data.
__device__ inline bool is_tree_in_parallel(const TreeView& tree, int64_t first, int64_t rows) {
  const int64_t count = tree.ends[first];
  if (count < 1 || count > rows || tree.parents[first] != -1 || tree.depths[first] != 0) return false;
  bool wrong = false;
  for (int64_t i = 1 + threadIdx.x; i < count; i += blockDim.x) {
    const int64_t parent = tree.parents[first + i];
    if (parent < 0 || parent >= i) {
      wrong = true;
      continue;
    }
    const int32_t end = tree.ends[first + i], depth = tree.depths[first + i];
    wrong |= end <= i || end > tree.ends[first + parent] || depth > tree.max_depth;
    wrong |= depth != static_cast<int64_t>(tree.depths[first + parent]) + 1;
    int64_t at = i - 1;
    while (at > parent && tree.ends[first + at] == i) {
      const int64_t above = tree.parents[first + at];
      if (above >= at) break;
      at = above;
    }
    wrong |= at != parent;
  }
  return __syncthreads_or(wrong) == 0;
}

__device__ inline RequestNodes open_request_in_parallel(const TreeView& tree, int64_t request) {
  RequestNodes nodes;
  const int64_t first = tree.cu_nodes[request], after = tree.cu_nodes[request + 1];
  if (first < 0 || after < first || after > tree.total) {
    nodes.malformed = true;
  } else if (first != after && tree.ends[first] != 0) {
    nodes.first = first;
    nodes.malformed = !is_tree_in_parallel(tree, first, after - first);
    nodes.count = nodes.malformed ? 1 : tree.ends[first];
  }
  return nodes;
}

}  // namespace specdec::cuda
