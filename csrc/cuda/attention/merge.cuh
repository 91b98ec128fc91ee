// SPDX-License-Identifier: Apache-2.0
// Results from parts: the pieces that blocks have left of the groups that they shared, and merge_states.
#pragma once

#include "fold.cuh"

namespace specdec::cuda {

inline constexpr int kMergeThreads = 128, kMergeWarps = kMergeThreads / 32;

struct MergeCall {
  AttentionCall call;
  bool base2 = true;  // as the kernel that made the pieces
};

// The request that owns a row of queries; -1 if there is none. Where offsets do not ascend, the search ends at a
// request that does not own its rows, and all are looked at.
__device__ inline int64_t request_of_row(const AttentionCall& call, int64_t row) {
  const TreeAttentionParams& op = call.op;
  const Strided<const int32_t>& cu = op.queries.cu ? op.queries.cu : op.tree.cu_nodes;
  const auto owns = [&](int64_t request) { return call.space.plans[request].owns_rows != 0; };
  int64_t low = 0, high = op.tree.batch;  // the last request that begins at `row` or before is in [low - 1, high)
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (cu[middle] <= row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (op.tree.batch == 0) return -1;
  const bool inside = low > 0 && row < cu[low];
  if (owns(low > 0 ? low - 1 : 0)) return inside ? low - 1 : -1;
  for (int64_t request = 0; request < op.tree.batch; ++request) {
    if (owns(request) && cu[request] <= row && row < cu[request + 1]) return request;
  }
  return -1;
}

// A piece of a group: where it is kept (null: nowhere), its first split, and its level; -1 behind the last piece.
struct Piece {
  const float* slot;
  int32_t begin;
  int level;
};

// The pieces of a group in ascending order, whichever blocks have left them.
class PieceWalk {
 public:
  __device__ PieceWalk(const AttentionCall& call, const RequestPlan& plan, const Before& before, int64_t work,
                       int64_t group)
      : call_(call),
        items_(before.items + group * plan.splits),
        work_(work),
        begin_(before.work + group * plan.splits * plan.item_work),
        cost_(plan.item_work),
        splits_(plan.splits),
        block_(block_at(begin_, work, call.geometry.blocks)) {
    open_run();
  }

  // One block has had all of it, and has written the result.
  __device__ bool is_whole() const { return at_ == 0 && last_ == splits_; }

  __device__ Piece next() {
    while (at_ == last_) {
      if (last_ == splits_) return {nullptr, 0, -1};
      ++block_;
      open_run();
    }
    const Piece piece{slot_of(call_, items_, block_, first_ == 0, depth_, at_), at_, piece_level(at_, last_)};
    at_ += 1 << piece.level;
    ++depth_;
    return piece;
  }

 private:
  // The splits that the stretch of the current block holds.
  __device__ void open_run() {
    const int64_t from = stretch_begin(block_, work_, call_.geometry.blocks) - begin_;
    const int64_t to = stretch_begin(block_ + 1, work_, call_.geometry.blocks) - begin_;
    first_ = at_ = from <= 0 ? 0 : static_cast<int32_t>(ceil_div(from, cost_));
    const int64_t last = ceil_div(to, cost_);
    last_ = last < splits_ ? static_cast<int32_t>(last) : splits_;
    depth_ = 0;
  }

  const AttentionCall& call_;
  int64_t items_, work_, begin_, cost_;
  int32_t splits_;
  int64_t block_;
  int32_t first_ = 0, at_ = 0, last_ = 0;
  int depth_ = 0;
};

// One row, four columns of it.
struct RowState {
  float maximum = -INFINITY, sum = 0.0f;
  float values[4] = {0.0f, 0.0f, 0.0f, 0.0f};
};

// States merged like the digits of a binary counter: the last piece of each level waits for its right half.
class RowFold {
 public:
  __device__ explicit RowFold(bool base2) : base2_(base2) {}

  __device__ void add(RowState state, int32_t begin, int level) {
    while (depth_ > 0 && levels_[depth_ - 1] == level && (begin >> level & 1) != 0) {
      state = merge(states_[--depth_], state);
      begin -= 1 << level;
      ++level;
    }
    states_[depth_] = state;
    levels_[depth_++] = level;
  }
  __device__ RowState whole() {
    RowState state = states_[--depth_];
    while (depth_ > 0) state = merge(states_[--depth_], state);
    return state;
  }

 private:
  __device__ RowState merge(const RowState& earlier, const RowState& later) const {
    const MergeWeights w = weigh_states(base2_, earlier.maximum, later.maximum);
    RowState state;
    state.maximum = w.maximum;
    state.sum = merged(w, earlier.sum, later.sum);
#pragma unroll
    for (int i = 0; i < 4; ++i) state.values[i] = merged(w, earlier.values[i], later.values[i]);
    return state;
  }

  bool base2_;
  int depth_ = 0;
  RowState states_[9];  // 128 splits are eight levels
  int levels_[9];
};

__device__ inline RowState read_row(const AttentionCall& call, const float* slot, int64_t row, int64_t column) {
  RowState state;
  if (slot == nullptr) return state;
  const int64_t dim = call.op.value_dim, rows = call.geometry.wide_rows;
  state.maximum = slot[rows * dim + row];
  state.sum = slot[rows * (dim + 1) + row];
  if (column < dim) {
    const float4 four = *reinterpret_cast<const float4*>(slot + row * dim + column);
    state.values[0] = four.x;
    state.values[1] = four.y;
    state.values[2] = four.z;
    state.values[3] = four.w;
  }
  return state;
}

__device__ inline RowState merge_pieces(const MergeCall& p, PieceWalk walk, int64_t row, int64_t column) {
  constexpr int kAhead = 8;  // pieces that are read at the same time
  RowFold fold(p.base2);
  Piece pieces[kAhead];
  do {
    RowState states[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      pieces[i] = walk.next();
      states[i] = read_row(p.call, pieces[i].slot, row, column);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (pieces[i].level >= 0) fold.add(states[i], pieces[i].begin, pieces[i].level);
    }
  } while (pieces[kAhead - 1].level >= 0);
  return fold.whole();
}

template <class T>
__device__ inline void write_row(const MergeCall& p, int64_t row, int64_t head, const PieceWalk* walk,
                                 int64_t tile_row) {
  const TreeAttentionParams& op = p.call.op;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t at = row * op.heads + head;
  for (int64_t column = lane * 4; column < ceil_div(op.value_dim, 128) * 128; column += 128) {
    RowState state;
    Finish finish{0.0f, -INFINITY};
    if (walk != nullptr) {
      state = merge_pieces(p, *walk, tile_row, column);
      finish = finish_row(op, p.base2, head, state.maximum, state.sum);
    }
    if (column == 0) store(op.lse + at, finish.lse);
    if (column >= op.value_dim) continue;
    for (int i = 0; i < 4; i += 2) {
      store_pair<T>(op.out, holds_pairs<T>(op.out), at * op.value_dim + column + i, state.values[i] * finish.factor,
                    state.values[i + 1] * finish.factor);
    }
  }
}

// One warp per row of queries and head: a group that several blocks had is put together, a row of no live node is 0.
[[maybe_unused]] static __global__ void __launch_bounds__(kMergeThreads)
    merge_kernel(const __grid_constant__ MergeCall p) {
  const AttentionCall& call = p.call;
  const TreeAttentionParams& op = call.op;
  const int64_t row = blockIdx.x, head = static_cast<int64_t>(blockIdx.y) * kMergeWarps + threadIdx.x / 32;
  if (head >= op.heads) return;
  const auto write = [&](const PieceWalk* walk, int64_t tile_row) {
    if (op.query_type == FloatType::float32) {
      write_row<float>(p, row, head, walk, tile_row);
    } else if (op.query_type == FloatType::bfloat16) {
      write_row<__nv_bfloat16>(p, row, head, walk, tile_row);
    } else {
      write_row<__half>(p, row, head, walk, tile_row);
    }
  };
  const int64_t request = request_of_row(call, row);
  const RequestPlan* plan = request < 0 ? nullptr : call.space.plans + request;
  const int64_t local = plan == nullptr ? -1 : row - plan->first_query;
  bool live = plan != nullptr && plan->items > 0 && local >= 0 && local < plan->queries;
  if (live && op.queries.cu) live = op.queries.nodes[row] >= 0 && op.queries.nodes[row] < plan->nodes;
  if (!live) {
    write(nullptr, 0);
    return;
  }
  const int64_t at = local * call.geometry.group + head % call.geometry.group;
  const int64_t group = head / call.geometry.group * plan->tiles + at / plan->rows;
  const PieceWalk walk(call, *plan, call.space.before[request], call.space.before[op.tree.batch].work, group);
  if (!walk.is_whole()) write(&walk, at % plan->rows);
}

inline cudaError_t launch_merge(const MergeCall& p, cudaStream_t stream) {
  const TreeAttentionParams& op = p.call.op;
  const dim3 grid(static_cast<unsigned>(op.queries.total), static_cast<unsigned>(ceil_div(op.heads, kMergeWarps)));
  return launch(merge_kernel, {grid, kMergeThreads, 0, stream}, p);
}

// ---- merge_states ----

// One warp per row and head.
template <class T>
__global__ void __launch_bounds__(kMergeThreads) merge_states_kernel(const __grid_constant__ MergeStatesParams p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kMergeWarps + threadIdx.x / 32;
  if (at >= p.rows * p.heads) return;
  const int64_t row = at / p.heads, head = at % p.heads;
  const float* lses = p.lses + row * p.lse_strides[0] + head * p.lse_strides[2];
  const T* values = static_cast<const T*>(p.values) + row * p.value_strides[0] + head * p.value_strides[2];
  float largest = -INFINITY, total = 0.0f;
  for (int64_t s = 0; s < p.states; ++s) {
    const float lse = lses[s * p.lse_strides[1]];
    if (lse > largest || lse != lse) largest = lse;
  }
  const auto weight_of = [&](float lse) { return expf(lse - largest); };
  for (int64_t s = 0; s < p.states; ++s) {
    const float lse = lses[s * p.lse_strides[1]];
    if (lse != -INFINITY) total += weight_of(lse);
  }
  if (lane == 0) store(p.lse + at, total == 0.0f ? -INFINITY : largest + logf(total));
  for (int64_t column = lane; column < p.dim; column += 32) {
    float sum = 0.0f;
    for (int64_t s = 0; s < p.states; ++s) {
      const float lse = lses[s * p.lse_strides[1]];
      if (lse == -INFINITY) continue;
      sum = __fmaf_rn(weight_of(lse) / total, static_cast<float>(values[s * p.value_strides[1] + column]), sum);
    }
    store(static_cast<T*>(p.out) + at * p.dim + column, narrow_to<T>(sum));
  }
}

inline cudaError_t launch_merge_states(const MergeStatesParams& p, cudaStream_t stream) {
  const int64_t blocks = ceil_div(p.rows * p.heads, kMergeWarps);
  if (blocks == 0) return cudaSuccess;
  const Launch how{static_cast<unsigned>(blocks), kMergeThreads, 0, stream};
  switch (p.type) {
    case FloatType::float32:
      return launch(merge_states_kernel<float>, how, p);
    case FloatType::bfloat16:
      return launch(merge_states_kernel<__nv_bfloat16>, how, p);
    default:
      return launch(merge_states_kernel<__half>, how, p);
  }
}

}  // namespace specdec::cuda
