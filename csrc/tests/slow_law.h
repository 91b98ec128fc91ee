// SPDX-License-Identifier: Apache-2.0
// The processed law, its races and its residuals as they are defined (docs/verify.md, docs/randomness.md), in double
// precision over whole rows: what the kernels are held against.
//
// A weight carries a doubt: if every probability and cumulative mass were off by a relative e, it would be off by at
// most e times its doubt. So a decision has a margin, the smallest e that turns it; a kernel must decide the same where
// the margin is at least kTolerance.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "../common/philox.h"
#include "../common/sampling_law.h"

namespace specdec::testing {

constexpr double kTolerance = 1e-5;
constexpr double kClose = 2 * kTolerance;  // cases this close are carried along as uncertain
constexpr double kInfinity = std::numeric_limits<double>::infinity();

using Doubles = std::vector<double>;
using Ids = std::vector<int64_t>;

// The smallest margin of the decisions so far.
struct Margin {
  double value = kInfinity;
  bool close() const { return value < kTolerance; }
  void add(double margin) {
    if (!(margin >= value)) value = margin;  // NaN: nothing can be said
  }
};

// Weights w >= 0 with their doubts.
struct Mass {
  Doubles w, doubt;

  int64_t size() const { return static_cast<int64_t>(w.size()); }
  bool any() const {
    return std::any_of(w.begin(), w.end(), [](double x) { return x > 0; });
  }
  void remove(int64_t entry) { w[entry] = doubt[entry] = 0.0; }
  void normalise() {
    const double total = std::accumulate(w.begin(), w.end(), 0.0);
    if (!(total > 0)) return;
    const double slack = std::accumulate(doubt.begin(), doubt.end(), 0.0) / total;
    for (size_t i = 0; i < w.size(); ++i) {
      doubt[i] = (doubt[i] + w[i] * slack) / total;
      w[i] /= total;
    }
  }
  void subtract(const Mass& other) {
    for (size_t i = 0; i < w.size(); ++i) {
      w[i] -= other.w[i];
      doubt[i] += other.doubt[i];
      if (w[i] + kClose * doubt[i] <= 0) doubt[i] = 0.0;
      if (w[i] < 0) w[i] = 0.0;
    }
  }
};

// ---- The law ----

// Entries above -inf in the order (larger logit, then lower entry).
inline Ids ranking(const Doubles& logits) {
  Ids order;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > -kInfinity) order.push_back(static_cast<int64_t>(i));
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  return order;
}

// How many of the ranked weights a filter keeps, and the relative distance of each entry to the other fate.
struct Verdict {
  int64_t count;
  Doubles away;
};

inline Verdict by_top_k(const Doubles& w, int64_t count, const Settings& s) {
  return {s.top_k > 0 ? std::min<int64_t>(s.top_k, count) : count, Doubles(w.size(), kInfinity)};
}

inline Verdict by_top_p(const Doubles& w, int64_t count, const Settings& s) {
  Verdict verdict{count, Doubles(w.size(), kInfinity)};
  if (!(s.top_p < 1.0f)) return verdict;
  const double total = std::accumulate(w.begin(), w.begin() + count, 0.0), top_p = s.top_p;
  double sum = 0.0;
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double before = sum / total;
    kept += before < top_p;
    if (i > 0) verdict.away[i] = std::fabs(before - top_p) / std::max(before, top_p);
    sum += w[i];
  }
  verdict.count = std::max<int64_t>(kept, 1);
  return verdict;
}

inline Verdict by_min_p(const Doubles& w, int64_t count, const Settings& s) {
  Verdict verdict{count, Doubles(w.size(), kInfinity)};
  if (!(s.min_p > 0.0f)) return verdict;
  const double min_p = s.min_p;
  int64_t kept = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(w.size()); ++i) {
    kept += i < count && w[i] >= min_p;
    const bool sure = i == 0 || (min_p <= 1 && w[i] == 1.0);  // ties of the best stay, however exp is rounded
    if (!sure) verdict.away[i] = std::fabs(w[i] - min_p) / std::max(w[i], min_p);
  }
  verdict.count = std::max<int64_t>(kept, 1);
  return verdict;
}

