// SPDX-License-Identifier: Apache-2.0
// The inner loops of the matrix product: R rows times one panel of weights over a run of K, in registers.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <cstddef>

#include "../simd.h"
#include "linear.h"

SPECDEC_ISA_BEGIN

// Registers of accumulators: R rows times `kTileVectors` vectors of outputs. With 32 registers of 64 bytes a tile is
// the whole panel; with 16 registers, half of it (32 bytes) or a quarter (16 bytes).
#if defined(__AVX512F__)
inline constexpr int kTileVectors = 2;
inline constexpr int kTileRows = 8;
#elif defined(__aarch64__)
inline constexpr int kTileVectors = 4;
inline constexpr int kTileRows = 6;
#else
inline constexpr int kTileVectors = 2;
inline constexpr int kTileRows = 6;
#endif
inline constexpr int kPanelVectors = kPanel / kVectorLanes;
// Independent chains of additions that hide the latency of one: two a cycle, four cycles each.
inline constexpr int kChains = 8;
// Most accumulators of a tile that is the whole panel: int8 weights need registers on their way to float.
template <class W>
inline constexpr int kWholePanel = sizeof(W) == 1 ? kChains : 12;
// Rows that make no more chains than just hide the latency, where there are sixteen registers: five and three are
// faster than four and four.
template <class W>
inline constexpr int kSlowRows = kTileRows == 6 && kTileVectors == 2 && sizeof(W) > 1 ? 4 : 0;
// Bytes between the weights in use and those asked for, where one pass reads them.
inline constexpr int kPrefetchBytes = 4096;

// What is asked for while a pass over a block of weights runs: one line for each input, or as many as its weights fill
// (`Own`). Where several chunks of rows pass over the same block, the first of them would wait for memory and the
// others leave memory idle: so each asks for its share of the next block instead, `bytes` for each input.
struct Ahead {
  const char* at;
  int bytes;
};
template <class W, bool Own>
inline constexpr int kLinesAhead = Own && kPanel * sizeof(W) > 64 ? kPanel * sizeof(W) / 64 : 1;

// Vector `v` of the 32 weights of one input, as float32 (exact). Narrow weights are read as 32-bit words and cut by
// shifts: compilers widen bytes and halves poorly. So a vector holds every second (bfloat16) or fourth (int8) output,
// and `output_of` says which one is in a lane.
template <class W>
inline constexpr int kWeightsPerWord = 4 / sizeof(W);

template <class Vector>
static inline Vector load_words(const void* from) {
  Vector r;
  __builtin_memcpy(&r, from, sizeof(r));
  return r;
}
static inline VecF load_weights(const float* from, int v) { return load_words<VecF>(from + v * kVectorLanes); }
static inline VecF load_weights(const uint16_t* from, int v) {
  const VecU words = load_words<VecU>(from + v / 2 * 2 * kVectorLanes);
  return (VecF)(v % 2 == 0 ? words << 16 : words & 0xffff0000u);
}
#if defined(__AVX512F__)
// The 32 bytes do not fill a register of words.
template <>
inline constexpr int kWeightsPerWord<int8_t> = 1;
static inline VecF load_weights(const int8_t* from, int v) {
  const __m128i bytes = _mm_loadu_si128((const __m128i*)(from + v * kVectorLanes));
  return __builtin_convertvector((VecI)_mm512_maskz_cvtepi8_epi32(0xffff, bytes), VecF);
}
#else
static inline VecF load_weights(const int8_t* from, int v) {
  const VecU words = load_words<VecU>(from + v / 4 * 4 * kVectorLanes);
  return __builtin_convertvector((VecI)(words << (24 - v % 4 * 8)) >> 24, VecF);
}
#endif

// The output of the panel in lane `lane` of vector `v`.
template <class W>
static constexpr int output_of(int v, int lane) {
  constexpr int P = kWeightsPerWord<W>;
  return (v / P * kVectorLanes + lane) * P + v % P;
}

// Adds the products of J consecutive segments of `count` each (J > 1: full segments) to totals[r][32], in the order of
// the segments. Totals are in the order of the registers, see `output_of`.
template <class W, bool Own, int R, int V, int J>
static inline void tile(const float* x, ptrdiff_t x_stride, const W* weights, int count, float* totals, Ahead ahead) {
  for (int first = 0; first < kPanelVectors; first += V) {
    VecF sums[J][R][V] = {};
    for (int k = 0; k < count; ++k) {
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) {
        const W* from = weights + (j * kSegment + k) * kPanel;
        for (int line = 0; first == 0 && line < kLinesAhead<W, Own>; ++line) {
          __builtin_prefetch(ahead.at + (ptrdiff_t)(j * kSegment + k) * ahead.bytes + 64 * line);
        }
        // The fewer of the two stay in registers: weights of all vectors or inputs of all rows.
        if constexpr (V > R) {
          VecF values[R];
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) values[r] = x[r * x_stride + j * kSegment + k] - VecF{};
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            const VecF weight = load_weights(from, first + v);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sums[j][r][v] += weight * values[r];
          }
        } else {
          VecF w[V];
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) w[v] = load_weights(from, first + v);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            const float value = x[r * x_stride + j * kSegment + k];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sums[j][r][v] += w[v] * value;
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        float* to = totals + r * kPanel + (first + v) * kVectorLanes;
        VecF total;
        __builtin_memcpy(&total, to, sizeof(total));
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) total += sums[j][r][v];
        __builtin_memcpy(to, &total, sizeof(total));
      }
    }
  }
}

// Adds the products of `length` inputs, which start at a segment's first, to totals[r][32].
template <class W, bool Own, int R>
static void panel_product(const float* x, ptrdiff_t x_stride, const W* weights, int length, float* totals,
                          Ahead ahead) {
  // Few rows: the whole panel at once, and several segments side by side until there are enough chains.
  constexpr int V = R * kPanelVectors <= kWholePanel<W> ? kPanelVectors : kTileVectors;
  constexpr int J = R * V >= kChains ? 1 : kChains / (R * V);
  const auto from = [&](int k) { return Ahead{ahead.at + (ptrdiff_t)k * ahead.bytes, ahead.bytes}; };
  int k = 0;
  if constexpr (J > 1) {
    for (; k + J * kSegment <= length; k += J * kSegment) {
      tile<W, Own, R, V, J>(x + k, x_stride, weights + (ptrdiff_t)k * kPanel, kSegment, totals, from(k));
    }
  }
  for (; k < length; k += kSegment) {
    const int count = length - k < kSegment ? length - k : kSegment;
    tile<W, Own, R, V, 1>(x + k, x_stride, weights + (ptrdiff_t)k * kPanel, count, totals, from(k));
  }
}

template <class W, bool Own, int R = kTileRows>
static inline void panel_product_rows(int rows, const float* x, ptrdiff_t x_stride, const W* weights, int length,
                                      float* totals, Ahead ahead) {
  if constexpr (R > 1) {
    if (rows < R) return panel_product_rows<W, Own, R - 1>(rows, x, x_stride, weights, length, totals, ahead);
  }
  panel_product<W, Own, R>(x, x_stride, weights, length, totals, ahead);
}

SPECDEC_ISA_END
