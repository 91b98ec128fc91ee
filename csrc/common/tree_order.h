// SPDX-License-Identifier: Apache-2.0
// The orders in which builders choose nodes, as integer keys: the smaller key comes first, no two nodes of a request
// have the same one, and a parent comes before its children.
#pragma once

#include <cstdint>

#include "sampling_law.h"
#include "views.h"

namespace specdec {

inline constexpr int kMaxTreeNodes = 1024;  // of a request, the root included
inline constexpr int kMaxPool = 4096;       // candidates of a request
inline constexpr int kMaxExpand = 64;       // children of a beam, and beams of a request

inline constexpr float kAbsent = -__builtin_inff();  // the score of what is not there
inline constexpr uint64_t kLastKey = UINT64_MAX;     // after the key of every node

// Whether an id stands for a token; others make a root idle and a candidate absent.
SPECDEC_SHARED bool is_token(int64_t id) { return id >= 0 && id <= INT32_MAX; }

// Larger scores first; both zeros alike. Not for NaN.
SPECDEC_SHARED uint32_t score_key(float score) { return ~(static_cast<uint32_t>(ordered(score)) ^ 0x80000000u); }

// The score in the upper half of a key.
SPECDEC_SHARED float score_of_key(uint64_t key) {
  return from_ordered(static_cast<int32_t>(~static_cast<uint32_t>(key >> 32) ^ 0x80000000u));
}

// from_beams: score descending, depth ascending (1 to kMaxPool), pool index ascending (below kMaxPool).
SPECDEC_SHARED uint64_t beam_key(float score, int32_t depth, int32_t index) {
  return static_cast<uint64_t>(score_key(score)) << 24 | static_cast<uint64_t>(depth - 1) << 12 |
         static_cast<uint64_t>(index);
}
SPECDEC_SHARED int32_t index_of_beam_key(uint64_t key) { return static_cast<int32_t>(key & 0xfff); }

// best_first: score descending, depth ascending (1 to kMaxTreeNodes - 1), then the better parent (its place among the
// nodes of its depth, or any number that is in the same order), then the better rank. Ranks that are absent are not
// counted, so that place and rank are below kMaxTreeNodes wherever a node can still be chosen.
SPECDEC_SHARED uint64_t best_first_key(float score, int32_t depth, int32_t parent, int32_t rank) {
  return static_cast<uint64_t>(score_key(score)) << 32 | static_cast<uint64_t>(depth) << 22 |
         static_cast<uint64_t>(parent) << 11 | static_cast<uint64_t>(rank);
}
SPECDEC_SHARED int32_t depth_of_key(uint64_t key) { return static_cast<int32_t>(key >> 22 & 0x3ff); }
SPECDEC_SHARED int32_t parent_of_key(uint64_t key) { return static_cast<int32_t>(key >> 11 & 0x7ff); }
SPECDEC_SHARED int32_t rank_of_key(uint64_t key) { return static_cast<int32_t>(key & 0x7ff); }

// best_first over a batch: nodes of all requests by score descending, then depth ascending. Where this is equal, the
// lower request comes first, and within it the order is its own.
SPECDEC_SHARED uint64_t batch_key(float score, int32_t depth) {
  return static_cast<uint64_t>(score_key(score)) << 32 | static_cast<uint64_t>(depth);
}

// expand: score descending, then column ascending (below kMaxExpand * kMaxExpand).
SPECDEC_SHARED uint64_t child_key(float score, int32_t column) {
  return static_cast<uint64_t>(score_key(score)) << 32 | static_cast<uint64_t>(column);
}

// A log-probability made safe: at most the one of the rank before (0 before the first), NaN as -inf. Ranks are taken in
// order, whatever their ids.
SPECDEC_SHARED float safe_log_prob(float before, float log_prob) {
  if (log_prob <= before) return log_prob;
  return log_prob > before ? before : kAbsent;
}

// A score or a log-probability, NaN as -inf.
SPECDEC_SHARED float safe_score(float score) { return score > kAbsent ? score : kAbsent; }

}  // namespace specdec
