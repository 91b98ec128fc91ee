// SPDX-License-Identifier: Apache-2.0
// Who computes what in tree attention, decided on the device from lengths that the host does not know.
//
// The query heads of a key/value head times the query rows of a request are the rows of a matrix product. They are cut
// into tiles; the keys of a request, its context and then its nodes, are cut into splits. A tile's splits are its
// group, and a split of a group is an item. How a request is cut depends on that request and on the shape of the heads
// alone.
//
// All items stand in one line: by request, head, tile, split. Each block takes a stretch of that line, so that the work
// of all blocks is the same; where the stretches begin depends on the whole batch. What a group gives does not: its
// splits are merged in a tree whose shape is that of their numbers (fold.cuh), whoever computes them.
#pragma once

#include "../../common/attention_params.h"
#include "../../common/status.h"
#include "../tree_check.cuh"

namespace specdec::cuda {

inline constexpr int kPlanThreads = 128;
// Items that a request is cut into, about: what fills a GPU. A tile has no fewer splits than kFewestSplits for that
// reason, and never more than kMostSplits.
inline constexpr int64_t kItemsOfRequest = 256;
inline constexpr int64_t kFewestSplits = 8, kMostSplits = 128;
inline constexpr int64_t kItemCost = 2;                // of an item beside its tiles of keys, in tiles of keys
inline constexpr int64_t kLongest = int64_t{1} << 40;  // of a context: sums with it do not overflow
inline constexpr int32_t kFarBehind = -(1 << 30);      // distances are cut here
inline constexpr int32_t kSeesAll = INT32_MIN;         // no window

// What does not depend on the data.
struct Geometry {
  int64_t group = 1;     // query heads of a key/value head
  int64_t capacity = 0;  // positions that a row of the block table names
  int64_t num_pages = 0;
  int32_t page_shift = 0;
  int32_t narrow_rows = 16;  // of a tile; a request whose rows fit in one narrow tile has that
  int32_t wide_rows = 64;
  int32_t keys = 64;           // of a tile of keys
  int32_t narrow_split = 128;  // fewest keys of a split
  int32_t wide_split = 256;
  int32_t blocks = 1;
  // Slots for states of splits: one per item, or, where that is less, some for each block.
  bool slot_per_item = true;
  int32_t first_slots = 0;   // of a block, for what it has of a group that an earlier block began
  int32_t prefix_slots = 0;  // and for what it has of a group that it begins
  int64_t slots = 0;
};

// One request; made by plan_kernel.
struct RequestPlan {
  int64_t first_node;   // row of the root
  int64_t first_query;  // row of the first query
  int64_t context;      // committed tokens
  int64_t table_row;    // -1: none
  int64_t begin;        // first key of the first split
  int64_t tree_begin;   // key that is node 0: earlier ones are the context, as far as the table reaches
  int64_t items;        // 0: nothing to do
  int32_t nodes;
  int32_t queries;
  int32_t rows;  // of a tile
  int32_t tiles;
  int32_t splits;
  int32_t split_keys;
  int32_t item_work;
  int32_t owns_rows;  // whether its rows are its own (owns_rows)
};

// What comes before a request, or before the end.
struct Before {
  int64_t work;
  int64_t items;
};

struct AttentionSpace {
  RequestPlan* plans;  // [batch]
  Before* before;      // [batch + 1]
  float* slots;

  static int64_t plan_bytes(int64_t batch) {
    const int64_t bytes =
        batch * static_cast<int64_t>(sizeof(RequestPlan)) + (batch + 1) * static_cast<int64_t>(sizeof(Before));
    return (bytes + 15) / 16 * 16;
  }
  static AttentionSpace carve(void* memory, int64_t batch) {
    AttentionSpace s;
    s.plans = static_cast<RequestPlan*>(memory);
    s.before = reinterpret_cast<Before*>(s.plans + batch);
    s.slots = reinterpret_cast<float*>(static_cast<char*>(memory) + plan_bytes(batch));
    return s;
  }
};

struct AttentionCall {
  TreeAttentionParams op;
  Geometry geometry;
  AttentionSpace space;

