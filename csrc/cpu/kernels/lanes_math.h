// SPDX-License-Identifier: Apache-2.0
// Exponentials, logarithms and random numbers for sixteen lanes in single precision. They are fast estimates with a
// relative error below 1e-6 (2^t below that of its argument), the same bits on every instruction set; where a decision
// hangs on the last digits, the double precision of csrc/common/ has the final word.
#pragma once

#include "../../common/race.h"
#include "../simd.h"

SPECDEC_ISA_BEGIN

// 2^t for t in [-126, 0]; exactly 1 at 0.
SPECDEC_LANES F16 exp2_in_range(const F16& t) {
  // Adding 1.5 * 2^23 rounds to an integer, which is left in the low bits.
  const F16 magic = broadcast(12582912.0f);
  const F16 shifted = t + magic;
  const F16 f = t - (shifted - magic);  // in [-0.5, 0.5]
  // Minimax for 2^f = 1 + f g(f), relative error 9e-8.
  F16 p = broadcast(0x1.5bba14p-10f);
  p = p * f + broadcast(0x1.3cea88p-7f);
  p = p * f + broadcast(0x1.c6b752p-5f);
  p = p * f + broadcast(0x1.ebf9bcp-3f);
  p = p * f + broadcast(0x1.62e42ap-1f);
  p = p * f + broadcast(1.0f);
  return bits_as<F16>(bits_as<U16>(p) + (bits_as<U16>(shifted) << 23));
}

// The same for all t <= 0: 0 below -126, for -inf and for NaN.
SPECDEC_LANES F16 exp2_lanes(const F16& t) { return keep(t >= broadcast(-126.0f), exp2_in_range(t)); }

// Splits normal x > 0 into m 2^e with m in [0.707, 1.414).
SPECDEC_LANES F16 split(const F16& x, F16& exponent) {
  const I16 offset = bits_as<I16>(x) - broadcast_int(0x3f3504f3);
  const I16 e = offset >> 23;
  exponent = to_float(e);
  return bits_as<F16>(bits_as<U16>(x) - (bits_as<U16>(e) << 23));
}

// log2 of normal x > 0: 2 / ln 2 times the series of atanh((m - 1) / (m + 1)), whose argument is at most 0.172.
SPECDEC_LANES F16 log2_lanes(const F16& x) {
  F16 e;
  const F16 m = split(x, e);
  const F16 one = broadcast(1.0f);
  const F16 s = (m - one) / (m + one);
  const F16 z = s * s;
  F16 p = broadcast(2.885390082f / 9);
  p = p * z + broadcast(2.885390082f / 7);
  p = p * z + broadcast(2.885390082f / 5);
  p = p * z + broadcast(2.885390082f / 3);
  p = p * z + broadcast(2.885390082f);
  return e + s * p;
}

// E(r) of csrc/common/race.h. Both ends go through 2 atanh(s): below 2^31 -log(1 - v) with s = v / (2 - v), above it
// -log(v) with s = (1 - m) / (1 + m) of v = m 2^e; v = (min(r, ~r) + 0.5) 2^-32.
SPECDEC_LANES F16 exponential_lanes(const U16& r) {
  const I16 upper = bits_as<I16>(r) >> 31;
  const F16 half = broadcast(0.5f), one = broadcast(1.0f);
  const F16 v = (to_float(bits_as<I16>(r ^ bits_as<U16>(upper))) + half) * broadcast(0x1p-32f);
  F16 e;
  const F16 m = split(v, e);
  const F16 s = select(upper, one - m, v) / select(upper, one + m, one + one - v);
  const F16 z = s * s;  // at most 1/9
  F16 p = broadcast(2.0f / 13);
  p = p * z + broadcast(2.0f / 11);
  p = p * z + broadcast(2.0f / 9);
  p = p * z + broadcast(2.0f / 7);
  p = p * z + broadcast(2.0f / 5);
  p = p * z + broadcast(2.0f / 3);
  p = p * z + broadcast(2.0f);
  return s * p + keep(upper, e * broadcast(-0.693147181f));
}

// The four words of sixteen consecutive indices.
SPECDEC_LANES void philox_lanes(const Place& place, uint32_t first, U16 (&words)[4]) {
  static constexpr uint32_t kCount[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  U16 c0 = load_as<U16>(kCount) + broadcast_uint(first);
  U16 c1 = broadcast_uint(place.counter[0]), c2 = broadcast_uint(place.counter[1]);
  U16 c3 = broadcast_uint(place.counter[2]);
  uint32_t k0 = place.key[0], k1 = place.key[1];
  for (int round = 0; round < kPhiloxRounds; ++round) {
    U16 high0, high1;
    const U16 low0 = multiply_wide(c0, kPhiloxMultiplier0, high0);
    const U16 low1 = multiply_wide(c2, kPhiloxMultiplier1, high1);
    c0 = high1 ^ c1 ^ broadcast_uint(k0);
    c1 = low1;
    c2 = high0 ^ c3 ^ broadcast_uint(k1);
    c3 = low0;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

inline constexpr int kNoiseIds = 4 * kLanes;

// The random words of ids `first` to `first + 63`; `first` is a multiple of 4.
SPECDEC_LANES void noise_of_ids(const Place& place, int64_t first, uint32_t (&noise)[kNoiseIds]) {
  U16 words[4];
  philox_lanes(place, static_cast<uint32_t>(first / 4), words);
  alignas(64) uint32_t flat[4][kLanes];
  for (int j = 0; j < 4; ++j) store_as(flat[j], words[j]);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < 4; ++j) noise[4 * i + j] = flat[j][i];
  }
}

// E of one id in double precision.
static inline double exponential_of_id(const Place& place, int64_t id) {
  return exponential(words_at(place, static_cast<uint32_t>(id / 4)).word[id % 4]);
}

SPECDEC_ISA_END
