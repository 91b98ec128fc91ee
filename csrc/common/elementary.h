// SPDX-License-Identifier: Apache-2.0
// exp and log in double precision, the same bits on every machine: the C library's differ from version to version and
// from processor to processor. Error below 1 unit in the last place of the result, two for subnormal ones.
#pragma once

#include <cstdint>
#include <cstring>

#include "views.h"

namespace specdec {

inline constexpr double kLn2High = 6.93147180369123816490e-01;  // 32 bits: products with an exponent are exact
inline constexpr double kLn2Low = 1.90821492927058770002e-10;
inline constexpr double kLog2E = 1.44269504088896340736;

SPECDEC_SHARED double double_from_bits(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

SPECDEC_SHARED uint64_t bits_of_double(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// exp(x) for x <= 0; 0 below -745.2, for -inf and for NaN.
SPECDEC_SHARED_CALL double exp_double(double x) {
  if (!(x > -745.2)) return 0.0;
  const int32_t n = static_cast<int32_t>(x * kLog2E - 0.5);
  const double r = (x - n * kLn2High) - n * kLn2Low;  // |r| <= 0.35
  // Taylor's series to r^13 / 13!: the next term is below 5e-18.
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r * r + r + 1.0;
  if (n >= -1022) return p * double_from_bits(static_cast<uint64_t>(1023 + n) << 52);
  return p * double_from_bits(static_cast<uint64_t>(1023 + n + 600) << 52) * 0x1p-600;
}

// log(x) for normal x > 0.
SPECDEC_SHARED_CALL double log_double(double x) {
  const uint64_t bits = bits_of_double(x);
  int32_t n = static_cast<int32_t>(bits >> 52) - 1023;
  double m = double_from_bits((bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    n += 1;
  }
  // log(m) = 2 atanh(s) = 2 (s + s^3/3 + s^5/5 + ...), |s| <= 0.172: the term after s^21 is below 2e-19.
  const double f = m - 1.0;
  const double s = f / (m + 1.0);
  const double z = s * s;
  double p = 2.0 / 21.0;
  p = p * z + 2.0 / 19.0;
  p = p * z + 2.0 / 17.0;
  p = p * z + 2.0 / 15.0;
  p = p * z + 2.0 / 13.0;
  p = p * z + 2.0 / 11.0;
  p = p * z + 2.0 / 9.0;
  p = p * z + 2.0 / 7.0;
  p = p * z + 2.0 / 5.0;
  p = p * z + 2.0 / 3.0;
  return n * kLn2High + (2.0 * s + (s * z * p + n * kLn2Low));
}

}  // namespace specdec