// How many of the ranked weights stay; `flip` is how close each is to the other fate: what stays is lost if one filter
// turns, what goes is back only if all that drop it turn.
inline int64_t filter(const Doubles& w, const Settings& s, Doubles* flip) {
  const int64_t n = static_cast<int64_t>(w.size());
  std::vector<Verdict> verdicts;
  if (s.order == FilterOrder::top_k_first) {
    verdicts.push_back(by_top_k(w, n, s));
    verdicts.push_back(by_top_p(w, verdicts[0].count, s));
    verdicts.push_back(by_min_p(w, verdicts[1].count, s));
  } else if (s.order == FilterOrder::joint) {
    verdicts = {by_top_k(w, n, s), by_top_p(w, n, s), by_min_p(w, n, s)};
  } else {
    verdicts.push_back(by_min_p(w, n, s));
    verdicts.push_back(by_top_k(w, verdicts[0].count, s));
    verdicts.push_back(by_top_p(w, verdicts[1].count, s));
    const Doubles& away = verdicts[0].away;
    if (s.top_p < 1.0f && std::any_of(away.begin(), away.end(), [](double x) { return x < kClose; })) {
      // Top-p counts the mass of entries whose fate is uncertain.
      std::fill(verdicts[2].away.begin() + 1, verdicts[2].away.end(), 0.0);
    }
  }
  const int64_t kept = std::min({verdicts[0].count, verdicts[1].count, verdicts[2].count});
  flip->resize(w.size());
  for (int64_t i = 0; i < n; ++i) {
    double stays = kInfinity, back = 0.0;
    for (const Verdict& verdict : verdicts) {
      stays = std::min(stays, verdict.away[i]);
      if (i >= verdict.count) back = std::max(back, verdict.away[i]);
    }
    (*flip)[i] = i < kept ? stays : back;
  }
  return kept;
}

inline bool greedy(const Settings& s) { return !(s.temperature > 0.0f); }
inline bool filtered(const Settings& s) { return s.top_k > 0 || s.top_p < 1.0f || s.min_p > 0.0f; }

// Unnormalised weights of the processed law at a temperature above 0; `uncertain`: whether the fate of an entry is.
inline Mass law_of(const Doubles& logits, const Settings& s, bool* uncertain = nullptr) {
  Mass mass{Doubles(logits.size(), 0.0), Doubles(logits.size(), 0.0)};
  if (uncertain) *uncertain = false;
  const Ids order = ranking(logits);
  if (order.empty()) return mass;
  const double max = logits[order[0]];
  Doubles w;
  for (const int64_t entry : order) w.push_back(std::exp((logits[entry] - max) / s.temperature));
  Doubles flip(w.size(), kInfinity);
  const int64_t kept = filtered(s) ? filter(w, s, &flip) : static_cast<int64_t>(w.size());
  for (int64_t i = 0; i < static_cast<int64_t>(w.size()); ++i) {
    const bool near = flip[i] < kClose;
    if (near && uncertain) *uncertain = true;
    if (i < kept) mass.w[order[i]] = w[i];
    mass.doubt[order[i]] = w[i] * ((near ? 1.0 / std::max(flip[i], kClose * 1e-6) : 0.0) + (i < kept));
  }
  return mass;
}

// ---- Races and coins ----

inline double noise_of_word(uint32_t r) {
  if (r < 0x80000000u) return -std::log1p(-(r + 0.5) * 0x1p-32);
  return -std::log((static_cast<double>(~r) + 0.5) * 0x1p-32);
}
inline double noise_of_id(const Place& place, int64_t id) {
  return noise_of_word(words_at(place, static_cast<uint32_t>(id / 4)).word[id % 4]);
}
inline double noise_of_block(const Place& place, int64_t block) {
  return noise_of_word(words_at(place, 0x80000000u + static_cast<uint32_t>(block)).word[0]);
}

