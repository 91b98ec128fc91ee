// SPDX-License-Identifier: Apache-2.0
// Where the rows and the keys of a tile lie, and who sees whom.
//
// A key has a range of nodes that see it, and a place before which a window hides it: context and invisible keys are
// the extremes of that. So one comparison serves trees, blocks, windows and pages out of range.
#pragma once

#include "schedule.cuh"

namespace specdec::cuda {

// Row i of a tile is query i / group of the tile's queries, head i % group of the key/value head.
struct RowMark {
  int64_t query;  // element of the query where the row begins
  int64_t out;    // row of the result: of [queries, heads]
  int32_t node;   // -1: of no live node, which is padding
  int32_t bound;  // the row sees keys of which `at` is larger
};

// What a tile's rows have in common.
struct TileMark {
  int32_t rows;       // that exist, padding of the request included
  int32_t last_node;  // -1: no row is about a live node
  int32_t furthest;   // the smallest bound
  int32_t nearest;    // the largest
};

struct alignas(16) KeyMark {
  int32_t begin, end;  // nodes that see it
  int32_t at;  // rotary position behind the committed tokens: below 0 in the context, a node's depth in the tree
};

__device__ __forceinline__ bool sees(int32_t node, int32_t bound, const KeyMark& key) {
  return key.begin <= node && node < key.end && key.at > bound;
}

// Some tiles of keys, in a ring.
template <int kKeys_>
struct KeyRing {
  static constexpr int kKeys = kKeys_, kTiles = 4;
  KeyMark mark[kTiles][kKeys];
  int64_t key[kTiles][kKeys];  // element of the cache where it begins; -1: it reads as zeros
  int64_t value[kTiles][kKeys];
  unsigned partial[kTiles][kKeys / 32];  // keys that not every row sees

  __device__ static int place_of(int tile) { return tile & (kTiles - 1); }

