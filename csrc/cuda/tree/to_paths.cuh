// SPDX-License-Identifier: Apache-2.0
// to_paths: one block per request, one launch. The leaves before a node are counted over the block; the thread of a
// leaf climbs to the root, and writes as it goes.
#pragma once

#include "../block.cuh"
#include "request.cuh"

namespace specdec::cuda {

[[maybe_unused]] static __global__ void __launch_bounds__(kExportThreads)
    paths_kernel(const __grid_constant__ PathsParams p) {
  BlockScan scan(shared_storage<ScanStorage>());
  const int64_t b = blockIdx.x;
  int32_t* paths = p.paths + b * p.nodes * p.width;
  const RequestNodes nodes = open_bounded_request_in_parallel(p.tree, b, p.nodes);
  int64_t leaves = 0;
  for (int64_t base = 0; base < nodes.count; base += kExportThreads) {
    const int64_t i = base + threadIdx.x;
    const bool leaf = i < nodes.count && end_of_live(p.tree, nodes, i) == i + 1;
    const Prefix place = scan.count(leaf);
    if (leaf) {
      int32_t* path = paths + (leaves + place.before) * p.width;
      const int64_t deepest = i == 0 ? 0 : p.tree.depths[nodes.first + i];
      int32_t node = static_cast<int32_t>(i);
      for (int64_t depth = deepest; depth >= 0; --depth) {
        path[depth] = node;
        if (depth > 0) node = p.tree.parents[nodes.first + node];
      }
      for (int64_t depth = deepest + 1; depth < p.width; ++depth) path[depth] = -1;
    }
    leaves += place.all;
  }
  for (int64_t at = leaves * p.width + threadIdx.x; at < p.nodes * p.width; at += kExportThreads) paths[at] = -1;
  if (threadIdx.x == 0) p.num_paths[b] = static_cast<int32_t>(leaves);
}

inline cudaError_t launch_to_paths(const PathsParams& p, cudaStream_t stream) {
  if (p.tree.batch == 0) return cudaSuccess;
  return launch(paths_kernel, {static_cast<unsigned>(p.tree.batch), kExportThreads, sizeof(ScanStorage), stream}, p);
}

}  // namespace specdec::cuda
