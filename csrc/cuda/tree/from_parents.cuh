// SPDX-License-Identifier: Apache-2.0
// from_parents: nodes in any topological order, in depth-first pre-order. One block per request, one thread per node,
// one launch. Everything is read and written once.
#pragma once

#include "layout.cuh"

namespace specdec::cuda {

struct FromParentsStorage {
  ScanStorage scan;
  LayoutStorage layout;
};

// Padding of rows [from, to); `first` is the first row of the request that they belong to, -1 if there is none.
__device__ inline void pad_rows(const FromParentsParams& p, int64_t from, int64_t to, int64_t first) {
  for (int64_t row = from + threadIdx.x; row < to; row += blockDim.x) {
    p.tokens.set(row, -1);
    p.parents[row] = -1;
    p.depths[row] = 0;
    p.ends[row] = 0;
    p.order[row] = row;
    if (p.slots != nullptr) p.slots[row] = first < 0 ? 0 : static_cast<int32_t>(row - first);
  }
}

[[maybe_unused]] static __global__ void __launch_bounds__(kMaxBlockThreads)
    from_parents_kernel(const __grid_constant__ FromParentsParams p) {
  auto& shared = shared_storage<FromParentsStorage>();
  BlockScan scan(shared.scan);
  const int64_t b = blockIdx.x, last = p.batch - 1;
  const int i = static_cast<int>(threadIdx.x);
  int32_t largest = 0;
  for (int64_t k = i; k <= b; k += blockDim.x) largest = max(largest, p.cu_nodes[k]);
  const int64_t before = bounded_offset(0, scan.largest(largest), p.total);
  if (b == 0) pad_rows(p, 0, before, -1);
  if (p.batch == 0) {
    pad_rows(p, before, p.total, -1);
    return;
  }
  const RequestRows rows = rows_of_request(p, b, before);
  const int64_t first = rows.first, size = rows.after - first;
  if (b == last) pad_rows(p, rows.after, p.total, -1);
  int64_t live = size;
  bool wrong = !rows.sound;
  if (rows.sound) {
    if (p.lengths) live = p.lengths[b];
    wrong = live < 0 || live > size || live > p.max_nodes;
  }
  int64_t parent = -1;
  bool misplaced = false;
  if (!wrong && i < live) {
    parent = p.given_parents[first + i];
    misplaced = i == 0 ? parent != -1 : parent < 0 || parent >= i;
  }
  wrong = __syncthreads_or(misplaced) != 0 || wrong;
  Placed placed;
  if (!wrong) {
    placed = lay_out(shared.layout, static_cast<int>(live), static_cast<int>(parent));
    wrong = __syncthreads_or(i < live && placed.depth > p.max_depth) != 0;
  }
  if (wrong) {  // the root alone, if there is one
    live = rows.sound && size > 0 && p.max_nodes > 0 ? 1 : 0;
    placed = Placed();
  }
  if (i == 0) p.status[b] = wrong ? kStatusMalformed : 0;
  if (i < live) {
    const int64_t row = first + placed.place;
    p.tokens.set(row, p.given_tokens[first + i]);
    p.parents[row] = placed.parent;
    p.depths[row] = placed.depth;
    p.ends[row] = placed.end;
    p.order[row] = first + i;
    if (p.slots != nullptr) p.slots[row] = i;
  }
  pad_rows(p, first + live, rows.after, first);
}

inline cudaError_t launch_from_parents(const FromParentsParams& p, cudaStream_t stream) {
  const unsigned threads = static_cast<unsigned>(block_threads(p.max_nodes));
  return launch(from_parents_kernel, {blocks_of_requests(p.batch), threads, sizeof(FromParentsStorage), stream}, p);
}

}  // namespace specdec::cuda