  // A slot holds values [wide_rows, value_dim], maxima [wide_rows] and sums [wide_rows].
  SPECDEC_HD int64_t slot_floats() const { return geometry.wide_rows * (op.value_dim + 2); }
};

SPECDEC_SHARED int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

SPECDEC_SHARED int64_t most_splits(int64_t kv_heads, int64_t tiles) {
  const int64_t share = kItemsOfRequest / (kv_heads * tiles);
  return share < kFewestSplits ? kFewestSplits : share > kMostSplits ? kMostSplits : share;
}

// ---- the plan of a request ----

__device__ inline void cut_request(const AttentionCall& call, RequestPlan& plan) {
  const TreeAttentionParams& op = call.op;
  const Geometry& g = call.geometry;
  const int64_t rows = plan.queries * g.group;
  const bool wide = rows > g.narrow_rows;
  plan.rows = wide ? g.wide_rows : g.narrow_rows;
  plan.tiles = static_cast<int32_t>(ceil_div(rows, plan.rows));
  plan.tree_begin = plan.context < g.capacity ? plan.context : g.capacity;
  plan.begin = 0;
  if (op.window > 0 && plan.context - op.window + 1 > 0) {
    const int64_t seen = plan.context - op.window + 1;  // by the root
    plan.begin = (seen < plan.tree_begin ? seen : plan.tree_begin) / g.keys * g.keys;
  }
  const int64_t keys = plan.tree_begin + plan.nodes - plan.begin, least = wide ? g.wide_split : g.narrow_split;
  int64_t split = ceil_div(ceil_div(keys, most_splits(op.kv_heads, plan.tiles)), g.keys) * g.keys;
  split = split < least ? least : split;
  plan.split_keys = static_cast<int32_t>(split);
  plan.splits = static_cast<int32_t>(ceil_div(keys, split));
  plan.item_work = static_cast<int32_t>(split / g.keys + kItemCost);
  plan.items = op.kv_heads * plan.tiles * plan.splits;
}

// Whether a request has the rows from its offset to the next one: those that no request before it has. By all threads
// of a block.
__device__ inline bool owns_rows(const Strided<const int32_t>& offsets, int64_t total, int64_t request) {
  const auto sound = [&](int64_t first, int64_t after) { return first >= 0 && first <= after && after <= total; };
  const int64_t begin = offsets[request];
  bool taken = !sound(begin, offsets[request + 1]);
  for (int64_t r = threadIdx.x; r < request; r += kPlanThreads) {
    const int64_t first = offsets[r], after = offsets[r + 1];
    taken |= sound(first, after) && after > begin;
  }
  return __syncthreads_or(taken) == 0;
}

// One block per request.
[[maybe_unused]] static __global__ void __launch_bounds__(kPlanThreads)
    plan_kernel(const __grid_constant__ AttentionCall call) {
  const TreeAttentionParams& op = call.op;
  const int64_t b = blockIdx.x;
  const bool active = !op.active || op.active[b];
  const bool owns = owns_rows(op.queries.cu ? op.queries.cu : op.tree.cu_nodes, op.queries.total, b);
  RequestNodes nodes;
  if (active) nodes = open_request_in_parallel(op.tree, b);
  if (threadIdx.x != 0) return;
  int32_t status = nodes.malformed || (active && !owns) ? kStatusMalformed : 0;
  RequestPlan plan{};
  plan.owns_rows = owns;
  plan.table_row = -1;
  if (nodes.count > 0) {
    const int64_t context = op.context_lens[b];
    if (context < 0) status |= kStatusMalformed;
    plan.context = context < 0 ? 0 : context > kLongest ? kLongest : context;
    plan.nodes = nodes.count;
    plan.first_node = plan.first_query = nodes.first;
    plan.queries = nodes.count;
    if (op.queries.cu) {
      plan.first_query = op.queries.cu[b];
      plan.queries = owns ? op.queries.cu[b + 1] - op.queries.cu[b] : 0;
    }
    if (!owns) plan.first_query = plan.queries = 0;
    plan.table_row = op.table.row_of(b);
    if (plan.queries > 0 && call.geometry.group > 0) cut_request(call, plan);
  }
  call.space.plans[b] = plan;
  if (op.status != nullptr) op.status[b] = status;
}

// ---- stretches of the line ----

// Where the stretch of a block begins, in work.
__device__ __forceinline__ int64_t stretch_begin(int64_t block, int64_t work, int64_t blocks) {
  return block * work / blocks;
}
// The block whose stretch holds this place.
__device__ __forceinline__ int64_t block_at(int64_t place, int64_t work, int64_t blocks) {
  return ((place + 1) * blocks - 1) / work;
}

// Some consecutive splits of a group, which a block computes one after the other.
struct Run {
  RequestPlan plan;
  int64_t request;
  int64_t items;  // before the group
  int32_t kv_head;
  int32_t tile;         // of rows
  int32_t first, last;  // splits [first, last)
};

// In shared memory, so that it takes no registers.
struct ScheduleStorage {
  int64_t parts[8];
  // What comes next, and where the stretch ends.
  int64_t request, item, end;
  Before before;
  bool more;
  Run run;
};

// Sums up to each thread; `total` is that of all.
__device__ inline int64_t inclusive_scan(int64_t value, int64_t* parts, int64_t& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t other = __shfl_up_sync(~0u, value, distance);
    if (lane >= distance) value += other;
  }
  __syncthreads();
  if (lane == 31) parts[warp] = value;
  __syncthreads();
  total = 0;
  for (int w = 0; w < warps; ++w) {
    if (w == warp) value += total;
    total += parts[w];
  }
  return value;
}