  // Whether a tile needs a mask.
  __device__ bool masked(int tile) const {
    unsigned any = 0;
#pragma unroll
    for (unsigned keys : partial[place_of(tile)]) any |= keys;
    return any != 0;
  }
};

__device__ __forceinline__ int32_t depth_of(const TreeAttentionParams& op, const RequestPlan& plan, int64_t node) {
  return node == 0 ? 0 : op.tree.depths[plan.first_node + node];
}

// By one warp: the marks of the `count` rows of a run's tile.
__device__ inline void mark_rows(const AttentionCall& call, const Run& run, int count, RowMark* rows,
                                 TileMark& common) {
  const TreeAttentionParams& op = call.op;
  const RequestPlan& plan = run.plan;
  const int64_t group = call.geometry.group, first = static_cast<int64_t>(run.tile) * count;
  const int64_t all = plan.queries * group;
  int32_t last_node = -1, furthest = INT32_MAX, nearest = INT32_MIN;
  for (int i = static_cast<int>(threadIdx.x) % 32; i < count; i += 32) {
    RowMark mark{-1, -1, -1, INT32_MAX};
    if (first + i < all) {
      const int64_t local = (first + i) / group, query = plan.first_query + local;
      const int64_t head = run.kv_head * group + (first + i) % group;
      const int64_t node = op.queries.cu ? op.queries.nodes[query] : local;
      if (node >= 0 && node < plan.nodes) {
        const int64_t bound = op.window > 0 ? depth_of(op, plan, node) - op.window : kSeesAll;
        mark.query = query * op.query_row_stride + head * op.query_head_stride;
        mark.out = query * op.heads + head;
        mark.node = static_cast<int32_t>(node);
        mark.bound = op.window <= 0 ? kSeesAll : static_cast<int32_t>(bound > kFarBehind ? bound : kFarBehind - 1);
        last_node = max(last_node, mark.node);
        furthest = min(furthest, mark.bound);
        nearest = max(nearest, mark.bound);
      }
    }
    rows[i] = mark;
  }
  last_node = __reduce_max_sync(~0u, last_node);
  furthest = __reduce_min_sync(~0u, furthest);
  nearest = __reduce_max_sync(~0u, nearest);
  if (threadIdx.x % 32 == 0) {
    common = {static_cast<int32_t>(min(static_cast<int64_t>(count), all - first)), last_node, furthest, nearest};
  }
}

// The keys of a split that some row of a tile may see.
struct KeyRange {
  int64_t begin, end;
  template <int kKeys>
  __device__ int tiles() const {
    return end > begin ? static_cast<int>(ceil_div(end - begin, kKeys)) : 0;
  }
};

__device__ inline KeyRange keys_of_split(const AttentionCall& call, const RequestPlan& plan, const TileMark& rows,
                                         int32_t split) {
  KeyRange range{plan.begin + static_cast<int64_t>(split) * plan.split_keys, 0};
  range.end = range.begin + plan.split_keys;
  const bool all = call.op.visibility == Visibility::block;
  const int64_t seen = plan.tree_begin + (rows.last_node < 0 ? 0 : all ? plan.nodes : rows.last_node + 1);
  range.end = range.end < seen ? range.end : seen;
  if (rows.last_node < 0) range.end = range.begin;
  if (rows.furthest >= kFarBehind) {  // a window
    int64_t from = plan.context + rows.furthest + 1;
    from = (from < plan.tree_begin ? from : plan.tree_begin) / call.geometry.keys * call.geometry.keys;
    range.begin = range.begin > from ? range.begin : from;
  }
  return range;
}

// A key between the look into the block table and its use: nobody waits for the one while there is other work.
struct KeyPlace {
  int64_t page;  // as the block table has it; -1 where it has none
  int32_t slot;  // -1: that of the node is below 0, and it has no place
  int32_t node;  // -1: in the context
};

__device__ inline KeyPlace locate_key(const AttentionCall& call, const RequestPlan& plan, int64_t key) {
  const TreeAttentionParams& op = call.op;
  const int64_t node = key - plan.tree_begin;
  KeyPlace place{-1, 0, -1};
  int64_t position = key;
  if (node >= 0) {
    if (node >= plan.nodes) return place;
    place.node = static_cast<int32_t>(node);
    const int64_t slot = op.slots ? op.slots[plan.first_node + node] : node;
    if (slot < 0) {
      place.slot = -1;
      return place;
    }
    position = plan.context + slot;
  }
  // As BlockTable::page, but for what needs the entry.
  const int64_t block = position >> call.geometry.page_shift;
  if (plan.table_row < 0 || block >= op.table.max_pages) return place;
  const int64_t at = plan.table_row * op.table.row_stride + block * op.table.column_stride;
  place.page =
      op.table.wide ? static_cast<const int64_t*>(op.table.data)[at] : static_cast<const int32_t*>(op.table.data)[at];
  place.slot = static_cast<int32_t>(position & (op.key.page_size - 1));
  return place;
}

// By kKeys threads, each with its key of the tile: what it will be for the rows. A key that no row sees reads as zeros;
// one that is seen and has no page does as well, and is flagged.
template <int kKeys>
__device__ inline void mark_key(const AttentionCall& call, const Run& run, const TileMark& common, const RowMark* rows,
                                int64_t key, int64_t end, const KeyPlace& place, KeyRing<kKeys>& ring, int tile) {
  const TreeAttentionParams& op = call.op;
  const RequestPlan& plan = run.plan;
  const int i = static_cast<int>(threadIdx.x), at = ring.place_of(tile);
  KeyMark mark{-1, INT32_MAX, 0};
  bool seen = false, by_all = false;
  if (key < end && key < plan.tree_begin) {
    const int64_t behind = key - plan.context;
    mark.at = static_cast<int32_t>(behind > kFarBehind ? behind : kFarBehind);
    seen = mark.at > common.furthest;
    by_all = mark.at > common.nearest;
  } else if (key < end && place.node >= 0) {
    mark.at = depth_of(op, plan, place.node);
    if (op.visibility == Visibility::tree) {
      const int32_t after = place.node == 0 ? plan.nodes : op.tree.ends[plan.first_node + place.node];
      mark.begin = place.node;
      mark.end = after < plan.nodes ? after : plan.nodes;
    }
    for (int r = 0; r < common.rows && !seen; ++r) seen = rows[r].node >= 0 && sees(rows[r].node, rows[r].bound, mark);
  }
  if (seen && (place.page < 0 || place.page >= call.geometry.num_pages)) {
    const int bits = place.slot < 0 ? kStatusMalformed : kStatusPageOutOfRange;
    if (op.status != nullptr) atomicOr(&op.status[run.request], bits);
    seen = by_all = false;
  }
  if (!seen) mark = {INT32_MAX, 0, 0};
  ring.mark[at][i] = mark;
  const auto element = [&](const PagedView& view) {
    return place.page * view.page_stride + place.slot * view.slot_stride + run.kv_head * view.head_stride;
  };
  ring.key[at][i] = seen ? element(op.key) : -1;
  ring.value[at][i] = seen ? element(op.value) : -1;
  const unsigned partial = __ballot_sync(~0u, !by_all);
  if (i % 32 == 0) ring.partial[at][i / 32] = partial;
}

// Committed tokens beyond the reach of the block table are seen, and have no page. By one thread.
__device__ inline void flag_unreachable(const AttentionCall& call, const Run& run, const TileMark& rows) {
  if (run.plan.context > call.geometry.capacity && rows.last_node >= 0 && rows.furthest < -1 &&
      call.op.status != nullptr) {
    atomicOr(&call.op.status[run.request], static_cast<int>(kStatusPageOutOfRange));
  }
}

}  // namespace specdec::cuda
