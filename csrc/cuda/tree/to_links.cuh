// SPDX-License-Identifier: Apache-2.0
// to_links: one block per request, one thread per node, one launch.
#pragma once

#include "request.cuh"

namespace specdec::cuda {

[[maybe_unused]] static __global__ void __launch_bounds__(kExportThreads)
    links_kernel(const __grid_constant__ LinksParams p) {
  const int64_t b = blockIdx.x;
  const RequestNodes nodes = open_bounded_request_in_parallel(p.tree, b, p.nodes);
  for (int64_t i = threadIdx.x; i < p.nodes; i += blockDim.x) {
    int64_t child = -1, sibling = -1, row = -1;
    if (i < nodes.count) {
      const int32_t end = end_of_live(p.tree, nodes, i);
      if (i + 1 < end) child = i + 1;
      if (i > 0 && end < end_of_live(p.tree, nodes, p.tree.parents[nodes.first + i])) sibling = end;
      row = nodes.first + i;
    }
    const int64_t at = b * p.nodes + i;
    p.first_child.set(at, child);
    p.next_sibling.set(at, sibling);
    p.retrieve_index.set(at, row);
  }
}

inline cudaError_t launch_to_links(const LinksParams& p, cudaStream_t stream) {
  if (p.tree.batch == 0 || p.nodes == 0) return cudaSuccess;
  return launch(links_kernel, {static_cast<unsigned>(p.tree.batch), kExportThreads, 0, stream}, p);
}

}  // namespace specdec::cuda
