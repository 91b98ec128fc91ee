// SPDX-License-Identifier: Apache-2.0
// tree_attention: three launches, no wait between blocks.
//
// 1. plan_kernel: one block per request looks at its tree and its lengths, and says how it is cut (schedule.cuh).
// 2. As many blocks as the GPU holds go through the items of all requests (tensor_cores.cuh, plain.cuh) and write what
//    they have alone.
// 3. merge_kernel puts together what several blocks had, and clears the rows of no live node.
//
// The host knows shapes only. Deterministic; a request has the same bits in any batch. No host synchronisation.
#pragma once

#include "merge.cuh"
#include "plain.cuh"
#include "tensor_launch.cuh"

namespace specdec::cuda {

inline int log2_up(int64_t value) {
  int level = 0;
  while ((int64_t{1} << level) < value) ++level;
  return level;
}

inline void settle_slots(const TreeAttentionParams& p, Geometry& g) {
  const int64_t rows = p.queries.total * g.group;
  // A request has one narrow tile, or wide ones of which only the last is not full.
  const int64_t tiles = rows / g.wide_rows + p.tree.batch;
  const int64_t reach = g.capacity + p.tree.total,
                least = g.narrow_split < g.wide_split ? g.narrow_split : g.wide_split;
  const int64_t by_reach = ceil_div(reach, least), most = most_splits(p.kv_heads, 1);
  const int64_t splits = by_reach < 1 ? 1 : by_reach < most ? by_reach : most;
  const int levels = log2_up(splits);
  g.first_slots = levels < 2 ? levels : 2 * levels - 2;
  g.prefix_slots = levels;
  const int64_t items = tiles * p.kv_heads * splits;
  g.blocks = static_cast<int32_t>(items < g.blocks ? items : g.blocks);
  const int64_t by_block = static_cast<int64_t>(g.blocks) * (g.first_slots + g.prefix_slots);
  g.slot_per_item = items <= by_block;
  g.slots = splits == 1 ? 0 : g.slot_per_item ? items : by_block;
}

inline AttentionSetup set_up_attention(const TreeAttentionParams& p) {
  AttentionSetup setup;
  Geometry& g = setup.geometry;
  const auto held = [](CacheType type, CacheType query) { return type == query || is_float8(type); };
  if (p.query_type != FloatType::float32 && held(p.key.type, as_cache(p.query_type)) &&
      held(p.value.type, as_cache(p.query_type))) {
    if (p.query_type == FloatType::bfloat16) {
      set_up_tensor_cores<__nv_bfloat16>(p, setup);
    } else {
      set_up_tensor_cores<__half>(p, setup);
    }
  }
  if (setup.values == 0) {
    g.narrow_rows = g.wide_rows = kPlainRows;
    g.keys = kPlainKeys;
    g.narrow_split = g.wide_split = 128;
    const int64_t blocks = clusters_at_once(plain_attention_kernel, {1, kPlainThreads, sizeof(PlainStorage), nullptr});
    g.blocks = static_cast<int32_t>(blocks < 1 ? 1 : blocks);
  }
  g.group = p.heads / p.kv_heads;
  g.capacity = p.table.max_pages * p.key.page_size;
  g.num_pages = p.key.num_pages < p.value.num_pages ? p.key.num_pages : p.value.num_pages;
  g.page_shift = log2_up(p.key.page_size);
  settle_slots(p, g);
  const AttentionCall call{p, g, {}};
  setup.bytes = AttentionSpace::plan_bytes(p.tree.batch) + g.slots * call.slot_floats() * 4;
  return setup;
}

inline bool attends_nothing(const TreeAttentionParams& p) { return p.queries.total == 0 || p.heads == 0; }

// `workspace` has setup.bytes bytes, aligned to 16.
inline cudaError_t launch_tree_attention(const TreeAttentionParams& p, const AttentionSetup& setup, void* workspace,
                                         cudaStream_t stream) {
  const AttentionCall call{p, setup.geometry, AttentionSpace::carve(workspace, p.tree.batch)};
  const int64_t batch = p.tree.batch;
  cudaError_t error = cudaSuccess;
  if (batch > 0) error = launch(plan_kernel, {static_cast<unsigned>(batch), kPlanThreads, 0, stream}, call);
  if (error != cudaSuccess || attends_nothing(p)) return error;
  if (batch > 0 && setup.values == 0) {
    const Launch how{static_cast<unsigned>(call.geometry.blocks), kPlainThreads, sizeof(PlainStorage), stream};
    const PlainCall plain{
        call,
        rows_aligned(p.query, p.query_type == FloatType::float32 ? 4 : 2, {p.query_row_stride, p.query_head_stride},
                     p.query_type == FloatType::float32 ? 16 : 8),
        rows_aligned(p.key, 4 * bytes_of(p.key.type)), rows_aligned(p.value, 4 * bytes_of(p.value.type))};
    error = launch(plain_attention_kernel, how, plain);
  } else if (batch > 0) {
    const TensorCall tensor{call, setup.memory};
    error = p.query_type == FloatType::bfloat16 ? launch_tensor_cores<__nv_bfloat16>(tensor, setup.values, stream)
                                                : launch_tensor_cores<__half>(tensor, setup.values, stream);
  }
  if (error != cudaSuccess) return error;
  return launch_merge({call, setup.values != 0}, stream);
}

}  // namespace specdec::cuda
