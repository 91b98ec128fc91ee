// SPDX-License-Identifier: Apache-2.0
// The matrix product of few rows, out = x W^T (* scales) (+ bias), for decoding and verification on the CPU.
//
// Packed weights: panels of 32 outputs, [ceil(N/32), K, 32], zero beyond N. A panel is read front to back, once for up
// to 64 rows, so that the time of a small number of rows is the time of reading the weights.
//
// Order of the sums: K is cut in segments of kSegment; the products of a segment are added one after the other to one
// float32 (fused where the instruction set has it), and the sums of the segments are added in ascending order. The
// order depends on K alone, so a row of the result has the same bits whatever the number of rows and of threads; it may
// differ between instruction sets with and without fused multiply-add.
#pragma once

#include <cstdint>

#include "../../common/views.h"
#include "../isa.h"

namespace specdec::cpu {

inline constexpr int kPanel = 32;    // outputs of a panel
inline constexpr int kMaxRows = 64;  // rows served by one read of the weights
inline constexpr int kSegment = 64;  // products in one chain of additions

enum class WeightType : int32_t { float32, bfloat16, int8 };

struct LinearPack {
  RowsView weight;  // [N, K]
  WeightType type = WeightType::float32;
  void* packed = nullptr;  // [ceil(N/32), K, 32]
  Strided<float> scales;   // [N], int8 only: w = packed * scale
};

struct LinearSkinny {
  RowsView x;  // [T, K]
  WeightType type = WeightType::float32;
  const void* packed = nullptr;  // [ceil(N/32), K, 32]
  Strided<const float> scales;   // [N] or null
  Strided<const float> bias;     // [N] or null
  int64_t outputs = 0;           // N
  void* out = nullptr;           // [T, N], in the type of x
  int64_t out_stride = 0;        // elements between rows
};

}  // namespace specdec::cpu

SPECDEC_DECLARE_KERNEL(void, linear_pack, (const LinearPack& params))
SPECDEC_DECLARE_KERNEL(void, linear_skinny, (const LinearSkinny& params))