// Goes to the beginning of the block's stretch. The first block also writes `before`.
__device__ inline void open_stretch(const AttentionCall& call, ScheduleStorage& storage) {
  const int64_t batch = call.op.tree.batch, threads = blockDim.x;
  const RequestPlan* plans = call.space.plans;
  int64_t work = 0;
  for (int64_t base = 0; base < batch; base += threads) {
    const int64_t b = base + threadIdx.x;
    int64_t total;
    (void)inclusive_scan(b < batch ? plans[b].items * plans[b].item_work : 0, storage.parts, total);
    work += total;
  }
  const int64_t begin = stretch_begin(blockIdx.x, work, call.geometry.blocks);
  const int64_t end = stretch_begin(blockIdx.x + 1, work, call.geometry.blocks);
  if (threadIdx.x == 0) {
    storage.request = batch;
    storage.end = end;
  }
  Before before{0, 0};
  for (int64_t base = 0; base < batch; base += threads) {
    const int64_t b = base + threadIdx.x;
    const int64_t items = b < batch ? plans[b].items : 0, mine = b < batch ? items * plans[b].item_work : 0;
    Before total;
    const Before from{before.work + inclusive_scan(mine, storage.parts, total.work) - mine,
                      before.items + inclusive_scan(items, storage.parts, total.items) - items};
    if (blockIdx.x == 0 && b < batch) call.space.before[b] = from;
    if (begin < end && from.work <= begin && begin < from.work + mine) {
      storage.request = b;
      storage.before = from;
      storage.item = ceil_div(begin - from.work, plans[b].item_work);
    }
    before.work += total.work;
    before.items += total.items;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) call.space.before[batch] = before;
}

// The next run of the stretch, by one thread. False at its end.
__device__ inline bool next_run(const AttentionCall& call, ScheduleStorage& s) {
  for (; s.request < call.op.tree.batch; ++s.request, s.item = 0) {
    const RequestPlan& plan = call.space.plans[s.request];
    const int64_t cost = plan.item_work;
    if (s.item >= plan.items) {
      s.before.work += plan.items * cost;
      s.before.items += plan.items;
      continue;
    }
    if (s.before.work + s.item * cost >= s.end) return false;
    const int64_t group = s.item / plan.splits, split = s.item % plan.splits;
    const int64_t within = ceil_div(s.end - s.before.work - group * plan.splits * cost, cost);
    const int64_t last = within < plan.splits ? within : plan.splits;
    s.run.plan = plan;
    s.run.request = s.request;
    s.run.items = s.before.items + group * plan.splits;
    s.run.kv_head = static_cast<int32_t>(group / plan.tiles);
    s.run.tile = static_cast<int32_t>(group % plan.tiles);
    s.run.first = static_cast<int32_t>(split);
    s.run.last = static_cast<int32_t>(last);
    s.item += last - split;
    return true;
  }
  return false;
}

// Calls body() for each run of the block's stretch, with the run in `storage.run`. A body ends with a barrier.
template <class Body>
__device__ void for_each_run(const AttentionCall& call, ScheduleStorage& storage, const Body& body) {
  open_stretch(call, storage);
  while (true) {
    __syncthreads();
    if (threadIdx.x == 0) storage.more = next_run(call, storage);
    __syncthreads();
    if (!storage.more) return;
    body();
  }
}

}  // namespace specdec::cuda
