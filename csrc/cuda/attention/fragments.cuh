// SPDX-License-Identifier: Apache-2.0
// Tensor-core products of one warp: 16 rows of queries times keys, and their weights times values. Operands lie in
// shared memory, scores and sums in registers, in the layout of mma.m16n8k16: a lane has rows lane / 4 and lane / 4 +
// 8, columns 2 (lane % 4) and the next of every eight.
#pragma once

#include "fold.cuh"

namespace specdec::cuda {

// How the warps of a block share a tile. With kExchange, the warps of one row tile share their weights through shared
// memory and have kValues / kKeyWarps columns of the result each; else each has all columns over its own keys.
template <int kRowWarps_, int kKeyWarps_, int kKeys_, int kValues_, bool kExchange_ = false>
struct TileShape {
  static constexpr int kRowWarps = kRowWarps_, kKeyWarps = kKeyWarps_, kKeys = kKeys_, kValues = kValues_;
  static constexpr bool kExchange = kExchange_;
  static constexpr int kRows = 16 * kRowWarps, kThreads = 32 * kRowWarps * kKeyWarps;
  static constexpr int kWarpKeys = kKeys / kKeyWarps;
  static constexpr int kWarpValues = kExchange ? kValues / kKeyWarps : kValues;
  static constexpr int kProductKeys = kExchange ? kKeys : kWarpKeys;  // keys that a warp multiplies values by
  static_assert(kWarpKeys % 16 == 0 && kWarpValues % 16 == 0);
};

// scores[16, 8 kTiles] = queries[16, 16 steps] keys[8 kTiles, 16 steps]^T.
template <class T, int kTiles>
__device__ __forceinline__ void multiply_keys(float (&scores)[kTiles][4], const T* queries, int query_pitch,
                                              const T* keys, int pitch, int steps) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const T* query = queries + lane % 16 * query_pitch + lane / 16 * 8;
  const T* key = keys + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
#pragma unroll 4
  for (int step = 0; step < steps; ++step) {
    unsigned a[4];
    ldmatrix_x4(a, query + step * 16);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      unsigned b[4];
      ldmatrix_x4(b, key + n * 8 * pitch + step * 16);
      const unsigned low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
      mma_m16n8k16<T>(scores[n], a, low);
      mma_m16n8k16<T>(scores[n + 1], a, high);
    }
  }
}

// sums[16, 16 kColumns] += weights[16, 16] values[16, 16 kColumns].
template <class T, int kColumns, int kTiles>
__device__ __forceinline__ void multiply_values(float (&sums)[kTiles][4], const unsigned (&weights)[4], const T* values,
                                                int pitch) {
  static_assert(2 * kColumns <= kTiles);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const T* value = values + lane % 16 * pitch + lane / 16 * 8;
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
    unsigned b[4];
    ldmatrix_x4_trans(b, value + n * 16);
    const unsigned low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
    mma_m16n8k16<T>(sums[2 * n], weights, low);
    mma_m16n8k16<T>(sums[2 * n + 1], weights, high);
  }
}

template <class T>
__device__ __forceinline__ unsigned pack(float first, float second) {
  unsigned bits;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(first, second);
    memcpy(&bits, &pair, sizeof(bits));
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    memcpy(&bits, &pair, sizeof(bits));
  }
  return bits;
}

// What scores go through: into powers of 2.
struct Scoring {
  float inner;  // a product of query and key times this is a power of 2, or, with a cap, what tanh takes
  float cap;    // 0: none
  __device__ Scoring(const TreeAttentionParams& op, int64_t kv_head) {
    const float scale = op.scale * (op.key_scale ? op.key_scale[kv_head] : 1.0f);
    cap = op.softcap * kLog2E;
    inner = op.softcap > 0.0f ? scale / op.softcap : scale * kLog2E;
  }
  template <int kTiles>
  __device__ void operator()(float (&scores)[kTiles][4]) const {
#pragma unroll
    for (auto& four : scores) {
#pragma unroll
      for (float& score : four) score *= inner;
    }
    if (cap == 0.0f) return;
#pragma unroll
    for (auto& four : scores) {
#pragma unroll
      for (float& score : four) {  // tanh x = 1 - 2 / (e^2x + 1); off by 1e-7 at most
        score = cap * (1.0f - __fdividef(2.0f, 1.0f + exp2_fast(2.0f * kLog2E * score)));
      }
    }
  }
};

// The running softmax of the rows of a lane.
template <class Shape>
struct FragmentState {
  static constexpr bool kBase2 = true;
  static constexpr int kThreadRows = 2;
  float maximum[2], sum[2];  // `sum` is this lane's share until `total` is called
  float values[Shape::kWarpValues / 8][4];

  __device__ void clear() {
    maximum[0] = maximum[1] = -INFINITY;
    sum[0] = sum[1] = 0.0f;
#pragma unroll
    for (auto& four : values) four[0] = four[1] = four[2] = four[3] = 0.0f;
  }

  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int key_warp() { return warp() / Shape::kRowWarps; }
  __device__ static int row(int r) { return warp() % Shape::kRowWarps * 16 + lane() / 4 + 8 * r; }
  __device__ static int warp_column() { return Shape::kExchange ? key_warp() * Shape::kWarpValues : 0; }
  __device__ static int column() { return warp_column() + lane() % 4 * 2; }
  __device__ static bool holds() { return Shape::kExchange || key_warp() == 0; }
  __device__ static bool leads() { return lane() % 4 == 0 && key_warp() == 0; }

  template <class F>
  __device__ void each(int columns, const F& f) {
#pragma unroll
    for (int n = 0; n < Shape::kWarpValues / 8; ++n) {
      if (warp_column() + n * 8 >= columns) break;
      f(0, n * 8, values[n][0], values[n][1]);
      f(1, n * 8, values[n][2], values[n][3]);
    }
  }

  // Makes `maximum` that of all lanes' scores too, and what was summed before relative to it.
  __device__ void raise(const float (&largest)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float old = maximum[r];
      maximum[r] = fmaxf(old, largest[r]);
      const float factor = exp2_fast(old - reference(r));
      sum[r] *= factor;
#pragma unroll
      for (auto& four : values) {
        four[2 * r] *= factor;
        four[2 * r + 1] *= factor;
      }
    }
  }
  __device__ float reference(int r) const { return maximum[r] == -INFINITY ? 0.0f : maximum[r]; }

  // The four lanes of a row add up their shares.
  __device__ void total() {
#pragma unroll
    for (float& share : sum) {
      share += __shfl_xor_sync(~0u, share, 1);
      share += __shfl_xor_sync(~0u, share, 2);
    }
  }
};

// The largest score of each of a lane's rows, in all four lanes.
template <int kTiles>
__device__ __forceinline__ void largest_of_rows(const float (&scores)[kTiles][4], float (&largest)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    largest[r] = -INFINITY;
#pragma unroll
    for (const auto& four : scores) largest[r] = fmaxf(largest[r], fmaxf(four[2 * r], four[2 * r + 1]));
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 1));
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 2));
  }
}

}  // namespace specdec::cuda
