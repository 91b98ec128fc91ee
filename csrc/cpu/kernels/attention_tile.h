// SPDX-License-Identifier: Apache-2.0
// The inner loops of attention over one tile of 64 places: scores, running softmax, values. What is done to a row
// is one sequence of operations, whatever rows are beside it and however positions are grouped:
//
//  * a score is the sum over the lanes of a register (fixed order) of chains over D / lanes steps;
//  * weights and their sum belong to places in the tile; a place that is not seen has weight 0 and adds 0;
//  * an element of the result is one chain over the seen positions in ascending order.
#pragma once

#include <cstddef>

#include "attention_lanes.h"

SPECDEC_ISA_BEGIN
namespace attention {

// Places of a tile, one bit each. Tiles start at multiples of it.
inline constexpr int kTile = 64;
inline constexpr uint64_t kAllPlaces = ~uint64_t{0};

// Registers of a block of values: rows times registers of columns.
#if defined(__AVX512F__)
inline constexpr int kMixRows = 8, kMixVectors = 2;
#elif defined(__aarch64__)
inline constexpr int kMixRows = 4, kMixVectors = 4;
#elif defined(__AVX2__)
inline constexpr int kMixRows = 4, kMixVectors = 2;
#else
inline constexpr int kMixRows = 2, kMixVectors = 4;
#endif
// Keys that a row is multiplied with at a time: chains enough to hide the latency of an addition.
inline constexpr int kKeyGroup = kVectorLanes < 8 ? 8 : kVectorLanes;
// A row of scores; a group of keys may run over the end of a tile.
inline constexpr int kScoreStride = kTile + kKeyGroup;

// scores[k] of one row and a group of keys.
static inline void score_keys(const float* query, const float* const* keys, int64_t dim, float* scores) {
  const float* key[kKeyGroup];
#pragma GCC unroll 16
  for (int k = 0; k < kKeyGroup; ++k) key[k] = keys[k];
  VecF sums[kKeyGroup] = {};
  for (int64_t d = 0; d < dim; d += kVectorLanes) {
    const VecF q = load_vector(query + d);
#pragma GCC unroll 16
    for (int k = 0; k < kKeyGroup; ++k) sums[k] = multiply_add(q, load_vector(key[k] + d), sums[k]);
  }
#pragma GCC unroll 4
  for (int first = 0; first < kKeyGroup; first += kVectorLanes) {
    VecF x[kVectorLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kVectorLanes; ++i) x[i] = sums[first + i];
    store_vector(scores + first, sums_of(x));
  }
}

// What scores go through, in units of log 2.
struct ScoreRule {
  float inner;  // what dot products are multiplied by
  float outer;  // with a softcap: what its tangent is multiplied by
  bool capped;
};

// The running softmax of a row: the largest score so far, and the sum of the weights relative to it.
struct RowState {
  float largest = -__builtin_inff();
  float total = 0.0f;
};

// Scores of a tile become weights; returns what the earlier sums of the row are multiplied by. Bit i of `seen` is
// set where the row sees place i.
static inline float weigh(float* scores, uint64_t seen, const ScoreRule& rule, RowState& state) {
  const float nothing = -__builtin_inff();
  const VecF inner = splat(rule.inner), outer = splat(rule.outer);
  for (int i = 0; i < kTile; i += kVectorLanes) {
    const VecF x = load_vector(scores + i) * inner;
    store_vector(scores + i, rule.capped ? outer * tanh_vector(x) : x);
  }
  if (seen != kAllPlaces) {
    for (int i = 0; i < kTile; ++i) scores[i] = seen >> i & 1 ? scores[i] : nothing;
  }
  VecF top[4] = {splat(nothing), splat(nothing), splat(nothing), splat(nothing)};
  for (int i = 0; i < kTile; i += 4 * kVectorLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) top[j] = larger(load_vector(scores + i + j * kVectorLanes), top[j]);
  }
  const VecF before = splat(state.largest);
  const VecF largest = larger(largest_of(larger(larger(top[0], top[1]), larger(top[2], top[3]))), before);
  // Where nothing was seen yet, or nothing but -inf: weights of 0 (or NaN).
  const VecF shift = choose(largest == splat(nothing), VecF{}, largest);
  VecF sums[4] = {};
  for (int i = 0; i < kTile; i += 4 * kVectorLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      float* at = scores + i + j * kVectorLanes;
      const VecF w = exp2_vector(load_vector(at) - shift);
      store_vector(at, w);
      sums[j] += w;
    }
  }
  const VecF total = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
  const VecF old = exp2_vector(before - shift);
  state.largest = largest[0];
  state.total = multiply_add(splat(state.total), old, total)[0];
  return old[0];
}

// mixed[r][columns of V registers] = mixed * old + sum of weights[r][k] times values[k], k ascending.
template <int R, int V>
static inline void mix_block(const float* weights, const float* const* values, ptrdiff_t column, int count,
                             const float* old, float* mixed, ptrdiff_t mixed_stride) {
  VecF sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      sums[r][v] = load_vector(mixed + r * mixed_stride + v * kVectorLanes) * splat(old[r]);
    }
  }
  for (int k = 0; k < count; ++k) {
    const float* from = values[k] + column;
    VecF value[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      VecF one = load_vector(from + v * kVectorLanes);
      if (R > 1) SPECDEC_IN_REGISTER(one);
      value[v] = one;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const VecF w = splat(weights[r * kScoreStride + k]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sums[r][v] = multiply_add(w, value[v], sums[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store_vector(mixed + r * mixed_stride + v * kVectorLanes, sums[r][v]);
  }
}

template <int V, int R = kMixRows>
static inline void mix_rows(int rows, const float* weights, const float* const* values, ptrdiff_t column, int count,
                            const float* old, float* mixed, ptrdiff_t mixed_stride) {
  if constexpr (R > 1) {
    if (rows < R) return mix_rows<V, R - 1>(rows, weights, values, column, count, old, mixed, mixed_stride);
  }
  mix_block<R, V>(weights, values, column, count, old, mixed, mixed_stride);
}

// The same for any number of rows and the first `width` columns (a multiple of a register).
static inline void mix(int rows, const float* weights, const float* const* values, int count, const float* old,
                       float* mixed, ptrdiff_t mixed_stride, int64_t width) {
  constexpr int kChunk = kMixVectors * kVectorLanes;
  for (int r = 0; r < rows; r += kMixRows) {
    const int here = rows - r < kMixRows ? rows - r : kMixRows;
    const float* w = weights + r * kScoreStride;
    float* to = mixed + r * mixed_stride;
    int64_t c = 0;
    for (; c + kChunk <= width; c += kChunk) {
      mix_rows<kMixVectors>(here, w, values, c, count, old + r, to + c, mixed_stride);
    }
    for (; c < width; c += kVectorLanes) mix_rows<1>(here, w, values, c, count, old + r, to + c, mixed_stride);
  }
}

}  // namespace attention
SPECDEC_ISA_END
