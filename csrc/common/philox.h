// SPDX-License-Identifier: Apache-2.0
// The counter-based generator Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
// section 3.3) and the place of every random number: the key is the request's seed, the counter is (index, position,
// stream | depth << 8, node << 8 | draw).
#pragma once

#include <cstdint>

#include "views.h"

namespace specdec {

enum class Stream : uint32_t { target = 0, draft = 1, coin = 2, residual = 3 };

// Four words, each uniform over [0, 2^32).
struct PhiloxWords {
  uint32_t word[4];
};

// Everything of key and counter but the index.
struct Place {
  uint32_t key[2];
  uint32_t counter[3];  // words 1, 2 and 3
};

inline constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
inline constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
inline constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
inline constexpr int kPhiloxRounds = 10;

SPECDEC_SHARED PhiloxWords philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// All arguments are taken modulo 2^32, the seed modulo 2^64.
SPECDEC_SHARED Place make_place(int64_t seed, int64_t position, Stream stream, int64_t depth, int64_t node,
                                int64_t draw) {
  const uint64_t key = static_cast<uint64_t>(seed);
  return {{static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)},
          {static_cast<uint32_t>(position), static_cast<uint32_t>(stream) | static_cast<uint32_t>(depth) << 8,
           static_cast<uint32_t>(node) << 8 | static_cast<uint32_t>(draw)}};
}

SPECDEC_SHARED_CALL PhiloxWords words_at(const Place& place, uint32_t index) {
  return philox(index, place.counter[0], place.counter[1], place.counter[2], place.key[0], place.key[1]);
}

}  // namespace specdec
