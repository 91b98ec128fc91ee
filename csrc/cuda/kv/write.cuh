// SPDX-License-Identifier: Apache-2.0
// kv.write: the rows of live nodes go to their pages, in the type of the cache.
//
// Who does what: a request has some blocks of four warps, and each of them looks at its tree; a warp takes a row of the
// keys or of the values at a time, a lane eight elements at a time where all addresses allow it, else one. The first
// block of a request writes its status.
//
// Memory traffic: one read and one write of the rows; per block the tree of its request and the table entries of its
// rows. One launch.
#pragma once

#include "../../common/kv_params.h"
#include "../../common/status.h"
#include "../tree_check.cuh"
#include "elements.cuh"

namespace specdec::cuda {

inline constexpr int kWriteThreads = 128;
inline constexpr int kWriteWarps = kWriteThreads / 32;
inline constexpr int kMostWriteBlocks = 64;  // of a request

struct WriteLaunch {
  KvWriteParams write;
  int32_t blocks = 1;                // of each request
  bool aligned[2] = {false, false};  // whether eight elements can be read and written together
};

// ---- rows ----

// All heads of row `row`, by one warp.
__device__ inline void write_row(const KvSide& side, int64_t heads, bool aligned, int64_t row, int64_t page,
                                 int64_t slot) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t from = row * side.row_stride, to = page * side.to.page_stride + slot * side.to.slot_stride;
  const int64_t step = aligned ? kEight : 1, per_head = side.dim / step;
  for (int64_t i = lane; i < heads * per_head; i += 32) {
    const int64_t head = i / per_head, d = i % per_head * step;
    const int64_t source = from + head * side.head_stride + d, target = to + head * side.to.head_stride + d;
    const bool scaled = static_cast<bool>(side.scale);
    const float scale = scaled ? side.scale[head] : 1.0f;
    if (aligned) {
      float x[kEight];
      load_eight(side.type, side.from, source, x);
#pragma unroll
      for (int j = 0; j < kEight; ++j) x[j] = scaled ? x[j] / scale : x[j];
      store_eight(side.to, target, x);
    } else {
      const float x = load_element(side.type, side.from, source);
      store_element(side.to, target, scaled ? x / scale : x);
    }
  }
}

// The page and the slot of a row of the call; node -1: it is about no live node, page -1: it has no page, page -2: nor
// a slot.
struct RowPlace {
  int64_t node = -1;
  int64_t page = -1;
  int64_t slot = 0;
};

__device__ inline RowPlace place_of_row(const KvWriteParams& p, const RequestNodes& nodes, int64_t table_row,
                                        int64_t context, int64_t begin, int64_t i) {
  RowPlace place;
  const int64_t node = p.queries.cu ? p.queries.nodes[begin + i] : i;
  if (node < 0 || node >= nodes.count) return place;
  const PagedView& pages = p.sides[0].to;
  const int64_t slot = p.slots ? p.slots[nodes.first + node] : node, position = context + slot;
  place.node = node;
  if (slot < 0) {
    place.page = -2;
    return place;
  }
  place.page = p.table.page(table_row, position / pages.page_size, pages.num_pages);
  place.slot = position % pages.page_size;
  return place;
}

[[maybe_unused]] static __global__ void __launch_bounds__(kWriteThreads)
    kv_write_kernel(const __grid_constant__ WriteLaunch launch) {
  const KvWriteParams& p = launch.write;
  const int64_t b = blockIdx.x / static_cast<unsigned>(launch.blocks);
  const int part = static_cast<int>(blockIdx.x % static_cast<unsigned>(launch.blocks));
  RequestNodes nodes;
  const bool active = !p.active || p.active[b];
  if (active) nodes = open_request_in_parallel(p.tree, b);
  int64_t context = p.context_lens[b];
  bool malformed = nodes.malformed || (nodes.count > 0 && context < 0);
  context = context < 0 ? 0 : context > INT64_MAX / 2 ? INT64_MAX / 2 : context;
  int64_t begin = nodes.first, rows = nodes.count;
  if (p.queries.cu) {
    begin = p.queries.cu[b];
    rows = p.queries.cu[b + 1] - begin;
    const bool sound = begin >= 0 && rows >= 0 && begin + rows <= p.queries.total;
    malformed |= active && !sound;
    if (!active || !sound) rows = 0;
  }
  const int64_t table_row = p.table.row_of(b);
  if (part == 0 && p.status != nullptr) {
    bool lost = false, misplaced = malformed;
    for (int64_t i = threadIdx.x; i < rows; i += kWriteThreads) {
      const RowPlace place = place_of_row(p, nodes, table_row, context, begin, i);
      lost |= place.node >= 0 && place.page == -1;
      misplaced |= place.page == -2;
    }
    const bool any_lost = __syncthreads_or(lost) != 0, any_misplaced = __syncthreads_or(misplaced) != 0;
    if (threadIdx.x == 0) {
      p.status[b] = (any_misplaced ? kStatusMalformed : 0) | (any_lost ? kStatusPageOutOfRange : 0);
    }
  }
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (int64_t item = part * kWriteWarps + warp; item < rows * p.side_count; item += launch.blocks * kWriteWarps) {
    const int64_t i = item / p.side_count;
    const int side = static_cast<int>(item % p.side_count);
    const RowPlace place = place_of_row(p, nodes, table_row, context, begin, i);
    if (place.page < 0) continue;
    write_row(p.sides[side], p.heads, launch.aligned[side], begin + i, place.page, place.slot);
  }
}

inline bool reads_eight_at_a_time(const KvSide& side) {
  const int64_t from = side.type == FloatType::float32 ? 4 : 2, to = bytes_of(side.to.type);
  const int64_t unit = to == 1 ? 8 : 16;
  int64_t bits = reinterpret_cast<intptr_t>(side.from) | side.row_stride * from | side.head_stride * from;
  int64_t target = reinterpret_cast<intptr_t>(side.to.data);
  target |= (side.to.page_stride | side.to.slot_stride | side.to.head_stride) * to;
  return side.dim % kEight == 0 && bits % 16 == 0 && target % unit == 0;
}

inline cudaError_t launch_kv_write(const KvWriteParams& p, cudaStream_t stream) {
  const int64_t batch = p.tree.batch;
  if (batch == 0) return cudaSuccess;
  WriteLaunch how;
  how.write = p;
  for (int s = 0; s < p.side_count; ++s) how.aligned[s] = reads_eight_at_a_time(p.sides[s]);
  const int64_t items = (p.queries.total * p.side_count + batch - 1) / batch;
  const int64_t blocks = (items + kWriteWarps - 1) / kWriteWarps;
  how.blocks = static_cast<int32_t>(blocks < 1 ? 1 : blocks > kMostWriteBlocks ? kMostWriteBlocks : blocks);
  return launch(kv_write_kernel, {static_cast<unsigned>(batch * how.blocks), kWriteThreads, 0, stream}, how);
}

}  // namespace specdec::cuda
