// SPDX-License-Identifier: Apache-2.0
// float32 to the two 8-bit floats, the same bits everywhere: to nearest, ties to even; what is larger than the largest
// finite value, infinity included, becomes that; NaN becomes 0x7f.
#pragma once

#include <cstdint>
#include <cstring>

#include "views.h"

namespace specdec {

template <bool kE5M2>  // 5 bits of exponent and 2 of mantissa, else 4 and 3
SPECDEC_SHARED uint8_t to_float8(float value) {
  constexpr uint32_t kShift = kE5M2 ? 21 : 20;  // bits of a float's mantissa that go
  constexpr uint32_t kRebias = (kE5M2 ? 127u - 15 : 127u - 7) << 23;
  constexpr uint32_t kLeastNormal = (kE5M2 ? 127u - 14 : 127u - 6) << 23;
  constexpr uint32_t kMost = kE5M2 ? 0x47600000u : 0x43e00000u;        // 57344, 448
  constexpr uint32_t kAligned = (kE5M2 ? 127u + 7 : 127u + 14) << 23;  // its unit is that of the subnormal values
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = bits >> 24 & 0x80u, whole = bits & 0x7fffffffu;
  const uint32_t magnitude = whole < kMost ? whole : kMost;
  float aligned, positive;
  memcpy(&aligned, &kAligned, sizeof(aligned));
  memcpy(&positive, &magnitude, sizeof(positive));
  aligned += positive;
  uint32_t subnormal;
  memcpy(&subnormal, &aligned, sizeof(subnormal));
  subnormal -= kAligned;
  const uint32_t half = (1u << (kShift - 1)) - 1;
  const uint32_t normal = (magnitude + half + (magnitude >> kShift & 1) - kRebias) >> kShift;
  const uint32_t rounded = magnitude < kLeastNormal ? subnormal : normal;
  return static_cast<uint8_t>(whole > 0x7f800000u ? 0x7fu : rounded | sign);
}

}  // namespace specdec
