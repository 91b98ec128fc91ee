// SPDX-License-Identifier: Apache-2.0
// The exponential race: of scores E / w with independent exponentials E, the smallest is that of x with probability
// w(x) / sum w. It runs in two levels: blocks of ids with their masses, then the ids of the winning block.
#pragma once

#include <cstdint>

#include "elementary.h"
#include "philox.h"

namespace specdec {

inline constexpr int kBlockIds = 4096;
inline constexpr uint32_t kBlockIndex = 0x80000000u;  // index of block b: kBlockIndex + b, word 0

// E(r) = -log(1 - (r + 0.5) 2^-32). One minus that is (~r + 0.5) 2^-32, exact in double precision, so that one formula
// keeps full relative precision at both ends: never 0, never infinite, between 1.16e-10 and 22.9.
SPECDEC_SHARED double exponential(uint32_t r) { return -log_double((static_cast<double>(~r) + 0.5) * 0x1p-32); }

// A coin in (0, 1).
SPECDEC_SHARED double coin_at(const Place& place) {
  return (static_cast<double>(words_at(place, 0).word[0]) + 0.5) * 0x1p-32;
}

SPECDEC_SHARED double block_exponential(const Place& place, int64_t block) {
  return exponential(words_at(place, kBlockIndex + static_cast<uint32_t>(block)).word[0]);
}

// Whether a draft of probability q is accepted for a target probability p, with probability min(1, p / q).
SPECDEC_SHARED bool accepts(double p, double q, double u) { return p > 0.0 && (p >= q || u * q < p); }

}  // namespace specdec
