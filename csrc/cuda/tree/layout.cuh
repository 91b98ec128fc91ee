// SPDX-License-Identifier: Apache-2.0
// What the builders share: nodes in any topological order, one per thread, get their places in depth-first pre-order.
//
// A node stands behind its parent and the subtrees of its earlier siblings. Sizes of subtrees, depths and places are
// sums along paths to the root, found by doubling: after round k a thread knows the sum over the nearest 2^k nodes of
// its path, and the ancestor behind them. The sizes of earlier siblings are a prefix sum over the nodes sorted by
// parent. All of it is integers in shared memory: O(log depth) rounds of one barrier each.
#pragma once

#include "../../common/tree_params.h"
#include "../block.cuh"

namespace specdec::cuda {

static_assert(kMaxTreeNodes == kMaxBlockThreads);

struct LayoutStorage {
  ScanStorage scan;
  uint32_t key[kMaxTreeNodes];
  uint32_t link[2][kMaxTreeNodes];  // the ancestor that comes next, plus 1, and the sum up to it
  int32_t column[3][kMaxTreeNodes];
};

// Where the node of a thread stands. Of a root that stands alone, at first.
struct Placed {
  int32_t place = 0;
  int32_t parent = -1;  // its place
  int32_t depth = 0;
  int32_t end = 1;
};

__device__ __forceinline__ uint32_t make_link(int32_t above, int32_t sum) {
  return static_cast<uint32_t>(above + 1) << 16 | static_cast<uint32_t>(sum);
}
__device__ __forceinline__ int32_t above_of_link(uint32_t link) { return static_cast<int32_t>(link >> 16) - 1; }
__device__ __forceinline__ int32_t sum_of_link(uint32_t link) { return static_cast<int32_t>(link & 0xffff); }

// Thread i brings the parent of node i, an earlier node (-1: node 0), if i < count; all threads call. Siblings keep the
// order of their numbers.
SPECDEC_STEP Placed lay_out(LayoutStorage& shared, int count, int parent) {
  BlockScan scan(shared.scan);
  const int i = static_cast<int>(threadIdx.x);
  const bool mine = i < count;
  const int children = count > 0 ? count - 1 : 0;
  Placed placed;
  int turn = 0, slot = 0, size = 1, above = mine ? parent : -1;
  placed.depth = above < 0 ? 0 : 1;
  __syncthreads();  // whoever still uses the storage
  if (mine) {
    if (i > 0) shared.key[i - 1] = static_cast<uint32_t>(parent) << 16 | static_cast<uint32_t>(i);
    shared.link[0][i] = make_link(above, placed.depth);
    shared.column[0][i] = shared.column[1][i] = 0;
  }
  // Nodes whose next ancestor is the root are done: its depth is 0, its size known. What is added in a round goes to
  // one of three columns, so that another one can be read and the third one be cleared.
  bool going = __syncthreads_or(above > 0) != 0;
  while (going) {
    int next = above;
    if (above > 0) {
      atomicAdd(&shared.column[slot][above], size);
      const uint32_t link = shared.link[turn][above];
      placed.depth += sum_of_link(link);
      next = above_of_link(link);
    }
    if (mine) {
      shared.link[turn ^ 1][i] = make_link(next, placed.depth);
      shared.column[(slot + 2) % 3][i] = 0;
    }
    going = __syncthreads_or(next > 0) != 0;
    if (mine) size += shared.column[slot][i];
    above = next;
    turn ^= 1;
    slot = (slot + 1) % 3;
  }
  if (i == 0) size = count;
  // Nothing but its own element of a column is read by a thread from here to the next barrier.
  int32_t* sizes = shared.column[0];
  int32_t* sums = shared.column[1];
  int32_t* before = shared.column[2];
  if (mine) sizes[i] = size;
  sort_keys(shared.key, children);
  const bool child = i < children;  // in the order of parents
  const uint32_t key = child ? shared.key[i] : 0;
  const int of = static_cast<int>(key >> 16), number = static_cast<int>(key & 0xffff);
  const int sum = scan.sum(child ? sizes[number] : 0).before;
  if (child && (i == 0 || static_cast<int>(shared.key[i - 1] >> 16) != of)) sums[of] = sum;
  __syncthreads();
  if (child) before[number] = 1 + sum - sums[of];
  __syncthreads();
  placed.place = mine && i > 0 ? before[i] : 0;
  above = mine ? parent : -1;
  if (mine) shared.link[0][i] = make_link(above, placed.place);
  turn = 0;
  going = __syncthreads_or(above > 0) != 0;
  while (going) {
    int next = above;
    if (above > 0) {
      const uint32_t link = shared.link[turn][above];
      placed.place += sum_of_link(link);
      next = above_of_link(link);
    }
    if (mine) shared.link[turn ^ 1][i] = make_link(next, placed.place);
    going = __syncthreads_or(next > 0) != 0;
    above = next;
    turn ^= 1;
  }
  if (mine && i > 0) placed.parent = sum_of_link(shared.link[turn][parent]);
  placed.end = placed.place + size;
  return placed;
}

// Writes row `row` of a request of a new tree; a node that is not live is padding.
__device__ inline void write_row(const NewTree& tree, int64_t row, bool live, const Placed& placed, int64_t token) {
  tree.tokens.set(row, live ? token : -1);
  tree.parents[row] = live ? placed.parent : -1;
  tree.depths[row] = live ? placed.depth : 0;
  tree.ends[row] = live ? placed.end : 0;
}

// The offsets of a new tree; by all threads of the block of request b (of a single block, where the batch is empty).
__device__ inline void write_offsets(const NewTree& tree, int64_t batch, int64_t b) {
  if (threadIdx.x == 0) {
    if (b == 0) tree.cu_nodes[0] = 0;
    if (b < batch) tree.cu_nodes[b + 1] = static_cast<int32_t>((b + 1) * tree.max_nodes);
  }
}

inline unsigned blocks_of_requests(int64_t batch) { return batch < 1 ? 1 : static_cast<unsigned>(batch); }

}  // namespace specdec::cuda
