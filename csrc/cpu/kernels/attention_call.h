// SPDX-License-Identifier: Apache-2.0
// One call of tree_attention as its threads see it: requests, their query rows, and the pieces of work.
#pragma once

#include <algorithm>
#include <vector>

#include "../../common/attention_params.h"
#include "../../common/status.h"
#include "attention_tile.h"

SPECDEC_ISA_BEGIN
namespace attention {

// Tiles of a split: the partial results of splits are merged in ascending order.
inline constexpr int64_t kSplitTiles = 8;
inline constexpr int64_t kSplit = kSplitTiles * kTile;
// Rows (query heads of a key/value head times nodes) that share one read of keys and values.
inline constexpr int kMaxRows = 64;
// No context is longer: nothing that is added to it overflows.
inline constexpr int64_t kMaxContext = int64_t{1} << 60;

static inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

struct Request {
  int64_t index;
  int64_t first_node;  // row of the root in the tree
  int32_t nodes;       // live ones
  int64_t context;
  int64_t base;  // the part of it that the table reaches: the rest is nowhere
  int64_t table_row;
};

// A query row of a live node.
struct Query {
  int64_t row;
  int32_t node;
  int32_t depth;
};

// Rows of one request: its queries [first, first + count), and of each the query heads
// [head, head + heads) of every key/value head.
struct Block {
  int32_t request;
  int32_t heads;
  int32_t head;
  int32_t count;
  int64_t first;
  int64_t begin, end;  // places that some row sees: context, then tree
};

struct Plan {
  std::vector<Request> requests;
  std::vector<Query> queries;
  std::vector<Block> blocks;
  int64_t splits;  // of the longest block
  int64_t work;    // places of all blocks, weighed by their rows
};

struct Call {
  Call(const TreeAttentionParams& params, Plan& storage) : p(params), plan(storage) {
    group = p.heads / p.kv_heads;
    key_width = round_up(p.key_dim, kVectorLanes);
    value_width = round_up(p.value_dim, kVectorLanes);
    while (int64_t{1} << page_shift < p.key.page_size) ++page_shift;
    key_bytes = bytes_of(p.key.type);
    value_bytes = bytes_of(p.value.type);
  }

  int32_t depth_of(const Request& r, int32_t node) const { return node == 0 ? 0 : p.tree.depths[r.first_node + node]; }
  // -1: it has none, because its slot is below 0.
  int64_t position_of(const Request& r, int32_t node) const {
    const int32_t slot = p.slots ? p.slots[r.first_node + node] : node;
    return slot < 0 ? -1 : r.context + slot;
  }
  bool is_block() const { return p.visibility == Visibility::block; }
  // The first position that a query at `position` sees; the same for depths, both relative to the context.
  int64_t window_begin(int64_t position) const {
    return p.window > 0 && p.window <= position ? position - p.window + 1 : 0;
  }
  // The places that a query may see: [first_place, end_place).
  int64_t first_place(const Request& r, int64_t depth) const {
    const int64_t first = window_begin(r.context + depth);
    return first < r.base ? first : r.base + (is_block() ? 0 : window_begin(depth));
  }
  int64_t end_place(const Request& r, int64_t depth) const { return r.base + (is_block() ? r.nodes : depth + 1); }

  const TreeAttentionParams& p;
  int64_t group;  // query heads of a key/value head
  int64_t key_width, value_width;
  int32_t key_bytes, value_bytes;
  int page_shift = 0;
  Plan& plan;
};

// A partial result of the rows of a block and a key/value head.
struct Partial {
  RowState* states;  // [rows]
  float* mixed;      // [rows][value_width]
};

// The buffers of a thread.
class Scratch {
 public:
  void fit(const Call& call) {
    const int64_t k = call.key_width, v = call.value_width;
    const int64_t sizes[] = {kMaxRows * k, kKeyGroup * k, kTile * kTile, kMaxRows * kScoreStride,
                             kMaxRows * v, kMaxRows * v};
    int64_t total = kVectorLanes;
    for (const int64_t size : sizes) total += round_up(size, kLanes);
    if ((int64_t)memory_.size() < total) memory_.resize((size_t)total);
    float* at = memory_.data();
    at += (-(reinterpret_cast<uintptr_t>(at) / sizeof(float))) & (kVectorLanes - 1);
    float** const parts[] = {&query, &keys, &values, &scores, &mixed, &later};
    for (int i = 0; i < 6; ++i) {
      *parts[i] = at;
      at += round_up(sizes[i], kLanes);
    }
  }

  float* query;   // [kMaxRows][key_width]
  float* keys;    // [kKeyGroup][key_width]
  float* values;  // [kTile][kTile], some columns of the values of a tile
  float* scores;  // [kMaxRows][kScoreStride]
  float* mixed;   // [kMaxRows][value_width]
  float* later;   // [kMaxRows][value_width]
  RowState states[kMaxRows];
  RowState later_states[kMaxRows];
  std::vector<int32_t> paths;  // ancestors of the queries of a block, by depth

 private:
  std::vector<float> memory_;
};

}  // namespace attention
SPECDEC_ISA_END
