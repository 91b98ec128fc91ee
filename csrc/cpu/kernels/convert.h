// SPDX-License-Identifier: Apache-2.0
// Conversions between float32 and the types of activations and weights. Widening is exact; narrowing rounds to nearest,
// ties to even; NaN stays NaN.
#pragma once

#include <cstddef>

#include "../simd.h"

SPECDEC_ISA_BEGIN

static inline uint32_t float_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

static inline float bits_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

static inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return (uint16_t)(nan ? (bits >> 16) | 0x40u : rounded);
}

static inline uint16_t to_float16(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the unit is 2^-24, which is the unit of the floats in [0.5, 1).
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  if (magnitude >= 0x47800000u) half = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return (uint16_t)(half | (bits >> 16 & 0x8000u));
}

// Rounded to the nearest integer, ties to even, and kept in [-127, 127]; NaN is 0.
static inline int8_t to_int8(float value) {
  if (!(value > -127.5f)) return value <= -127.5f ? -127 : 0;
  if (value >= 127) return 127;
  // Adding 1.5 * 2^23 leaves no bits for a fraction.
  const float shifted = value + 12582912.0f;
  return (int8_t)(int)(shifted - 12582912.0f);
}

SPECDEC_LANES F16 load_lanes(FloatType type, const void* data, int64_t offset) {
  switch (type) {
    case FloatType::bfloat16:
      return load_bfloat16(static_cast<const uint16_t*>(data) + offset);
    case FloatType::float16:
      return load_float16(static_cast<const uint16_t*>(data) + offset);
    default:
      return load(static_cast<const float*>(data) + offset);
  }
}

// `count` values from element `offset` on, as float32.
static inline void load_floats(const RowsView& from, int64_t offset, int count, float* to) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load_lanes(from.type, from.data, offset + i));
  if (i == count) return;
  // The rest through a buffer, so that nothing is read beyond the row.
  alignas(64) float rest[kLanes] = {};
  const size_t element = from.type == FloatType::float32 ? 4 : 2;
  __builtin_memcpy(rest, static_cast<const char*>(from.data) + (offset + i) * element, (count - i) * element);
  alignas(64) float wide[kLanes];
  store(wide, load_lanes(from.type, rest, 0));
  for (int j = 0; i + j < count; ++j) to[i + j] = wide[j];
}

// `count` values as `type`, to element `offset` on.
static inline void store_floats(const float* from, int count, FloatType type, void* to, int64_t offset) {
  switch (type) {
    case FloatType::bfloat16:
      for (int i = 0; i < count; ++i) static_cast<uint16_t*>(to)[offset + i] = to_bfloat16(from[i]);
      return;
    case FloatType::float16:
      for (int i = 0; i < count; ++i) static_cast<uint16_t*>(to)[offset + i] = to_float16(from[i]);
      return;
    default:
      for (int i = 0; i < count; ++i) static_cast<float*>(to)[offset + i] = from[i];
  }
}

SPECDEC_ISA_END
