// SPDX-License-Identifier: Apache-2.0
// States of splits, and how they become the result of a group.
//
// A state is the largest score, the sum of weights relative to it, and the sum of values by those weights. The states
// of a group are merged in a fixed tree over the numbers of its splits: pieces of 2^l splits that begin at a multiple
// of 2^l, and at the end what is left, from the right. A block that has a run of consecutive splits of a group merges
// what it can of that tree as it goes, like a binary counter, and leaves the pieces that it cannot merge in slots;
// merge_kernel (merge.cuh) does the rest. So where the stretches of blocks begin and end changes who merges, not what.
#pragma once

#include "../instructions.cuh"
#include "visible.cuh"

namespace specdec::cuda {

// Scores in tensor-core kernels are multiplied by log2(e), and weights are powers of 2; elsewhere of e.
__device__ __forceinline__ float power_of(bool base2, float x) { return base2 ? exp2_fast(x) : expf(x); }
inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// What two states are multiplied by before they are added.
struct MergeWeights {
  float maximum, earlier, later;
};
__device__ __forceinline__ MergeWeights weigh_states(bool base2, float earlier, float later) {
  const float maximum = fmaxf(earlier, later);
  const float reference = maximum == -INFINITY ? 0.0f : maximum;
  return {maximum, power_of(base2, earlier - reference), power_of(base2, later - reference)};
}
__device__ __forceinline__ float merged(const MergeWeights& w, float earlier, float later) {
  return __fmaf_rn(later, w.later, __fmul_rn(earlier, w.earlier));
}

// What the values of a whole group are multiplied by, and the log of the denominator. Nothing visible: 0 and -inf.
struct Finish {
  float factor, lse;
};
__device__ __forceinline__ Finish finish_row(const TreeAttentionParams& op, bool base2, int64_t head, float maximum,
                                             float sum) {
  float reference = maximum, sink = -INFINITY;
  if (op.sinks) {
    sink = op.sinks[head] * (base2 ? kLog2E : 1.0f);
    reference = fmaxf(reference, sink);
  }
  if (reference == -INFINITY) reference = 0.0f;
  const float weight = power_of(base2, maximum - reference);
  float total = __fmul_rn(sum, weight);
  if (op.sinks) total = __fadd_rn(total, power_of(base2, sink - reference));
  if (total == 0.0f) return {0.0f, -INFINITY};
  const float scale = op.value_scale ? op.value_scale[head / (op.heads / op.kv_heads)] : 1.0f;
  const float log_total = base2 ? (reference + log2f(total)) * kLn2 : reference + logf(total);
  return {weight / total * scale, log_total};
}

template <class T>
__device__ __forceinline__ T narrow_to(float x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};

template <class T>
__device__ __forceinline__ bool holds_pairs(const void* out) {
  return reinterpret_cast<uintptr_t>(out) % sizeof(Pair<T>) == 0;
}

template <class T>
__device__ __forceinline__ void store_pair(void* out, bool aligned, int64_t at, float first, float second) {
  T* to = static_cast<T*>(out) + at;
  const Pair<T> pair{narrow_to<T>(first), narrow_to<T>(second)};
  if (aligned) {
    store(reinterpret_cast<Pair<T>*>(to), pair);
  } else {
    store(to, pair.first);
    store(to + 1, pair.second);
  }
}

// ---- pieces of a run ----

// The level of the piece that begins at `split` in a run that ends before `last`.
__device__ __forceinline__ int piece_level(int32_t split, int32_t last) {
  int level = split == 0 ? 30 : __ffs(split) - 1;
  while ((int64_t{1} << level) > last - split) --level;
  return level;
}

// Where a block keeps the piece that begins at `split`, with `depth` pieces of the same run before it. Null where data
// that no launcher could foresee (rows that belong to several requests) need more slots than there are.
__device__ __forceinline__ float* slot_of(const AttentionCall& call, int64_t items_before_group, int64_t block,
                                          bool prefix, int depth, int32_t split) {
  const Geometry& g = call.geometry;
  int64_t slot = items_before_group + split;
  if (!g.slot_per_item) {
    if (depth >= (prefix ? g.prefix_slots : g.first_slots)) return nullptr;
    slot = block * (g.first_slots + g.prefix_slots) + (prefix ? g.first_slots : 0) + depth;
  }
  return slot < g.slots ? call.space.slots + slot * call.slot_floats() : nullptr;
}

// ---- what a kernel's accumulators must have to be folded ----
//   static constexpr bool kBase2;  static constexpr int kThreadRows;
//   float maximum[kThreadRows], sum[kThreadRows];
//   bool holds() const             this thread has a part of the state
//   bool leads() const             and writes the maximum and the sum of its rows
//   int row(int r) const           of the tile
//   int column() const             the first of the thread's columns
//   each(columns, f)               f(r, offset from it, float& first, float& second) for pairs of columns below that

template <class State>
__device__ inline void keep_state(const AttentionCall& call, State& state, float* slot) {
  if (slot == nullptr || !state.holds()) return;
  const int64_t dim = call.op.value_dim, rows = call.geometry.wide_rows;
  if (state.leads()) {
#pragma unroll
    for (int r = 0; r < State::kThreadRows; ++r) {
      slot[rows * dim + state.row(r)] = state.maximum[r];
      slot[rows * (dim + 1) + state.row(r)] = state.sum[r];
    }
  }
  float* rows_of_values[State::kThreadRows];
#pragma unroll
  for (int r = 0; r < State::kThreadRows; ++r) rows_of_values[r] = slot + state.row(r) * dim + state.column();
  state.each(static_cast<int>(dim), [&](int r, int offset, float& first, float& second) {
    *reinterpret_cast<float2*>(rows_of_values[r] + offset) = make_float2(first, second);
  });
}

template <class State>
__device__ inline void merge_kept(const AttentionCall& call, State& state, const float* slot) {
  if (slot == nullptr || !state.holds()) return;
  const int64_t dim = call.op.value_dim, rows = call.geometry.wide_rows;
  MergeWeights w[State::kThreadRows];
  const float* rows_of_values[State::kThreadRows];
#pragma unroll
  for (int r = 0; r < State::kThreadRows; ++r) {
    w[r] = weigh_states(State::kBase2, slot[rows * dim + state.row(r)], state.maximum[r]);
    state.maximum[r] = w[r].maximum;
    state.sum[r] = merged(w[r], slot[rows * (dim + 1) + state.row(r)], state.sum[r]);
    rows_of_values[r] = slot + state.row(r) * dim + state.column();
  }
  state.each(static_cast<int>(dim), [&](int r, int offset, float& first, float& second) {
    const float2 kept = *reinterpret_cast<const float2*>(rows_of_values[r] + offset);
    first = merged(w[r], kept.x, first);
    second = merged(w[r], kept.y, second);
  });
}

// The result of a whole group.
template <class T, class State>
__device__ inline void write_result(const AttentionCall& call, State& state, const RowMark* rows) {
  if (!state.holds()) return;
  const TreeAttentionParams& op = call.op;
  float factor[State::kThreadRows] = {};
  int64_t begin[State::kThreadRows];
#pragma unroll
  for (int r = 0; r < State::kThreadRows; ++r) {
    const RowMark mark = rows[state.row(r)];
    begin[r] = mark.node < 0 ? -1 : mark.out * op.value_dim + state.column();
    if (mark.node < 0) continue;
    const Finish finish = finish_row(op, State::kBase2, mark.out % op.heads, state.maximum[r], state.sum[r]);
    factor[r] = finish.factor;
    if (state.leads()) store(op.lse + mark.out, finish.lse);
  }
  const auto write = [&](bool aligned) {
    state.each(static_cast<int>(op.value_dim), [&](int r, int offset, float& first, float& second) {
      if (begin[r] >= 0) store_pair<T>(op.out, aligned, begin[r] + offset, first * factor[r], second * factor[r]);
    });
  };
  if (holds_pairs<T>(op.out)) {
    write(true);
  } else {
    write(false);
  }
}

// The run of one block through a group. All threads call `add`; there is a barrier between one call and the next.
class Fold {
 public:
  __device__ Fold(const AttentionCall& call, const Run& run) : call_(call), run_(run) {}

  // Takes the state of the next split. True if the state is now that of the whole group.
  template <class State>
  __device__ bool add(State& state, int32_t split) {
    int32_t begin = split;
    int level = 0;
    const bool whole = run_.first == 0 && split + 1 == run_.plan.splits;
    while (depth_ > 0 && (whole || (top() == level && (split >> level & 1) != 0))) {
      begin -= 1 << top();
      --depth_;
      merge_kept(call_, state, slot(begin));
      ++level;
    }
    if (whole) return true;
    __syncthreads();  // all have read what this overwrites
    keep_state(call_, state, slot(begin));
    levels_ = (levels_ & ~(uint64_t{15} << 4 * depth_)) | static_cast<uint64_t>(level) << 4 * depth_;
    ++depth_;
    return false;
  }

 private:
  __device__ int top() const { return static_cast<int>(levels_ >> (4 * (depth_ - 1)) & 15); }
  __device__ float* slot(int32_t begin) const {
    return slot_of(call_, run_.items, blockIdx.x, run_.first == 0, depth_, begin);
  }

  const AttentionCall& call_;
  const Run& run_;
  int depth_ = 0;
  uint64_t levels_ = 0;  // of the pieces in the slots, four bits each
};

}  // namespace specdec::cuda