// The margin of a winner: entry x draws level at e if noise_x (w - e doubt) = noise (w_x + e doubt_x).
inline void add_winner(const Doubles& noise, const Mass& mass, int64_t winner, const std::vector<bool>& gone,
                       Margin* margin) {
  if (mass.w[winner] < 0x1p-1000) margin->add(0.0);  // double precision is short of digits
  for (int64_t i = 0; i < mass.size(); ++i) {
    if (i == winner || gone[i] || !(mass.w[i] > 0 || mass.doubt[i] > 0)) continue;
    const double ahead = noise[i] * mass.w[winner] - noise[winner] * mass.w[i];
    margin->add(ahead / (noise[i] * mass.doubt[winner] + noise[winner] * mass.doubt[i]));
  }
}

// The smallest noise / w, ties to the lowest; -1 if all weights are zero.
inline int64_t first_of(const Doubles& noise, const Mass& mass, const std::vector<bool>& gone, Margin* margin) {
  int64_t winner = -1;
  for (int64_t i = 0; i < mass.size(); ++i) {
    if (gone[i] || !(mass.w[i] > 0)) continue;
    if (winner < 0 || noise[i] / mass.w[i] < noise[winner] / mass.w[winner]) winner = i;
  }
  if (winner >= 0) {
    add_winner(noise, mass, winner, gone, margin);
  } else if (std::any_of(mass.doubt.begin(), mass.doubt.end(), [](double x) { return x > 0; })) {
    margin->add(0.0);  // nothing is left, although the fate of some was uncertain
  }
  return winner;
}

// An entry drawn in two levels; `ids` (ascending) are those of the entries. -1 if all weights are zero.
inline int64_t draw_of(const Mass& mass, const Place& place, const Ids& ids, Margin* margin) {
  Ids blocks;
  Mass sums;
  Doubles noise;
  std::vector<size_t> block_of(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!(mass.w[i] > 0 || mass.doubt[i] > 0)) continue;
    if (blocks.empty() || blocks.back() != ids[i] / 4096) {
      blocks.push_back(ids[i] / 4096);
      sums.w.push_back(0.0);
      sums.doubt.push_back(0.0);
      noise.push_back(noise_of_block(place, blocks.back()));
    }
    block_of[i] = blocks.size() - 1;
    sums.w.back() += mass.w[i];
    sums.doubt.back() += mass.doubt[i];
  }
  const int64_t winner = first_of(noise, sums, std::vector<bool>(blocks.size()), margin);
  if (winner < 0) return -1;
  Mass inside = mass;
  noise.assign(ids.size(), 0.0);
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool competes = mass.w[i] > 0 || mass.doubt[i] > 0;
    if (competes && block_of[i] == static_cast<size_t>(winner)) {
      noise[i] = noise_of_id(place, ids[i]);
    } else {
      inside.remove(static_cast<int64_t>(i));
    }
  }
  return first_of(noise, inside, std::vector<bool>(ids.size()), margin);
}

// The first `num` entries to arrive in one race of all.
inline Ids arrivals_of(const Mass& mass, const Place& place, int64_t num, const Ids& ids, Margin* margin) {
  Doubles noise;
  for (const int64_t id : ids) noise.push_back(noise_of_id(place, id));
  std::vector<bool> gone(ids.size());
  Ids chosen;
  while (static_cast<int64_t>(chosen.size()) < num) {
    Mass rest = mass;
    for (const int64_t entry : chosen) rest.remove(entry);
    const int64_t next = first_of(noise, rest, gone, margin);
    if (next < 0) break;
    gone[next] = true;
    chosen.push_back(next);
  }
  return chosen;
}

// Whether a draft is accepted.
inline bool toss(const Mass& p, const Mass& q, int64_t entry, const Place& place, Margin* margin) {
  const double u = (words_at(place, 0).word[0] + 0.5) * 0x1p-32;
  const double slack = p.doubt[entry] + u * q.doubt[entry];
  if (slack > 0) margin->add(std::fabs(p.w[entry] - u * q.w[entry]) / slack);
  return p.w[entry] > 0 && (p.w[entry] >= q.w[entry] || u * q.w[entry] < p.w[entry]);
}

}  // namespace specdec::testing
