// SPDX-License-Identifier: Apache-2.0
// The processed law of a row of logits. Every filter keeps a prefix of the order (larger logit, then lower id), so a
// law is a cut in that order, a temperature and a sum: id x has weight exp((l(x) - max) / T) if it is kept, else 0.
#pragma once

#include <cstdint>
#include <cstring>

#include "elementary.h"
#include "status.h"
#include "views.h"

namespace specdec {

inline constexpr int kMaxDraws = 256;  // of one row: the draw has eight bits in the counter

enum class FilterOrder : int32_t { top_k_first, joint, min_p_first };

// One request's settings.
struct Settings {
  float temperature = 1.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  FilterOrder order = FilterOrder::top_k_first;
};

// The settings of a batch; null views are off. A batch without temperatures is one of deterministic drafts.
struct SamplingView {
  Strided<float> temperature;
  Strided<int32_t> top_k;
  Strided<float> top_p;
  Strided<float> min_p;
  Strided<int64_t> seed;
  FilterOrder order = FilterOrder::top_k_first;

  SPECDEC_HD Settings of(int64_t request) const {
    Settings s;
    s.temperature = temperature ? temperature[request] : 0.0f;
    if (top_k) s.top_k = top_k[request];
    if (top_p) s.top_p = top_p[request];
    if (min_p) s.min_p = min_p[request];
    s.order = order;
    return s;
  }
};

// Where drafting ends, per request; null views and NaN are off.
struct StopsView {
  Strided<float> min_confidence;  // of the most probable id, or of the child that is meant
  Strided<float> max_entropy;     // in nats

  SPECDEC_HD explicit operator bool() const { return min_confidence || max_entropy; }
  SPECDEC_HD bool is_unlikely(int64_t request, double confidence) const {
    return min_confidence && confidence < min_confidence[request];
  }
  SPECDEC_HD bool is_uncertain(int64_t request, double entropy) const {
    return max_entropy && entropy > max_entropy[request];
  }
};

// Kept are ids with a larger logit, and of those with this logit the ids up to `id`.
struct Cut {
  float logit;
  int64_t id;
};

inline constexpr float kLargest = 0x1.fffffep127f;
inline constexpr int64_t kLastId = INT64_MAX;

// Written so that a NaN has the meaning of "off"; for the temperature that of 0.
SPECDEC_SHARED bool is_greedy(const Settings& s) { return !(s.temperature > 0.0f); }
SPECDEC_SHARED bool has_top_k(const Settings& s) { return s.top_k > 0; }
SPECDEC_SHARED bool has_top_p(const Settings& s) { return s.top_p < 1.0f; }
SPECDEC_SHARED bool has_min_p(const Settings& s) { return s.min_p > 0.0f; }
SPECDEC_SHARED bool has_filter(const Settings& s) { return has_top_k(s) || has_top_p(s) || has_min_p(s); }

// Every finite logit is kept.
SPECDEC_SHARED Cut no_cut() { return {-kLargest, kLastId}; }

SPECDEC_SHARED bool is_kept(const Cut& cut, float logit, int64_t id) {
  return logit > cut.logit || (logit == cut.logit && id <= cut.id);
}

// The intersection of two prefixes is the shorter one.
SPECDEC_SHARED Cut stricter(const Cut& a, const Cut& b) {
  if (a.logit != b.logit) return a.logit > b.logit ? a : b;
  return a.id < b.id ? a : b;
}

// Floats as integers in the same order, both zeros as 0.
SPECDEC_SHARED int32_t ordered(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits >= 0 ? bits : -(bits & 0x7fffffff);
}

SPECDEC_SHARED float from_ordered(int32_t key) {
  const int32_t bits = key >= 0 ? key : static_cast<int32_t>(0x80000000u | static_cast<uint32_t>(-key));
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// exp((l - max) / T) of a finite logit.
SPECDEC_SHARED double weight_of(float logit, float max, float temperature) {
  return exp_double((static_cast<double>(logit) - max) / temperature);
}

// min-p keeps weights >= min_p. The weight grows with the logit, so that is a smallest logit, found by bisection over
// the floats. The best id stays, whatever min_p is.
SPECDEC_SHARED_CALL Cut min_p_cut(float max, float temperature, float min_p, int64_t best_id) {
  if (min_p > 1.0f) return {max, best_id};
  int32_t low = ordered(-kLargest) - 1, high = ordered(max);  // high is kept, low is not
  const auto narrow = [&](int64_t key) {
    if (key <= low || key >= high) return;
    const bool kept = weight_of(from_ordered(static_cast<int32_t>(key)), max, temperature) >= min_p;
    (kept ? high : low) = static_cast<int32_t>(key);
  };
  // Near where the inverse of the weight says; wherever that is, it only narrows the bracket.
  const int64_t near = ordered(static_cast<float>(max + temperature * log_double(min_p)));
  narrow(near - 16);
  narrow(near + 16);
  while (static_cast<int64_t>(high) - low > 1) narrow((static_cast<int64_t>(high) + low) >> 1);
  return {from_ordered(high), kLastId};
}

}  // namespace specdec
